"""Statistics over several tasks together, as rliable has them (Agarwal et al., NeurIPS 2021, section 4).

Intervals and bands are percentile intervals of a stratified bootstrap: in each of `RESAMPLES` resamples the runs of
each task are drawn anew from those of that task, so that every task keeps its weight. They are pointwise, of always the
same seed, and too narrow of few runs: they describe. A verdict is that of the exact test (`improvement_over_tasks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import trim_mean

from bptt_studies.paper.results import SMALLEST
from bptt_studies.paper.statistics import (
    RESAMPLES,
    SEED,
    Improvement,
    Values,
    exact_test,
    interval,
    losses_of_runs,
    wins,
)


@dataclass(frozen=True)
class Estimate:
    """A number over all tasks.

    Attributes:
        value: of the runs as they are.
        low: where its bootstrap interval begins.
        high: where it ends.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """A performance profile: how many of the runs are better than each score.

    Attributes:
        levels: scores (levels,).
        share: of the runs with a score above each, from 0 to 1, the mean over the tasks: (levels,).
        low: where the band begins, likewise.
        high: where it ends.
    """

    levels: Values
    share: Values
    low: Values
    high: Values


def scores(losses: Mapping[str, ArrayLike], references: Mapping[str, tuple[float, float]]) -> Values:
    """Bring the losses of one method on different tasks to one scale, on which more is better.

    A score is 0 at the first of a task's two reference losses and 1 at the second, and linear in the logarithm of the
    loss in between and beyond: with the untrained controller's loss, 2, and the best median of all methods, 0.002, a
    loss of 0.063 scores 0.5. Half of what is gained is thus half of the orders of magnitude, not half of the loss.

    A run that is no better than the first reference scores 0, however much worse it is, and so does one that diverged
    (an infinite loss): scores are bounded below, and their means are finite. Above 1 they are not cut.

    Args:
        losses: of each task, (runs,), as many on all.
        references: of each task, the losses that score 0 and 1, both above 0, the second the smaller.

    Returns:
        (tasks, runs), the tasks in the order of `losses`.

    Raises:
        ValueError: if a task lacks references, or they are out of order; if tasks differ in how many runs they have.
    """
    rows = []
    for task, values in losses.items():
        if task not in references:
            raise ValueError(f"references must have every task; got none of {task!r}.")
        worst, best = references[task]
        if not 0 < best < worst < np.inf:
            raise ValueError(
                f"references must be two losses, worst > best > 0, for each task; got {references[task]!r}."
            )
        with np.errstate(divide="ignore"):
            gained = np.log(worst / np.maximum(losses_of_runs(values), SMALLEST))
        rows.append(np.maximum(gained / np.log(worst / best), 0.0))
    counts = {task: len(row) for task, row in zip(losses, rows, strict=True)}
    if len(set(counts.values())) != 1:
        raise ValueError(f"losses must be of one or more tasks with as many runs each; got {counts!r}.")
    return np.stack(rows)


def interquartile_mean(scores: ArrayLike) -> Estimate:
    """The mean over the middle half of all runs on all tasks (Agarwal et al. 2021, section 4.2).

    Unlike a mean it does not follow a few runs that are far off, and unlike a median it sees more than one of them.

    Args:
        scores: (tasks, runs), from `scores`.
    """
    values = _table(scores)
    tasks, runs = values.shape
    chosen = np.random.default_rng(SEED).integers(runs, size=(RESAMPLES, tasks, runs))
    resampled = np.take_along_axis(values[None], chosen, axis=2).reshape(RESAMPLES, -1)
    return Estimate(float(trim_mean(values, 0.25, axis=None)), *interval(trim_mean(resampled, 0.25, axis=1)))


def profile(scores: ArrayLike, levels: ArrayLike) -> Profile:
    """The share of runs with a score above each level, the mean over the tasks (Agarwal et al. 2021, section 4.3).

    One method's profile above another's everywhere: whatever score is asked for, more of its runs have it.

    Args:
        scores: (tasks, runs), from `scores`.
        levels: scores (levels,).
    """
    values, taus = _table(scores), np.asarray(levels, dtype=float)
    above = values[:, :, None] > taus  # (tasks, runs, levels)
    generator, runs = np.random.default_rng(SEED), values.shape[1]
    resampled = np.zeros((RESAMPLES, len(taus)))
    for of_task in above:
        counts = generator.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES)
        resampled += counts @ of_task / (runs * len(values))
    bands = np.array([interval(of_level) for of_level in resampled.T]).reshape(-1, 2)
    return Profile(taus, above.mean(axis=(0, 1)), bands[:, 0], bands[:, 1])


def average_improvement(of: Mapping[str, ArrayLike], over: Mapping[str, ArrayLike]) -> Estimate:
    """The probability of improvement of one method over another, the mean over the tasks.

    It takes losses, not scores: within a task only their order counts. The runs of each side are resampled apart.

    Args:
        of: losses (runs,) of the method that may be better, of each task.
        over: losses (runs,) of the other, of the same tasks; runs may differ in number.

    Raises:
        ValueError: if the two are not of the same tasks.
    """
    if set(of) != set(over) or not of:
        raise ValueError(
            f"over must be of the same tasks as of, {', '.join(of) or 'at least one'}; got {', '.join(over)}."
        )
    generator = np.random.default_rng(SEED)
    found, resampled = [], np.zeros(RESAMPLES)
    for task in of:
        won = wins(losses_of_runs(of[task]), losses_of_runs(over[task]))
        one, other = (generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in won.shape)
        resampled += ((one @ won) * other).sum(axis=1) / (won.size * len(of))
        found.append(won.mean())
    return Estimate(float(np.mean(found)), *interval(resampled))


def improvement_over_tasks(of: Mapping[str, ArrayLike], over: Mapping[str, ArrayLike]) -> Improvement:
    """`average_improvement` with its exact test, in which runs are dealt to the two methods within each task."""
    mean = average_improvement(of, over)
    sides = [(losses_of_runs(of[task]), losses_of_runs(over[task])) for task in of]
    runs = sum(len(one) for one, _ in sides), sum(len(other) for _, other in sides)
    ways = math.prod(math.comb(len(one) + len(other), len(one)) for one, other in sides)
    return Improvement(mean.value, mean.low, mean.high, runs, exact_test(sides), ways)


def _table(scores: ArrayLike) -> Values:
    values = np.asarray(scores, dtype=float)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, (tasks, runs), as `scores` makes them; got {scores!r}.")
    return values
