"""Figures of the toy examples."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bptt_envs.canvas import ACTION, CYCLE, FAINT, INK, MUTED
from bptt_studies.toys.toys import FINE, LABELS, REACH, SOLVED, Descent, drawn_starts, residual, square_grid
from bptt_trainers.analysis.fields import Table
from bptt_trainers.analysis.fields_figure import (
    LOSS_COLORS,
    TITLES,
    Overlay,
    Scales,
    color_bar,
    draw_loss,
    fields_figure,
    scales_of,
    square,
    style,
)
from bptt_trainers.figures.style import (
    COLORS,
    Look,
    draw_curve,
    handles_of,
    legend_below,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes

LOSSES = (1e-3, 1e3)  # between which the integrator's loss is drawn
ENDS = (1e-8, 1e2)  # likewise at the end of Adam
NAMES = {"R": "gradient", "M": "with the rotation", "C": "signs combined"}
VIEW = 4.8  # of the paths of the rotation


def integrator_figure(table: Table) -> Figure:
    """The fields of R, M and C over theta, with the curves on which the loss is 0."""
    scales = Scales(LOSSES, scales_of([table]).magnitude)
    title = r"$x_{t+1} = x_t + \theta_1 x_t^2 + \theta_2 x_t$, four steps from −0.3 towards 2; orange: loss 0"
    return fields_figure(table, LABELS, title, scales, _solutions())


def adam_figure(table: Table, found: Mapping[float, Mapping[str, Descent]]) -> Figure:
    """Adam on the fields of R, M and C: some paths, and where all starts end.

    Args:
        table: the loss, on a grid.
        found: by learning rate and rule, from a grid of starts. The paths are those of the first learning rate.
    """
    figure = Figure(figsize=(9.0, 3.05 * (1 + len(found))), dpi=100, layout="constrained")
    paths, *ends = figure.subplots(1 + len(found), 3, sharex=True, sharey=True)
    scales, norm, colors = Scales(LOSSES, (0.0, 1.0)), LogNorm(*ENDS), matplotlib.colormaps["viridis"]
    zero = _solutions()
    first_rate, first = next(iter(found.items()))
    for axes, (rule, descent) in zip(paths, first.items(), strict=True):
        draw_loss(axes, table, scales)
        zero(axes)
        _paths(axes, descent)
        axes.set_title(TITLES[rule], fontsize=10)
        style(axes)
    color_bar(figure, paths, scales.norm, LOSS_COLORS, f"loss; paths: learning rate {first_rate:g}")
    for panels, (learning_rate, by_rule) in zip(ends, found.items(), strict=True):
        for axes, descent in zip(panels, by_rule.values(), strict=True):
            end = np.nan_to_num(descent.losses[-1], nan=ENDS[1])
            starts = {"a": descent.paths[0, :, 0], "b": descent.paths[0, :, 1]}
            a, b, cells = square(starts, np.clip(end, *ENDS))
            axes.pcolormesh(a, b, cells, norm=norm, cmap=colors, shading="nearest", rasterized=True)
            axes.set_title(f"{(end < SOLVED).mean():.0%} of the starts solved", fontsize=9)
            style(axes)
        color_bar(figure, panels, norm, colors, f"loss at the end, learning rate {learning_rate:g}")
    figure.supxlabel(LABELS[0], fontsize=9)
    figure.supylabel(LABELS[1], fontsize=9)
    steps = int(first["R"].steps[-1])
    title_above(figure, f"Adam, {steps} steps; solved (green): loss below {SOLVED:g}, other ends: crosses")
    return figure


def _paths(axes: Axes, descent: Descent) -> None:
    """Draw the paths from some of the starts, with their ends."""
    chosen = drawn_starts()
    path, solved = descent.paths[:, chosen], descent.losses[-1, chosen] < SOLVED
    axes.plot(path[..., 0], path[..., 1], color=rgb(INK), linewidth=0.7)
    axes.plot(*path[0].T, ".", color=rgb(INK), markersize=3)
    axes.plot(*path[-1][~solved].T, "x", color=rgb(CYCLE[1]), markersize=5)
    axes.plot(*path[-1][solved].T, "o", color=rgb(CYCLE[2]), markersize=4)
    axes.set_xlim(-REACH, REACH)
    axes.set_ylim(-REACH, REACH)


def rotation_figure(found: Mapping[tuple[float, float], Mapping[str, Descent]]) -> Figure:
    """Adam on the gradient, on it with a rotation added, and on both with their signs combined.

    Args:
        found: by strength of the rotation and learning rate, each a row of the figure; then by rule.
    """
    figure = Figure(figsize=(9.0, 2.35 * len(found) + 0.5), dpi=100, layout="constrained")
    rows = figure.subplots(len(found), 4, squeeze=False, width_ratios=(1, 1, 1, 1.6))
    for panels, ((strength, learning_rate), by_rule) in zip(rows, found.items(), strict=True):
        curves = panels[-1]
        style_axes(curves)
        for axes, (rule, descent) in zip(panels, by_rule.items(), strict=False):
            _circles(axes)
            path = descent.paths[:, 0]
            axes.plot(*path.T, color=COLORS[rule], linewidth=0.9)
            axes.plot(*path[0], ".", color=rgb(INK), markersize=6)
            axes.plot(*path[-1], "x", color=rgb(INK), markersize=6)
            axes.set_title(NAMES[rule], fontsize=9)
            style(axes)
            axes.tick_params(labelleft=axes is panels[0])
            draw_curve(curves, descent.steps, descent.losses[:, 0], Look(COLORS[rule], "-"), NAMES[rule], 1.2)
        log_axes(curves, "y")
        curves.set_ylim(1e-8, 1e2)
        curves.set_title(f"loss; strength {strength:g}, learning rate {learning_rate:g}", fontsize=9)
    legend_below(figure, handles_of(rows[:1, -1]))
    steps = int(descent.steps[-1])
    title_above(figure, rf"Adam on $\theta_1^2 + \theta_2^2$ from (2, 4), {steps} steps; cross: the end")
    return figure


def _circles(axes: Axes) -> None:
    """Circles of equal loss, in the same square for each panel."""
    line = np.linspace(-VIEW, VIEW, 101)
    radius = np.hypot(line[None, :], line[:, None])
    axes.contour(line, line, radius, levels=[1, 2, 3, 4, 5, 6], colors=[rgb(FAINT)], linewidths=0.8)
    axes.plot(0, 0, "+", color=rgb(MUTED), markersize=7)


def _solutions() -> Overlay:
    """Draws the curves on which x_4 = y."""
    line = np.linspace(-REACH, REACH, FINE)
    error = residual(square_grid(FINE)).view(FINE, FINE).numpy()

    def draw(axes: Axes) -> None:
        axes.contour(line, line, error, levels=[0.0], colors=[rgb(ACTION)], linewidths=1.3)

    return draw
