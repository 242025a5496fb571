"""The comparison: every method on the same objective, the same held-out states, the same axes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress

from bptt_envs.checks import each_once
from bptt_envs.registration import system_class
from bptt_envs.settings import Count, Positive, Seed, read
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.methods import (
    BPTT,
    RL,
    Budget,
    MethodName,
    by_rule,
    get_method,
    method_name,
    settings_of_today,
)
from bptt_trainers.comparison.summary import RunSummary, method_rows, run_rows, summarize, to_markdown
from bptt_trainers.figures.style import plain_text, save_figure
from bptt_trainers.host.executors import LOCAL, ExecutorName, opened
from bptt_trainers.host.threads import threads
from bptt_trainers.host.user_code import imported_id
from bptt_trainers.host.work import Job
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.presets.presets import PresetName, defaults_seen
from bptt_trainers.records.claim import Claim, in_words, locked, same
from bptt_trainers.records.curve import Curve, curve_to_csv, read_curve
from bptt_trainers.records.files import RunFolderError, exists, understanding, write_atomic
from bptt_trainers.records.plain import plain
from bptt_trainers.records.tables import to_csv
from bptt_trainers.training.callbacks import ProgressBar
from bptt_trainers.training.config import Record, TrainConfig
from bptt_trainers.training.ensemble import SHARED, CannotStackError, Ensemble
from bptt_trainers.training.metrics import learning_curve
from bptt_trainers.training.watch import watching

# Settings that do not change a run: a comparison may be continued with others. (What a preset amounts to is compared.)
CHANGEABLE = ("methods", "seeds", "losses", "together", "jobs", "executor", "preset", "record")

DEFAULTS = json.loads(json.dumps(asdict(TrainConfig())))  # of settings that are younger than a folder

COMPARISON = "comparison.json"  # in the folder of a comparison: what it is of

FINISHED = "curve.csv"  # written into the folder of a run when it is done


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings of a comparison.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    env: str = "DiffCartPole-v0"
    """Environment id, or MODULE:ID to import first the module that registers it."""

    env_options: Annotated[Mapping[str, Any], Suppress] = field(default_factory=dict)
    """Options of the environment, the same for every method; its objective is that which all are judged by."""

    methods: tuple[MethodName, ...] = ("R", "M", "S", "C", "PPO", "SAC", "zero", "random")
    """Methods: the update rules R, M, S, C, and those whose feedback decays or is cut, such as "R decay 0.9" and
    "C every 16"; SHAC, SHAC-M, SHAC-C, SAPO; the estimators LR, TP, AoBG; PPO, SAC; zero and random, which learn
    nothing; iLQR, MPPI and GRAPE, which plan each held-out episode by itself."""

    seeds: tuple[Seed, ...] = (0, 1, 2, 3, 4)
    """Seeds; each method runs once with each."""

    steps: Count = 2_560_000
    """Simulator steps a run trains on, 100 epochs of the paper's setting, rounded to whole epochs and updates (at
    least one); SAC takes 200 thousand at most."""

    evaluations: Count = 100
    """How often PPO and SAC are judged while they learn; the update rules are judged after every epoch."""

    test_states: Count = 256
    """Held-out start states, the same for every method and seed."""

    preset: PresetName = "tuned"
    """Whose settings each method has, but for overrides: those that were tuned (docs/tuning.md), or the paper's."""

    losses: tuple[Positive, ...] = (0.1, 0.01, 0.001)
    """Losses for which the table says after how many steps and seconds they were reached."""

    overrides: Annotated[Mapping[str, Mapping[str, Any]], Suppress] = field(default_factory=dict)
    """Settings of single methods that are to differ from the preset: {"PPO": {"num_envs": 32}}."""

    threads: Count = 1
    """Threads of torch; with the small networks here a second one costs more time than it gives."""

    together: bool = True
    """Train all runs of the update rules as one ensemble; the seconds of a run are then its share. Otherwise each is
    trained alone."""

    jobs: Count = 1
    """Processes that train at once, with so many threads each; each takes a single run or an ensemble."""

    executor: ExecutorName = LOCAL
    """Who trains: local (the processes above), dask:ADDRESS or slurm (docs/scaling-out.md)."""

    record: Record = ("pictures",)
    """What each run keeps beside metrics and checkpoints: tensorboard, csv, pictures; diagnostics, of the rules."""

    out: Path = Path("runs/comparison")
    """Folder of the comparison."""

    def __post_init__(self) -> None:
        read(self)
        object.__setattr__(self, "env", imported_id(self.env))
        system_class(self.env).check_options(dict(self.env_options), self.env)
        each_once("methods", self.methods)
        each_once("seeds", self.seeds)
        overrides = {method_name("overrides", method): changes for method, changes in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)
        self.settings()

    @property
    def budget(self) -> Budget:
        """What every run has in common."""
        return Budget(
            self.env, self.env_options, self.steps, self.evaluations, self.test_states, self.preset, self.record
        )

    def settings(self) -> dict[str, dict[str, Any]]:
        """All settings of each method, by name."""
        return {name: get_method(name).settings(self.budget, self.overrides.get(name, {})) for name in self.methods}


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: holds runs/ (a folder for each method and seed), curves.csv, runs.csv, methods.csv, methods.md and
            curves.png, curves.pdf.
        curves: the learning curve of each (method, seed).
        runs: each run in numbers.
        table: a line for each method, Markdown.
    """

    folder: Path
    curves: Mapping[tuple[str, int], Curve]
    runs: tuple[RunSummary, ...]
    table: str


def compare(config: ComparisonConfig, progress: bool = True) -> Comparison:
    """Train and judge every method with every seed, and write tables and figure.

    Each run has a folder of its own. What is finished is not computed again: a rerun continues what is
    missing, and one with more methods or seeds adds them.

    Args:
        config: every setting.
        progress: whether to show bars.

    Raises:
        RunFolderError: if the folder holds a comparison of another configuration, is in use, or cannot be written.
        ChildProcessError: if the process of a run was ended from outside again and again; the message names the run.
        DependencyNotInstalled: if the library of the executor is not there.
    """
    with locked(config.out), threads(config.threads):
        _begin(config)
        curves = _train(config, progress)
        members = [(method, seed) for method in config.methods for seed in config.seeds]
        ordered = {one: curves[one] if one in curves else _run(config, *one, progress) for one in members}
        runs = tuple(summarize(m, s, curve, config.losses) for (m, s), curve in ordered.items())
        return _write(config, ordered, runs)


def member_folder(out: Path, method: str, seed: int) -> Path:
    """The folder of one run in the comparison `out`."""
    return out / "runs" / f"{re.sub(r'[^A-Za-z0-9_.+-]', '-', method)}-seed{seed}"


@dataclass(frozen=True)
class _Unit:
    """Runs that one process trains: an ensemble, or a single one."""

    members: tuple[tuple[str, int], ...]  # method and seed
    together: bool

    def __str__(self) -> str:
        methods = ", ".join(dict.fromkeys(method for method, _ in self.members))
        return f"{methods}, {len(self.members)} runs" if self.together else f"{methods} seed {self.members[0][1]}"


def _units(config: ComparisonConfig) -> list[_Unit]:
    """What is missing: as few ensembles as the settings allow, then single runs, all methods of a seed together."""
    todo = [(method, seed) for seed in config.seeds for method in config.methods]
    todo = [(m, s) for m, s in todo if not exists(member_folder(config.out, m, s) / FINISHED)]
    groups: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    if config.together:
        for method, seed in sorted(todo, key=lambda one: config.methods.index(one[0])):
            if _together(method):
                training, seen = _training(config, method, seed)
                shared = (*(getattr(training, name) for name in SHARED), *seen.items())
                groups.setdefault(shared, []).append((method, seed))
    ensembles = [_Unit(tuple(members), together=True) for members in groups.values()]
    alone = [one for one in todo if not (config.together and _together(one[0]))]
    return ensembles + [_Unit((one,), together=False) for one in alone]


def _together(method: str) -> bool:
    """Whether runs of a method are trained as one ensemble."""
    trained = get_method(method)
    return isinstance(trained, BPTT) and trained.TOGETHER


def _training(config: ComparisonConfig, method: str, seed: int) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of a run of an update rule, and what its controller sees."""
    rule, overrides = get_method(method), config.overrides.get(method, {})
    assert isinstance(rule, BPTT)
    folder = member_folder(config.out, method, seed)
    return rule.config(config.budget, overrides, seed=seed, out=folder), rule.seen(config.budget, overrides)


