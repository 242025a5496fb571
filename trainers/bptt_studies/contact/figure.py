"""The figure of the contact study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from bptt_envs.canvas import INK, MUTED
from bptt_studies.contact.config import ContactConfig
from bptt_studies.contact.run import START, Measured, Run
from bptt_studies.contact.tables import losses_at, stiffnesses_of
from bptt_studies.paper.statistics import spread
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.figures.style import (
    WIDTH,
    Look,
    draw_curve,
    handles_of,
    legend_below,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes

LINES: dict[str, LineStyleType] = {START: "--", "C": "-"}
"""Whose controllers the gradients are of."""

PANELS = {
    "norm": "norm of R and M",
    "noise": "noise over norm",
    "balance": "decades of |dL/dx_t| over t",
}


def contact_figure(runs: Sequence[Run], measured: Sequence[Measured], config: ContactConfig) -> Figure:
    """Draw losses by rule, and what R and M are at the start and after C, over the stiffness.

    Args:
        runs: at least one stiffness.
        measured: likewise.
        config: of the study.
    """
    figure = Figure(figsize=(WIDTH, 5.2), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    for axes in panels:
        style_axes(axes)
        log_axes(axes, "x")
        axes.set_xlabel("stiffness [N/m]", fontsize=8)
    _losses(panels[0], runs)
    whole = [one for one in measured if one.horizon == config.horizon]
    for axes, (name, title) in zip(panels[1:4], PANELS.items(), strict=True):
        for rule in ("R", "M"):
            for trained in LINES:
                _medians(axes, whole, f"{name}_{rule}", trained, looks_of("RM")[rule].color, f"{rule}, {_at(trained)}")
        axes.set_title(title, fontsize=9)
    log_axes(panels[1], "y")
    log_axes(panels[2], "y")
    for axes, name, title in (
        (panels[4], "cosine", "cosine of R and M"),
        (panels[5], "agreement", "share of equal signs"),
    ):
        for i, horizon in enumerate(config.horizons):
            there = [one for one in measured if one.horizon == horizon]
            for trained in LINES:
                label = f"{horizon} steps, {_at(trained)}"
                _medians(axes, there, name, trained, to_hex(rgb((MUTED, INK, (0, 158, 115))[i % 3])), label)
        axes.set_title(title, fontsize=9)
    legend_below(figure, handles_of(panels))
    title_above(figure, f"{config.task}: medians over {config.seeds} seeds, bars from quartile to quartile")
    return figure


def _at(trained: str) -> str:
    return "untrained" if trained == START else f"after {trained}"


def _losses(axes: Axes, runs: Sequence[Run]) -> None:
    at = stiffnesses_of(runs)
    looks = looks_of(PAPER_RULES) | {START: Look(to_hex(rgb(MUTED)), "--")}
    for side, look in looks.items():
        found = [spread(losses_at(runs, stiffness, side)) for stiffness in at]
        medians = [one.median if np.isfinite(one.median) else np.nan for one in found]
        draw_curve(axes, at, medians, look, "untrained" if side == START else side)
        axes.vlines(at, [one.lower for one in found], [one.upper for one in found], color=look.color, linewidth=1.0)
    axes.set_title("held-out loss", fontsize=9)


def _medians(axes: Axes, measured: Sequence[Measured], name: str, trained: str, color: str, label: str) -> None:
    at = stiffnesses_of(measured)
    by = [[getattr(one, name) for one in measured if (one.stiffness, one.trained) == (k, trained)] for k in at]
    draw_curve(axes, at, [float(np.median(values)) for values in by], Look(color, LINES[trained]), label, 1.2)
