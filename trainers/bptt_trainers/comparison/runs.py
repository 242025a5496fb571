"""The runs that are set side by side: which there are, and how what is missing of them is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bptt_trainers.comparison.methods import BPTT, Budget, get_method
from bptt_trainers.host.executors import LOCAL, opened
from bptt_trainers.host.work import Job
from bptt_trainers.records.claim import same
from bptt_trainers.records.curve import Curve, curve_to_csv, read_curve
from bptt_trainers.records.files import RunFolderError, exists, write_atomic
from bptt_trainers.training.callbacks import ProgressBar
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.ensemble import SHARED, CannotStackError, Ensemble
from bptt_trainers.training.metrics import learning_curve
from bptt_trainers.training.watch import watching

FINISHED = "curve.csv"  # written into the folder of a run when it is done


@dataclass(frozen=True)
class Cell:
    """What is run with every seed.

    Attributes:
        label: its name, begun by that of the method, such as "C" or "C, clip=norm".
        method: a name of the table of methods.
        overrides: settings of the method that differ from its preset.
        budget: environment and options, steps, start states for judging.
    """

    label: str
    method: str
    overrides: Mapping[str, Any]
    budget: Budget

    def settings(self) -> dict[str, Any]:
        """All settings of the method.

        Raises:
            ValueError: if an override is unknown or out of range.
        """
        return get_method(self.method).settings(self.budget, self.overrides)

    @property
    def together(self) -> bool:
        """Whether its runs can be members of an ensemble."""
        trained = get_method(self.method)
        return isinstance(trained, BPTT) and trained.TOGETHER

    @property
    def steps(self) -> int:
        """Simulator steps that a run takes; 0 if it does not learn."""
        return get_method(self.method).steps(self.budget, self.overrides)


@dataclass(frozen=True)
class Member:
    """A run.

    Attributes:
        cell: what is run.
        seed: with which seed.
        folder: where.
    """

    cell: Cell
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.cell.label} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it is done."""
        return exists(self.folder / FINISHED)

    @property
    def training(self) -> TrainConfig:
        """Its settings, if its method is an update rule."""
        return self._rule.config(self.cell.budget, self.cell.overrides, seed=self.seed, out=self.folder)

    @property
    def seen(self) -> dict[str, Any]:
        """What its controller sees, if its method is an update rule: options of the environment."""
        return self._rule.seen(self.cell.budget, self.cell.overrides)

    @property
    def _rule(self) -> BPTT:
        rule = get_method(self.cell.method)
        assert isinstance(rule, BPTT)
        return rule

    def run(self, progress: bool) -> Curve:
        """Train it, or what is missing of it; read the curve if it is done.

        Raises:
            RunFolderError: if its folder holds anything else, or its files disagree.
        """
        finished = self.folder / FINISHED
        if self.finished:
            done = read_curve(finished)
            books = self.folder / "metrics.csv"  # of an update rule; it has these columns too
            if exists(books) and not same([vars(one) for one in read_curve(books)], [vars(one) for one in done]):
                raise RunFolderError(f"{finished} and {books.name} disagree. Deleted, {finished.name} is made anew.")
            return done
        title, cell = str(self) if progress else None, self.cell
        curve = get_method(cell.method).run(cell.budget, cell.overrides, self.seed, self.folder, title)
        write_atomic(finished, curve_to_csv(curve).encode())
        return curve


def member_folder(out: Path, label: str, seed: int) -> Path:
    """The folder of one run among those in `out`."""
    return out / "runs" / f"{re.sub(r'[^A-Za-z0-9_.=+-]', '-', label)}-seed{seed}"


class How(Protocol):
    """How runs are trained."""

    @property
    def together(self) -> bool:
        """Whether those that can be are trained as ensembles."""

    @property
    def jobs(self) -> int:
        """Processes at once."""

    @property
    def executor(self) -> str:
        """Who trains."""

    @property
    def threads(self) -> int:
        """Of torch, in each process."""

    @property
    def out(self) -> Path:
        """The folder of all."""