def _steps(config: ComparisonConfig, method: str) -> int:
    """Simulator steps that a run takes, but for rounding; 0 if it does not learn."""
    trained = get_method(method)
    if isinstance(trained, RL):
        return min(config.steps, int(config.settings()[method]["max_steps"]))
    return config.steps if isinstance(trained, BPTT) else 0


def _train(config: ComparisonConfig, progress: bool) -> dict[tuple[str, int], Curve]:
    """Train what is missing; the curves of it."""
    units = _units(config)
    curves: dict[tuple[str, int], Curve] = {}
    if config.executor == LOCAL and config.jobs == 1:
        for unit in units:
            curves.update(_train_unit(config, unit, progress))
        return curves
    if not units:
        return curves
    folders = {member: member_folder(config.out, *member) for unit in units for member in unit.members}
    steps = {folder: _steps(config, method) for (method, _), folder in folders.items()}
    with (
        opened(config.executor, config.jobs, config.out) as workers,
        watching(f"{len(steps)} runs", steps, progress) as finish,
    ):
        jobs = [
            Job(str(unit), _train_unit, config, unit, False, env=config.env, count=config.threads) for unit in units
        ]
        for done in as_completed(map(workers.submit, jobs)):
            for member, curve in done.result().items():
                curves[member] = curve
                finish(folders[member])
    return curves


