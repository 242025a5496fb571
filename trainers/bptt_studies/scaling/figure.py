"""Figures of the scaling measurements: time, memory and loss as a task grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bptt_envs.canvas import INK, MUTED
from bptt_studies.scaling.config import AXES, Growth
from bptt_studies.scaling.file import Measurement
from bptt_studies.scaling.tables import slopes, title
from bptt_trainers.figures.style import (
    WIDTH,
    Look,
    draw_curve,
    handles_of,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes, ticks_at

MEASURED = "measured"


def scaling_figure(rows: Sequence[Measurement]) -> Figure:
    """Draw one axis: time and peak memory of an update with their slopes, and the loss, over the size of the task.

    Args:
        rows: the measurements of one axis, the smallest task first.
    """
    axis, first = AXES[rows[0].axis], rows[0]
    figure = Figure(figsize=(WIDTH, 3.4), dpi=100, layout="constrained")
    time, memory, loss = figure.subplots(1, 3)
    sizes = [row.size for row in rows]
    for axes in (time, memory, loss):
        style_axes(axes)
        log_axes(axes, "x")
        ticks_at(axes, sizes, [row.value for row in rows])
        axes.set_xlabel(axis.label, fontsize=8)
    look = looks_of([first.rule])[first.rule]
    spread = [[row.milliseconds - row.least for row in rows], [row.largest - row.milliseconds for row in rows]]
    _growth(time, sizes, [row.milliseconds for row in rows], axis.time, look, spread)
    time.set_title("time of an update [ms]", fontsize=9)
    _growth(memory, sizes, [row.peak_mib for row in rows], axis.memory, look)
    memory.set_title("its peak memory [MiB]", fontsize=9)
    _losses(loss, rows, look)
    loss.set_title("held-out loss", fontsize=9)
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    title_above(figure, f"{title(first.axis)}; rule {first.rule}, {first.engine} engine, {threads}")
    return figure


def _growth(
    axes: Axes,
    sizes: Sequence[int],
    values: Sequence[float],
    theory: Growth,
    look: Look,
    spread: Sequence[Sequence[float]] | None = None,
) -> None:
    """Points, the fitted line over the upper half, and the theoretical slope through the last point."""
    log_axes(axes, "y")
    drawn = np.where(np.isfinite(values), values, np.nan)
    axes.errorbar(sizes, drawn, spread, color=look.color, fmt="o", markersize=4.5, linewidth=1.0, label=MEASURED)
    found = slopes(sizes, values)
    if found is not None:
        ends = np.array([found.first, found.end])
        draw_curve(axes, ends, found.fitted(ends), look, f"fitted: slope {found.upper_half:.2f}")
        start = found.fitted(ends[1:]) * (ends / found.end) ** theory.slope
        draw_curve(axes, ends, start, Look(to_hex(rgb(INK)), "--"), f"theory: slope {theory.slope:g}", 1.2)
    axes.set_ymargin(0.08)
    _legend(axes)


def _losses(axes: Axes, rows: Sequence[Measurement], look: Look) -> None:
    sizes = [row.size for row in rows]
    untrained = [row.untrained_loss for row in rows]
    axes.plot(sizes, untrained, "--o", color=rgb(MUTED), markersize=4, linewidth=1.2, label="untrained")
    after = [row.loss_after for row in rows]
    axes.plot(sizes, after, "-o", color=look.color, markersize=4.5, label=f"after {rows[0].updates} updates")
    highest = max((loss for loss in (*untrained, *after) if np.isfinite(loss)), default=1.0)
    axes.set_ylim(0.0, 1.08 * highest)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Under the panel, where it covers no point; what was measured comes first."""
    found = handles_of([axes])
    names = sorted(found, key=lambda name: name != MEASURED)
    axes.legend(
        [found[name] for name in names],
        names,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
        fontsize=8,
        frameon=False,
    )
