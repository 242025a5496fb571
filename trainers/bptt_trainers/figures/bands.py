"""Losses of many runs on a log axis: the median as a line, a band around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from bptt_trainers.figures.style import Look, draw_curve

POINTS = 200  # of a band
SMALLEST, LARGEST = 1e-8, 1e8  # losses beyond them are drawn there, those that are no number too
QUARTILES = (0.25, 0.75)
RANGE = (0.0, 1.0)

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""What a loss stands against, ascending, and the loss, of one run: (points,) each."""


def drawable(losses: ArrayLike, largest: float = LARGEST) -> NDArray[np.float64]:
    """Losses as a log axis can show them: between the bounds; those that are infinite or no number at the top."""
    values = np.nan_to_num(np.asarray(losses, dtype=float), nan=largest, posinf=largest)
    return np.asarray(np.clip(values, SMALLEST, largest))


class Evaluated(Protocol):
    """One evaluation, with the loss and what it may stand against: simulator steps, seconds, epochs."""

    @property
    def simulator_steps(self) -> int:
        """Taken for training so far."""

    @property
    def test_loss(self) -> float:
        """Over the held-out states."""


def series_of(
    runs: Iterable[Sequence[Evaluated]],
    of: str,
    largest: float = LARGEST,
    start: bool = False,
    smooth: Callable[[Sequence[float]], ArrayLike] = np.asarray,
    value: str = "test_loss",
) -> list[Series]:
    """The curves of runs against the attribute `of` of their evaluations.

    Args:
        runs: the curve of each; one with nothing to draw is left out.
        of: "simulator_steps", "seconds" or "epoch".
        largest: losses above it, infinite or no number are drawn there.
        start: whether the evaluation before training is drawn too; a log axis has no 0.
        smooth: gives from the losses of a run those that are drawn, as many, such as a trailing mean.
        value: the attribute of their evaluations that is drawn in the place of the loss.
    """
    found = []
    for curve in runs:
        places = np.array([float(getattr(point, of)) for point in curve])
        losses = drawable(smooth([float(getattr(point, value)) for point in curve]), largest)
        shown = np.array([start or point.simulator_steps > 0 for point in curve], dtype=bool)
        if shown.any():
            found.append((places[shown], losses[shown]))
    return found


def draw_band(
    axes: Axes,
    series: Sequence[Series],
    look: Look,
    label: str,
    shares: tuple[float, float] | None = QUARTILES,
    linewidth: float = 1.6,
) -> None:
    """Draw the median of several runs and the band between two quantiles; a single run as it is.

    Runs that were evaluated at different places are interpolated, linearly in the logarithm of the loss, between the
    medians of their starts and ends, so that one late run does not hide the others; the places are spaced as the scale
    of the axes is, which is to be set before. A run counts by its first value before its start, by its last one after
    its end. Where the medians are one place, each run is drawn as it is.

    Args:
        axes: where to draw.
        series: of each run; losses as `drawable` returns them.
        look: of the line; the band has its color.
        label: in the legend.
        shares: the quantiles between which the band lies; None: no band.
        linewidth: of the line, points.
    """
    places = [x for x, _ in series]
    logs = [np.log(y) for _, y in series]
    if all(np.array_equal(places[0], x) for x in places):
        grid, values = places[0], np.stack(logs)
    else:
        start, end = (float(np.median([x[i] for x in places])) for i in (0, -1))
        if start >= end:
            for i, (x, y) in enumerate(series):
                draw_curve(axes, x, y, look, None if i else label, linewidth / 2)
            return
        space = np.geomspace if axes.get_xscale() == "log" else np.linspace
        grid = space(start, end, POINTS)
        values = np.stack([np.interp(grid, x, y) for x, y in zip(places, logs, strict=True)])
    draw_curve(axes, grid, np.exp(np.median(values, axis=0)), look, label, linewidth)
    if len(series) > 1 and shares is not None:
        low, high = np.exp(np.quantile(values, shares, axis=0))
        axes.fill_between(grid, low, high, color=look.color, alpha=0.16, linewidth=0)
