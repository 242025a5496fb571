"""The figure of the LQR study: the loss over the optimum along the descents."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bptt_trainers.comparison_figure import COLORS
from bptt_trainers.rules import RULES

POINTS = 80  # of a curve
BAND = (10.0, 90.0)  # percentiles
SMALLEST, LARGEST = 1e-6, 1e6  # %: what is beyond is drawn there
NAMES = {"constant": "one gain for all steps", "time-varying": "a gain for each step"}

Row = dict[str, str | int | float]


def curves_of(objective: str, gains: str, percent: np.ndarray) -> list[Row]:
    """Median and percentiles over the descents, at steps evenly spaced on a log axis.

    Args:
        objective: of the loss.
        gains: the class of gains.
        percent: loss over the optimum, (S + 1, P, E), for the rules in the order of RULES.
    """
    steps = np.unique(np.geomspace(1, len(percent), POINTS).round().astype(int)) - 1
    bounded = np.nan_to_num(percent[steps], nan=np.inf).clip(SMALLEST, LARGEST)
    low, middle, high = np.percentile(bounded, (BAND[0], 50.0, BAND[1]), axis=2)
    return [
        {
            "objective": objective,
            "gains": gains,
            "rule": rule,
            "step": int(step),
            "median": float(f"{middle[i, p]:.4g}"),
            "low": float(f"{low[i, p]:.4g}"),
            "high": float(f"{high[i, p]:.4g}"),
        }
        for p, rule in enumerate(RULES)
        for i, step in enumerate(steps)
    ]


def curves_figure(rows: Sequence[Row]) -> Figure:
    """Draw the median and a band for each rule; a row of panels for each class, a column for each objective."""
    objectives = list(dict.fromkeys(str(row["objective"]) for row in rows))
    classes = list(dict.fromkeys(str(row["gains"]) for row in rows))
    figure = Figure(figsize=(10.0, 6.6), dpi=100, layout="constrained")
    panels = figure.subplots(len(classes), len(objectives), sharex=True, sharey="row", squeeze=False)
    for line, gains in zip(panels, classes, strict=True):
        for axes, objective in zip(line, objectives, strict=True):
            for rule in RULES:
                chosen: list[Any] = [
                    row for row in rows if (row["objective"], row["gains"], row["rule"]) == (objective, gains, rule)
                ]
                x = [row["step"] + 1 for row in chosen]
                axes.plot(x, [row["median"] for row in chosen], color=COLORS[rule], linewidth=1.7, label=rule)
                axes.fill_between(
                    x,
                    [row["low"] for row in chosen],
                    [row["high"] for row in chosen],
                    color=COLORS[rule],
                    alpha=0.16,
                    linewidth=0,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(f"{objective}, {NAMES[gains]}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(True, color="#DEE1E5", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
        line[0].set_ylabel("loss over the optimum [%]")
    for axes in panels[-1]:
        axes.set_xlabel("step of the descent, from 1")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
