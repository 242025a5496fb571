"""Figures of training and of trajectories, and animations of them: what a run leaves to look at.

Figures are objects of their own: no pyplot, no window, nothing global. Animations need pygame.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from PIL import Image
from torch import Tensor

from bptt_envs import System
from bptt_envs.charts import Chart, Curves, Field, NamedCurves, Paths
from bptt_envs.checks import positive, positive_integer
from bptt_envs.rendering import BACKGROUND, CYCLE, FAINT, INK, MUTED, SIZE, Color, picture, round_up
from bptt_trainers.files import write_atomic
from bptt_trainers.rollout import Trajectory, losses

FIGURE_FORMATS = ("png", "pdf", "svg")
ANIMATION_FORMATS = ("gif", "png")

FIGURE_WIDTH = 7.5  # inches at 100 dpi: legible where a README shows it
MOST_LINES = 8  # episodes that a figure draws one by one
MOST_PANELS = 12  # panels of curves of the state that a figure shows
HEIGHTS: dict[type[Chart], float] = {Curves: 1.55, NamedCurves: 2.2, Field: 2.4, Paths: 5.0}  # inches
FRAME_SECONDS = 0.03  # between two frames of an animation, about
SHORTEST_FRAME = 0.02  # s; viewers slow down what is under it
SMALLEST_PANEL = 80  # pixels
GAP = 2  # pixels between the panels of a picture
LINE_STYLES = ("-", "--", ":")
GREEK = re.compile(r"(?<![a-zA-Z])(alpha|beta|gamma|delta|theta|phi|psi|omega)(?![a-zA-Z])")
LONG_INDEX = re.compile(r"_(\w{2,})")


# Figures


def trajectory_figure(system: System, trajectory: Trajectory, title: str = "") -> Figure:
    """Draw the system's charts of what happened.

    In panels of curves, up to 8 episodes have a line each, colored by their loss; with more, a band shows the
    middle 80 % of all. Of more than 12 panels of curves of the state the first 12 are shown.

    Args:
        system: says what to show, and bounds the actions.
        trajectory: states (T + 1, B, *state_shape), actions (T, B, *action_shape).
        title: what the trajectory is; the system's name if empty.
    """
    costs = losses(system, trajectory).cpu()
    batch = len(costs)
    charts = system.charts(trajectory.states.detach(), system.bound(trajectory.actions.detach()))
    of_states = [chart for chart in charts if isinstance(chart, Curves) and len(chart.values) > trajectory.horizon]
    left_out = set(map(id, of_states[MOST_PANELS:]))
    rows = _rows([chart for chart in charts if id(chart) not in left_out])
    heights = [HEIGHTS[type(row[0])] for row in rows]
    figure = Figure(figsize=(FIGURE_WIDTH, sum(heights) + 1.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
    episodes: Axes | None = None  # the first panel of curves: all have the same legend
    for i, row in enumerate(rows):
        below = rows[i + 1] if i + 1 < len(rows) else []
        for j, chart in enumerate(row):
            axes = figure.add_subplot(grid[i, j] if len(row) == 2 else grid[i, :])
            _style(axes)
            axes.set_ylabel(_with_greek(chart.space if isinstance(chart, Field) else chart.label))
            if isinstance(chart, Curves):
                _plot_episodes(axes, system.dt, chart, costs)
                episodes = episodes or axes
            elif batch > 1:
                text = f"the first episode, loss {float(costs[0]):.3g}"
                axes.set_title(text, fontsize=8, color=_rgb(MUTED), loc="left")
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
    figure.suptitle(f"{title or type(system).__name__}: {_describe(costs)}", fontsize=11)
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
    figure = Figure(figsize=(FIGURE_WIDTH, 4.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    curves = {"training states": train_loss, "held-out states": test_loss}
    logarithms = [np.asarray(loss, dtype=float) for loss in curves.values()]
    logarithms = [np.where(np.isfinite(loss) & (loss > 0), loss, np.nan) for loss in logarithms]
    best = int(np.nanargmin(logarithms[0])) if np.isfinite(logarithms[0]).any() else None
    for name, loss, color in zip(curves, logarithms, map(_rgb, CYCLE), strict=False):
        label = name if best is None else f"{name}: {loss[-1]:.3g} at the end, {loss[best]:.3g} at the best epoch"
        axes.plot(epochs, loss, color=color, linewidth=1.6, label=label)
        if best is not None:
            axes.plot(epochs[best], loss[best], "o", color=color, markersize=6)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="minor", color=_rgb(FAINT), linewidth=0.3)
    axes.legend(frameon=False, fontsize=9)
    if title:
        axes.set_title(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix of `path`; the file is written whole or not at all.

    Raises:
        ValueError: if the suffix is another.
        RunFolderError: if the file cannot be written.
    """
    path = Path(path)
    suffix = _suffix(path, FIGURE_FORMATS)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix)
    write_atomic(path, buffer.getvalue())


