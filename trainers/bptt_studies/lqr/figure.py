"""The figure of the LQR study: the loss over the optimum along the descents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bptt_studies.lqr.tables import short
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.figures.style import COVERED, WIDTH, draw_curve, handles_of, legend_below, looks_of, style_axes
from bptt_trainers.figures.ticks import log_axes
from bptt_trainers.records.tables import Row

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
        low: the lower end of the band over the descents, (K, P), for the rules in the order of PAPER_RULES.
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
        for p, rule in enumerate(PAPER_RULES):
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
    figure = Figure(figsize=(WIDTH, 5.6), dpi=100, layout="constrained")
    panels = figure.subplots(len(classes), len(objectives), sharex=True, sharey="row", squeeze=False)
    for each in curves:
        _draw(panels[classes.index(each.gains), objectives.index(each.objective)], each)
    for axes in panels[-1]:
        axes.set_xlabel("step of the descent", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("loss over the optimum [%]", fontsize=9)
    legend_below(figure, handles_of(panels.flat))
    return figure


def _draw(axes: Axes, curves: Curves) -> None:
    style_axes(axes)
    log_axes(axes)
    looks = looks_of(PAPER_RULES)
    for p, rule in enumerate(PAPER_RULES):
        draw_curve(axes, curves.steps, curves.median[:, p], looks[rule], rule, COVERED if rule == "M" else 1.6)
        low, high = curves.low[:, p], curves.high[:, p]
        axes.fill_between(curves.steps, low, high, color=looks[rule].color, alpha=0.13, linewidth=0)
    axes.set_xlim(curves.steps[0] - 0.5, curves.steps[-1] + 0.5)
    axes.set_title(f"{curves.objective}, {NAMES[curves.gains]}", fontsize=9)
