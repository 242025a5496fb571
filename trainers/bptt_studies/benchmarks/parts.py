"""The parts of the benchmark: a table of what each measures and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bptt_studies.benchmarks import (
    cold_start,
    ensembles,
    limit,
    rl,
    slopes,
    stepping,
    update_memory,
    update_tables,
    updates,
)
from bptt_studies.benchmarks.config import BenchmarkConfig, PartName
from bptt_trainers.records.tables import Line, Row


class Part(NamedTuple):
    """One part.

    A cell is what is measured together, in one process: the first columns of its rows, "threads" among them.
    """

    summary: str
    cells: Callable[[BenchmarkConfig], list[Row]]
    measure: Callable[[BenchmarkConfig, Row], list[Row]]
    markdown: Callable[[Sequence[Line]], str]
    settings: tuple[str, ...] = ()  # fields of the configuration that change what a cell gives
    on_gpu: bool = False


_OF_UPDATES = ("peers", "unrolled_batches", "repeats", "seconds", "memory_gib")

PARTS: dict[PartName, Part] = {
    "limit": Part(
        "how fast the machine multiplies matrices", limit.cells, limit.measure, limit.to_markdown, on_gpu=True
    ),
    "updates": Part(
        "an update by every rule and peer",
        updates.update_cells,
        updates.measure,
        update_tables.to_markdown,
        ("env", "env_options", *_OF_UPDATES),
        on_gpu=True,
    ),
    "quantum": Part(
        "the same on quantum control",
        updates.quantum_cells,
        updates.measure,
        update_tables.to_markdown,
        _OF_UPDATES,
        on_gpu=True,
    ),
    "guidance": Part(
        "the same on guidance",
        updates.guidance_cells,
        updates.measure,
        update_tables.to_markdown,
        _OF_UPDATES,
        on_gpu=True,
    ),
    "slopes": Part(
        "slopes of a controller by its Jacobian and by products",
        slopes.cells,
        slopes.measure,
        slopes.to_markdown,
        ("repeats", "seconds"),
        on_gpu=True,
    ),
    "stepping": Part(
        "environment steps a second", stepping.cells, stepping.measure, stepping.to_markdown, ("repeats", "seconds")
    ),
    "rl": Part(
        "PPO's time a step by the number of environments", rl.cells, rl.measure, rl.to_markdown, ("repeats", "seconds")
    ),
    "ensembles": Part(
        "an update of several controllers together",
        ensembles.cells,
        ensembles.measure,
        ensembles.to_markdown,
        ("members", "repeats", "seconds"),
        on_gpu=True,
    ),
    "memory": Part(
        "peak memory of an update against the horizon",
        update_memory.cells,
        update_memory.measure,
        update_memory.to_markdown,
        ("memory_gib",),
    ),
    "cold-start": Part(
        "from the start of a process to its first update",
        cold_start.cells,
        cold_start.measure,
        cold_start.to_markdown,
    ),
}
