"""Environment steps a second: the vector environment of this project beside those of Gymnasium."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import torch

import bptt_envs  # noqa: F401  # registers the ids
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.timing import in_turns_within
from bptt_trainers.records.tables import Line, Row, markdown, number, short

OURS, NUMPY = "DiffCartPole-v0, one batch", "CartPole-v1, one batch (NumPy)"
COMPILED = f"{OURS}, compiled"
BATCH = {"vectorization_mode": "vector_entry_point"}
# processes that are forked from one with threads may hang
PROCESSES = {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}
STEPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("DiffCartPole-v0", BATCH),
    COMPILED: ("DiffCartPole-v0", BATCH | {"compile": True}),
    NUMPY: ("CartPole-v1", BATCH),
    "DiffCartPole-v0, a process each": ("DiffCartPole-v0", PROCESSES),
    "CartPole-v1, a process each": ("CartPole-v1", PROCESSES),
}
ACTIONS = 16  # drawn beforehand, so that drawing them is not timed; taken in turns


def cells(config: BenchmarkConfig) -> list[Row]:
    """One for each number of threads and environments; that of the cores, at which a process has one each, too."""
    return [
        {"device": "cpu", "threads": threads, "envs": count}
        for threads in config.threads
        for count in sorted({*config.envs, threads})
    ]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """Steps a second by everything that can step so many environments, in turns."""
    threads, count = int(cell["threads"]), int(cell["envs"])
    torch.set_num_threads(threads)
    made = {
        name: _make(env_id, count, options)
        for name, (env_id, options) in STEPPERS.items()
        if options is not PROCESSES or count == threads
    }
    try:
        timings, repeats = in_turns_within(
            {name: _steps(env) for name, env in made.items()}, config.seconds, config.repeats
        )
    finally:
        for env in made.values():
            env.close()
    steps = ACTIONS * count
    return [
        cell
        | {"stepper": name, "repeats": repeats}
        | {"steps_per_second": short(steps / timing.median)}
        | {"least": short(steps / timing.largest), "largest": short(steps / timing.least)}
        for name, timing in timings.items()
    ]


def _make(env_id: str, count: int, options: dict[str, Any]) -> gym.vector.VectorEnv[Any, Any, Any]:
    made = gym.make_vec(env_id, num_envs=count, **options)
    made.reset(seed=0)
    made.action_space.seed(0)
    return made


def _steps(env: gym.vector.VectorEnv[Any, Any, Any]) -> Callable[[], object]:
    actions = [env.action_space.sample() for _ in range(ACTIONS)]

    def run() -> None:
        for action in actions:
            env.step(action)

    run()
    return run


def to_markdown(lines: Sequence[Line]) -> str:
    """Thousand steps a second: a line for each number of threads and way of stepping, a column a number of envs."""
    counts = sorted({int(line["envs"]) for line in lines})
    rows: list[Row] = []
    for threads in dict.fromkeys(line["threads"] for line in lines):
        for name in dict.fromkeys(line["stepper"] for line in lines):
            found = {int(line["envs"]): line for line in lines if (line["threads"], line["stepper"]) == (threads, name)}
            row: Row = {"threads": threads, "steps by": name}
            rows.append(row | {f"{n:,} env{'s' * (n > 1)}": _thousands(found.get(n)) for n in counts})
    return f"Thousand steps a second, median (least to largest):\n\n{markdown(rows)}"


def _thousands(line: Line | None) -> str:
    if line is None:
        return "–"
    median, least, largest = (number(str(float(line[name]) / 1e3)) for name in ("steps_per_second", "least", "largest"))
    return f"{median} ({least} to {largest})"
