"""The figure of the LQR study: the loss over the optimum along the descents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bptt_trainers.analysis.lqr_tables import Row, short
from bptt_trainers.figures.style import COLORS
from bptt_trainers.rules import RULES

POINTS = 80  # of a curve
FIRST = 10  # step that is drawn
BAND = (25.0, 75.0)  # percentiles
SMALLEST, LARGEST = 1e-6, 1e5  # %: what is beyond is drawn there
NAMES = {"constant": "one gain for all steps", "time-varying": "a gain for each step"}


@dataclass(frozen=True)
class Curves:
    """Loss over the optimum along the descents of one objective and class of gains, in %.

    Attributes:
        objective: "continuous" or "final".
        gains: "constant" or "time-varying".
        steps: done before, evenly spaced on a log axis, (K,).
        low: the lower end of the band over the descents, (K, P), for the rules in the order of RULES.
        median: likewise.
        high: likewise.
    """

    objective: str
    gains: str
    steps: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, objective: str, gains: str, percent: np.ndarray) -> Curves:
        """From the loss over the optimum of every descent after every step, (S + 1, P, E)."""
        last = len(percent) - 1
        steps = np.unique(np.geomspace(min(FIRST, last), last, POINTS).round().astype(int))
        drawn = np.nan_to_num(percent[steps], nan=LARGEST).clip(SMALLEST, LARGEST)
        low, median, high = np.percentile(drawn, (BAND[0], 50.0, BAND[1]), axis=2)
        return cls(objective, gains, steps, low, median, high)

    def rows(self) -> list[Row]:
        """A row for each rule and step."""
        rows: list[Row] = []
        for p, rule in enumerate(RULES):
            for k, step in enumerate(self.steps):
                row: Row = {"objective": self.objective, "gains": self.gains, "rule": rule, "step": int(step)}
                row |= {
                    "low": short(self.low[k, p]),
                    "median": short(self.median[k, p]),
                    "high": short(self.high[k, p]),
                }
                rows.append(row)
        return rows


def curves_figure(curves: Sequence[Curves]) -> Figure:
    """Draw the median and a band for each rule; a row of panels for each class, a column for each objective."""
    classes, objectives = (list(dict.fromkeys(getattr(c, of) for c in curves)) for of in ("gains", "objective"))
    figure = Figure(figsize=(10.0, 6.6), dpi=100, layout="constrained")
    panels = figure.subplots(len(classes), len(objectives), sharex=True, sharey="row", squeeze=False)
    for each in curves:
        _draw(panels[classes.index(each.gains), objectives.index(each.objective)], each)
    for axes in panels[-1]:
        axes.set_xlabel("step of the descent")
    for axes in panels[:, 0]:
        axes.set_ylabel("loss over the optimum [%]")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, curves: Curves) -> None:
    for p, rule in enumerate(RULES):
        color = COLORS[rule]
        axes.plot(curves.steps, curves.median[:, p], color=color, linewidth=1.7, label=rule)
        axes.fill_between(curves.steps, curves.low[:, p], curves.high[:, p], color=color, alpha=0.16, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(curves.steps[0] - 0.5, curves.steps[-1] + 0.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{curves.objective}, {NAMES[curves.gains]}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DEE1E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
