"""The figure of what a run reports of its updates: their sizes, and how R and M agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bptt_envs.canvas import MUTED
from bptt_trainers.figures.style import (
    WIDTH,
    draw_curve,
    handles_of,
    legend_below,
    looks_of,
    rgb,
    style_axes,
)
from bptt_trainers.figures.ticks import log_axes
from bptt_trainers.training.metrics import EpochMetrics


def updates_figure(history: Sequence[EpochMetrics]) -> Figure:
    """Draw the norm of the direction, and cosine and agreement in sign of R and M, over the epochs.

    Args:
        history: the rows of metrics.csv, that of the untrained controller among them.
    """
    figure = Figure(figsize=(WIDTH, 3.2), dpi=100, layout="constrained")
    sizes, angles = figure.subplots(1, 2)
    epochs = [row.epoch for row in history]
    for axes in (sizes, angles):
        style_axes(axes)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    log_axes(sizes, "y")
    norms = np.array([row.direction_norm for row in history])
    names = ("norm of the direction", "cosine of R and M", "share of one sign in R and M")
    looks = looks_of(names)
    draw_curve(sizes, epochs, np.where(np.isfinite(norms) & (norms > 0), norms, np.nan), looks[names[0]], names[0])
    draw_curve(angles, epochs, [row.cosine for row in history], looks[names[1]], names[1])
    draw_curve(angles, epochs, [row.sign_agreement for row in history], looks[names[2]], names[2])
    angles.axhline(0.0, color=rgb(MUTED), linewidth=0.8)
    angles.set_ylim(-1.05, 1.05)
    legend_below(figure, handles_of([sizes, angles]))
    return figure
