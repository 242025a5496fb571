"""The settings of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Suppress

from bptt_envs.arguments import KnownArguments
from bptt_envs.checks import each_once, one_of
from bptt_envs.registration import system_class
from bptt_envs.settings import By, Count, Positive, Seed, read
from bptt_trainers.comparison.methods import Budget
from bptt_trainers.host.executors import LOCAL, ExecutorName
from bptt_trainers.host.user_code import import_module, split_id
from bptt_trainers.tuning.space import Choice, Entry, Range, Search, search_of, tunable


@dataclass(frozen=True)
class TuneConfig(KnownArguments):
    """Settings of a study: equal numbers of trials and equal budgets for every method.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    env: str = "DiffCartPole-v0"
    """Environment id, or MODULE:ID to import first the module that registers it."""

    env_options: Annotated[Mapping[str, Any], Suppress] = field(default_factory=dict)
    """Options of the environment, the same for every trial; its objective is that which all are judged by."""

    module: Annotated[str | None, Suppress] = None
    """The module that registers the environment, if that is your own."""

    methods: tuple[Annotated[str, By(tunable)], ...] = ("C", "PPO")
    """Methods, each with a study of its own: the rules R, M, S, C, C-turned, and those whose feedback decays or is cut,
    such as "R decay 0.9" and "C every 16"; SHAC, SAPO, and either by any rule, such as SHAC-C; the
    estimators LR, TP, AoBG; PPO, SAC."""

    trials: Count = 30
    """Trials of each method, the pruned ones among them; the first one is of the settings as they stand."""

    steps: Count = 320_000
    """Simulator steps of each run, rounded to whole epochs and updates (at least one); SAC takes 200 thousand at
    most."""

    seeds: Count = 3
    """Runs of each trial, with the seeds 1000, 1001 and so on: none that tables are made with."""

    confirm: Seed = 3
    """How many of each method's best trials are run again, with 10 further seeds; that with the best mean becomes the
    row. 0: none, and the best trial does."""

    evaluations: Count = 50
    """How often PPO and SAC are judged while they learn; the update rules are judged after every epoch."""

    validation_states: Count = 256
    """Start states that trials are judged on: neither trained on nor held out."""

    fix: Annotated[Mapping[str, Mapping[str, Any]], Suppress] = field(default_factory=dict)
    """Settings of single methods that are pinned in every trial: {"C": {"hidden": (32, 32)}}."""

    search: Annotated[Mapping[str, Mapping[str, Any]], Suppress] = field(default_factory=dict)
    """What is searched in place of the table's entry: {"C": {"learning_rate": Range(1e-3, 1e-1, log=True)}}."""

    seed: Seed = 0
    """Seeds what trials are drawn from; the same for every method."""

    compile: bool = False
    """Compile the loops of the adjoint engine, for each method that has them: all but LR, TP, AoBG and reinforcement
    learning. Needs a C++ compiler; compiled code is kept on disk."""

    jobs: Count = 1
    """Processes that make trials at once, with one thread each; of another executor, so many of its workers."""

    executor: ExecutorName = LOCAL
    """Who makes them: local (the processes above), dask:ADDRESS or slurm (docs/scaling-out.md)."""

    timeout: Positive | None = None
    """Minutes after which no further trial is begun. None: none."""

    out: Path = Path("tuning/study")
    """Folder of the study. Several commands may share it, at once and one after the other."""

    def __post_init__(self) -> None:
        read(self)
        module, env = split_id(self.env)
        object.__setattr__(self, "env", env)
        object.__setattr__(self, "module", module or self.module)
        if self.module is not None:
            import_module(self.module)
        system_class(self.env).check_options(dict(self.env_options), self.env)
        if not self.methods:
            raise ValueError("methods must be at least one method.")
        each_once("methods", self.methods)
        for option, given in (("fix", self.fix), ("search", self.search)):
            for method in given:
                one_of(f"the method of {option}", method, self.methods)
        for method, entries in self.search.items():
            for name, entry in entries.items():
                if not isinstance(entry, (Range, Choice)):
                    raise ValueError(f"search {method}.{name} must be a Range or a Choice; got {entry!r}.")
        self.searches({})

    @property
    def budget(self) -> Budget:
        """What every run has in common; its start states for judging are the validation states."""
        return Budget(self.env, self.env_options, self.steps, self.evaluations, self.validation_states, "tuned")

    def searches(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Search]:
        """The search of each method.

        Args:
            rows: the settings of methods as they stood when their studies were begun; of the others, they are those
                of now.

        Raises:
            ValueError: as the class.
        """
        return {
            method: search_of(
                method, self.budget, self.fix.get(method, {}), self._entries(method), _copy(rows.get(method))
            )
            for method in self.methods
        }

    def _entries(self, method: str) -> dict[str, Entry]:
        return dict(self.search.get(method, {}))


def _copy(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else dict(row)
