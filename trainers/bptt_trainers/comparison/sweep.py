"""A sweep: methods over a grid of their settings and of options of the environment, with every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Suppress

from bptt_envs.checks import each, each_once, mapping, one_of
from bptt_trainers.comparison.compare import ComparisonConfig, begin
from bptt_trainers.comparison.methods import MethodName
from bptt_trainers.comparison.runs import Cell, member_folder, train
from bptt_trainers.comparison.summary import CLIMB, RunSummary, run_rows, summarize
from bptt_trainers.comparison.sweep_figure import sweep_figure
from bptt_trainers.figures.style import plain_text, save_figure
from bptt_trainers.host.threads import threads
from bptt_trainers.records.claim import locked
from bptt_trainers.records.curve import Curve
from bptt_trainers.records.files import remove, write_atomic
from bptt_trainers.records.tables import Row, markdown, to_csv
from bptt_trainers.training.config import Record

SWEEP = "sweep.json"  # in the folder of a sweep: what it is of

CELLS = "cells.csv"  # there, its table

QUARTILES = {"low": 0.25, "high": 0.75}

READING = f"""Losses are means over the held-out start states, then the median over the runs (quartiles). "Best" is the
lowest of a run's evaluations, seen in hindsight. A run climbed back if its loss at the end is more than {CLIMB:g} times
its best."""


@dataclass(frozen=True)
class SweepConfig(ComparisonConfig):
    """Settings of a sweep.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    methods: tuple[MethodName, ...] = ("C",)
    """Methods, named as in bptt compare."""

    grid: Annotated[Mapping[str, tuple[Any, ...]], Suppress] = field(default_factory=dict)
    """Values of settings: {"learning_rate": (1e-3, 1e-2)} for every method, {"PPO.num_envs": (8, 16)} for one."""

    env_grid: Annotated[Mapping[str, tuple[Any, ...]], Suppress] = field(default_factory=dict)
    """Values of options of the environment: {"n_poles": (1, 2)}."""

    record: Record = ()
    """What each run keeps beside metrics and checkpoints: tensorboard, csv, pictures; diagnostics, of the rules."""

    out: Path = Path("runs/sweep")
    """Folder of the sweep."""

    def __post_init__(self) -> None:
        for name in ("grid", "env_grid"):
            axes = {axis: _values(f"{name}[{axis!r}]", one) for axis, one in mapping(name, getattr(self, name)).items()}
            object.__setattr__(self, name, axes)
        super().__post_init__()
        for axis in self.grid:
            method, dot, _ = axis.rpartition(".")
            if dot:
                one_of("the method of grid", method, self.methods)
        each_once("cells of the grid", tuple(member_folder(self.out, cell.label, 0).name for cell in self.cells))

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """What each cell has of the grid, by its label: settings, then options of the environment."""
        return {cell.label: point for cell, point in self._cells()}

    @property
    def cells(self) -> list[Cell]:
        """What is run with every seed: each method at each point of the grid."""
        return [cell for cell, _ in self._cells()]

    def _cells(self) -> list[tuple[Cell, dict[str, Any]]]:
        found = []
        for options in _points(self.env_grid):
            budget = replace(self.budget, env_options={**self.env_options, **options})
            for method in self.methods:
                own = {axis: values for axis, values in self.grid.items() if axis.rpartition(".")[0] in ("", method)}
                for chosen in _points(own):
                    settings = {axis.rpartition(".")[2]: value for axis, value in chosen.items()}
                    point = {**settings, **options}
                    label = ", ".join([method, *(f"{name}={value}" for name, value in sorted(point.items()))])
                    overrides = {**self.overrides.get(method, {}), **settings}
                    found.append((Cell(label, method, overrides, budget), point))
        return found


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        folder: holds runs/ (a folder for each cell and seed), curves.csv, runs.csv, cells.csv, cells.md and, where an
            axis of the grid is of numbers, cells.png and cells.pdf.
        curves: the learning curve of each (cell, seed).
        cells: a line of cells.csv each.
        table: the same for readers, Markdown.
    """

    folder: Path
    curves: Mapping[tuple[str, int], Curve]
    cells: tuple[Row, ...]
    table: str


def sweep(config: SweepConfig, progress: bool = True) -> Sweep:
    """Train and judge every method at every point of the grid with every seed, and write tables and a figure.

    Each run has a folder of its own. What is finished is not computed again: a rerun continues what is missing, and one
    with more values, methods or seeds adds them.

    Args:
        config: every setting.
        progress: whether to show bars.

    Raises:
        RunFolderError: if the folder holds a sweep of another configuration, is in use, or cannot be written.
        ChildProcessError: if the process of a run was ended from outside again and again; the message names the run.
        DependencyNotInstalled: if the library of the executor is not there.
    """
    with locked(config.out), threads(config.threads):
        begin(config, SWEEP, "sweep")
        curves = train(config.cells, config.seeds, config, progress)
        return _write(config, curves)


def cell_rows(config: SweepConfig, runs: list[RunSummary]) -> list[Row]:
    """A row for each cell: the median over its runs, with quartiles; an infinite loss is one that is no number."""
    axes = list(dict.fromkeys(name for point in config.points.values() for name in point))
    rows: list[Row] = []
    for cell in config.cells:
        point, members = config.points[cell.label], [run for run in runs if run.method == cell.label]
        row: Row = {"method": cell.method, **{name: str(point.get(name, "")) for name in axes}, "runs": len(members)}
        row |= {"simulator_steps": members[0].simulator_steps}
        row |= {"seconds": float(np.median([run.seconds for run in members]))}
        for name in ("final_loss", "best_loss"):
            values = [getattr(run, name) for run in members]
            row |= {name: _quantile(values, 0.5)}
            row |= {f"{name}_{which}": _quantile(values, share) for which, share in QUARTILES.items()}
        row |= {"climbed_back": sum(run.climbed_back for run in members)}
        rows.append(row)
    return rows


def _values(name: str, given: Any) -> tuple[Any, ...]:
    """The values of an axis, at least one, each once."""
    values = each(name, given, lambda _, one: one, "a list or a tuple of values")
    each_once(name, tuple(map(repr, values)))
    return values


def _points(axes: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Every combination of the values of axes, the last of them changing fastest."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _quantile(values: list[float], share: float) -> float:
    with np.errstate(invalid="ignore"):  # between two that are infinite
        found = float(np.quantile(values, share))
    return math.inf if math.isnan(found) else found


def _write(config: SweepConfig, curves: Mapping[tuple[str, int], Curve]) -> Sweep:
    runs = [summarize(label, seed, curve, config.losses) for (label, seed), curve in curves.items()]
    rows = cell_rows(config, runs)
    table = _markdown(rows, config)
    points = [
        {"cell": label, "seed": seed, **vars(point)} for (label, seed), curve in curves.items() for point in curve
    ]
    write_atomic(config.out / "curves.csv", to_csv(points).encode())
    write_atomic(config.out / "runs.csv", to_csv(run_rows(runs)).encode())
    write_atomic(config.out / CELLS, to_csv(rows).encode())
    write_atomic(config.out / "cells.md", table.encode())
    finals = {(run.method, run.seed): run.final_loss for run in runs}
    title = plain_text(f"{config.env}: loss at the end, median and quartiles over {len(config.seeds)} seeds")
    figure = sweep_figure({cell.label: cell.method for cell in config.cells}, config.points, finals, title)
    if figure is not None:
        save_figure(figure, config.out / "cells.png", vector=True)
    else:
        for name in ("cells.png", "cells.pdf"):  # of an earlier grid
            remove(config.out / name)
    return Sweep(config.out, curves, tuple(rows), table)


def worded_cells(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of the cells in words and round numbers, for readers; numbers may be texts, as a CSV has them."""
    losses = {"final_loss": "loss at the end", "best_loss": "best loss"}
    numbers = [*losses, *(f"{name}_{which}" for name in losses for which in QUARTILES)]
    numbers += ["simulator_steps", "seconds", "climbed_back"]
    lines: list[Row] = []
    for row in rows:
        line = {name: cell for name, cell in row.items() if name not in numbers}
        for name, head in losses.items():
            middle, low, high = (f"{float(row[key]):.2g}" for key in (name, f"{name}_low", f"{name}_high"))
            line[head] = middle if low == high else f"{middle} ({low} to {high})"
        line["climbed back"] = f"{row['climbed_back']}/{row['runs']}"
        lines.append(line)
    return lines


def _markdown(rows: list[Row], config: SweepConfig) -> str:
    best = min(config.cells, key=lambda cell: float(rows[config.cells.index(cell)]["final_loss"])).label
    notes = "".join(f"{note}\n" for note in config.notes)
    return f"{markdown(worded_cells(rows))}\n\n{READING}\nThe least median at the end is that of: {best}.\n{notes}"
