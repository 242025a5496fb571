"""From the start of a process to its first finished update, with the default settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch

from bptt_envs.program import CACHE_VARIABLE
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.limit import controller_gflop, matrix_limit
from bptt_studies.benchmarks.timing import Timing
from bptt_studies.benchmarks.updates import make_task, timed
from bptt_trainers.directions.rules import get_rule
from bptt_trainers.records.tables import Line, Row, markdown, number, percent, short
from bptt_trainers.training.config import TrainConfig

EAGER, FIRST, AGAIN = MODES = ("eager", "compiled, first time", "compiled, again")
STARTS = 3  # of each mode

PROGRAM = """
import sys
import time

import gymnasium as gym

import bptt_envs
from bptt_trainers import Callback, TrainConfig, Trainer

imported = time.time()


class Stop(Callback):
    def on_update_end(self, trainer, loss, direction_norm):
        print(imported, time.time(), flush=True)
        sys.exit()


Trainer(gym.make("DiffCartPole-v0"), config=TrainConfig({settings}), callbacks=[Stop()]).fit()
"""


class Start(NamedTuple):
    """Seconds of one start: of the imports, and from then to the end of the first update."""

    imports: float
    update: float


def cells(config: BenchmarkConfig) -> list[Row]:
    """One."""
    env: Row = {"env": "DiffCartPole-v0", "options": "", "device": "cpu"}
    return [env | {"threads": max(config.threads), "batch": TrainConfig().batch_size}]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """Starts of all modes in turns, in processes of their own."""
    found: dict[str, list[Start]] = {mode: [] for mode in MODES}
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as caches:
            for mode, starts in found.items():
                starts.append(start(mode, caches))
    torch.set_num_threads(int(cell["threads"]))
    limit = matrix_limit("cpu")
    task = make_task(config, cell)
    gflop = controller_gflop(task.system, task.controller, task.states, get_rule(TrainConfig().rule).passes)
    rows: list[Row] = []
    for mode, starts in found.items():
        updates = [one.update for one in starts]
        timing = Timing(median(updates), min(updates), max(updates))
        row: Row = cell | {"mode": mode, "starts": STARTS}
        row |= {"import_seconds": short(median(one.imports for one in starts))}
        rows.append(row | timed(timing, gflop, limit))
    return rows


def start(mode: str, caches: str) -> Start:
    """Start a process and wait until its first update is finished.

    Args:
        mode: one of `MODES`.
        caches: folder of the compiler's caches.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    program = PROGRAM.format(settings="" if mode == EAGER else "compile=True")
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": caches, CACHE_VARIABLE: caches}
    begin = time.time()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    imported, updated = map(float, done.stdout.split()[-2:])
    return Start(imported - begin, updated - imported)


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each mode."""
    rows: list[Row] = []
    for line in lines:
        seconds = {name: number(str(float(line[name]) / 1e3)) for name in ("milliseconds", "least", "largest")}
        row: Row = {"threads": line["threads"], "start": line["mode"], "imports, s": number(line["import_seconds"])}
        row |= {"then to the first update, s": "{milliseconds} ({least} to {largest})".format(**seconds)}
        rows.append(row | {"share of the limit": percent(line["share"])})
    return markdown(rows)
