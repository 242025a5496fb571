"""What a comparison compares: one table of methods, by name; adding one is a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from bptt_envs import DifferentiableEnv, System, make_env
from bptt_envs.checks import nearest, shown
from bptt_envs.registration import build_system
from bptt_envs.settings import By
from bptt_trainers.controllers.baselines import RandomController, ZeroController
from bptt_trainers.directions.rollout import Policy, losses, rollout
from bptt_trainers.directions.rules import OR_FADED, RULES, base_of, get_rule, named_rule
from bptt_trainers.planning.plan import PLANNERS, plan, planner_settings
from bptt_trainers.presets.presets import (
    ESTIMATED,
    PresetName,
    RuleSettings,
    defaults_seen,
    preset,
    row_name,
    rule_settings,
)
from bptt_trainers.records.curve import Curve, CurvePoint
from bptt_trainers.rl.config import RLConfig
from bptt_trainers.training.callbacks import ProgressBar
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.metrics import learning_curve
from bptt_trainers.training.run_folder import CONFIGS, of_today
from bptt_trainers.training.shac_config import SHACConfig
from bptt_trainers.training.start_states import held_out_states
from bptt_trainers.training.trainer import Trainer
from bptt_trainers.training.window import updates_per_epoch, window_steps


@dataclass(frozen=True)
class Budget:
    """What every run of a comparison has in common."""

    env: str  # id
    env_options: Mapping[str, Any]
    steps: int  # simulator steps for training
    evaluations: int  # of reinforcement learning, while it learns
    test_states: int  # held-out start states
    preset: PresetName = "tuned"  # whose settings a method has, but for its own changes and overrides
    record: tuple[str, ...] = ()  # names of recorders of each run

    @property
    def horizon(self) -> int:
        """Steps of an episode, from the options alone: the system is not tried."""
        return self.make_system().horizon

    def make_system(self) -> System:
        """The physics, from the options alone: it is not tried."""
        return build_system(self.env, self.env_options, self.env)

    def make_env(self, **seen: Any) -> DifferentiableEnv:
        """The environment on whose objective every method is judged.

        Args:
            seen: what the controller of a method sees, options that the budget does not give.
        """
        return make_env(self.env, **self.env_options, **seen)


class Method(Protocol):
    """One row: how a method is trained and judged within a budget."""

    @property
    def summary(self) -> str:
        """What it is, in one line."""

    def settings(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """All its settings, with `overrides`, as plain data.

        Raises:
            ValueError: if an override is unknown or out of range.
        """

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """Simulator steps that a run takes, those of the budget rounded to whole epochs and updates; 0 without any."""

    def run(self, budget: Budget, overrides: Mapping[str, Any], seed: int, folder: Path, title: str | None) -> Curve:
        """Train, or continue what `folder` holds; `title` names the progress bar, None shows none."""


@dataclass(frozen=True)
class BPTT:
    """Backpropagation through time by one of the update rules; its settings are those of `TrainConfig`.

    Args:
        rule: name of the rule.
        changes: settings that differ from the defaults of `TrainConfig`.
    """

    rule: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    GIVEN: ClassVar = ("rule", "epochs", "seed", "test_states", "out")  # by the comparison
    HOW: ClassVar = ("compile", "device", "record")  # it is computed: no part of what is compared
    LEARNER: ClassVar[str] = "BPTT"  # a name of `CONFIGS`
    TOGETHER: ClassVar[bool] = True  # several runs may be one ensemble

    @property
    def summary(self) -> str:
        """The rule, and what differs from the preset."""
        changes = "".join(f", {name} {value}" for name, value in self.changes.items())
        return f"BPTT, {get_rule(self.rule).summary}{changes}"

    def settings(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `TrainConfig` that the comparison does not set itself, and what the controller sees."""
        chosen = asdict(self.config(budget, overrides))
        left_out = (*self.GIVEN, *self.HOW)
        settings = {name: value for name, value in chosen.items() if name not in left_out} | {"rule": self.rule}
        return settings | defaults_seen(budget.env, budget.env_options) | self.seen(budget, overrides)

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """Those of whole epochs."""
        config = self.config(budget, overrides)
        return config.epochs * config.train_states * budget.horizon

    def run(self, budget: Budget, overrides: Mapping[str, Any], seed: int, folder: Path, title: str | None) -> Curve:
        """Train, or continue, the run in `folder`."""
        config = self.config(budget, overrides, seed=seed, out=folder)
        bars = [] if title is None else [ProgressBar(title)]
        return learning_curve(Trainer(self.make_env(budget, overrides), config=config, callbacks=bars).fit())

    def make_env(self, budget: Budget, overrides: Mapping[str, Any]) -> DifferentiableEnv:
        """The budget's environment, with what the controller sees by this method's settings."""
        return budget.make_env(**self.seen(budget, overrides))

    def seen(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """What the controller sees by this method's settings: options of the environment.

        Raises:
            ValueError: as `settings`.
        """
        return self._chosen(budget, overrides).seen

    def config(self, budget: Budget, overrides: Mapping[str, Any], **given: Any) -> TrainConfig:
        """The settings of a run, with `seed` and `out` among what is `given`.

        Raises:
            ValueError: as `settings`.
        """
        # A non-finite update is skipped and counted: one bad update should not take a run out of the table.
        row = {"on_nonfinite": "skip", "record": budget.record, **self._chosen(budget, overrides).training}
        kind = CONFIGS[self.LEARNER]
        try:
            config = kind(**{**row, **given, "rule": self.rule, "test_states": budget.test_states})
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if config.deviation != "none" or config.controller in ("gru", "lstm"):  # of which there are no diagnostics
            config = replace(config, record=tuple(name for name in config.record if name != "diagnostics"))
        steps_an_epoch = config.train_states * budget.horizon
        return replace(config, epochs=max(1, round(budget.steps / steps_an_epoch)))

    def _chosen(self, budget: Budget, overrides: Mapping[str, Any]) -> RuleSettings:
        """Preset, own changes, overrides."""
        for name in ("combine", "estimator"):
            if name in self.changes and overrides.get(name, self.changes[name]) != self.changes[name]:
                raise ValueError(
                    f"{name} {self.changes[name]!r} is what makes the method {self.name}: leave it, or name another "
                    f"method; got {shown(overrides[name])}."
                )
        changes, options = {**self.changes, **overrides}, budget.env_options
        return rule_settings(
            self.name,
            budget.env,
            changes,
            name=budget.preset,
            options=options,
            given=self.GIVEN,
            learner=self.LEARNER,
        )

    @property
    def compiles(self) -> bool:
        """Whether its programs can be compiled."""
        return self.any_rule

    @property
    def any_rule(self) -> bool:
        """Whether it learns by other rules as well; an estimator is one of R's direction."""
        return "estimator" not in self.changes

    @property
    def name(self) -> str:
        """Its name among the presets."""
        combine, estimator = (self.changes.get(one, getattr(TrainConfig, one)) for one in ("combine", "estimator"))
        return row_name(self.LEARNER, self.rule, combine, estimator)


@dataclass(frozen=True)
class SHAC(BPTT):
    """The short-horizon actor-critic by one of the update rules within a window; its settings are `SHACConfig`'s.

    Args: as those of `BPTT`.
    """

    LEARNER: ClassVar[str] = "SHAC"
    TOGETHER: ClassVar[bool] = False

    @property
    def summary(self) -> str:
        """The rule, and what differs from the preset."""
        return super().summary.replace("BPTT", f"{self.LEARNER}, windows with a critic", 1)

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """Those of whole windows, and of the episodes in which they begin."""
        config, horizon = self.config(budget, overrides), budget.horizon
        assert isinstance(config, SHACConfig)
        updates = updates_per_epoch(config.train_states, config.batch_size, horizon, config.window)
        return config.batch_size * (config.epochs * updates * window_steps(horizon, config.window) + horizon)


def settings_of_today(method: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method in a folder, which may be an earlier version's, as `settings` gives them now."""
    if not by_rule(method):
        return dict(stored)
    return {name: value for name, value in of_today(stored).items() if name not in BPTT.HOW}


@dataclass(frozen=True)
class RL:
    """Reinforcement learning by stable-baselines3; its settings are those of the table `PRESETS`.

    Args:
        method: name of the algorithm.
        changes: settings that differ from its preset.
    """

    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The algorithm, and what differs from its preset."""
        changes = "".join(f", {name} {value}" for name, value in self.changes.items())
        return f"reinforcement learning, {self.method} of stable-baselines3{changes}"

    def settings(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The preset, with what differs from it."""
        changes = {**self.changes, **overrides}
        return preset(self.method, budget.env, changes, name=budget.preset, options=budget.env_options)

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """Those of whole updates, at most its own `max_steps`."""
        return self._config(budget, overrides).whole_steps

    def run(self, budget: Budget, overrides: Mapping[str, Any], seed: int, folder: Path, title: str | None) -> Curve:
        """Train, continue or load the run in `folder`."""
        from bptt_trainers.rl.sb3 import train_rl  # slow to import, and not always needed

        return train_rl(self._config(budget, overrides, seed), folder, progress=title is not None).curve

    def _config(self, budget: Budget, overrides: Mapping[str, Any], seed: int = 0) -> RLConfig:
        return RLConfig(
            method=self.method,
            env=budget.env,
            env_options=budget.env_options,
            steps=min(budget.steps, self.settings(budget, overrides)["max_steps"]),
            seed=seed,
            evaluations=budget.evaluations,
            test_states=budget.test_states,
            preset=budget.preset,
            overrides={**self.changes, **overrides},
            record=tuple(name for name in budget.record if name != "diagnostics"),  # those are of the update rules
        )


@dataclass(frozen=True)
class Baseline:
    """A controller that learns nothing.

    Args:
        summary: what it does.
        make: from a system and a seed to the controller.
    """

    summary: str
    make: Callable[[System, int], Policy]

    def settings(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """None."""
        if overrides:
            raise ValueError(f"a controller that learns nothing has no settings to override; got {dict(overrides)!r}.")
        return {}

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """None."""
        return 0

    def run(self, budget: Budget, overrides: Mapping[str, Any], seed: int, folder: Path, title: str | None) -> Curve:
        """Judge it once."""
        system = budget.make_env().system
        trajectory = rollout(system, self.make(system, seed), held_out_states(system, budget.test_states))
        return [CurvePoint(0, 0.0, float(losses(system, trajectory).mean()))]


@dataclass(frozen=True)
class Planned:
    """A planner, which learns nothing: it is told the held-out states and plans from each of them by itself.

    Args:
        method: its name among `PLANNERS`.
    """

    method: str

    @property
    def summary(self) -> str:
        """The planner."""
        return f"plans each held-out episode by itself, {PLANNERS[self.method].summary}"

    def settings(self, budget: Budget, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the planner."""
        return planner_settings(self.method, overrides)

    def steps(self, budget: Budget, overrides: Mapping[str, Any]) -> int:
        """None."""
        return 0

    def run(self, budget: Budget, overrides: Mapping[str, Any], seed: int, folder: Path, title: str | None) -> Curve:
        """Plan once; the seconds are those that it takes."""
        system = budget.make_env().system
        found = plan(system, held_out_states(system, budget.test_states), self.method, seed=seed, **overrides)
        return [CurvePoint(0, found.seconds, float(found.losses.mean()))]


@dataclass(frozen=True)
class SAPO(SHAC):
    """Soft analytic policy optimisation by one of the update rules within a window; its settings are `SAPOConfig`'s.

    Args: as those of `BPTT`.
    """

    LEARNER: ClassVar[str] = "SAPO"


BY_ESTIMATOR = {
    name: BPTT("R", {"estimator": estimator, "deviation": "constant"}) for estimator, name in ESTIMATED.items()
}
"""By estimators of a stochastic controller's gradient."""

METHODS: dict[str, Method] = {
    "R": BPTT("R"),
    "M": BPTT("M"),
    "S": BPTT("S"),
    "C": BPTT("C"),
    "C-turned": BPTT("C", {"combine": "turned"}),
    **BY_ESTIMATOR,
    "SHAC": SHAC("R"),
    "SHAC-M": SHAC("M"),
    "SHAC-C": SHAC("C"),
    "SAPO": SAPO("R"),
    "PPO": RL("PPO"),
    "SAC": RL("SAC"),
    **{name: Planned(name) for name in PLANNERS},
    "zero": Baseline("never acts", lambda system, seed: ZeroController(system)),
    "random": Baseline("acts uniformly at random", RandomController),
}
"""The methods. Beside them are those whose names are composed, such as "SHAC-C every 4": see `get_method`."""

LEARNERS: Mapping[str, type[BPTT]] = {kind.LEARNER: kind for kind in (SHAC, SAPO)}
"""What learns by any rule, with the name of it in front of the rule's."""


def get_method(name: str) -> Method:
    """The method of that name: a row of `METHODS`, or one by another update rule.

    A rule is a method by its name, and so is a learner by it, such as "SAPO-C". Their feedback and that of rows may
    decay or be cut, as `get_rule` has it: "R decay 0.9", "C-turned every 16", "SHAC-C decay 0.9 every 4".

    Raises:
        ValueError: if there is none.
    """
    name = method_name("method", name)
    if name in METHODS:
        return METHODS[name]
    base = base_of(name)
    method = _unfaded(base)
    assert isinstance(method, BPTT)
    return replace(method, rule=f"{method.rule}{name.removeprefix(base)}")


def _unfaded(name: str) -> Method | None:
    """The method of a name without decay and window: a row, a rule, or a learner by one of them; else None."""
    if name in METHODS:
        return METHODS[name]
    if name in RULES:
        return BPTT(name)
    learner, _, rest = name.partition("-")
    by = _unfaded(rest) if learner in LEARNERS else None
    return LEARNERS[learner](by.rule, by.changes) if type(by) is BPTT and by.name == rest and by.any_rule else None


def method_name(name: str, value: Any, rows: Collection[str] = METHODS) -> str:
    """The name of a method as tables and folders have it, else raise ValueError.

    Args:
        name: of the argument, for messages.
        value: what the argument is.
        rows: those of `METHODS` that it may be.
    """
    if isinstance(value, str):
        if value in rows:
            return str.__str__(value)
        base = base_of(value)
        method = None if value in METHODS else _unfaded(base)
        if isinstance(method, BPTT) and method.any_rule:
            rule = named_rule(name, f"{method.rule}{value.removeprefix(base)}").name
            return f"{base if base in METHODS else method.name}{rule.removeprefix(method.rule)}"
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, rows))}, {OR_FADED}, or a learner by one, such as 'SAPO-C', "
        f"'SHAC-C every 4'; got {shown(value)}.{nearest(value, rows)}"
    )


def by_rule(method: str) -> bool:
    """Whether a name, such as one in a folder of another version, is that of a method that is an update rule."""
    return isinstance(_unfaded(base_of(method)), BPTT)


MethodName = Annotated[str, By(method_name)]
