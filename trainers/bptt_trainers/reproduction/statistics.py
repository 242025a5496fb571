"""Statistics over runs that differ in their seed, in the manner of rliable (Agarwal et al., NeurIPS 2021).

Losses may be infinite: a run that diverged counts as worse than any that did not. Intervals are percentile bootstrap
intervals (Efron 1979) over `RESAMPLES` resamples, always of the same seed: the same runs give the same interval. Of few
runs they are too narrow, above all where one side is wholly better than the other: then the interval is [1, 1], with 2
runs a side as with 20. Below `FEW` runs a side nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt_trainers.comparison_table import CLIMB
from bptt_trainers.reproduction.results import Result

RESAMPLES = 10_000
SEED = 0
COVERAGE = 0.95
FEW = 5  # with fewer runs a side there is no verdict

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
    """

    probability: float
    low: float
    high: float
    runs: tuple[int, int]

    @property
    def too_few(self) -> bool:
        """Whether a side has too few runs for a claim."""
        return min(self.runs) < FEW

    @property
    def verdict(self) -> Verdict:
        """Whether the one method is better: its interval above 0.5, "yes", below it, "no", else "open"."""
        if self.too_few:
            return "too few"
        return "yes" if self.low > 0.5 else "no" if self.high < 0.5 else "open"


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
    ordered = np.sort(_losses(values))
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    least, most = float(ordered[below]), float(ordered[math.ceil(place)])
    return least if least == most else least + (place - below) * (most - least)


def spread(values: ArrayLike) -> Spread:
    """Median with quartiles, and mean with its bootstrap interval, of losses (runs,)."""
    losses = _losses(values)
    low, high = mean_interval(losses)
    median, lower, upper = (quantile(losses, share) for share in (0.5, 0.25, 0.75))
    return Spread(len(losses), median, lower, upper, float(losses.mean()), low, high)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """The bootstrap interval of the mean of losses (runs,); infinite where resamples hold an infinite loss."""
    losses = _losses(values)
    counts, _ = _resamples(len(losses), 1)
    infinite = np.isinf(losses)
    means = counts @ np.where(infinite, 0.0, losses) / len(losses)
    return _interval(np.where(counts[:, infinite].any(axis=1), math.inf, means))


def share_at_or_below(values: ArrayLike, loss: float) -> float:
    """The share of losses (runs,) that are at or below one."""
    return float((_losses(values) <= loss).mean())


def improvement(of: ArrayLike, over: ArrayLike) -> Improvement:
    """The probability of improvement of one method over another: P(X < Y) + P(X = Y) / 2.

    X is the loss of a run of the one and Y that of a run of the other, over all pairs of them (Agarwal et al. 2021,
    section 4.3; the statistic of Mann and Whitney). For the interval the runs of each side are resampled.

    Args:
        of: losses (runs,) of the method that may be better; two infinite losses are equal.
        over: losses (runs,) of the other.
    """
    ours, theirs = _losses(of), _losses(over)
    wins = (ours[:, None] < theirs) + 0.5 * (ours[:, None] == theirs)
    counts, other_counts = _resamples(len(ours), len(theirs))
    low, high = _interval(((counts @ wins) * other_counts).sum(axis=1) / wins.size)
    return Improvement(float(wins.sum() / wins.size), low, high, (len(ours), len(theirs)))


def climbed_back(result: Result) -> bool:
    """Whether the loss at the end is more than 3 times that where the training loss was lowest."""
    return result.final_loss > CLIMB * result.best_loss


@lru_cache(maxsize=64)
def _resamples(runs: int, other_runs: int) -> tuple[Values, Values]:
    """How often each run of two independent sides is in each resample: (RESAMPLES, runs), (RESAMPLES, other_runs)."""
    generator = np.random.default_rng(SEED)
    one, other = (generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in (runs, other_runs))
    return one.astype(float), other.astype(float)


def _interval(values: Values) -> tuple[float, float]:
    tail = (1 - COVERAGE) / 2
    return quantile(values, tail), quantile(values, 1 - tail)


def _losses(values: ArrayLike) -> Values:
    losses = np.asarray(values, dtype=float)
    if losses.ndim != 1 or losses.size == 0 or np.isnan(losses).any():
        raise ValueError(
            f"values must be one or more losses in a row, none of them NaN (a run without one: inf); got {values!r}."
        )
    return losses
