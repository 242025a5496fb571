"""The comparison: every method on the same objective, the same held-out states, the same axes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress

from bptt_envs.arguments import KnownArguments
from bptt_envs.checks import each_once
from bptt_envs.registration import system_class
from bptt_envs.settings import Count, Positive, Seed, read
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.methods import Budget, MethodName, by_rule, method_name, settings_of_today
from bptt_trainers.comparison.notes import notes_of
from bptt_trainers.comparison.runs import Cell, train
from bptt_trainers.comparison.summary import RunSummary, method_rows, run_rows, summarize, to_markdown
from bptt_trainers.figures.style import plain_text, save_figure
from bptt_trainers.host.executors import LOCAL, ExecutorName
from bptt_trainers.host.threads import threads
from bptt_trainers.host.user_code import imported_id
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.presets.presets import PresetName, defaults_seen
from bptt_trainers.records.claim import Claim, in_words, locked, same
from bptt_trainers.records.curve import Curve
from bptt_trainers.records.files import understanding, write_atomic
from bptt_trainers.records.plain import plain
from bptt_trainers.records.tables import to_csv
from bptt_trainers.training.config import Record, TrainConfig

# Settings that do not change a run: a comparison may be continued with others. (What a preset amounts to is compared.)
CHANGEABLE = ("methods", "seeds", "grid", "env_grid", "losses", "together", "jobs", "executor", "preset", "record")

DEFAULTS = json.loads(json.dumps(asdict(TrainConfig())))  # of settings that are younger than a folder

TOLD = ("objective", "notes")  # in comparison.json beside settings, for readers

COMPARISON = "comparison.json"  # in the folder of a comparison: what it is of


@dataclass(frozen=True)
class ComparisonConfig(KnownArguments):
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
    "C every 16"; SHAC, SAPO, and either by any rule, such as SHAC-C and "SAPO-M every 4"; the estimators LR, TP, AoBG;
    PPO, SAC; zero and random, which learn nothing; iLQR, MPPI and GRAPE, which plan each held-out episode by itself."""

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
    """What each run keeps beside metrics and checkpoints: tensorboard, csv, pictures, wandb, mlflow, trackio;
    diagnostics, of the rules."""

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
        self.budget.make_system()  # of methods that have no settings of it

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table has to know beside it, a sentence or two each."""
        return notes_of(self.cells, len(self.seeds), self.together)

    @property
    def cells(self) -> list[Cell]:
        """What is run with every seed: the methods."""
        return [Cell(name, name, self.overrides.get(name, {}), self.budget) for name in self.methods]

    @property
    def budget(self) -> Budget:
        """What every run has in common."""
        return Budget(
            self.env, self.env_options, self.steps, self.evaluations, self.test_states, self.preset, self.record
        )

    def settings(self) -> dict[str, dict[str, Any]]:
        """All settings of each cell, by its label."""
        return {cell.label: cell.settings() for cell in self.cells}


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
        begin(config, COMPARISON, "comparison")
        curves = train(config.cells, config.seeds, config, progress)
        runs = tuple(summarize(m, s, curve, config.losses) for (m, s), curve in curves.items())
        return _write(config, curves, runs)


def _write(
    config: ComparisonConfig, curves: Mapping[tuple[str, int], Curve], runs: tuple[RunSummary, ...]
) -> Comparison:
    points = [
        {"method": method, "seed": seed, **vars(point)} for (method, seed), curve in curves.items() for point in curve
    ]
    rows = method_rows(runs, PLANNERS)
    table = to_markdown(rows, config.losses)
    table += "".join(f"{note}\n" for note in config.notes)
    write_atomic(config.out / "curves.csv", to_csv(points).encode())
    write_atomic(config.out / "runs.csv", to_csv(run_rows(runs)).encode())
    write_atomic(config.out / "methods.csv", to_csv(rows).encode())
    write_atomic(config.out / "methods.md", table.encode())
    save_figure(curves_figure(curves, plain_text(_title(config))), config.out / "curves.png", vector=True)
    return Comparison(config.out, curves, runs, table)


def _title(config: ComparisonConfig) -> str:
    options = "".join(f", {name}={value}" for name, value in config.env_options.items())
    judged = f"judged by the {_objective(config)} loss"
    return f"{config.env}{options}, {judged}: median and range over {len(config.seeds)} seeds"


def _objective(config: ComparisonConfig) -> str:
    return config.budget.make_system().objective


def begin(config: ComparisonConfig, name: str, kind: str) -> None:
    """Claim the folder of a comparison, or check that what is there belongs to the same one.

    Args:
        config: every setting.
        name: of the file that says so.
        kind: what the folder holds, for messages.

    Raises:
        RunFolderError: if it holds something else, or settings have changed.
    """
    named = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in ("out", "overrides")}
    told = dict(zip(TOLD, (_objective(config), config.notes), strict=True))
    wanted = plain(named | told | {"settings": config.settings()})
    methods = {cell.label: cell.method for cell in config.cells}
    claim = Claim(config.out / name, kind, lambda stored, now: _differences(methods, stored, now))
    stored = claim.check(wanted)
    if stored is not None:
        wanted["settings"] = stored["settings"] | wanted["settings"]  # what is left out now may come back
    claim.take(wanted)


def _differences(methods: Mapping[str, str], stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    with understanding(Path(COMPARISON)):
        before_of = dict(stored["settings"])
        younger = DEFAULTS | defaults_seen(wanted["env"], wanted["env_options"])
        pairs = [(name, stored.get(name), value) for name, value in wanted.items() if name not in _APART]
        for label, settings in wanted["settings"].items():
            before = before_of.get(label)
            if before is not None and label in methods:  # else it is left as it was
                before = settings_of_today(methods[label], before)
                defaults = younger if by_rule(methods[label]) else {}
                names = dict.fromkeys([*before, *settings])
                pairs += [(f"{label} {n}", before.get(n, defaults.get(n)), settings.get(n)) for n in names]
    return [in_words(name, old, new) for name, old, new in pairs if not same(old, new)]


_APART = (*CHANGEABLE, *TOLD, "settings")