# Animations


@dataclass(frozen=True)
class _Panel:
    """One episode, ready to be drawn."""

    title: str
    states: Tensor  # (T + 1, *state_shape)
    actions: Tensor  # (T, *action_shape), bounded
    costs: Tensor  # (T + 1,), the loss if the episode ended at each step


def save_animation(
    system: System,
    trajectory: Trajectory | Mapping[str, Trajectory],
    path: str | Path,
    *,
    episodes: int = 1,
    width: int = 800,
    speed: float = 1.0,
    hold: float = 1.5,
) -> None:
    """Draw what happened as a GIF or, by the suffix of `path`, as moments side by side in one PNG.

    Several trajectories by name, such as {"untrained": ..., "rule C": ...}, are shown side by side, with
    their episodes below one another. The file is written whole or not at all.

    Args:
        system: draws the states.
        trajectory: one, or several of the same system by name.
        path: ends in .gif or .png.
        episodes: how many episodes of each trajectory to show, from its first.
        width: of the picture, in pixels.
        speed: of a GIF, in simulated seconds a second.
        hold: how long a GIF shows its last frame before it starts again, in s.

    Raises:
        ValueError: if the suffix is another, or an argument is out of range.
        DependencyNotInstalled: if pygame is missing.
        RunFolderError: if the file cannot be written.
    """
    path = Path(path)
    suffix = _suffix(path, ANIMATION_FORMATS)
    speed, hold, width = positive("speed", speed), positive("hold", hold), positive_integer("width", width)
    named = {"": trajectory} if isinstance(trajectory, Trajectory) else trajectory
    panels = _panels(system, named, positive_integer("episodes", episodes))
    buffer = io.BytesIO()
    if suffix == "gif":
        columns = len(named) if len(named) > 1 else math.ceil(math.sqrt(len(panels)))
        _write_gif(buffer, system, panels, columns, width, speed, hold)
    else:
        count, columns = (6, 3) if len(panels) == 1 else (4, 4)
        horizon = panels[0].actions.shape[0]
        steps = sorted({round(horizon * i / (count - 1)) for i in range(count)})
        moments = [(panel, step) for panel in panels for step in steps]
        _mosaic(system, moments, min(columns, len(steps)), width).save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())


def _write_gif(
    buffer: io.BytesIO, system: System, panels: list[_Panel], columns: int, width: int, speed: float, hold: float
) -> None:
    horizon = panels[0].actions.shape[0]
    stride = max(1, round(FRAME_SECONDS * speed / system.dt))
    steps = list(range(0, horizon, stride))
    if len(steps) > 1 and (horizon - steps[-1]) * system.dt / speed < SHORTEST_FRAME:
        steps.pop()
    steps.append(horizon)
    # A GIF counts in 10 ms; rounding the times, not the durations, keeps the whole in real time
    starts = [10 * round(100 * step * system.dt / speed) for step in steps]
    durations = [max(round(1000 * SHORTEST_FRAME), end - start) for start, end in pairwise(starts)] + [
        round(1000 * hold)
    ]

    def frame(step: int) -> Image.Image:
        return _mosaic(system, [(panel, step) for panel in panels], columns, width)

    palette = _palette([frame(steps[round(i * (len(steps) - 1) / 5)]) for i in range(6)])
    frames: Iterator[Image.Image] = (frame(step).quantize(palette=palette, dither=Image.Dither.NONE) for step in steps)
    next(frames).save(buffer, "GIF", save_all=True, append_images=frames, duration=durations, loop=0, optimize=False)


def _palette(samples: list[Image.Image]) -> Image.Image:
    """One palette for all frames: colors do not flicker, and the file holds it once."""
    height = sum(sample.height for sample in samples)
    stack = Image.new("RGB", (samples[0].width, height))
    for i, sample in enumerate(samples):
        stack.paste(sample, (0, i * sample.height))
    return stack.quantize(colors=127, method=Image.Quantize.MAXCOVERAGE)


