"""The figure of `bptt check`: slopes against differences, feedback and singular values over the horizon, costs."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bptt_envs import System
from bptt_envs.canvas import MUTED
from bptt_trainers.analysis.differences import ACCURACY
from bptt_trainers.analysis.gradient_check import BATCH, GradientCheck
from bptt_trainers.figures.style import COLORS, OTHERS, WIDTH, Look, draw_curve, rgb, style_axes, title_above
from bptt_trainers.figures.ticks import log_axes

LEAST_ERROR = 1e-16  # that is drawn


def gradient_figure(check: GradientCheck, system: System, title: str = "") -> Figure:
    """Draw what a check of gradients has measured; a panel of what it has not stays empty.

    Above: how far each slope is off central differences; seconds and megabytes of an update by each engine. Below,
    over the time within the episode: the norm of feedback as R and as M bring it back, and the largest and the smallest
    singular value of single steps.

    Args:
        check: what was measured.
        system: whose horizon it is.
        title: written above.
    """
    figure = Figure(figsize=(WIDTH, 6.4), dpi=100, layout="constrained")
    (slopes, costs), (feedback, steps) = figure.subplots(2, 2)
    for axes in (slopes, costs, feedback, steps):
        style_axes(axes)
    _draw_slopes(slopes, check)
    _draw_costs(costs, check)
    _draw_feedback(feedback, check, system.dt)
    _draw_steps(steps, check, system.dt)
    for axes in (feedback, steps):
        axes.set_xlabel(system.time_label, fontsize=9)
    if title:
        title_above(figure, title)
    return figure


def _draw_slopes(axes: Axes, check: GradientCheck) -> None:
    axes.set_title("autograd's slopes off central differences,\nof the largest", fontsize=9)
    shown = [one for one in check.slopes if not math.isnan(one.error)][::-1]
    errors = [max(LEAST_ERROR, one.error) if math.isfinite(one.error) else 1.0 for one in shown]
    colors = [COLORS["R"] if one.right else COLORS["C"] for one in shown]
    places = range(len(shown))
    axes.set_xscale("log")
    axes.hlines(list(places), LEAST_ERROR, errors, colors=colors, linewidth=1.0)
    axes.scatter(errors, list(places), c=colors, s=18, zorder=3)
    axes.axvline(ACCURACY, color=rgb(MUTED), linewidth=0.8)
    axes.set_yticks(list(places), [f"{one.method} by {one.argument}" for one in shown])
    axes.set_xlim(LEAST_ERROR, 10.0 * max([1e-2, *errors]))
    axes.tick_params(axis="both", labelsize=8)


def _draw_costs(axes: Axes, check: GradientCheck) -> None:
    axes.set_title(f"an update of {BATCH} episodes by rule C", fontsize=9)
    axes.set_axis_off()
    rows = [["engine", "time", "tensors alive at once"]]
    for one in check.costs:
        rows.append([one.engine, "cannot serve" if one.obstacle is not None else one.time, one.memory])
    for i, row in enumerate(rows):
        for x, cell in zip((0.0, 0.3, 0.55), row, strict=True):
            color = rgb(MUTED) if i == 0 else "black"
            axes.text(x, 0.85 - 0.14 * i, cell, fontsize=9, color=color, transform=axes.transAxes)


def _draw_feedback(axes: Axes, check: GradientCheck, dt: float) -> None:
    axes.set_title("feedback that arrives at step t:\n" r"$|\partial L / \partial x_t|$", fontsize=9)
    log_axes(axes, "y")
    if check.horizon is None:
        return
    times = dt * np.arange(1, check.horizon.feedback.shape[1] + 1)
    for rule, norms in zip(("R", "M"), check.horizon.feedback, strict=True):
        draw_curve(axes, times, _positive(norms), Look(COLORS[rule], "-"), rule, 2.8 if rule == "R" else 1.3)
    axes.legend(fontsize=8, frameon=False)


def _draw_steps(axes: Axes, check: GradientCheck, dt: float) -> None:
    axes.set_title("singular values of single steps:\nlargest (lines), smallest (dashed)", fontsize=9)
    log_axes(axes, "y")
    if check.horizon is None or not len(check.horizon.times):
        return
    times = dt * check.horizon.times
    for i, (name, color) in enumerate((("A, physics alone", OTHERS[0]), ("A + B K, in the loop", OTHERS[1]))):
        largest, smallest = check.horizon.stretches[i]
        draw_curve(axes, times, _positive(largest), Look(color, "-"), name, 2.8 if i == 0 else 1.3)
        draw_curve(axes, times, _positive(smallest), Look(color, "--"), None, 2.8 if i == 0 else 1.3)
    axes.legend(fontsize=8, frameon=False)


def _positive(values: np.ndarray) -> np.ndarray:
    """What a log axis can show; the rest is a gap."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
