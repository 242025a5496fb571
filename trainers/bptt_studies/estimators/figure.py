"""The figure of the study of estimators."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from bptt_envs.canvas import MUTED
from bptt_studies.estimators.config import TASKS, EstimatorsConfig
from bptt_studies.estimators.run import NAMES, Measured
from bptt_trainers.figures.style import (
    WIDTH,
    draw_curve,
    handles_of,
    legend_below,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes

PANELS = {
    "noise": "noise of one estimate",
    "bias": "distance of the mean",
    "cosine": "cosine of one estimate",
}


def estimators_figure(rows: Sequence[Measured], config: EstimatorsConfig) -> Figure:
    """Draw noise, bias and cosine of every estimator over what is varied.

    Args:
        rows: of at least one point.
        config: of the study.
    """
    figure = Figure(figsize=(WIDTH, 3.0), dpi=100, layout="constrained")
    task, looks = TASKS[config.task], looks_of(NAMES)
    panels = figure.subplots(1, 3)
    for axes, (what, title) in zip(panels, PANELS.items(), strict=True):
        style_axes(axes)
        log_axes(axes, "x" if what == "cosine" else "xy")
        axes.set_xlabel(f"{task.over} [{task.unit}]", fontsize=8)
        axes.set_title(title, fontsize=9)
        for name in NAMES:
            there = sorted((row for row in rows if row.estimator == name), key=lambda row: row.value)
            at = [row.value for row in there]
            draw_curve(axes, at, [getattr(row, what) for row in there], looks[name], name, 1.4)
            if what == "bias":  # below this, a distance says nothing of bias
                axes.plot(at, [row.floor for row in there], ":", color=looks[name].color, linewidth=0.9)
    panels[1].plot([], [], ":", color=rgb(MUTED), label="without bias")
    legend_below(figure, handles_of(panels))
    title_above(
        figure, f"{config.task}: {config.estimates} estimates of {config.batch} episodes, over the norm of the gradient"
    )
    return figure
