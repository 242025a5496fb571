"""Figures of the scaling measurements: time, memory and loss as a task grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from bptt_envs.rendering import INK, MUTED
from bptt_trainers.benchmarks.scaling import AXES, Growth
from bptt_trainers.benchmarks.scaling_file import Measurement
from bptt_trainers.benchmarks.scaling_tables import slopes, title
from bptt_trainers.figures.style import COLORS, rgb, style_axes

MEASURED = "measured"


def scaling_figure(rows: Sequence[Measurement]) -> Figure:
    """Draw one axis: time and peak memory of an update with their slopes, and the loss, over the size of the task.

    Args:
        rows: the measurements of one axis, the smallest task first.
    """
    axis, first = AXES[rows[0].axis], rows[0]
    figure = Figure(figsize=(11.0, 3.7), dpi=100, layout="constrained")
    time, memory, loss = figure.subplots(1, 3)
    sizes = [row.size for row in rows]
    for axes in (time, memory, loss):
        style_axes(axes)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [row.value for row in rows])
        axes.set_xlabel(axis.label)
    color = COLORS[first.rule]
    spread = [[row.milliseconds - row.least for row in rows], [row.largest - row.milliseconds for row in rows]]
    _growth(time, sizes, [row.milliseconds for row in rows], axis.time, color, spread)
    time.set_title("time of an update [ms]", fontsize=10)
    _growth(memory, sizes, [row.peak_mib for row in rows], axis.memory, color)
    memory.set_title("peak memory of an update [MiB]", fontsize=10)
    _losses(loss, rows, color)
    loss.set_title("held-out loss", fontsize=10)
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    figure.suptitle(f"{title(first.axis)}; rule {first.rule}, {first.engine} engine, {threads}", fontsize=11)
    return figure


def _growth(
    axes: Axes,
    sizes: Sequence[int],
    values: Sequence[float],
    theory: Growth,
    color: str,
    spread: Sequence[Sequence[float]] | None = None,
) -> None:
    """Points, the fitted line over the upper half, and the theoretical slope through the last point."""
    axes.set_yscale("log")
    drawn = np.where(np.isfinite(values), values, np.nan)
    axes.errorbar(sizes, drawn, spread, color=color, fmt="o", markersize=4.5, linewidth=1.0, label=MEASURED)
    found = slopes(sizes, values)
    if found is not None:
        ends = np.array([found.first, found.end])
        axes.plot(ends, found.fitted(ends), color=color, linewidth=1.6, label=f"fitted: slope {found.upper_half:.2f}")
        start = found.fitted(ends[1:]) * (ends / found.end) ** theory.slope
        label = f"theory: slope {theory.slope:g}"
        axes.plot(ends, start, color=rgb(INK), linewidth=1.2, linestyle="--", label=label)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ymargin(0.08)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] != MEASURED)
    axes.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8, frameon=False, loc="upper left")


def _losses(axes: Axes, rows: Sequence[Measurement], color: str) -> None:
    sizes = [row.size for row in rows]
    untrained = [row.untrained_loss for row in rows]
    axes.plot(sizes, untrained, "--o", color=rgb(MUTED), markersize=4, linewidth=1.2, label="untrained")
    after = [row.loss_after for row in rows]
    axes.plot(sizes, after, "-o", color=color, markersize=4.5, linewidth=1.6, label=f"after {rows[0].updates} updates")
    highest = max((loss for loss in (*untrained, *after) if np.isfinite(loss)), default=1.0)
    axes.set_ylim(0.0, 1.25 * highest)  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
