"""The learning curves of a comparison, against simulator steps and against seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bptt_envs.canvas import MUTED
from bptt_trainers.figures.bands import RANGE, draw_band, series_of
from bptt_trainers.figures.style import (
    WIDTH,
    handles_of,
    legend_below,
    line_style,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes
from bptt_trainers.records.curve import Curve

AXES = {"simulator_steps": "simulator steps", "seconds": "seconds of training"}


def curves_figure(curves: Mapping[tuple[str, int], Curve], title: str = "") -> Figure:
    """Draw the held-out loss of every method: the median over its runs, and a band from least to largest.

    Methods that do not train are horizontal lines. Both axes are logarithmic.

    Args:
        curves: the curve of each (method, seed).
        title: written above.
    """
    figure = Figure(figsize=(WIDTH, 3.8), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    by_method: dict[str, list[Curve]] = {}
    for (method, _), curve in curves.items():
        by_method.setdefault(method, []).append(curve)
    baselines = [method for method, runs in by_method.items() if len(runs[0]) == 1]
    looks = looks_of([method for method in by_method if method not in baselines])
    for axes, (of, name) in zip(panels, AXES.items(), strict=True):
        style_axes(axes)
        log_axes(axes)
        for method, runs in by_method.items():
            if method in baselines:
                level = float(np.median([curve[0].test_loss for curve in runs]))
                style = line_style(1 + baselines.index(method))
                axes.axhline(level, color=rgb(MUTED), linewidth=1.2, linestyle=style, label=method)
            else:
                draw_band(axes, series_of(runs, of), looks[method], method, RANGE)
        axes.set_xlabel(name, fontsize=9)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("held-out loss", fontsize=9)
    legend_below(figure, handles_of(panels[:1]))
    if title:
        title_above(figure, title)
    return figure
