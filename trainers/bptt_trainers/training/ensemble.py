"""Train many runs as one larger batch."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import checks
from bptt_envs.fingerprint import Token, fingerprint
from bptt_envs.settings import Positive, Seed, read_value
from bptt_trainers.directions.agreement import tolerance
from bptt_trainers.directions.augmented import draw_noise
from bptt_trainers.directions.chosen_engine import remember
from bptt_trainers.directions.controller_tape import NotServedError
from bptt_trainers.directions.parameter_hooks import after_hooks, hooked
from bptt_trainers.directions.policy_gradient import policy_gradient, stacked_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR, Feedback
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.config import TOGETHER, Clip, RuleName, TrainConfig, marked
from bptt_trainers.training.metrics import EpochMetrics
from bptt_trainers.training.queries import (
    DirectionQuery,
    LossQuery,
    Query,
    answer_comparisons,
    answer_directions,
    flattened,
)
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.trainer import Trainer

SHARED = marked(TOGETHER)
"""Settings in which the members of an ensemble do not differ."""

TRAJECTORY_NUMBERS = 2**25  # of the states that are kept at once when losses are computed: 128 MiB in float32

PURPOSE = "ensembles"
PROBE_STEPS = 2


class CannotStackError(ValueError):
    """The stacked engine cannot serve the controllers; the message says why. Single trainers can."""


class Ensemble:
    """Trains many runs at once, at a fraction of what they cost one after the other.

    Every member is a `Trainer` with its own controller, optimizer, settings and run folder. Only what the members
    ask of the engine is computed together, with the controllers stacked. So a member's numbers are those that it
    has alone, but for rounding, and its folder is that of a single run: either can go on where the other stopped.

    Members are stacked as long as their controllers are alike but for the values of their parameters: after a change,
    by a callback for instance, those that are alike are computed together, and those that cannot be stacked any more
    one by one.

    A member whose numbers are not finite, one that a callback ends and one that has its epochs drop out; the others
    go on.

    Args:
        env: an environment of `bptt_envs`, or its `System`; the same for all.
        configs: the settings of each member. They may differ in everything but `SHARED`; see `variations`. Members
            that differ in `batch_size`, `train_states` or `test_states` share less of the work.
        callbacks: each of them is called for every member, with its trainer.
        controllers: a module for each member, alike but for their parameters' values. None: those that the
            configurations name.

    Attributes:
        members: the trainers.
        errors: by index, why members dropped out in the last `fit`.

    Raises:
        TypeError, ValueError: if the arguments do not fit together; the message names what differs.
        CannotStackError: if such runs can be trained one by one only.
    """

    def __init__(
        self,
        env: Any,
        configs: Sequence[TrainConfig],
        callbacks: Sequence[Callback] = (),
        controllers: Sequence[nn.Module] | None = None,
    ) -> None:
        _check_configs(configs, own_controllers=controllers is not None)
        if controllers is not None and (
            not isinstance(controllers, Sequence) or not all(isinstance(one, nn.Module) for one in controllers)
        ):
            raise TypeError(f"controllers must be a list of torch modules or None; got {checks.shown(controllers)}.")
        if controllers is not None and len(controllers) != len(configs):
            raise ValueError(f"controllers must be one for each of the {len(configs)} configs; got {len(controllers)}.")
        modules = [None] * len(configs) if controllers is None else controllers
        self.members = [
            Trainer(env, module, config, callbacks) for module, config in zip(modules, configs, strict=True)
        ]
        self.errors: dict[int, NonFiniteError] = {}
        self._engines: dict[tuple[type[Query], int, Token], StackedEngine | None] = {}
        with computing(self.members[0].train_states):
            self._check_alike()
            self._check_stacked()

    def fit(self) -> list[list[EpochMetrics]]:
        """Train until every member has its epochs or has dropped out, continuing what the run folders hold.

        Returns:
            The metrics of each member, as `Trainer.fit` returns them; those of a member in `errors` end early.

        After an interruption or an error every member is at its last finished epoch, and so is its folder.

        Raises:
            RunFolderError: if a run folder holds another configuration or cannot be written.
        """
        self.errors = {}
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.session())
            for member in self.members:
                member.check_folder()
            runs = [
                _Run(i, member, stack.enter_context(closing(member.training())))
                for i, member in enumerate(self.members)
            ]
            under_way = [run for run in runs if self._advance(run)]
            self._check_alike()  # a folder may have brought other buffers
            while under_way:
                # Who is done with its epoch waits for the others: then all are judged in one call
                due = [run for run in under_way if isinstance(run.query, DirectionQuery)] or under_way
                for key, group in _alike(due):
                    self._answer(key, group)
                ended = {run.index for run in due if not self._advance(run)}
                under_way = [run for run in under_way if run.index not in ended]
        return [member.history for member in self.members]

    def _advance(self, run: _Run) -> bool:
        """Let a member go on to its next query; return whether it has one."""
        if run.random_state is not None:
            run.trainer.set_random_state(run.random_state)
        try:
            run.query = next(run.training)
        except StopIteration:
            return False
        except NonFiniteError as error:
            self.errors[run.index] = error
            return False
        finally:
            run.random_state = run.trainer.random_state()
        return True

    def _answer(self, key: Token, group: Sequence[_Run]) -> None:
        """Answer queries of one kind whose states have one shape, of members that are alike, together if possible."""
        begin = time.perf_counter()
        queries = [run.query for run in group if isinstance(run.query, DirectionQuery)]
        members = [run.trainer for run in group]
        filled = [*members, *[members[-1]] * (self._room(len(group)) - len(group) if queries else 0)]
        engine = self._engine(type(group[0].query), key, filled)
        try:
            if engine is None:
                raise NotServedError("the members cannot be stacked")
            if queries:
                self._answer_directions(engine, queries, filled, begin)
            else:
                self._answer_losses(engine, group)
        except NotServedError:
            self._engines[type(group[0].query), len(filled), key] = None
            for run in group:
                self._alone(run)

    def _alone(self, run: _Run) -> None:
        """Let a member's own engine answer, with the member's random numbers."""
        if run.random_state is not None:
            run.trainer.set_random_state(run.random_state)
        run.trainer.answer(run.query)
        run.random_state = run.trainer.random_state()

    def _answer_directions(
        self, engine: StackedEngine, queries: Sequence[DirectionQuery], filled: Sequence[Trainer], begin: float
    ) -> None:
        wanted = {feedback for query in queries for feedback in query.rule.passes}
        compared = any(query.compare for query in queries)
        wanted |= {REGULAR, MODIFIED} if compared else set()
        asked = [*queries, *[queries[-1]] * (len(filled) - len(queries))]
        states = torch.stack([query.states for query in asked])
        drawn = [query.noise for query in asked if query.noise is not None]
        noise = torch.stack(drawn, dim=1) if drawn else None
        # In one order whatever the members' rules: a compiled program is of passes in their order
        passes = sorted(wanted, key=lambda one: (one.physics, one.controller, one.memory, one.every or 0), reverse=True)
        losses, directions = _computed_together(engine, filled, states, passes, noise=noise, look=compared)
        flat = {feedback: of[: len(queries)] for feedback, of in directions.items()}
        answer_directions(queries, losses[: len(queries)], flat, begin)
        answer_comparisons(queries, flat)

    def _answer_losses(self, engine: StackedEngine, group: Sequence[_Run]) -> None:
        parameters = _stacked([run.trainer for run in group])
        states = torch.stack([run.query.states for run in group])
        system = self.members[0].system
        some = max(1, TRAJECTORY_NUMBERS // (len(group) * (system.horizon + 1) * system.state_size))
        losses = torch.cat([engine.losses(parameters, part) for part in states.split(some, dim=1)], dim=1)
        for run, loss in zip(group, losses.mean(1).tolist(), strict=True):
            run.query.loss = loss

    def _room(self, members: int) -> int:
        """How many members are computed for so many. A compiled engine is compiled for each number: it halves."""
        if not self.members[0].config.compile:
            return members
        room = len(self.members)
        while members <= room // 2:
            room //= 2
        return room

    def _engine(self, kind: type[Query], key: Token, members: Sequence[Trainer]) -> StackedEngine | None:
        """The engine for so many members that are alike; None if they cannot be stacked."""
        known = (kind, len(members), key)
        engine = self._engines.get(known)
        if known not in self._engines:
            first = members[0]
            try:
                template = copy.deepcopy(first.controller)
                if kind is LossQuery:
                    template.eval()
                engine = stacked_engine(
                    first.system,
                    template,
                    first.train_states,
                    PURPOSE,
                    compile=first.config.compile is True,
                    entropy=first.config.entropy if kind is DirectionQuery else 0.0,
                )
                if kind is DirectionQuery and self._engines:
                    _check_members(members)
            except (ValueError, *_NO_COPY) as error:
                reason = str(error).partition("\n")[0]
                warnings.warn(f"members of an ensemble train one by one from here: {reason}", stacklevel=2)
                engine = None
        remember(self._engines, known, engine)
        return engine

    def _check_alike(self) -> None:
        """Refuse controllers that differ in more than the values of their parameters."""
        first, *others = self.members
        for i, other in enumerate(others, start=1):
            different = _difference(first, other)
            if different is not None:
                raise ValueError(
                    "the controllers of an ensemble must be alike but for the values of their parameters; those of "
                    f"members 0 and {i} differ: {different}."
                )

    def _check_stacked(self) -> None:
        """Refuse controllers that the engine cannot stack, and those that differ in what no tensor shows."""
        for i, member in enumerate(self.members):
            if member.choice.engine.name != "adjoint":
                raise CannotStackError(
                    f"an ensemble needs the adjoint engine; of member {i}, {member.choice.reason}. {_ONE_BY_ONE}"
                )
        owned = [parameter for member in self.members for parameter in member.parameters.values()]
        if len(set(owned)) < len(owned):
            raise ValueError("controllers must be modules of their own; some of them share parameters.")
        _check_members(self.members)


def _check_members(members: Sequence[Trainer]) -> None:
    """Raise ValueError unless members do together what each of them does alone."""
    first = members[0]
    short = copy.copy(first.system)
    short.horizon = PROBE_STEPS
    states = torch.stack([member.train_states[:1] for member in members])
    try:
        engine = stacked_engine(short, first.controller, states[0], PURPOSE)
        noise = draw_noise(first.controller, PROBE_STEPS, states[0], torch.Generator().manual_seed(0))
        together = None if noise is None else noise.unsqueeze(1).expand(-1, len(members), *noise.shape[1:])
        _, passes = _computed_together(engine, members, states, [REGULAR], noise=together)
    except _NO_COPY as error:
        raise CannotStackError(
            f"controllers of type {type(first.controller).__name__} cannot be stacked "
            f"({str(error).splitlines()[0]}). {_ONE_BY_ONE}"
        ) from error
    for i, member in enumerate(members):
        alone = policy_gradient(short, member.controller, states[i], "R", "adjoint", noise=noise).directions
        expected = torch.cat([direction.flatten() for direction in alone.values()])
        difference = (passes[REGULAR][i] - expected).norm()
        if expected.isfinite().all() and not difference <= tolerance(expected) * expected.norm():
            raise ValueError(
                f"the controllers of an ensemble must be alike but for the values of their parameters; that of "
                f"member {i} does something else than that of member 0 would do with its parameters."
            )


def _computed_together(
    engine: StackedEngine,
    members: Sequence[Trainer],
    states: Tensor,
    passes: Sequence[Feedback],
    noise: Tensor | None = None,
    look: bool = True,
) -> tuple[Tensor, dict[Feedback, Tensor]]:
    """Losses (E, B), and directions (E, n) of each pass, as the hooks of each member's parameters change them."""
    parameters = _stacked(members)
    losses, directions = engine(parameters, states, passes, noise=noise, look=look)
    for by_name in directions.values():
        for i, member in enumerate(members):
            if hooked(member.controller):
                own = after_hooks({name: stack[i] for name, stack in by_name.items()}, member.parameters)
                for name, direction in own.items():
                    by_name[name][i] = direction
    return losses, flattened(directions, parameters)