def train(cells: Sequence[Cell], seeds: Sequence[int], how: How, progress: bool) -> dict[tuple[str, int], Curve]:
    """Train what is missing; the curves of all runs, by the labels of their cells and seeds.

    Raises:
        RunFolderError: if a folder of a run holds anything else, or cannot be written.
        ChildProcessError: if the process of a run was ended from outside again and again; the message names the run.
        DependencyNotInstalled: if the library of the executor is not there.
    """
    members = [
        Member(cell, seed, member_folder(how.out, cell.label, seed))
        for seed in seeds  # the outer loop, so that what is cut short has all cells
        for cell in cells
    ]
    units = _units([one for one in members if not one.finished], cells, how.together)
    made: dict[Path, Curve] = {}
    if how.executor == LOCAL and how.jobs == 1:
        for unit in units:
            made.update(_train_unit(unit, progress))
    elif units:
        made = _have_trained(units, how, progress)
    return {
        (cell.label, one.seed): made[one.folder] if one.folder in made else one.run(progress)
        for cell in cells
        for one in members
        if one.cell is cell
    }


@dataclass(frozen=True)
class _Unit:
    """Runs that one process trains: an ensemble, or a single one."""

    members: tuple[Member, ...]
    together: bool

    def __str__(self) -> str:
        methods = ", ".join(dict.fromkeys(one.cell.method for one in self.members))
        return f"{methods}, {len(self.members)} runs" if self.together else str(self.members[0])


def _units(missing: Sequence[Member], cells: Sequence[Cell], together: bool) -> list[_Unit]:
    """As few ensembles as the settings allow, cell by cell, then single runs, seed by seed."""
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for cell in cells if together else ():
        for one in missing:
            if one.cell is cell and cell.together:
                training = one.training
                world = repr(sorted(cell.budget.env_options.items()))
                shared = (world, *(getattr(training, name) for name in SHARED), *one.seen.items())
                groups.setdefault(shared, []).append(one)
    ensembles = [_Unit(tuple(group), together=True) for group in groups.values()]
    alone = [_Unit((one,), together=False) for one in missing if not (together and one.cell.together)]
    return ensembles + alone


def _have_trained(units: Sequence[_Unit], how: How, progress: bool) -> dict[Path, Curve]:
    """Have units trained by the workers of an executor."""
    made: dict[Path, Curve] = {}
    steps = {one.folder: one.cell.steps for unit in units for one in unit.members}
    env = units[0].members[0].cell.budget.env
    jobs = [Job(str(unit), _train_unit, unit, False, env=env, count=how.threads) for unit in units]
    with (
        opened(how.executor, how.jobs, how.out) as workers,
        watching(f"{len(steps)} runs", steps, progress) as finish,
    ):
        for done in as_completed(map(workers.submit, jobs)):
            for folder, curve in done.result().items():
                made[folder] = curve
                finish(folder)
    return made


def _train_unit(unit: _Unit, progress: bool) -> dict[Path, Curve]:
    """Train the runs of a unit, each alone that cannot be trained with others or drops out; the curves of them."""
    if unit.together:
        _train_together(unit, progress)
    return {one.folder: one.run(progress) for one in unit.members}


def _train_together(unit: _Unit, progress: bool) -> None:
    first = unit.members[0]
    bars = [ProgressBar(str(unit))] if progress else []
    try:
        env = first.cell.budget.make_env(**first.seen)
        ensemble = Ensemble(env, [one.training for one in unit.members], bars)
    except CannotStackError:
        return
    for i, (one, history) in enumerate(zip(unit.members, ensemble.fit(), strict=True)):
        if i not in ensemble.errors:
            write_atomic(one.folder / FINISHED, curve_to_csv(learning_curve(history)).encode())
