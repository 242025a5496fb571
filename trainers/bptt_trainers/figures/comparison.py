"""The learning curves of a comparison, against simulator steps and against seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from bptt_trainers.curve import Curve
from bptt_trainers.figures.bands import RANGE, draw_band, series_of
from bptt_trainers.figures.style import colors_of

AXES = {"simulator_steps": "simulator steps", "seconds": "seconds of training"}
FLOOR_STYLES = ("--", ":", "-.")


def curves_figure(curves: Mapping[tuple[str, int], Curve], title: str = "") -> Figure:
    """Draw the held-out loss of every method: the median over its runs, and a band from least to largest.

    Methods that do not train are horizontal lines. Both axes are logarithmic.

    Args:
        curves: the curve of each (method, seed).
        title: written above.
    """
    figure = Figure(figsize=(10.0, 4.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    by_method: dict[str, list[Curve]] = {}
    for (method, _), curve in curves.items():
        by_method.setdefault(method, []).append(curve)
    floors = [method for method, runs in by_method.items() if len(runs[0]) == 1]
    colors = colors_of([method for method in by_method if method not in floors])
    for axes, (of, name) in zip(panels, AXES.items(), strict=True):
        _style(axes)
        for method, runs in by_method.items():
            if method in floors:
                level = float(np.median([curve[0].test_loss for curve in runs]))
                style = FLOOR_STYLES[floors.index(method) % len(FLOOR_STYLES)]
                axes.axhline(level, color="#767C86", linewidth=1.2, linestyle=style, label=method)
            else:
                draw_band(axes, series_of(runs, of), colors[method], method, RANGE)
        axes.set_xlabel(name)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1].xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    panels[0].set_ylabel("held-out loss")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _style(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DEE1E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