_NO_COPY = (RuntimeError, TypeError)  # what torch's operations raise, and copies of locks, files and the like
_ONE_BY_ONE = "Train such runs one by one, each by a Trainer."


def variations(
    config: TrainConfig,
    *,
    rules: Sequence[str] | None = None,
    clips: Sequence[Clip] | None = None,
    learning_rates: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[TrainConfig]:
    """`config` with every combination of the given settings, the last of them changing fastest.

    If `config.out` is set, each has a folder in it that is named by what was given, such as C-none-lr0.001-seed3.

    Raises:
        TypeError: if `config` is no TrainConfig.
        ValueError: if nothing is given, a value is out of range or given twice.
    """
    checks.instance("config", config, TrainConfig, "a TrainConfig")
    given = {"rules": rules, "clips": clips, "learning_rates": learning_rates, "seeds": seeds}
    axes = {
        name: checks.each_once(name, read_value(name, values, _VARIED[name]))
        for name, values in given.items()
        if values is not None
    }
    if not axes:
        raise ValueError(f"variations needs values for at least one of {', '.join(given)}.")
    members = []
    for values in product(*axes.values()):
        settings: dict[str, Any] = {name.removesuffix("s"): value for name, value in zip(axes, values, strict=True)}
        folder = "-".join(_PREFIXES[name] + str(value) for name, value in settings.items()).replace(" ", "-")
        members.append(replace(config, **settings, out=None if config.out is None else config.out / folder))
    return members


_VARIED: dict[str, Any] = {
    "rules": tuple[RuleName, ...],
    "clips": tuple[Clip, ...],
    "learning_rates": tuple[Positive, ...],
    "seeds": tuple[Seed, ...],
}
_PREFIXES = {"rule": "", "clip": "", "learning_rate": "lr", "seed": "seed"}


@dataclass
class _Run:
    """A member while it trains."""

    index: int
    trainer: Trainer
    training: Generator[Query, None, None]
    query: Query = field(init=False)
    random_state: Checkpoint | None = None


def _alike(runs: Sequence[_Run]) -> list[tuple[Token, list[_Run]]]:
    """Runs whose queries have states of one shape and whose controllers differ in the values of their parameters."""
    groups: dict[tuple[torch.Size, Token], list[_Run]] = {}
    for run in runs:
        member = run.trainer
        key = fingerprint(member.controller, member.system, identity=False)
        groups.setdefault((run.query.states.shape, key), []).append(run)
    return [(key, group) for (_, key), group in groups.items()]


def _stacked(members: Sequence[Trainer]) -> dict[str, Tensor]:
    return {
        name: torch.stack([member.parameters[name].detach() for member in members]) for name in members[0].parameters
    }


def _difference(first: Trainer, other: Trainer) -> str | None:
    """In words, how two controllers differ other than in the values of their parameters; None if they do not."""
    states = [member.controller.state_dict(keep_vars=True) for member in (first, other)]
    for name in dict.fromkeys([*states[0], *states[1]]):
        one, two = (state.get(name) for state in states)
        if _kind(one) != _kind(two):
            return f"{name} is {_kind(one)} and {_kind(two)}"
        if isinstance(one, Tensor) and isinstance(two, Tensor) and not one.requires_grad and not torch.equal(one, two):
            return f"{name}, which is not trained, has other values"
    return None


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "missing" if value is None else type(value).__name__
    return f"{tuple(value.shape)} {value.dtype}{', trained' if value.requires_grad else ''}"


def _check_configs(configs: Sequence[TrainConfig], own_controllers: bool) -> None:
    if not isinstance(configs, Sequence) or not configs or not all(isinstance(c, TrainConfig) for c in configs):
        raise TypeError(f"configs must be a list of TrainConfig, at least one; got {checks.shown(configs)}.")
    first = configs[0]
    for i, config in enumerate(configs):
        if config.learner != TrainConfig.learner:
            raise CannotStackError(
                f"members of an ensemble learn over whole episodes; configs[{i}] is a {type(config).__name__}. "
                f"{_ONE_BY_ONE}"
            )
        for name in SHARED:
            if getattr(config, name) != getattr(first, name):
                raise ValueError(
                    f"the members of an ensemble must agree in {name}; configs[0] has {getattr(first, name)!r}, "
                    f"configs[{i}] {getattr(config, name)!r}."
                )
    if first.engine == "autograd":
        raise CannotStackError(f"an ensemble is computed by the adjoint engine; got engine='autograd'. {_ONE_BY_ONE}")
    if first.compile == "auto":
        raise CannotStackError(f"an ensemble is compiled from its start or not; got compile='auto'. {_ONE_BY_ONE}")
    if first.estimator != "pathwise":
        raise CannotStackError(f"ensembles take gradients pathwise; got estimator={first.estimator!r}. {_ONE_BY_ONE}")
    for (i, one), (j, other) in combinations(enumerate(configs), 2):
        if one.out is not None and other.out is not None and Path(one.out).resolve() == Path(other.out).resolve():
            raise ValueError(f"members need folders of their own; out is {one.out} in configs[{i}] and configs[{j}].")
        if one == other and not own_controllers:
            raise ValueError(f"configs[{i}] and configs[{j}] are the same run; give them other seeds or rules.")
