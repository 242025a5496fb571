"""Train what an experiment's files lack, several members as one ensemble, several ensembles at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from bptt_envs import System
from bptt_envs.registration import build_system
from bptt_studies.paper.experiments import EXPERIMENTS, Experiment, Tier, Variant
from bptt_studies.paper.results import (
    Member,
    Point,
    read_books,
    result_of,
    results_path,
    write,
)
from bptt_trainers.comparison.methods import BPTT, RL, Budget
from bptt_trainers.host.executors import LOCAL, opened
from bptt_trainers.host.machine import versions
from bptt_trainers.host.threads import available_cores
from bptt_trainers.host.work import Job, Workers
from bptt_trainers.presets.presets import tuned_row
from bptt_trainers.records.claim import locked
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.options import write_options
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.ensemble import SHARED, Ensemble
from bptt_trainers.training.metrics import EpochMetrics, read_csv
from bptt_trainers.training.run_folder import RunFolder
from bptt_trainers.training.trainer import Trainer
from bptt_trainers.training.watch import watching

NAN = float("nan")


@dataclass(frozen=True)
class Run:
    """A member, and how it is trained."""

    member: Member
    variant: Variant
    budget: Budget
    config: TrainConfig | None  # of BPTT
    folder: Path
    start: Run | None  # from whose best controller it starts

    @property
    def group(self) -> tuple[Any, ...]:
        """Runs with the same may be members of one ensemble; None among them stands for nobody else."""
        method = self.variant.method
        if self.config is None or self.variant.alone or not (isinstance(method, BPTT) and method.TOGETHER):
            return (self.member,)
        begins = self.start is None
        return (self.member.experiment, self.member.options, begins, *(getattr(self.config, name) for name in SHARED))

    @property
    def trained(self) -> bool:
        """Whether its folder holds all its epochs."""
        path = RunFolder(self.folder).metrics_path
        try:
            rows = read_csv(path) if path.exists() else []
        except RunFolderError:
            return False  # whether its folder can be taken up again is for the trainer to say
        return bool(rows) and rows[-1].epoch == self.member.epochs


def runs_of(experiment: Experiment, tier: Tier, folder: Path, *, compile: bool = False) -> list[Run]:
    """Every run of an experiment in a tier, all variants of a seed before the next.

    Args:
        experiment: what is run.
        tier: how much of it.
        folder: of the run folders.
        compile: whether the loops of the adjoint engine are compiled, which changes rounding only.
    """
    seeds = range(experiment.amount(tier).seeds)
    return [_run(experiment, tier, variant, seed, folder, compile) for seed in seeds for variant in experiment.variants]


def _run(experiment: Experiment, tier: Tier, variant: Variant, seed: int, folder: Path, compile: bool) -> Run:
    task, method, amount = experiment.task, variant.method, experiment.amount(tier)
    options = {**task.options, **variant.options}
    preset_name = variant.preset or experiment.preset
    steps = amount.epochs * amount.train_states * build_system(task.env_id, options, task.env_id).horizon
    budget = Budget(task.env_id, options, steps, experiment.evaluations, amount.test_states, preset_name)
    where = folder / experiment.name / f"{_file_name(variant.label)}-seed{seed}"
    settings = dict(method.changes)
    if preset_name == "tuned":
        name = method.method if isinstance(method, RL) else method.name
        settings = {**tuned_row(name, task.env_id, options).settings, **settings}
    if isinstance(method, RL):
        config = None
        preset = method.settings(budget, {})
        rule, clip, rate, epochs, train_states = method.method, "", preset["learning_rate"], 0, 0
        steps = min(steps, preset["max_steps"])
    else:
        batch_size = min(settings.get("batch_size", TrainConfig.batch_size), amount.train_states)
        given = {"train_states": amount.train_states, "batch_size": batch_size, "record": ()}
        given["compile"] = compile and method.compiles
        config = method.config(budget, given, seed=seed, out=where)
        rule, clip, rate = config.rule, config.clip, config.learning_rate
        epochs, train_states = config.epochs, amount.train_states
    settings = {name: value for name, value in settings.items() if name not in _OWN_COLUMNS}
    member = Member(
        experiment=experiment.name,
        env_id=task.env_id,
        options=write_options(options),
        method=variant.label,
        rule=rule,
        clip=clip,
        learning_rate=rate,
        settings=write_options(settings | ({} if variant.start is None else {"start": variant.start})),
        seed=seed,
        epochs=epochs,
        steps=steps,
        train_states=train_states,
        test_states=amount.test_states,
    )
    start = None
    if variant.start is not None:
        (rules,) = (one for one in EXPERIMENTS.values() if (one.study, one.task) == ("rules", task))
        (source,) = (one for one in rules.variants if one.label == variant.start)
        start = _run(rules, tier, source, seed, folder, compile)
    return Run(member, variant, budget, config, where, start)


_OWN_COLUMNS = ("clip", "learning_rate", "train_states")  # beside the settings in the files


def missing(runs: Sequence[Run], results: Path) -> list[Run]:
    """Those of an experiment's runs that its file does not hold.

    Raises:
        RunFolderError: if the file holds a run of the same name with other settings, or cannot be used.
    """
    if not runs:
        return []
    experiment = runs[0].member.experiment
    stored = {member.name: member for member in read_books(results, experiment)[0]}
    for run in runs:
        other = stored.get(run.member.name, run.member)
        different = [
            f"  {one.name}: {getattr(other, one.name)!r} in the file, {getattr(run.member, one.name)!r} asked for"
            for one in fields(Member)
            if getattr(other, one.name) != getattr(run.member, one.name)
        ]
        if different:
            raise RunFolderError(
                "\n".join([f"{results_path(results, experiment)} holds another {run.member.name!r}:", *different])
                + "\nUse another folder, or delete its line to have it trained anew."
            )
    return [run for run in runs if run.member.name not in stored]


def train_missing(
    runs: Sequence[Run],
    results: Path,
    *,
    folder: Path,
    jobs: int | None = None,
    together: int,
    executor: str = LOCAL,
    progress: bool = True,
) -> None:
    """Train those of the runs that the files in `results` do not hold, and add each to them as it is finished.

    Every run has a folder of its own, from which it goes on after an interruption. The files are written here only,
    whoever trains.

    Args:
        runs: of any experiments.
        results: folder of the files; only one process at a time writes them.
        folder: of the run folders; only one process at a time trains into it.
        jobs: processes, each with one thread; of another executor, its workers that are to be made use of. None: as
            many as there are.
        together: members of an ensemble at most.
        executor: who trains, see `opened`.
        progress: whether to show a bar.

    Raises:
        RunFolderError: if a file or run folder is of other settings, in use, or cannot be written.
        ChildProcessError: if the process of a run was ended from outside again and again; the message names the run.
    """
    order = _by_experiment(runs)
    if not any(missing(of_one, results) for of_one in order.values()):
        return
    with ExitStack() as locks:
        for path in {one.resolve(): one for one in (folder, results)}.values():
            locks.enter_context(locked(path))
        todo = [run for of_one in order.values() for run in missing(of_one, results)]  # now that nobody adds any
        workers = locks.enter_context(opened(executor, jobs or len(available_cores()), folder))
        _train_all(todo, order, results, workers, jobs or workers.at_once, together, progress)


def _train_all(
    todo: Sequence[Run],
    order: Mapping[str, Sequence[Run]],
    results: Path,
    workers: Workers,
    jobs: int,
    together: int,
    progress: bool,
) -> None:
    """Train, and add each run to the files as it is finished; those first from which others start."""
    starts = {run.start.member: run.start for run in todo if run.start is not None}
    first = [start for start in starts.values() if not start.trained]
    now = {run.member for run in first}
    waves = (first, [run for run in todo if run.member not in now])
    steps = {run.folder: run.member.steps for wave in waves for run in wave}
    with watching(f"{len(steps)} runs", steps, progress) as finish:
        for wave in waves:
            units = [unit for group in _groups(wave) for unit in _parts(group, together, jobs)]
            waiting = {workers.submit(Job(_in_words(unit), _train, unit)): unit for unit in units}
            for done in as_completed(waiting):
                unit = waiting[done]
                for run, curve in zip(unit, done.result(), strict=True):
                    _add(order.get(run.member.experiment, []), run, curve, len(unit), results)
                    finish(run.folder)


def _in_words(unit: Sequence[Run]) -> str:
    """What a process trains, for messages."""
    first = unit[0].member
    others = f" and {len(unit) - 1} more" if len(unit) > 1 else ""
    return f"{first.experiment}, {first.name}{others}"


def _by_experiment(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.member.experiment, []).append(run)
    return found


def _groups(runs: Iterable[Run]) -> list[list[Run]]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return list(groups.values())


def _parts(group: Sequence[Run], together: int, jobs: int) -> Iterator[Sequence[Run]]:
    """Ensembles of like size, not larger than allowed, as many as make use of all processes."""
    count = -(-len(group) // together)
    count = min(len(group), -(-count // jobs) * jobs)
    for i in range(count):
        yield group[i * len(group) // count : (i + 1) * len(group) // count]


def _add(of_experiment: Sequence[Run], run: Run, curve: Sequence[Point], together: int, results: Path) -> None:
    """Add a finished run to the files of its experiment, in the order of the experiment."""
    experiment = run.member.experiment
    stored, curves = read_books(results, experiment)
    stored[run.member] = result_of(run.member, curve, together, VERSIONS)
    places = {one.member: i for i, one in enumerate(of_experiment)}
    ordered = sorted(stored.values(), key=lambda result: places.get(result.member, len(places)))
    write(results, ordered, {**curves, run.member.name: curve})


VERSIONS = versions("torch", "stable-baselines3", "Python")


# What a process does


def _train(unit: Sequence[Run]) -> list[list[Point]]:
    """The curve of each run of a unit: one ensemble, or one run."""
    first = unit[0]
    if first.config is None:
        curve = first.variant.method.run(first.budget, {}, first.member.seed, first.folder, None)
        return [
            [
                Point(i, one.simulator_steps, one.seconds, NAN, one.test_loss, NAN, NAN, NAN, 0)
                for i, one in enumerate(curve)
            ]
        ]
    assert isinstance(first.variant.method, BPTT)
    env = first.variant.method.make_env(first.budget, {})
    configs = [run.config for run in unit if run.config is not None]
    controllers = [_controller(run, env.system) for run in unit]
    if len(unit) == 1:
        return [_curve(Trainer(env, controllers[0], first.config).fit())]
    given = [one for one in controllers if one is not None]
    return [_curve(history) for history in Ensemble(env, configs, controllers=given or None).fit()]


def _controller(run: Run, system: System) -> nn.Module | None:
    """The controller that training starts from; None: that of the settings."""
    return None if run.start is None else RunFolder(run.start.folder).load_controller(system, "best")[0]


def _curve(history: Iterable[EpochMetrics]) -> list[Point]:
    names = [one.name for one in fields(Point)]
    return [Point(**{name: getattr(metrics, name) for name in names}) for metrics in history]


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+=-]", "-", label)
