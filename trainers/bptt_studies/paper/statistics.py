"""Statistics over runs that differ in their seed, in the manner of rliable (Agarwal et al., NeurIPS 2021).

Losses may be infinite: a run that diverged counts as worse than any that did not. Intervals are percentile bootstrap
intervals (Efron 1979) over `RESAMPLES` resamples, always of the same seed: the same runs give the same interval. Of few
runs they are too narrow, above all where one side is wholly better than the other: then the interval is [1, 1], with 2
runs a side as with 20. So an interval describes, and a verdict comes from `verdicts`: an exact test, corrected for how
many comparisons there are. What is said of several tasks together is in across_tasks.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from bptt_studies.paper.results import Result
from bptt_trainers.comparison.summary import CLIMB, Evaluation, reached

RESAMPLES = 10_000
SEED = 0
COVERAGE = 0.95
LEVEL = 0.05  # how often verdicts made together may hold a false one
FEW = 4  # with fewer runs a side there is no verdict, not even on one comparison alone
ENOUGH = 10  # a verdict on fewer runs a side is marked
SMOOTHED = 30  # epochs; the paper's curves are trailing means over so many

MEASURES = {"final": "final_loss", "best": "best_loss", "area": "mean_loss"}
"""The three measures of a run: at the end; where the training loss is lowest; the geometric mean over the curve."""

Verdict = Literal["yes", "no", "open", "too few"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The losses of the runs of a method in numbers.

    Attributes:
        runs: how many there are.
        median: over the runs.
        lower: first quartile.
        upper: third quartile.
        mean: over the runs; infinite if one is.
        mean_low: where the bootstrap interval of the mean begins.
        mean_high: where it ends.
    """

    runs: int
    median: float
    lower: float
    upper: float
    mean: float
    mean_low: float
    mean_high: float

    @property
    def too_few(self) -> bool:
        """Whether these are too few runs for a claim."""
        return self.runs < FEW


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of one method ends lower than a run of another.

    Attributes:
        probability: from 0 to 1; 0.5 between equals.
        low: where its bootstrap interval begins.
        high: where it ends.
        runs: of the one method, and of the other.
        p: of the exact test, not corrected for other comparisons.
        ways: in how many the runs can be dealt to the two methods, within each task.
    """

    probability: float
    low: float
    high: float
    runs: tuple[int, int]
    p: float
    ways: int

    @property
    def marked(self) -> bool:
        """Whether a side has so few runs that a verdict has to say so."""
        return min(self.runs) < ENOUGH

    @property
    def least_p(self) -> float:
        """The smallest p that so many runs can have: every run of one side better than every run of the other."""
        return min(1.0, 2 / self.ways)


def measured(results: Sequence[Result], measure: str) -> Values | None:
    """A measure of each run.

    Args:
        results: the runs, at least one.
        measure: one of `MEASURES`.

    Returns:
        (runs,), infinite where a run has none; None if no run has it, as reinforcement learning has no best.
    """
    values = np.array([getattr(result, MEASURES[measure]) for result in results], dtype=float)
    missing = np.isnan(values)
    return None if missing.all() else np.where(missing, math.inf, values)


def quantile(values: ArrayLike, share: float) -> float:
    """A quantile, linear between the two values around it (type 7 of Hyndman and Fan 1996), as numpy has it.

    Args:
        values: (n,), at least one, infinite ones too: between a finite and an infinite value it is infinite.
        share: from 0 to 1.
    """
    ordered = np.sort(losses_of_runs(values))
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    least, most = float(ordered[below]), float(ordered[math.ceil(place)])
    return least if least == most else least + (place - below) * (most - least)


def spread(values: ArrayLike) -> Spread:
    """Median with quartiles, and mean with its bootstrap interval, of losses (runs,)."""
    losses = losses_of_runs(values)
    low, high = mean_interval(losses)
    median, lower, upper = (quantile(losses, share) for share in (0.5, 0.25, 0.75))
    return Spread(len(losses), median, lower, upper, float(losses.mean()), low, high)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """The bootstrap interval of the mean of losses (runs,); infinite where resamples hold an infinite loss."""
    losses = losses_of_runs(values)
    counts, _ = _resamples(len(losses), 1)
    infinite = np.isinf(losses)
    means = counts @ np.where(infinite, 0.0, losses) / len(losses)
    return interval(np.where(counts[:, infinite].any(axis=1), math.inf, means))


def share_at_or_below(values: ArrayLike, loss: float) -> float:
    """The share of losses (runs,) that are at or below one."""
    return float((losses_of_runs(values) <= loss).mean())


def improvement(of: ArrayLike, over: ArrayLike) -> Improvement:
    """The probability of improvement of one method over another: P(X < Y) + P(X = Y) / 2.

    X is the loss of a run of the one and Y that of a run of the other, over all pairs of them (Agarwal et al. 2021,
    section 4.3; the statistic of Mann and Whitney). For the interval the runs of each side are resampled, each apart.

    Args:
        of: losses (runs,) of the method that may be better; two infinite losses are equal.
        over: losses (runs,) of the other.
    """
    ours, theirs = losses_of_runs(of), losses_of_runs(over)
    won = wins(ours, theirs)
    counts, other_counts = _resamples(len(ours), len(theirs))
    low, high = interval(((counts @ won) * other_counts).sum(axis=1) / won.size)
    runs = len(ours), len(theirs)
    return Improvement(float(won.mean()), low, high, runs, exact_test([(ours, theirs)]), math.comb(sum(runs), runs[0]))


def wins(ours: Values, theirs: Values) -> Values:
    """1 where a run of the one, (n,), has a lower loss than a run of the other, (m,); 1/2 between equals: (n, m)."""
    return np.where(ours[:, None] == theirs, 0.5, ours[:, None] < theirs)


def exact_test(sides: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """The p-value of an exact two-sided test: could two methods be equals?

    If they are, every way to deal the runs of a task to two sides of these sizes is equally likely, on each task apart.
    p is twice the share of the ways in which the mean over the tasks of the probability of improvement is as extreme as
    the one found, at its end. On one task that is the test of Mann and Whitney (1947), on several one of the kind of
    van Elteren (1960), in which all tasks count alike. With ties, too, this is the exact distribution, no approximation
    by a normal one.

    Args:
        sides: of each task the losses (runs,) of the one method and those of the other; two infinite losses are equal.

    Returns:
        From 2 / the product over the tasks of C(n + m, n), if every run of one side is better than every run of the
        other on each, to 1.
    """
    dealt = [_ways_to_win(losses_of_runs(of), losses_of_runs(over)) for of, over in sides]
    whole = math.lcm(*(len(ways) - 1 for ways, _ in dealt))
    shares, found = np.ones(1), 0
    for ways, place in dealt:
        step = whole // (len(ways) - 1)
        longer = np.zeros(len(shares) + whole)
        for i, share in enumerate(ways / ways.sum()):
            longer[i * step : i * step + len(shares)] += share * shares
        shares = longer
        found += place * step
    return float(min(1.0, 2 * min(shares[: found + 1].sum(), shares[found:].sum())))


def _ways_to_win(ours: Values, theirs: Values) -> tuple[Values, int]:
    """How many ways to deal all runs give each of twice the pairs won, (2 n m + 1,), and which of these was found."""
    runs, pairs = len(ours), len(ours) * len(theirs)
    ranks = np.rint(2 * rankdata(np.concatenate([ours, theirs]))).astype(int)  # twice the ranks: whole numbers
    ways = np.zeros((runs + 1, int(ranks.sum()) + 1))  # of choosing so many of the runs so far with such a sum
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    least = runs * (runs + 1)  # the sum where all pairs are won
    return ways[-1, least : least + 2 * pairs + 1][::-1], 2 * pairs - (int(ranks[:runs].sum()) - least)


def holm(p_values: ArrayLike) -> Values:
    """The p-values of a family of tests, corrected for their number by the method of Holm (1979).

    If all those below a level are called significant, the probability that there is a false one among them is at most
    that level, however the tests depend on each other.

    Args:
        p_values: (tests,), from 0 to 1.

    Returns:
        (tests,), in the same order, at most 1.
    """
    values = np.asarray(p_values, dtype=float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values must be numbers from 0 to 1 in a row; got {p_values!r}.")
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return corrected


def verdicts(comparisons: Sequence[Improvement]) -> list[Verdict]:
    """Say of each comparison of a family whether the one method is better than the other.

    "yes" or "no" if the exact test, corrected by Holm's method, is significant at `LEVEL`; "open" if it is not; "too
    few" if no outcome with so few runs could be. Comparisons of the last kind are told by their numbers of runs alone,
    before any loss is looked at, and so do not count in the family (Tarone 1990): it is the largest one in which
    `Improvement.least_p` times the number of comparisons is at most `LEVEL` for each.

    Args:
        comparisons: all that are made together, each once.

    Returns:
        A verdict for each, in the same order. The probability that a "yes" or "no" is among them where two methods are
        equals is at most `LEVEL`.
    """
    least = np.array([one.least_p for one in comparisons])
    family = np.zeros(len(comparisons), dtype=bool)
    for bound in np.unique(least):
        if bound * (least <= bound).sum() <= LEVEL:
            family = least <= bound
    corrected = np.ones(len(comparisons))
    corrected[family] = holm([one.p for one, counts in zip(comparisons, family, strict=True) if counts])
    found: list[Verdict] = []
    for one, counts, p in zip(comparisons, family, corrected, strict=True):
        decided: Verdict = "open" if p > LEVEL else "yes" if one.probability > 0.5 else "no"
        found.append(decided if counts else "too few")
    return found


def to_level(curves: Sequence[Sequence[Evaluation]], loss: float) -> tuple[Values, Values]:
    """When runs first had a held-out loss of at most this one: simulator steps (runs,), seconds of training (runs,).

    Both are infinite of a run that never had, so that it counts in a median over all seeds (`quantile`), and in a
    comparison of two methods (`improvement`), as one that takes forever.
    """
    steps, seconds = np.array([reached(curve, loss) for curve in curves], dtype=float).reshape(-1, 2).T
    return steps, seconds


def trailing_mean(losses: ArrayLike, window: int = SMOOTHED) -> Values:
    """Smooth a curve as those of the paper are: the mean over this point and those before it, a window in all.

    Args:
        losses: (points,); infinite ones make every mean that holds them infinite.
        window: how many points a mean is over; at the start of the curve over as many as there are.
    """
    values = losses_of_runs(losses)
    return np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values) + 1)])


def climbed_back(result: Result) -> bool:
    """Whether the loss at the end is more than 3 times that where the training loss was lowest."""
    return result.final_loss > CLIMB * result.best_loss


@lru_cache(maxsize=64)
def _resamples(runs: int, other_runs: int) -> tuple[Values, Values]:
    """How often each run of two independent sides is in each resample: (RESAMPLES, runs), (RESAMPLES, other_runs)."""
    generator = np.random.default_rng(SEED)
    one, other = (generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in (runs, other_runs))
    return one.astype(float), other.astype(float)


def interval(values: Values) -> tuple[float, float]:
    """Between which two values the middle 95 % of resampled ones (resamples,) lie."""
    tail = (1 - COVERAGE) / 2
    return quantile(values, tail), quantile(values, 1 - tail)


def losses_of_runs(values: ArrayLike) -> Values:
    """Losses (runs,), at least one, none of them NaN.

    Raises:
        ValueError: if they are not that.
    """
    losses = np.asarray(values, dtype=float)
    if losses.ndim != 1 or losses.size == 0 or np.isnan(losses).any():
        raise ValueError(
            f"values must be one or more losses in a row, none of them NaN (a run without one: inf); got {values!r}."
        )
    return losses
