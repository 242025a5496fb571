"""Time one update of every rule and engine, and write the table.

    python scripts/benchmark.py --out docs/benchmarks
    python scripts/benchmark.py --env DiffQuantumControl-v0 --env-option n_points=64 --batch-sizes 8 256

Every figure is the median of repeated updates after a warm-up. Repeats of all engines and rules take turns,
so that a slow moment of the machine meets all of them and the ratios hold.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro

from bptt_trainers import RULES, default_controller, policy_gradient
from bptt_trainers.commands.environment import EnvOptions, make_environment, parse_options
from bptt_trainers.files import write_atomic


@dataclass(frozen=True)
class Settings:
    """What to time."""

    env: str = "DiffCartPole-v0"
    """Environment id."""
    env_option: EnvOptions = ()
    """An option of the environment, NAME=VALUE."""
    batch_sizes: tuple[int, ...] = (8, 1024)
    """Start states an update."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of torch."""
    engines: tuple[Literal["autograd", "adjoint"], ...] = ("autograd", "adjoint")
    """Engines; autograd keeps the activations of all steps, which large batches of large systems have no memory for."""
    repeats: int = 15
    """Updates timed for each figure."""
    out: Path | None = None
    """Folder for engines.csv and engines.md; printed only if not given."""


Row = dict[str, str | int | float]


def main(settings: Settings) -> None:
    """Time everything and print or write the table."""
    rows = [
        row
        for threads, batch in product(settings.threads, settings.batch_sizes)
        for row in time_updates(settings, threads, batch)
    ]
    table = markdown(rows)
    print(table)
    if settings.out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(settings.out / "engines.csv", text.getvalue().encode())
        write_atomic(settings.out / "engines.md", (table + "\n").encode())


def time_updates(settings: Settings, threads: int, batch: int) -> list[Row]:
    """Median milliseconds an update of every engine and rule, in turns."""
    torch.set_num_threads(threads)
    system = make_environment(settings.env, parse_options(settings.env, settings.env_option)).system
    controller = default_controller(system)
    states = system.initial_states(batch, torch.Generator().manual_seed(0))

    def update(engine: str, rule: str) -> Callable[[], object]:
        return lambda: policy_gradient(system, controller, states, rule, engine)  # type: ignore[arg-type]

    updates = {(engine, rule): update(engine, rule) for engine in settings.engines for rule in RULES}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in updates}
    for turn in range(settings.repeats + 2):
        for key, run in updates.items():
            begin = time.perf_counter()
            run()
            if turn >= 2:
                seconds[key].append(time.perf_counter() - begin)
    return [
        {
            "env": settings.env,
            "options": " ".join(settings.env_option),
            "threads": threads,
            "batch": batch,
            "engine": engine,
            "rule": rule,
            "milliseconds": round(1e3 * statistics.median(taken), 2),
            "min": round(1e3 * min(taken), 2),
            "max": round(1e3 * max(taken), 2),
        }
        for (engine, rule), taken in seconds.items()
    ]


def markdown(rows: list[Row]) -> str:
    """A table with a line for each engine, batch size and number of threads."""
    lines = ["| threads | batch | engine | R ms | M ms | S ms | C ms | C / R | C against autograd |", "|" + "---|" * 9]
    cells = {(r["threads"], r["batch"], r["engine"], r["rule"]): float(r["milliseconds"]) for r in rows}
    for threads, batch, engine in dict.fromkeys((r["threads"], r["batch"], r["engine"]) for r in rows):
        times = {rule: cells[threads, batch, engine, rule] for rule in RULES}
        definition = cells.get((threads, batch, "autograd", "C"))
        gain = "" if definition is None else f"{definition / times['C']:.1f} x"
        lines.append(
            f"| {threads} | {batch} | {engine} | "
            + " | ".join(f"{milliseconds:.1f}" for milliseconds in times.values())
            + f" | {times['C'] / times['R']:.2f} | {gain} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings))