def _train_unit(config: ComparisonConfig, unit: _Unit, progress: bool) -> dict[tuple[str, int], Curve]:
    """Train the runs of a unit, each that cannot be trained with others, or drops out, alone; the curves of them."""
    if unit.together:
        _train_together(config, unit, progress)
    return {(method, seed): _run(config, method, seed, progress) for method, seed in unit.members}


def _train_together(config: ComparisonConfig, unit: _Unit, progress: bool) -> None:
    trainings, seen = zip(*(_training(config, *member) for member in unit.members), strict=True)
    bars = [ProgressBar(str(unit))] if progress else []
    try:
        ensemble = Ensemble(config.budget.make_env(**seen[0]), trainings, bars)
    except CannotStackError:
        return
    for i, (training, history) in enumerate(zip(trainings, ensemble.fit(), strict=True)):
        if i not in ensemble.errors:
            write_atomic(training.out / FINISHED, curve_to_csv(learning_curve(history)).encode())


def _run(config: ComparisonConfig, method: str, seed: int, progress: bool) -> Curve:
    folder = member_folder(config.out, method, seed)
    finished = folder / FINISHED
    if exists(finished):
        done = read_curve(finished)
        books = folder / "metrics.csv"  # of an update rule; it has these columns too
        if exists(books) and not same([vars(one) for one in read_curve(books)], [vars(one) for one in done]):
            raise RunFolderError(f"{finished} and {books.name} disagree. Deleted, {finished.name} is made anew.")
        return done
    title = f"{method} seed {seed}" if progress else None
    curve = get_method(method).run(config.budget, config.overrides.get(method, {}), seed, folder, title)
    write_atomic(finished, curve_to_csv(curve).encode())
    return curve


def _write(
    config: ComparisonConfig, curves: Mapping[tuple[str, int], Curve], runs: tuple[RunSummary, ...]
) -> Comparison:
    points = [
        {"method": method, "seed": seed, **vars(point)} for (method, seed), curve in curves.items() for point in curve
    ]
    rows = method_rows(runs, PLANNERS)
    table = to_markdown(rows, config.losses)
    if config.together and sum(_together(run.method) for run in runs) > 1:
        table += "Runs of the update rules are trained together; the seconds of one are its share of all.\n"
    write_atomic(config.out / "curves.csv", to_csv(points).encode())
    write_atomic(config.out / "runs.csv", to_csv(run_rows(runs)).encode())
    write_atomic(config.out / "methods.csv", to_csv(rows).encode())
    write_atomic(config.out / "methods.md", table.encode())
    save_figure(curves_figure(curves, plain_text(_title(config))), config.out / "curves.png", vector=True)
    return Comparison(config.out, curves, runs, table)


def _title(config: ComparisonConfig) -> str:
    options = "".join(f", {name}={value}" for name, value in config.env_options.items())
    objective = config.budget.make_env().system.objective
    return f"{config.env}{options}, judged by the {objective} loss: median and range over {len(config.seeds)} seeds"


def _begin(config: ComparisonConfig) -> None:
    """Claim the folder, or check that what is there belongs to the same comparison."""
    named = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in ("out", "overrides")}
    wanted = plain(named | {"settings": config.settings()})
    claim = Claim(config.out / COMPARISON, "comparison", _differences)
    stored = claim.check(wanted)
    if stored is not None:
        wanted["settings"] = stored["settings"] | wanted["settings"]  # methods left out now may come back
    claim.take(wanted)


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    with understanding(Path(COMPARISON)):
        before_of = dict(stored["settings"])
        younger = DEFAULTS | defaults_seen(wanted["env"], wanted["env_options"])
        pairs = [(name, stored.get(name), value) for name, value in wanted.items() if name not in _APART]
        for method, settings in wanted["settings"].items():
            before = before_of.get(method)
            if before is not None:
                before = settings_of_today(method, before)
                defaults = younger if by_rule(method) else {}
                names = dict.fromkeys([*before, *settings])
                pairs += [(f"{method} {n}", before.get(n, defaults.get(n)), settings.get(n)) for n in names]
    return [in_words(name, old, new) for name, old, new in pairs if not same(old, new)]


_APART = (*CHANGEABLE, "settings")
