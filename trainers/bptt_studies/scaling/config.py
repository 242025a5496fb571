"""How far a task can grow: along which axes, in which steps, and what theory expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from bptt_envs.checks import each_once
from bptt_envs.settings import Count, among, read
from bptt_trainers.directions.chosen_engine import EngineName
from bptt_trainers.training.bptt import available_device
from bptt_trainers.training.config import Device, RuleName

OF_UPDATE = ("batch", "hidden")
"""What a value of an axis may set besides options of the environment."""

PAPER_BATCH = 8
MOST_MEMORY = 8 * 2**30  # bytes; an update that needs more is neither timed nor trained


@dataclass(frozen=True)
class Growth:
    """The slope on log-log axes that theory expects of large tasks, and why."""

    slope: float
    why: str


@dataclass(frozen=True)
class Point:
    """One task of an axis.

    Attributes:
        axis: name of the axis.
        value: what is written at the point.
        size: the number by which the task is drawn and fitted.
        env: id of the environment.
        options: its options.
        batch: start states an update.
        hidden: widths of the controller's hidden layers; None: the paper's.
    """

    axis: str
    value: str
    size: int
    env: str
    options: Mapping[str, Any]
    batch: int = PAPER_BATCH
    hidden: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Axis:
    """One way in which a task grows, all else at the paper's settings.

    Attributes:
        label: what is counted, for the axis of a figure.
        env: id of the environment.
        varies: the names that a value sets, a number each: options of the environment, "batch", or "hidden" (the
            width of both hidden layers).
        values: the numbers; the size of a task is their sum.
        time: theory of the time of an update.
        memory: theory of its peak memory.
        fixed: other options of the environment.
    """

    label: str
    env: str
    varies: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    time: Growth
    memory: Growth
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def points(self, name: str) -> list[Point]:
        """The tasks of this axis, which is called `name`, the smallest first."""
        return [self._point(name, numbers) for numbers in self.values]

    def _point(self, name: str, numbers: tuple[int, ...]) -> Point:
        given = dict(zip(self.varies, numbers, strict=True))
        options = {option: number for option, number in given.items() if option not in OF_UPDATE}
        return Point(
            axis=name,
            value="+".join(map(str, numbers)),
            size=sum(numbers),
            env=self.env,
            options={**self.fixed, **options},
            batch=given.get("batch", PAPER_BATCH),
            hidden=(given["hidden"],) * 2 if "hidden" in given else None,
        )


def _doubled(first: int, last: int, factor: int = 2) -> tuple[tuple[int, ...], ...]:
    values = []
    while first <= last:
        values.append((first,))
        first *= factor
    return tuple(values)


_POLES_TIME = Growth(2, "the Jacobian of a step has (2 + 2n)² numbers a sample")
_POLES_MEMORY = Growth(2, "these Jacobians; constant where segments of time steps are cut to bound them")

AXES: dict[str, Axis] = {
    "poles": Axis("poles", "DiffMultiPole-v0", ("n_poles",), _doubled(1, 64), _POLES_TIME, _POLES_MEMORY),
    "exact-poles": Axis(
        "poles",
        "DiffMultiPole-v0",
        ("n_poles",),
        _doubled(1, 64),
        _POLES_TIME,
        _POLES_MEMORY,
        fixed={"dynamics": "exact"},
    ),
    "points": Axis(
        "grid points",
        "DiffQuantumControl-v0",
        ("n_points",),
        _doubled(16, 512),
        Growth(2, "a step is two products with N × N matrices; the controller's part grows with N only"),
        Growth(1, "states and activations; constant where segments of time steps are cut to bound them"),
    ),
    "agents": Axis(
        "agents (drivers + evaders)",
        "DiffGuidance-v0",
        ("n_drivers", "n_evaders"),
        ((2, 4), (4, 8), (4, 16), (8, 32), (16, 64), (32, 128)),
        Growth(2, "forces between all pairs of agents, and their slopes"),
        Growth(2, "2 × 2 slopes for each pair; constant where segments of time steps are cut to bound them"),
    ),
    "horizon": Axis(
        "steps of an episode",
        "DiffCartPole-v0",
        ("horizon",),
        ((50,), (100,), (200,), (500,), (1000,), (2000,), (5000,)),
        Growth(1, "the same work at every step"),
        Growth(1, "the states of the rollout; what a segment keeps is constant, and larger until episodes are long"),
    ),
    "batch": Axis(
        "start states an update",
        "DiffCartPole-v0",
        ("batch",),
        _doubled(1, 4096, 4),
        Growth(1, "the same work for every sample; for small batches a step's operations cost the same"),
        Growth(1, "the states of the rollout, and a segment of at least one step"),
    ),
    "hidden": Axis(
        "units in each hidden layer",
        "DiffCartPole-v0",
        ("hidden",),
        _doubled(32, 1024),
        Growth(2, "products with matrices of width × width"),
        Growth(2, "the weights and their directions; the activations grow with the width only"),
    ),
    "links": Axis(
        "links",
        "DiffChainedPendulum-v0",
        ("n_links",),
        tuple((n,) for n in range(1, 7)),
        Growth(2, "n links by 2n columns of slopes at each stage of Runge-Kutta; so few that operations cost the same"),
        Growth(2, "the slopes, (2 + 2n)² numbers a sample"),
    ),
    "cells": Axis(
        "cells",
        "DiffBurgers-v0",
        ("n_cells",),
        _doubled(16, 256),
        Growth(2, "a step works on each cell, and in as many substeps as keep fast flow within a cell"),
        Growth(2, "every substep's slopes, some numbers a cell; constant where segments are cut to bound them"),
    ),
    "stiffness": Axis(
        "stiffness [N/m]",
        "DiffPusher-v0",
        ("stiffness",),
        ((100,), (300,), (1000,), (3000,), (10_000,), (30_000,), (100_000,)),
        Growth(0.5, "as many substeps as the contact's oscillation needs"),
        Growth(0.5, "what is kept of each substep; constant where segments are cut to bound them"),
    ),
}
"""Every axis by name; adding one is a row."""


@dataclass(frozen=True)
class ScalingConfig:
    """What to measure, and how.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    axes: tuple[Annotated[str, among(AXES)], ...] = tuple(AXES)
    """Axes along which the task grows."""

    rule: RuleName = "C"
    """Update rule: R, M, S or C."""

    engine: EngineName = "adjoint"
    """How directions are computed: adjoint (fast), autograd (the definition) or auto."""

    compile: bool = False
    """Compile the loops of the adjoint engine: for every point, which takes many minutes the first time."""

    threads: Count = 1
    """Threads of torch."""

    device: Device = "cpu"
    """Where to compute: cpu, cuda or, of several GPUs, one such as cuda:1."""

    repeats: Count = 7
    """Updates timed at each point, in turns with the other points of the axis."""

    updates: Count = 32
    """Updates after which the held-out loss is taken."""

    test_states: Count = 256
    """Held-out start states."""

    out: Path = Path("runs/scaling")
    """Folder for tables and figures."""

    def __post_init__(self) -> None:
        read(self)
        each_once("axes", self.axes)
        available_device(self.device)
        if self.compile and self.engine == "autograd":
            raise ValueError("compile=True compiles the adjoint engine; engine must be 'adjoint' or 'auto'.")
