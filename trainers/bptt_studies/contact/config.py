"""How the contact study trains and measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from bptt_envs.settings import Count, Positive, among, read


@dataclass(frozen=True)
class Task:
    """What is studied.

    Attributes:
        env: id of the environment, which has an option `stiffness`.
        stiffness: at which values, in N/m.
        options: its other options.
    """

    env: str
    stiffness: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "hopper": Task("DiffHopper-v0", (1e3, 5e3, 2e4, 1e5)),
    "upright-hopper": Task("DiffHopper-v0", (1e3, 1e4, 1e5), {"form": "vertical"}),
    "fine-upright-hopper": Task("DiffHopper-v0", (1e5,), {"form": "vertical", "substeps": 32}),
    "pusher": Task("DiffPusher-v0", (1e2, 1e3, 1e4)),
}


@dataclass(frozen=True)
class ContactConfig:
    """How the contact study trains and measures.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    task: Annotated[str, among(TASKS)] = "hopper"
    """What is studied."""
    stiffness: tuple[Positive, ...] = ()
    """Of the contacts, in N/m; none: the task's own, over two or three decades."""
    horizon: Count = 50
    """Steps of an episode. Gradients are measured at a quarter and half of it, too."""
    seeds: Count = 6
    """Runs of each rule at each stiffness."""
    epochs: Count = 5
    """Of 256 fresh start states each, in batches of 8."""
    learning_rate: Positive = 3e-3
    """Of Adam at first; it falls to 0."""
    samples: Count = 32
    """Start states over which gradients are measured."""
    out: Path = Path("runs/contact")
    """Folder for everything."""

    def __post_init__(self) -> None:
        read(self)

    @property
    def stiffnesses(self) -> tuple[float, ...]:
        """In N/m, each once, the softest first."""
        return tuple(sorted(set(self.stiffness or TASKS[self.task].stiffness)))

    @property
    def horizons(self) -> tuple[int, ...]:
        """Over which gradients are measured, the shortest first."""
        return tuple(sorted({max(1, self.horizon // part) for part in (4, 2, 1)}))
