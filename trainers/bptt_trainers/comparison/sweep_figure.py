"""The losses of a sweep over an axis of its grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bptt_trainers.figures.bands import draw_band, drawable
from bptt_trainers.figures.style import WIDTH, handles_of, legend_below, looks_of, plain_text, style_axes, title_above
from bptt_trainers.figures.ticks import log_axes

MOST = 12
"""Panels, after which there is no figure: the table says more."""

COLUMNS = 3
FAR = 8.0  # the greatest value of an axis over the least from which on it is logarithmic


def sweep_figure(
    methods: Mapping[str, str],
    points: Mapping[str, Mapping[str, Any]],
    losses: Mapping[tuple[str, int], float],
    title: str,
) -> Figure | None:
    """Draw the losses over the first axis of numbers: a line for each method, a panel for each point of the others.

    Args:
        methods: the method of each cell, by the cell's label.
        points: the values that each cell has of the grid.
        losses: the loss at the end of each (cell, seed).
        title: written above.

    Returns:
        The figure; None if no axis has two numbers, or there would be more than 12 panels.
    """
    axis = _axis(points)
    if axis is None:
        return None
    panels: dict[str, dict[str, list[str]]] = {}  # by the rest of the point, then the method: labels of cells
    for label, point in points.items():
        if axis in point:
            rest = ", ".join(f"{name}={value}" for name, value in point.items() if name != axis)
            panels.setdefault(rest, {}).setdefault(methods[label], []).append(label)
    if len(panels) > MOST:
        return None
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 2.4 * rows), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    looks = looks_of(methods.values())
    values = [float(point[axis]) for point in points.values() if axis in point]
    seeds = list(dict.fromkeys(seed for _, seed in losses))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (rest, by_method) in zip(grid.flat, panels.items(), strict=False):
        style_axes(axes)
        log_axes(axes, "xy" if min(values) > 0 and max(values) >= FAR * min(values) else "y")
        for method, labels in by_method.items():
            ordered = sorted(labels, key=lambda label: float(points[label][axis]))
            x = np.array([float(points[label][axis]) for label in ordered])
            runs = [(x, drawable([losses[label, seed] for label in ordered])) for seed in seeds]
            draw_band(axes, runs, looks[method], method)
        axes.set_title(plain_text(rest), fontsize=9)
        axes.set_xlabel(plain_text(axis), fontsize=9)
    for row in grid:
        row[0].set_ylabel("held-out loss", fontsize=9)
    legend_below(figure, handles_of(grid.flat))
    title_above(figure, title)
    return figure


def _axis(points: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first name of which cells have at least two values, all of them numbers."""
    for name in dict.fromkeys(name for point in points.values() for name in point):
        values = {point[name] for point in points.values() if name in point if _number(point[name])}
        if len(values) > 1 and all(_number(point[name]) for point in points.values() if name in point):
            return name
    return None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