def _mosaic(system: System, moments: list[tuple[_Panel, int]], columns: int, width: int) -> Image.Image:
    """Draw panels at steps, row by row."""
    panel_width = (width - GAP * (columns - 1)) // columns
    if panel_width < SMALLEST_PANEL:
        raise ValueError(
            f"width must leave {SMALLEST_PANEL} pixels to each of {columns} panels beside one another; got {width}."
        )
    size = (panel_width, panel_width * SIZE[1] // SIZE[0])
    rows = -(-len(moments) // columns)
    mosaic = Image.new("RGB", (columns * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP), BACKGROUND)
    mosaic.paste(FAINT, (0, 0, *mosaic.size))
    for i, (panel, step) in enumerate(moments):
        action = panel.actions[step - 1] if step > 0 else None
        time = f"t = {step * system.dt:.2f} {system.time_unit}".rstrip()
        caption = f"{time}   loss {float(panel.costs[step]):.3g}"
        pixels = picture(system, panel.states[step], action, caption, panel.title, size)
        row, column = divmod(i, columns)
        mosaic.paste(Image.fromarray(pixels), (column * (size[0] + GAP), row * (size[1] + GAP)))
    return mosaic


@torch.no_grad()
def _panels(system: System, trajectories: Mapping[str, Trajectory], episodes: int) -> list[_Panel]:
    """The first `episodes` of each trajectory: every trajectory's first, then every second, ..."""
    if not trajectories:
        raise ValueError("trajectory must hold at least one trajectory; got none.")
    panels: list[list[_Panel]] = []
    for name, trajectory in trajectories.items():
        horizon, batch = trajectory.actions.shape[:2]
        if episodes > batch:
            raise ValueError(f"episodes must be at most {batch}, the number that the trajectory holds; got {episodes}.")
        states, actions = trajectory.states[:, :episodes], system.bound(trajectory.actions[:, :episodes])
        running = system.running_cost(states[:-1].flatten(0, 1), actions.flatten(0, 1), states[1:].flatten(0, 1)).view(
            horizon, episodes
        )
        so_far = torch.cat([running.new_zeros(1, episodes), running.cumsum(0)])
        costs = so_far + system.final_cost(states.flatten(0, 1)).view(horizon + 1, episodes)
        panels.append([_Panel(name, states[:, i], actions[:, i], costs[:, i]) for i in range(episodes)])
    return [panel for row in zip(*panels, strict=True) for panel in row]


# Pieces of figures


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
        axes.fill_between(times[known], low, high, color=_rgb(FAINT))
    shown = min(batch, MOST_LINES)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, shown))
    for color, episode in zip(colors, costs[:shown].argsort().tolist(), strict=True):
        axes.plot(times, series[:, episode], color=color, linewidth=1.2, label=f"{float(costs[episode]):.3g}")
    if chart.label.endswith("[rad]"):
        _count_in_pi(axes)


def _plot_named(axes: Axes, dt: float, chart: NamedCurves) -> None:
    series = _numbers(chart.values)
    times = dt * np.arange(len(series))
    for i, name in enumerate(chart.names):
        color, style = _rgb(CYCLE[i % len(CYCLE)]), LINE_STYLES[i // len(CYCLE) % len(LINE_STYLES)]
        axes.plot(times, series[:, i], color=color, linestyle=style, linewidth=1.4, label=_with_greek(name))
    _legend_beside(axes)


def _plot_field(axes: Axes, dt: float, chart: Field) -> None:
    """A cell for each time and point, with its center there."""
    values = _numbers(chart.values)
    steps, points = values.shape[0] - 1, values.shape[1]
    half = (chart.high - chart.low) / (points - 1) / 2
    extent = (-dt / 2, (steps + 0.5) * dt, chart.low - half, chart.high + half)
    image = axes.imshow(values.T, cmap="Blues", origin="lower", aspect="auto", extent=extent)
    axes.set_ylim(chart.low, chart.high)
    axes.grid(False)
    scale = axes.inset_axes((1.015, 0.0, 0.02, 1.0))
    axes.figure.colorbar(image, cax=scale)
    scale.set_ylabel(_with_greek(chart.label))
    scale.tick_params(colors=_rgb(MUTED), labelsize=8)
    scale.spines[:].set_visible(False)


def _plot_paths(axes: Axes, chart: Paths) -> None:
    """The ways with a ring where they start and a dot where they end."""
    ways = _numbers(chart.values)
    first = 0
    for (name, count), color in zip(chart.groups, cycle(map(_rgb, CYCLE))):
        for k in range(first, first + count):
            x, y = ways[:, k].T
            axes.plot(x, y, color=color, linewidth=1.2, label=name if k == first else None)
            axes.plot(x[0], y[0], "o", color=color, markerfacecolor="none", markersize=6)
            axes.plot(x[-1], y[-1], "o", color=color, markersize=6)
        first += count
    if chart.target is not None:
        axes.plot(*chart.target, "x", color=_rgb(INK), markersize=9, label="target")
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


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_rgb(MUTED))
    axes.tick_params(colors=_rgb(MUTED), labelsize=8)
    axes.grid(True, color=_rgb(FAINT), linewidth=0.6)
    axes.set_axisbelow(True)


def _rgb(color: Color) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _suffix(path: Path, known: Sequence[str]) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in known:
        raise ValueError(f"path must end in {' or '.join(f'.{name}' for name in known)}; got {str(path)!r}.")
    return suffix
