"""The learning curves of a comparison, against simulator steps and against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bptt_trainers.curve import Curve

POINTS = 200  # of a band
SMALLEST = 1e-8  # losses below it are drawn there
AXES = {"simulator_steps": "simulator steps", "seconds": "seconds of training"}
FLOOR_STYLES = ("--", ":", "-.")

# Colours that differ for every reader: Okabe and Ito (2008), without their yellow
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")


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
    colors = {method: COLORS[i % len(COLORS)] for i, method in enumerate(m for m in by_method if m not in floors)}
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
        x = np.array([getattr(point, of) for point in curve], dtype=float)
        y = np.array([point.test_loss for point in curve], dtype=float)
        y = np.log(np.clip(np.nan_to_num(y, nan=np.inf, posinf=np.finfo(float).max), SMALLEST, None))
        series.append((x[x > 0], y[x > 0]))
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DEE1E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
