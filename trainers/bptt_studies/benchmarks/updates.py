"""An update by every rule, engine and peer: the parts updates, quantum and guidance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch

from bptt_studies.benchmarks.config import GIB, BenchmarkConfig
from bptt_studies.benchmarks.limit import controller_gflop, matrix_limit, share
from bptt_studies.benchmarks.peers import PEERS, LeftOut, Task, Update
from bptt_studies.benchmarks.timing import Timing, in_turns_within, waited_for
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.records.options import read_options, write_options
from bptt_trainers.records.tables import Row, short

TaskOptions = tuple[str, Mapping[str, Any], int]  # id, options, batch

QUANTUM: list[TaskOptions] = [("DiffQuantumControl-v0", {"n_points": 32}, 8)]
GUIDANCE: list[TaskOptions] = [
    ("DiffGuidance-v0", {"n_drivers": drivers, "n_evaders": evaders}, batch)
    for drivers, evaders, batch in ((2, 4, 8), (8, 64, 8))
]


def update_cells(config: BenchmarkConfig) -> list[Row]:
    """One for each number of threads and batch size."""
    tasks = [(config.env, config.env_options, batch) for batch in config.batch_sizes]
    return [cell for threads in config.threads for cell in _cells(config, tasks, threads)]


def quantum_cells(config: BenchmarkConfig) -> list[Row]:
    """The paper's quantum control."""
    return _cells(config, QUANTUM, max(config.threads))


def guidance_cells(config: BenchmarkConfig) -> list[Row]:
    """Two sizes of guidance."""
    return _cells(config, GUIDANCE, max(config.threads))


def _cells(config: BenchmarkConfig, tasks: Sequence[TaskOptions], threads: int) -> list[Row]:
    return [
        {"env": env, "options": write_options(options), "device": config.device, "threads": threads, "batch": batch}
        for env, options, batch in tasks
    ]


TIMED = ("milliseconds", "least", "largest", "gflop", "limit_gflops", "share")
COLUMNS = ("peer", "rule", "repeats", *TIMED, "first_seconds", "left_out")


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """Every rule by every peer on one batch, in turns."""
    torch.set_num_threads(int(cell["threads"]))
    limit = matrix_limit(config.device)
    task = make_task(config, cell)
    gflop = {
        name: controller_gflop(task.system, task.controller, task.states, rule.passes)
        for name, rule in PAPER_RULES.items()
    }
    firsts: dict[tuple[str, str], float] = {}
    programs: dict[tuple[str, str], Callable[[], object]] = {}
    reasons: dict[str, str] = {}
    for peer in config.peers:
        try:
            update = PEERS[peer](task)
            runs = {rule: waited_for(_by_rule(update, rule), config.device) for rule in PAPER_RULES}
            seconds = {rule: _seconds(run) for rule, run in runs.items()}
        except LeftOut as reason:
            reasons[peer] = str(reason)
        else:
            programs |= {(peer, rule): run for rule, run in runs.items()}
            firsts |= {(peer, rule): taken for rule, taken in seconds.items()}
    timings, repeats = in_turns_within(programs, config.seconds, config.repeats)
    rows: list[Row] = []
    for peer in config.peers:
        if peer in reasons:
            rows.append(cell | dict.fromkeys(COLUMNS, "") | {"peer": peer, "left_out": reasons[peer]})
            continue
        for rule in PAPER_RULES:
            row = cell | {"peer": peer, "rule": rule, "repeats": repeats}
            row |= timed(timings[peer, rule], gflop[rule], limit)
            rows.append(row | {"first_seconds": short(firsts[peer, rule], 3), "left_out": ""})
    return rows


def timed(timing: Timing, gflop: float, limit: float) -> Row:
    """A timing, in milliseconds, and its share of the machine's limit (GFLOP/s) for products of `gflop`."""
    values = [short(1e3 * seconds) for seconds in (timing.median, timing.least, timing.largest)]
    values += [short(gflop), short(limit), share(gflop, limit, timing.median)]
    return dict(zip(TIMED, values, strict=True))


def make_task(config: BenchmarkConfig, cell: Row) -> Task:
    """The system, the paper's controller with the weights of seed 0, and start states drawn from seed 0."""
    system = system_of(gym.make(str(cell["env"]), **read_options(str(cell["options"]))))
    states = system.initial_states(int(cell["batch"]), torch.Generator().manual_seed(0))
    return Task(
        system,
        default_controller(system).to(config.device),
        states.to(config.device),
        threads=int(cell["threads"]),
        unrolled=cell["env"] == config.env and int(cell["batch"]) in config.unrolled_batches,
        memory=config.memory_gib * GIB,
    )


def _by_rule(update: Update, rule: str) -> Callable[[], object]:
    return lambda: update(rule)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
