"""The learner of backpropagation through time: start states, a rule, an engine, an optimizer."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bptt_envs import System, check_system
from bptt_envs.task import StepCost
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.controllers.gaussian import Gaussian
from bptt_trainers.controllers.networks import Squash
from bptt_trainers.controllers.normalized import acting_part
from bptt_trainers.directions.augmented import draw_noise
from bptt_trainers.directions.estimators import EstimatorEngine
from bptt_trainers.directions.memory import refuse_memory
from bptt_trainers.directions.parameter_hooks import hooked
from bptt_trainers.directions.policy_gradient import Choice, check_parameters, choose_engine
from bptt_trainers.directions.rollout import Trajectory, rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, Directions, Feedback, get_rule
from bptt_trainers.directions.snapshot import evaluating, left_as_it_was
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.learner import Learner, Update
from bptt_trainers.training.loss_terms import Regularizer, regularizer_gradient, with_extra_cost
from bptt_trainers.training.optimizer import Optimizer, Schedule
from bptt_trainers.training.queries import DirectionQuery, Query, answer_comparisons, answer_directions, flattened
from bptt_trainers.training.ranks import ALONE, Ranks
from bptt_trainers.training.start_states import (
    MASKS,
    NOISE,
    WEIGHTS,
    Draw,
    StartStates,
    checked_states,
    held_out_states,
    stream_seed,
)
from bptt_trainers.training.torch_optimizer import Make


class BPTTLearner(Learner):
    """Trains a controller by one of the update rules.

    Args: as those of `Trainer`.

    Attributes:
        controller: what is trained, on `device`.
        rule: the update rule.
        parameters: what is trained of the controller, by name.
        trained_system: the system with the loss that is trained on.
        choice: the engine that computes directions, and why.

    Raises:
        TypeError, ValueError: if the controller, the device or one of the arguments cannot be used.
    """

    def __init__(
        self,
        system: System,
        controller: nn.Module | None,
        config: TrainConfig,
        *,
        train_states: Tensor | Draw | None = None,
        test_states: Tensor | None = None,
        extra_cost: StepCost | None = None,
        regularizer: Regularizer | None = None,
        optimizer: Make | None = None,
        schedule: Schedule | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.system = system
        self.config = config
        self._ranks = ranks
        if ranks.count > 1:
            _check_shared(config, ranks.count)
        self.device = available_device(config.device) if ranks.device is None else ranks.device
        self._on_cuda = self.device.type == "cuda"
        if controller is None:
            controller = initial_controller(system, config)
        elif config.deviation != "none" and not isinstance(acting_part(controller), Gaussian):
            raise ValueError(
                "deviation is for the controllers that TrainConfig names; give one of your own a noise_shape, as "
                f"bptt_trainers.Gaussian has; got {config.deviation!r} for a {type(controller).__name__}."
            )
        elif config.squash and not isinstance(getattr(controller, "squash", None), Squash):
            raise ValueError(
                "squash is for the controllers that TrainConfig names; with one of your own, train "
                "torch.nn.Sequential(controller, Squash(*system.action_range))."
            )
        check_parameters(controller)
        self.controller = controller.to(self.device)
        self.rule = get_rule(config.rule)
        parameter = next(controller.parameters(), None)
        if parameter is None:
            raise ValueError(f"controller {type(controller).__name__} has no parameters to train.")
        self.parameters = {n: p for n, p in controller.named_parameters() if p.requires_grad}
        with computing(parameter):
            updates = config.epochs * self.updates_per_epoch
            self._optimizer = Optimizer(self.parameters, config, updates, optimizer, schedule)
            check_system(system, dtype=parameter.dtype, device=parameter.device)
            self._start_states = StartStates(system, config, train_states, parameter)
            judged = held_out_states(system, config.test_states) if test_states is None else test_states
            self.test_states = checked_states("test_states", judged, system).to(parameter)
            self.trained_system = with_extra_cost(system, extra_cost, self.train_states)  # its loss is trained on
            self.choice: Choice = self._choose()
            self._compiled_from: int | None = None  # epochs that were trained before compile="auto" took its programs
            self._estimator: EstimatorEngine | None = None
            if config.estimator != "pathwise":
                self._estimator = EstimatorEngine(
                    self.trained_system,
                    self.controller,
                    config.estimator,
                    config.engine,
                    entropy=config.entropy,
                    bias_bound=config.bias_bound,
                )
            if regularizer is not None:
                regularizer_gradient(regularizer, self.controller, self.parameters.values())
            self._regularizer = regularizer
        self._batches: Sequence[Tensor] = ()  # of the epoch in progress

    def _choose(self) -> Choice:
        """The engine that computes directions, for the controller as it is."""
        config = self.config
        return choose_engine(
            self.trained_system,
            self.controller,
            self.train_states,
            config.engine,
            compile=config.compile,
            entropy=config.entropy,
        )

    @property
    def train_states(self) -> Tensor:
        """Start states over which the training loss is taken, (config.train_states, *state_shape)."""
        return self._start_states.first

    @train_states.setter
    def train_states(self, states: Tensor) -> None:
        self._start_states.first = states

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one epoch."""
        return math.ceil(self.config.train_states / self.config.batch_size)

    @property
    def policy(self) -> nn.Module:
        """The controller."""
        return self.controller

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around training: the caller's surroundings, such as grad mode, do not matter, and his random numbers stay.

        Raises:
            ValueError: if the controller remembers what it saw, which nothing resets between episodes.
        """
        with computing(self.train_states):
            refuse_memory(self.system, self.controller, self.test_states[:2])
            with torch.random.fork_rng([self.device] if self._on_cuda else []):
                try:
                    yield
                finally:
                    self.choice.engine.close()

    def begin(self) -> None:
        """Seed torch, for controllers that draw random numbers."""
        torch.default_generator.manual_seed(self.config.seed)  # torch.manual_seed would reach for every device
        if self._on_cuda:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(self.config.seed)

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """Around the updates of the epoch after `number` others: the weights are those that training goes on from."""
        self._take_programs(number)
        self._follow()
        with self._optimizer.training():
            self._batches = self._start_states.of_epoch(number).split(self.config.batch_size)
            yield

    def _take_programs(self, number: int) -> None:
        """Before the epoch after `number` others: compute by what compile="auto" has made, if it is all made."""
        if self.choice.engine.switch():
            self._compiled_from = number

    def update(self, number: int) -> Generator[Query, None, Update]:
        """Ask for the direction of the rule, and make update `number` of the run by it."""
        self._follow()
        i = number % self.updates_per_epoch
        states = self._batches[i]
        query = self._direction_query(states, number, compare=i == 0)
        yield query
        begin = time.perf_counter()
        self._regularize(query)
        objection = self._objection(query)
        if objection is None:
            self._optimizer.step(number, query.direction, query.norm)
        return Update(
            seconds=query.seconds + time.perf_counter() - begin,
            simulator_steps=len(states) * self.system.horizon,
            loss=query.loss,
            direction_norm=query.norm,
            objection=objection,
            sign_agreement=query.sign_agreement,
            cosine=query.cosine,
        )

    def answer(self, query: DirectionQuery) -> None:
        """Let the engine compute the direction that a query asks for."""
        begin = time.perf_counter()
        if self._estimator is None:
            with self._alike_in_all(query):
                batch_losses, passes = self._passes(query, query.rule.passes, look=query.compare)
        else:
            batch_losses, passes = self._estimated(self._estimator, query)
        answer_directions([query], batch_losses, passes, begin)
        if query.compare:
            if self._estimator is not None or not {REGULAR, MODIFIED} <= passes.keys():
                with left_as_it_was(self.controller):
                    _, passes = self._passes(query, (REGULAR, MODIFIED), look=False, seldom=True)
            answer_comparisons([query], passes)

    def _passes(
        self,
        query: DirectionQuery,
        wanted: tuple[Feedback, ...],
        look: bool,
        show: Callable[[Trajectory], object] | None = None,
        seldom: bool = False,
    ) -> tuple[Tensor, Mapping[Feedback, Tensor]]:
        """Losses (1, B), or their mean (1, 1), and directions (1, n) of each pass."""
        batch = len(query.states)
        mine = self._ranks.share(batch)
        noise = None if query.noise is None else query.noise[:, mine]
        batch_losses, passes = self.choice.engine(
            query.states[mine], wanted, noise=noise, look=look, show=show, seldom=seldom
        )
        return self._ranks.joined(batch, batch_losses.unsqueeze(0), self._of_one(passes))

    @contextmanager
    def _alike_in_all(self, query: DirectionQuery) -> Iterator[None]:
        """Around the passes of an update: where processes share it, what they do not exchange must stay the same.

        Looked at once an epoch, at the update that also compares R and M.
        """
        if self._ranks.count == 1 or not query.compare:
            yield
            return
        before = {name: buffer.clone() for name, buffer in self.controller.named_buffers()}
        random = self.random_state()
        yield
        changed = [name for name, one in self.controller.named_buffers() if not torch.equal(one, before[name])]
        drawn = any(not torch.equal(one, random[name]) for name, one in self.random_state().items())
        found = [
            *([f"its episodes change the buffers {', '.join(changed)}"] if changed else []),
            *(["it draws random numbers of its own; one with a noise_shape is handed them"] if drawn else []),
            *(["hooks of its parameters would see shares of a direction"] if hooked(self.controller) else []),
        ]
        if found:
            raise ValueError(
                f"a {type(self.controller).__name__} cannot be trained by several processes as by one: "
                f"{'; '.join(found)}. Train it in one process."
            )

    def _estimated(self, engine: EstimatorEngine, query: DirectionQuery) -> tuple[Tensor, Mapping[Feedback, Tensor]]:
        """Losses (1, B), and the estimate (1, n) in the place of the pass R."""
        batch_losses, direction = engine(query.states, noise=query.noise, look=query.compare)
        return batch_losses.unsqueeze(0), self._of_one({REGULAR: direction})

    def _of_one(self, passes: Mapping[Feedback, Directions]) -> dict[Feedback, Tensor]:
        """Directions of one member, (1, n) for each pass."""
        stacks = {feedback: {n: d.unsqueeze(0) for n, d in one.items()} for feedback, one in passes.items()}
        return flattened(stacks, self.parameters)

    def _follow(self) -> None:
        """Train the parameters that require gradients now: a callback may have frozen or replaced a layer."""
        found = {n: p for n, p in self.controller.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError("no parameter of the controller requires a gradient any more.")
        like = next(iter(found.values()))
        if like.dtype is not self.train_states.dtype or like.device != self.train_states.device:
            raise ValueError(
                f"the controller is trained in {self.train_states.dtype} on {self.train_states.device}; its parameters "
                f"are {like.dtype} on {like.device} now. Convert it before it is trained."
            )
        self._optimizer.follow(found)
        self.parameters = found

    def _direction_query(self, states: Tensor, number: int, compare: bool) -> DirectionQuery:
        def drawing(stream: int) -> torch.Generator:  # made anew, so that a resumed run draws the same
            return torch.Generator().manual_seed(stream_seed(stream, self.config.seed, number))

        places = drawing(MASKS) if self.config.combine == "random" else None
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        noise = draw_noise(self.controller, self.choice.engine.system.horizon, states, drawing(NOISE))
        return DirectionQuery(states, self.rule, self.config.combine, compare, sizes, places, noise)

    def _objection(self, query: DirectionQuery) -> str | None:
        """Why there can be no step against the direction of a query; None if there can."""
        objection = self._optimizer.objection(query.direction, query.norm)
        if objection is None and not math.isfinite(query.loss):
            objection = f"the loss is {query.loss}"
        return objection

    def _regularize(self, query: DirectionQuery) -> None:
        """Add the gradient of the regularizer to the direction of a query."""
        if self._regularizer is not None:
            query.direction = query.direction + regularizer_gradient(
                self._regularizer, self.controller, self.parameters.values()
            )
            query.norm = float(query.direction.double().norm())

    def trajectory(self, states: Tensor) -> Trajectory:
        """Episodes from `states`, (B, *state_shape), with the controller in eval mode."""
        with computing(states), evaluating(self.controller):
            return rollout(self.system, self.controller, states)

    def state_dict(self) -> Checkpoint:
        """The controller's and the optimizer's, and since when programs that compile="auto" made are used."""
        auto = {"compiled_from": self._compiled_from} if self.config.compile == "auto" else {}
        return {"controller": copy.deepcopy(self.controller.state_dict()), **self._optimizer.state_dict(), **auto}

    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a state, with the parameters that were trained in its epoch."""
        self.controller.load_state_dict(state["controller"])
        for name, parameter in self.controller.named_parameters():
            parameter.requires_grad_(name in state.get("trained", self.parameters))
        self._follow()
        self._optimizer.load_state_dict(state)
        if self.config.compile == "auto":
            self._compiled_from = state.get("compiled_from")
            self.choice.engine.switch_back()
            if self._compiled_from is not None:
                self.choice.engine.switch(wait=True)

    def random_state(self) -> Checkpoint:
        """The state of torch's random numbers, on the CPU and on the device."""
        cuda = {"cuda_rng_state": torch.cuda.get_rng_state(self.device)} if self._on_cuda else {}
        return super().random_state() | cuda

    def set_random_state(self, state: Checkpoint) -> None:
        """Go on with random numbers from `state`."""
        super().set_random_state(state)
        if self._on_cuda and "cuda_rng_state" in state:  # not if the run was on the CPU so far
            torch.cuda.set_rng_state(state["cuda_rng_state"], self.device)


def _check_shared(config: TrainConfig, count: int) -> None:
    """Raise ValueError if so many processes cannot train one run together by these settings."""
    smallest = config.train_states % config.batch_size or config.batch_size
    if config.learner != TrainConfig.learner:
        raise ValueError(f"a run of {config.learner} is trained by one process, not by {count}.")
    if config.estimator != "pathwise":
        raise ValueError(
            f"estimator {config.estimator!r} compares the episodes of a whole batch: it is for one process, not for "
            f"{count}."
        )
    if min(smallest, config.test_states) < count:
        raise ValueError(
            f"each of the {count} processes needs a start state of every batch and of test_states "
            f"({config.test_states}); the smallest batch has {smallest}, as batch_size is {config.batch_size} and "
            f"train_states {config.train_states}."
        )


def initial_controller(system: System, config: TrainConfig) -> Controller:
    """The untrained controller that a configuration names."""
    return default_controller(system, stream_seed(WEIGHTS, config.seed), **config.of_controller)


def available_device(name: str) -> torch.device:
    """The device of that name: "cpu", "cuda" or one such as "cuda:1".

    Raises:
        ValueError: if there is no such device here.
    """
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ValueError(f"device must be one that torch finds here ({here}); got {name!r}.")
    return device
