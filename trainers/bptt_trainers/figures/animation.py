"""Animations of trajectories, and moments of them side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bptt_envs import System
from bptt_envs.canvas import BACKGROUND, FAINT, SIZE
from bptt_envs.checks import positive, positive_integer
from bptt_envs.rendering import picture
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.system_of import Physics, given_system
from bptt_trainers.figures.style import checked_suffix
from bptt_trainers.records.files import write_atomic

ANIMATION_FORMATS = ("gif", "png")
FRAME_SECONDS = 0.03  # between two frames of an animation, about
SHORTEST_FRAME = 0.02  # s; viewers slow down what is under it
SMALLEST_PANEL = 80  # pixels
GAP = 2  # pixels between the panels of a picture


@dataclass(frozen=True)
class _Panel:
    """One episode, ready to be drawn."""

    title: str
    states: Tensor  # (T + 1, *state_shape)
    actions: Tensor  # (T, *action_shape), bounded
    costs: Tensor  # (T + 1,), the loss if the episode ended at each step


def save_animation(
    system: Physics,
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
        system: draws the states; or an environment of it.
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
    system = given_system(system)
    path = Path(path)
    suffix = checked_suffix("path", path, ANIMATION_FORMATS)
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
