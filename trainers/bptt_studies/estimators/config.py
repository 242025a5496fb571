"""How the study of estimators measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from bptt_envs.settings import Count, Positive, Seed, among, read


@dataclass(frozen=True)
class Task:
    """What is studied.

    Attributes:
        env: id of the environment.
        over: the option that is varied.
        unit: of that, for readers.
        values: of that.
        options: the other options.
        gain: factor on the weights of the untrained network, by which it feeds back.
    """

    env: str
    over: str
    unit: str
    values: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    gain: float = 1.0


TASKS = {
    "kuramoto-sivashinsky": Task("DiffKuramotoSivashinsky-v0", "horizon", "steps", (16, 32, 64, 128)),
    "chained-pendulum": Task("DiffChainedPendulum-v0", "horizon", "steps", (25, 50, 100, 200), gain=4.0),
    "upright-hopper": Task("DiffHopper-v0", "stiffness", "N/m", (1e3, 1e4, 1e5), {"form": "vertical", "horizon": 50}),
}


@dataclass(frozen=True)
class EstimatorsConfig:
    """How the study of estimators measures.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    task: Annotated[str, among(TASKS)] = "kuramoto-sivashinsky"
    """What is studied: chaos over the horizon (kuramoto-sivashinsky, chained-pendulum), contact over its stiffness
    (upright-hopper)."""
    values: tuple[Positive, ...] = ()
    """Of what is varied, steps or N/m; none: the task's own."""
    batch: Count = 16
    """Episodes of an estimate, at least 2."""
    estimates: Count = 32
    """Estimates of each kind, at least 2, whose scatter is the variance."""
    truth: Count = 8
    """How many times as many episodes, others, the gradient that they are held against is the mean of."""
    deviation: Positive = 0.1
    """Of the noise in the actions, as a share of half their range."""
    seed: Seed = 0
    """Of the controller's weights, the start states and the noise."""
    out: Path = Path("runs/estimators")
    """Folder for everything."""

    def __post_init__(self) -> None:
        read(self)
        for name in ("batch", "estimates"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2; got {getattr(self, name)}.")

    @property
    def points(self) -> tuple[float, ...]:
        """Of what is varied, each value once, the least first."""
        return tuple(sorted(set(self.values or TASKS[self.task].values)))
