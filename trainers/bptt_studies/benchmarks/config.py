"""The settings of the benchmark: the one source of its command line and of what is written beside its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Suppress

from bptt_envs.checks import each_once
from bptt_envs.registration import system_class
from bptt_envs.settings import Count, Positive, read
from bptt_trainers.host.user_code import imported_id

GIB = 2**30

Device = Literal["cpu", "cuda"]

PartName = Literal[
    "limit", "updates", "quantum", "guidance", "slopes", "stepping", "rl", "ensembles", "memory", "cold-start"
]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)

PeerName = Literal["adjoint", "adjoint-compiled", "autograd", "autograd-step-compiled", "autograd-loss-compiled", "jax"]
PEER_NAMES: tuple[PeerName, ...] = get_args(PeerName)


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how often.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    parts: tuple[PartName, ...] = PART_NAMES
    """Parts; each leaves a table, its numbers (CSV) and, where a picture says more, a figure."""

    env: str = "DiffCartPole-v0"
    """Environment id of the part updates, or MODULE:ID to import first the module that registers it."""

    env_options: Annotated[Mapping[str, Any], Suppress] = field(default_factory=dict)
    """Options of that environment."""

    batch_sizes: tuple[Count, ...] = (8, 64, 256, 1024)
    """Start states an update, in the part updates."""

    peers: tuple[PeerName, ...] = PEER_NAMES
    """Ways of computing an update that take turns."""

    unrolled_batches: tuple[Count, ...] = (8,)
    """Batch sizes of the part updates at which autograd-loss-compiled takes part: its compilation takes minutes."""

    threads: tuple[Count, ...] = (1, 2)
    """Cores that a process may use, and threads of torch. Parts with one number of threads take the most; memory the
    least."""

    device: Device = "cpu"
    """Where updates and ensembles run: cpu or cuda. Other parts need the cpu."""

    repeats: Count = 15
    """Most times that anything is timed; the median counts."""

    seconds: Positive = 30.0
    """Seconds of timing for what takes turns together. What is slow is timed less often, three times at least."""

    envs: tuple[Count, ...] = (1, 8, 64, 1024)
    """Environments that are stepped together, in the part stepping."""

    members: Count = 8
    """Controllers that are trained together, in the part ensembles."""

    horizons: tuple[Count, ...] = (100, 300, 1000, 3000, 10000)
    """Steps of an episode, in the part memory."""

    memory_gib: Positive = 10.0
    """Memory that an update by autograd may take, in GiB: where it needs more, it is left out."""

    def __post_init__(self) -> None:
        read(self)
        object.__setattr__(self, "env", imported_id(self.env))
        system_class(self.env).check_options(dict(self.env_options), self.env)
        for name in ("parts", "peers", "batch_sizes", "threads", "envs", "horizons"):
            each_once(name, getattr(self, name))


def file_of(out: Path, part: str, suffix: str) -> Path:
    """Where a part's file of a kind is: "csv", "md", "png" or "json" (the settings it was measured with)."""
    return out / f"{part}.{suffix}"
