"""Peak memory of an update against the horizon: the part memory."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import torch

from bptt_envs import System
from bptt_studies.benchmarks.config import GIB, BenchmarkConfig
from bptt_studies.benchmarks.memory import MIB, MemoryExceeded, Program, peak_memory
from bptt_studies.benchmarks.peers import autograd_bytes
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.chosen_engine import EngineName
from bptt_trainers.directions.policy_gradient import policy_gradient
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.records.tables import Line, Row, markdown, number, short

ENV, BATCH, RULE = "DiffCartPole-v0", 256, "C"
MEMORY_ENGINES: tuple[EngineName, ...] = ("adjoint", "autograd")
BAR = 1.5 * GIB  # for an update at the longest horizon


def cells(config: BenchmarkConfig) -> list[Row]:
    """One for each engine and horizon."""
    return [
        {"device": "cpu", "threads": min(config.threads), "batch": BATCH, "engine": engine, "horizon": horizon}
        for engine in MEMORY_ENGINES
        for horizon in config.horizons
    ]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """By how many MiB an update of C raises what is resident, beside what its states and actions take."""
    engine, horizon = str(cell["engine"]), int(cell["horizon"])
    system = _system(horizon)
    states = _states(system, BATCH)
    numbers = (horizon + 1) * system.state_size + horizon * system.action_size
    row: Row = cell | {"peak_mib": "", "states_mib": short(BATCH * numbers * states.element_size() / MIB)}
    bound = config.memory_gib * GIB
    left_out: Row = {"left_out": f"it needs more than {config.memory_gib:g} GiB"}
    if engine == "autograd" and autograd_bytes(system, default_controller(system), states) > bound:
        return [row | left_out]
    try:
        peak = peak_memory(_update, limit=int(bound), engine=engine, horizon=horizon, threads=int(cell["threads"]))
    except MemoryExceeded:
        return [row | left_out]
    return [row | {"peak_mib": short(peak / MIB), "left_out": ""}]


def _system(horizon: int) -> System:
    return system_of(gym.make(ENV, horizon=horizon))


def _states(system: System, batch: int) -> torch.Tensor:
    return system.initial_states(batch, torch.Generator().manual_seed(0))


def _update(engine: EngineName, horizon: int, threads: int) -> Program:
    """An update of C; a short one has warmed it up."""
    torch.set_num_threads(threads)
    system, short_system = _system(horizon), _system(2)
    controller = default_controller(system)
    states = _states(system, BATCH)
    policy_gradient(short_system, controller, states[:1], RULE, engine)
    return lambda: policy_gradient(system, controller, states, RULE, engine)


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each horizon."""
    found = {(line["engine"], line["horizon"]): line for line in lines}
    rows: list[Row] = []
    for horizon in sorted({int(line["horizon"]) for line in lines}):
        fast, plain = (found.get((engine, str(horizon))) for engine in MEMORY_ENGINES)
        some = fast or plain
        assert some is not None
        row: Row = {"threads": some["threads"], "batch": some["batch"], "horizon": horizon}
        row |= {"adjoint, MiB": _peak(fast), "autograd, MiB": _peak(plain)}
        row |= {"states and actions, MiB": number(some["states_mib"])}
        rows.append(row)
    left_out = [
        f"- {line['engine']}, horizon {line['horizon']}: {line['left_out']}." for line in lines if line["left_out"]
    ]
    return "\n\n".join([markdown(rows), *(["Left out:\n\n" + "\n".join(left_out)] if left_out else [])])


def _peak(line: Line | None) -> str:
    return "–" if line is None else number(line["peak_mib"])
