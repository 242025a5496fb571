"""Figures of a trajectory and of learning curves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import cycle, groupby

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from torch import Tensor

from bptt_envs.canvas import CYCLE, FAINT, INK, MUTED, round_up
from bptt_envs.charts import Chart, Curves, Field, NamedCurves, Paths
from bptt_trainers.directions.rollout import Trajectory, losses
from bptt_trainers.directions.system_of import Physics, given_system
from bptt_trainers.figures.style import (
    WIDTH,
    Look,
    draw_curve,
    handles_of,
    legend_below,
    line_style,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes

MOST_LINES = 8  # episodes that a figure draws one by one
MOST_PANELS = 12  # panels of curves of the state that a figure shows
HEIGHTS: dict[type[Chart], float] = {Curves: 1.55, NamedCurves: 2.2, Field: 2.4, Paths: 5.0}  # inches
GREEK = re.compile(r"(?<![a-zA-Z])(alpha|beta|gamma|delta|theta|phi|psi|omega)(?![a-zA-Z])")
LONG_INDEX = re.compile(r"_(\w{2,})")


def trajectory_figure(system: Physics, trajectory: Trajectory, title: str = "") -> Figure:
    """Draw the system's charts of what happened.

    In panels of curves, up to 8 episodes have a line each, colored by their loss; with more, a band shows the
    middle 80 % of all. Of more than 12 panels of curves of the state the first 12 are shown.

    Args:
        system: says what to show, and bounds the actions; or an environment of it.
        trajectory: states (T + 1, B, *state_shape), actions (T, B, *action_shape).
        title: what the trajectory is; the system's name if empty.
    """
    system = given_system(system)
    costs = losses(system, trajectory).cpu()
    batch = len(costs)
    charts = system.charts(trajectory.states.detach(), system.bound(trajectory.actions.detach()))
    of_states = [chart for chart in charts if isinstance(chart, Curves) and len(chart.values) > trajectory.horizon]
    left_out = set(map(id, of_states[MOST_PANELS:]))
    rows = _rows([chart for chart in charts if id(chart) not in left_out])
    heights = [HEIGHTS[type(row[0])] for row in rows]
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
    episodes: Axes | None = None  # the first panel of curves: all have the same legend
    for i, row in enumerate(rows):
        below = rows[i + 1] if i + 1 < len(rows) else []
        for j, chart in enumerate(row):
            axes = figure.add_subplot(grid[i, j] if len(row) == 2 else grid[i, :])
            style_axes(axes)
            axes.set_ylabel(_with_greek(chart.space if isinstance(chart, Field) else chart.label))
            if isinstance(chart, Curves):
                _plot_episodes(axes, system.dt, chart, costs)
                episodes = episodes or axes
            elif batch > 1:
                text = f"the first episode, loss {float(costs[0]):.3g}"
                axes.set_title(text, fontsize=8, color=rgb(MUTED), loc="left")
            if isinstance(chart, NamedCurves):
                _plot_named(axes, system.dt, chart)
            elif isinstance(chart, Field):
                _plot_field(axes, system.dt, chart)
            elif isinstance(chart, Paths):
                _plot_paths(axes, chart)
                continue
            axes.set_xlim(0, system.dt * trajectory.horizon)
            if len(below) == len(row) and not isinstance(below[0], Paths):  # the panel below has the same times
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel(system.time_label)
    if episodes is not None:
        figure.legend(
            *episodes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=MOST_LINES,
            title="loss of the episode" + (f"; grey: the middle 80 % of all {batch}" if batch > MOST_LINES else ""),
            fontsize=8,
            title_fontsize=8,
            frameon=False,
            handlelength=1.4,
            columnspacing=1.2,
        )
    title_above(figure, f"{title or system.class_name}: {_describe(costs)}")
    return figure


def learning_curves_figure(
    epochs: Sequence[int], train_loss: Sequence[float], test_loss: Sequence[float], title: str = ""
) -> Figure:
    """Draw the losses over the epochs, on a log scale; losses that are not finite or not above 0 leave a gap.

    A dot marks the epoch with the lowest training loss: that of the best checkpoint.

    Args:
        epochs: (E,).
        train_loss: (E,), on the training states.
        test_loss: (E,), on the held-out states.
        title: written above.
    """
    figure = Figure(figsize=(WIDTH, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes)
    curves = {"training states": train_loss, "held-out states": test_loss}
    logarithms = [np.asarray(loss, dtype=float) for loss in curves.values()]
    logarithms = [np.where(np.isfinite(loss) & (loss > 0), loss, np.nan) for loss in logarithms]
    best = int(np.nanargmin(logarithms[0])) if np.isfinite(logarithms[0]).any() else None
    log_axes(axes, "y")
    for (name, look), loss in zip(looks_of(curves).items(), logarithms, strict=True):
        label = name if best is None else f"{name}: {loss[-1]:.3g} at the end, {loss[best]:.3g} at the best epoch"
        draw_curve(axes, epochs, loss, look, label)
        if best is not None:
            axes.plot(epochs[best], loss[best], "o", color=look.color, markersize=6)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="minor", color=rgb(FAINT), linewidth=0.3)
    legend_below(figure, handles_of([axes]))
    if title:
        title_above(figure, title)
    return figure


def _rows(charts: Sequence[Chart]) -> list[list[Chart]]:
    """Charts row by row: panels of curves in pairs where there are more than two of them, others alone."""
    rows: list[list[Chart]] = []
    for curves, group in groupby(charts, lambda chart: isinstance(chart, Curves)):
        run = list(group)
        width = 2 if curves and len(run) > 2 else 1
        rows += [run[i : i + width] for i in range(0, len(run), width)]
    return rows


def _plot_episodes(axes: Axes, dt: float, chart: Curves, costs: Tensor) -> None:
    series = _numbers(chart.values)
    times = dt * np.arange(len(series))
    batch = series.shape[1]
    if batch > MOST_LINES:
        known = np.isfinite(series).any(axis=1)
        low, high = np.nanpercentile(series[known], [10, 90], axis=1)
        axes.fill_between(times[known], low, high, color=rgb(FAINT))
    shown = min(batch, MOST_LINES)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, shown))
    for color, episode in zip(colors, costs[:shown].argsort().tolist(), strict=True):
        draw_curve(axes, times, series[:, episode], Look(to_hex(color), "-"), f"{float(costs[episode]):.3g}", 1.2)
    if chart.label.endswith("[rad]"):
        _count_in_pi(axes)


def _plot_named(axes: Axes, dt: float, chart: NamedCurves) -> None:
    series = _numbers(chart.values)
    times = dt * np.arange(len(series))
    for i, name in enumerate(chart.names):
        look = Look(to_hex(rgb(CYCLE[i % len(CYCLE)])), line_style(i // len(CYCLE)))
        draw_curve(axes, times, series[:, i], look, _with_greek(name), 1.4)
    _legend_beside(axes)


def _plot_field(axes: Axes, dt: float, chart: Field) -> None:
    """A cell for each time and point, with its center there; values of both signs in two colors, 0 in none."""
    values = _numbers(chart.values)
    steps, points = values.shape[0] - 1, values.shape[1]
    half = (chart.high - chart.low) / (points - 1) / 2
    extent = (-dt / 2, (steps + 0.5) * dt, chart.low - half, chart.high + half)
    finite = values[np.isfinite(values)]
    reach = np.abs(finite).max() if (finite < 0.0).any() else None
    colors = {"cmap": "Blues"} if reach is None else {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    image = axes.imshow(values.T, origin="lower", aspect="auto", extent=extent, **colors)
    axes.set_ylim(chart.low, chart.high)
    axes.grid(False)
    scale = axes.inset_axes((1.015, 0.0, 0.02, 1.0))
    axes.figure.colorbar(image, cax=scale)
    scale.set_ylabel(_with_greek(chart.label))
    scale.tick_params(colors=rgb(MUTED), labelsize=8)
    scale.spines[:].set_visible(False)


def _plot_paths(axes: Axes, chart: Paths) -> None:
    """The ways with a ring where they start and a dot where they end."""
    ways = _numbers(chart.values)
    first = 0
    for (name, count), color in zip(chart.groups, cycle(map(rgb, CYCLE))):
        for k in range(first, first + count):
            x, y = ways[:, k].T
            axes.plot(x, y, color=color, linewidth=1.2, label=name if k == first else None)
            axes.plot(x[0], y[0], "o", color=color, markerfacecolor="none", markersize=6)
            axes.plot(x[-1], y[-1], "o", color=color, markersize=6)
        first += count
    if chart.target is not None:
        axes.plot(*chart.target, "x", color=rgb(INK), markersize=9, label="target")
    axes.set_aspect("equal", adjustable="datalim")
    _legend_beside(axes)


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, handlelength=1.4)


def _count_in_pi(axes: Axes) -> None:
    """Put the ticks of the y axis at multiples of pi, if it spans more than one."""
    low, high = axes.get_ylim()
    if high - low > math.pi:
        step = max(1, round_up((high - low) / math.pi / 4))
        axes.yaxis.set_major_locator(MultipleLocator(math.pi * step))
        axes.yaxis.set_major_formatter(lambda y, _: _multiple_of_pi(round(y / math.pi)))


def _multiple_of_pi(count: int) -> str:
    return {0: "0", 1: "π", -1: "−π"}.get(count, f"{count}π".replace("-", "−"))


def _numbers(tensor: Tensor) -> np.ndarray:
    """As an array in which what is not finite is NaN, a gap."""
    array = tensor.double().cpu().numpy()
    return np.where(np.isfinite(array), array, np.nan)


def _with_greek(label: str) -> str:
    """The words with a Greek letter, such as "theta'_1" in "theta'_1 [rad]", as mathematics."""
    return " ".join(_as_mathematics(word) if GREEK.search(word) else word for word in label.split(" "))


def _as_mathematics(word: str) -> str:
    return "$" + LONG_INDEX.sub(r"_{\1}", GREEK.sub(r"\\\1", word)) + "$"


def _describe(costs: Tensor) -> str:
    if len(costs) == 1:
        return f"loss {float(costs[0]):.3g}"
    low, mean, high = float(costs.min()), float(costs.mean()), float(costs.max())
    return f"mean loss {mean:.3g} over {len(costs)} episodes ({low:.3g} to {high:.3g})"
