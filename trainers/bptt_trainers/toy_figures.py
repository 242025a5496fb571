"""Figures of the toy examples."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bptt_envs.rendering import ACTION, CYCLE, FAINT, INK, MUTED
from bptt_trainers.field_figures import (
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
from bptt_trainers.fields import SHOWN_RULES, Table
from bptt_trainers.pictures import _rgb
from bptt_trainers.pictures import _style as style_of_curves
from bptt_trainers.toys import REACH, SOLVED, Descent, residual, starts_grid

LOSSES = (1e-3, 1e3)  # between which the integrator's loss is drawn
ENDS = (1e-8, 1e2)  # likewise at the end of Adam
FINE = 401  # points along each axis, for the curve of zero loss
COLORS = {"R": CYCLE[0], "M": CYCLE[4], "C": CYCLE[1]}  # those of the curves of a comparison
NAMES = {"R": "gradient", "M": "gradient + rotation", "C": "signs combined"}


def integrator_figure(table: Table, labels: tuple[str, str] = (r"$\theta_1$", r"$\theta_2$")) -> Figure:
    """The fields of R, M and C over theta, with the curve on which the loss is 0."""
    scales = Scales(LOSSES, scales_of([table]).magnitude)
    title = r"$x_{t+1} = x_t + \theta_1 x_t^2 + \theta_2 x_t$, four steps from −0.3 towards 2; orange: loss 0"
    return fields_figure(table, labels, title, scales, _solutions())


def adam_figure(table: Table, learning_rate: float, paths: Mapping[str, Descent], ends: Mapping[str, Descent]) -> Figure:
    """Adam on the fields of R, M and C: paths from a few starts, and where many end.

    Args:
        table: the loss, on a grid.
        learning_rate: that of Adam.
        paths: from few starts, to be drawn as lines.
        ends: from a grid of starts, to be drawn as cells, colored by the loss at the end.
    """
    figure = Figure(figsize=(9.0, 6.6), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    scales, norm, colors = Scales(LOSSES, (0.0, 1.0)), LogNorm(*ENDS), matplotlib.colormaps["viridis"]
    zero = _solutions()
    for (top, bottom), rule in zip(panels.T, SHOWN_RULES, strict=True):
        draw_loss(top, table, scales)
        zero(top)
        path = paths[rule].paths
        top.plot(path[..., 0], path[..., 1], color=_rgb(INK), linewidth=0.7, scalex=False, scaley=False)
        solved = paths[rule].losses[-1] < SOLVED
        top.plot(*path[0].T, ".", color=_rgb(INK), markersize=3, scalex=False, scaley=False)
        top.plot(*path[-1][solved].T, "o", color=_rgb(CYCLE[2]), markersize=4, scalex=False, scaley=False)
        top.plot(*path[-1][~solved].T, "x", color=_rgb(CYCLE[1]), markersize=5, scalex=False, scaley=False)
        top.set_title(TITLES[rule], fontsize=10)
        end = ends[rule].losses[-1]
        starts = starts_grid(round(len(end) ** 0.5)).numpy()
        a, b, cells = square({"a": starts[:, 0], "b": starts[:, 1]}, np.where(np.isfinite(end), end, ENDS[1]))
        bottom.pcolormesh(a, b, np.clip(cells, *ENDS), norm=norm, cmap=colors, shading="nearest", rasterized=True)
        bottom.set_title(f"{(end < SOLVED).mean():.0%} of the starts end below {SOLVED:g}", fontsize=9)
    for axes in panels.flat:
        style(axes)
    color_bar(figure, panels[0], scales.norm, LOSS_COLORS, "loss")
    color_bar(figure, panels[1], norm, colors, "loss at the end, by start")
    figure.supxlabel(r"$\theta_1$", fontsize=9)
    figure.supylabel(r"$\theta_2$", fontsize=9)
    steps = int(paths["R"].steps[-1])
    figure.suptitle(
        f"Adam, {steps} steps of learning rate {learning_rate:g}; green dots: solved, crosses: not", fontsize=11
    )
    return figure


def rotation_figure(found: Mapping[tuple[float, float], Mapping[str, Descent]]) -> Figure:
    """Adam on the gradient, with a rotation added, and with the signs combined: paths and losses.

    Args:
        found: by strength of the rotation and learning rate, each a row of the figure; by rule.
    """
    figure = Figure(figsize=(9.0, 3.3 * len(found) + 0.5), dpi=100, layout="constrained")
    rows = figure.subplots(len(found), 4, squeeze=False, width_ratios=(1, 1, 1, 1.7))
    for panels, ((strength, learning_rate), by_rule) in zip(rows, found.items(), strict=True):
        curves: Axes = panels[-1]
        style_of_curves(curves)
        for axes, (rule, descent) in zip(panels, by_rule.items(), strict=False):
            _contours(axes)
            path = descent.paths[:, 0]
            axes.plot(*path.T, color=_rgb(COLORS[rule]), linewidth=0.9)
            axes.plot(*path[0], ".", color=_rgb(INK), markersize=6)
            axes.plot(*path[-1], "x", color=_rgb(INK), markersize=6)
            axes.set_title(NAMES[rule], fontsize=9)
            style(axes)
            curves.plot(descent.steps, descent.losses[:, 0], color=_rgb(COLORS[rule]), linewidth=1.2, label=NAMES[rule])
        curves.set_yscale("log")
        curves.set_ylim(1e-8, 1e2)
        curves.set_xlabel("step", fontsize=8)
        curves.set_title(f"loss; strength {strength:g}, learning rate {learning_rate:g}", fontsize=9)
        curves.legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(r"Adam on $\theta_1^2 + \theta_2^2$, 3000 steps from (2, 4); cross: the last one", fontsize=11)
    return figure


def _contours(axes: Axes) -> None:
    """Circles of equal loss, in a square that is the same in each panel."""
    reach = 6.5
    line = np.linspace(-reach, reach, 101)
    loss = line[None, :] ** 2 + line[:, None] ** 2
    axes.contour(line, line, loss, levels=[0.1, 1, 4, 9, 16, 25, 36], colors=[_rgb(FAINT)], linewidths=0.8)
    axes.plot(0, 0, "+", color=_rgb(MUTED), markersize=7)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)


def _solutions() -> Overlay:
    """Draws the curves on which x_4 = y."""
    line = np.linspace(-REACH, REACH, FINE)
    error = residual(starts_grid(FINE)).view(FINE, FINE).numpy()

    def draw(axes: Axes) -> None:
        axes.contour(line, line, error, levels=[0.0], colors=[_rgb(ACTION)], linewidths=1.3)

    return draw
