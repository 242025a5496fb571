"""The learning curves of a comparison, against simulator steps and against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from bptt_trainers.curve import Curve
from bptt_trainers.figures.style import COLORS

POINTS = 200  # of a band
SMALLEST, LARGEST = 1e-8, 1e8  # losses beyond them are drawn there, those that are no number too
AXES = {"simulator_steps": "simulator steps", "seconds": "seconds of training"}
FLOOR_STYLES = ("--", ":", "-.")

OTHERS = ("#555555", "#8C564B", "#17BECF", "#7B4FB3")


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
    others = [method for method in by_method if method not in COLORS and method not in floors]
    colors = COLORS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}
    for axes, (of, name) in zip(panels, AXES.items(), strict=True):
        _style(axes)
        for method, runs in by_method.items():
            if method in floors:
                level = float(np.median([curve[0].test_loss for curve in runs]))
                style = FLOOR_STYLES[floors.index(method) % len(FLOOR_STYLES)]
                axes.axhline(level, color="#767C86", linewidth=1.2, linestyle=style, label=method)
            else:
                _band(axes, runs, of, colors[method], method)
        axes.set_xlabel(name)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1].xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    panels[0].set_ylabel("held-out loss")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _band(axes: Axes, runs: Sequence[Curve], of: str, color: str, label: str) -> None:
    """Median and range over the runs, interpolated where all of them have values; a single run as it is."""
    series = []
    for curve in runs:
        trained = [point for point in curve if point.simulator_steps > 0]  # a log axis has no 0
        y = np.array([point.test_loss for point in trained])
        y = np.log(np.clip(np.nan_to_num(y, nan=LARGEST, posinf=LARGEST), SMALLEST, LARGEST))
        series.append((np.array([float(getattr(point, of)) for point in trained]), y))
    if len(series) == 1:
        grid, values = series[0][0], series[0][1][None]
    else:
        start, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
        grid = np.geomspace(start, max(start, end), POINTS)
        values = np.stack([np.interp(grid, x, y) for x, y in series])
    axes.plot(grid, np.exp(np.median(values, axis=0)), color=color, linewidth=1.7, label=label)
    if len(series) > 1:
        axes.fill_between(grid, np.exp(values.min(0)), np.exp(values.max(0)), color=color, alpha=0.16, linewidth=0)


def _style(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DEE1E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
