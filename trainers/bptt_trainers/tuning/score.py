"""How a trial is judged: by the loss at the end, and by the area under the logarithm of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from bptt_trainers.records.curve import Curve

LIMIT = 12.0
"""Logarithms of losses are kept within ±LIMIT: 0 counts as 1e-12, and what is not finite as 1e12."""


def log_loss(loss: float) -> float:
    """log10 of a loss, within ±`LIMIT`; of one that is not finite, `LIMIT`.

    Raises:
        ValueError: if it is negative.
    """
    if not math.isfinite(loss):
        return LIMIT
    if loss < 0:
        raise ValueError(
            f"trials are judged by the logarithm of the loss, which must not be negative; it is {loss:.6g}. "
            "Add a constant to the costs of the system."
        )
    return min(max(math.log10(loss), -LIMIT), LIMIT) if loss else -LIMIT


def final(curve: Curve) -> float:
    """log10 of the loss at the end of a run."""
    return log_loss(curve[-1].test_loss)


def at(curve: Curve, steps: float) -> float:
    """log10 of the loss after so many simulator steps, linear between evaluations, the last one held."""
    return float(np.interp(steps, *_points(curve)))


def area(curve: Curve, steps: float) -> float:
    """The mean of log10 of the loss over the first `steps` simulator steps.

    It is that of straight lines between the evaluations, the last one held: how often a run was judged, and whether
    its last update went beyond, counts for nothing.
    """
    places, levels = _points(curve)
    grid = np.array([0.0, *(place for place in places if 0 < place < steps), steps])
    heights = np.interp(grid, places, levels)
    return float(np.sum(np.diff(grid) * (heights[1:] + heights[:-1]) / 2) / steps)


def so_far(curve: Curve, steps: float) -> float:
    """The score of the one run, as if its budget were `steps`."""
    return (at(curve, steps) + area(curve, steps)) / 2


def score(finals: Sequence[float], areas: Sequence[float]) -> float:
    """The number by which trials are compared, less is better: the mean of the medians of both over the runs."""
    return (median(finals) + median(areas)) / 2


def mean_score(finals: Sequence[float], areas: Sequence[float]) -> float:
    """The number by which trials that are run again are compared: a mean feels one run in ten that fails."""
    return (fmean(finals) + fmean(areas)) / 2


def best_possible(finals: Sequence[float], areas: Sequence[float], runs: int) -> float:
    """The score if what is left of `runs` runs were better than anything."""
    unknown = [-math.inf] * (runs - len(finals))
    return score([*finals, *unknown], [*areas, *unknown])


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    by_steps: Mapping[float, float] = {float(one.simulator_steps): log_loss(one.test_loss) for one in curve}
    return list(by_steps), list(by_steps.values())
