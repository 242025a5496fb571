"""The learner of short windows with a critic (SHAC): windows, a rule, an engine, two optimizers."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bptt_trainers.controllers.normalized import Normalized
from bptt_trainers.directions.augmented import AugmentedSystem, memory_shape_of
from bptt_trainers.directions.policy_gradient import Choice, choose_engine
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.rules import Feedback
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.bptt import BPTTLearner
from bptt_trainers.training.critic import Critic, SlowCopy, targets
from bptt_trainers.training.learner import Update
from bptt_trainers.training.optimizer import Optimizer
from bptt_trainers.training.queries import DirectionQuery, Query
from bptt_trainers.training.shac_config import SHACConfig
from bptt_trainers.training.start_states import ORDER, WEIGHTS, stream_seed
from bptt_trainers.training.window import EndValue, Window, updates_per_epoch, window_steps

CRITIC = 1  # part of the stream of weights: those of the critic
MEASURED = 0.1  # share that the targets of an update have in the unit of the critic's values


@dataclass(frozen=True)
class Experience:
    """What a critic learns from: the steps of some windows before which the episode went on.

    Attributes:
        observations: (M, *observation_shape).
        left: steps that were left of the episode, (M,).
        targets: what was still to be paid, (M,).
    """

    observations: Tensor
    left: Tensor
    targets: Tensor


class SHACLearner(BPTTLearner):
    """Trains a controller by one of the update rules in short windows, with a critic for what comes after.

    The short-horizon actor-critic of Xu et al. (ICLR 2022, arXiv 2204.07137). Episodes go on side by side, from where
    the window before left them; where one has ended, another begins with the next window. At the beginning they are
    spread over the horizon, so that every update sees all times. Nothing flows from one window into another.

    Args: as those of `Trainer`.

    Attributes:
        window: a window as a system, whose final cost is what the critic says.
        critic: what is still to be paid.
    """

    config: SHACConfig

    OWN: ClassVar[tuple[str, ...]] = ("critic_loss",)

    _critics = 1
    """Perceptrons of the critic."""

    _soft = False
    """Whether the entropy of actions counts."""

    def _choose(self) -> Choice:
        if memory_shape_of(self.controller):
            raise ValueError(
                "controller must be one without memory, as the critic sees none; got a "
                f"{type(self.controller).__name__}."
            )
        steps = window_steps(self.system.horizon, self.config.window)
        self._make_critic()
        self._under_way: Tensor | None = None  # (batch_size, n): where the episodes are; None: at the start of the run
        self._trajectory: Trajectory
        self.window = Window(self.trained_system, steps, self.config.discount, self._end, soft=self._soft)
        return choose_engine(
            self.window,
            self.controller,
            self._begun(self.train_states),
            self.config.engine,
            compile=self.config.compile,
            entropy=self.window.entropy_weight if self._soft else 0.0,
        )

    def _make_critic(self) -> None:
        """The critic as it is before the first update."""
        config = self.config
        generator = torch.Generator().manual_seed(stream_seed(WEIGHTS, config.seed, CRITIC))
        shape, horizon = self.system.observation_shape, self.system.horizon
        self.critic = Critic(shape, horizon, config.critic_hidden, generator, self._critics).to(self.train_states)
        self._slow = SlowCopy(self.critic, config.target_rate)
        self._end = EndValue(self._slow.network)
        parameters = {name: one for name, one in self.critic.named_parameters() if one.requires_grad}
        self._critic_optimizer = Optimizer(parameters, config.of_critic, config.epochs * self.updates_per_epoch)

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one epoch."""
        config = self.config
        return updates_per_epoch(config.train_states, config.batch_size, self.system.horizon, config.window)

    def begin(self) -> None:
        """Seed torch, and start with an untrained critic and no episode under way."""
        super().begin()
        self._make_critic()
        self.window.end = self._end
        self._under_way = None

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """Around the updates of the epoch after `number` others: the weights are those that training goes on from."""
        self._take_programs(number)
        self._follow()
        with self._optimizer.training():
            yield

    def update(self, number: int) -> Generator[Query, None, Update]:
        """Ask for the direction of the rule in the next window, make update `number` by it, and fit the critic."""
        begin = time.perf_counter()
        self._follow()
        steps = self.config.batch_size * self.window.steps
        if self._under_way is None:
            steps += self.config.batch_size * self.system.horizon
            self._set_out()
        query = self._direction_query(self._next_states(number), number, compare=number % self.updates_per_epoch == 0)
        seconds = time.perf_counter() - begin
        yield query
        begin = time.perf_counter()
        self._regularize(query)
        objection = self._objection(query)
        if objection is None:
            self._optimizer.step(number, query.direction, query.norm)
        own = self._go_on(number)
        return Update(
            seconds=seconds + query.seconds + time.perf_counter() - begin,
            simulator_steps=steps,
            loss=query.loss,
            direction_norm=query.norm,
            objection=objection,
            sign_agreement=query.sign_agreement,
            cosine=query.cosine,
            own=own,
        )

    def _passes(
        self,
        query: DirectionQuery,
        wanted: tuple[Feedback, ...],
        look: bool,
        show: Callable[[Trajectory], object] | None = None,
        seldom: bool = False,
    ) -> tuple[Tensor, Mapping[Feedback, Tensor]]:
        return super()._passes(query, wanted, look, show if seldom else self._keep, seldom)

    def _keep(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory

    # The episodes

    def _begun(self, states: Tensor) -> Tensor:
        """States of the window at the start of episodes from states of the system, (B, *state_shape)."""
        left = states.new_full((len(states),), float(self.system.horizon))
        over = self.window.system.episode_over(states)
        return self.window.at(states, left if over is None else left.masked_fill(over, 0.0))

    @torch.no_grad()
    def _set_out(self) -> None:
        """Spread the episodes over the horizon, along whole ones of the untrained controller.

        They are also what the critic is measured by and what the observations are normalised by at first.
        """
        horizon, count = self.system.horizon, self.config.batch_size
        starts = self._start_states.some(count, 0)
        trajectory = self.trajectory(starts)
        begun = self._begun(starts)
        passed = torch.arange(horizon + 1, device=begun.device).unsqueeze(1)
        left = (self.window.left(begun) - passed).clamp_min(0.0)
        over = self.window.system.episode_over(trajectory.states)
        left = left if over is None else left.masked_fill(over, 0.0)
        states = self.window.at(trajectory.states.flatten(0, 1), left.flatten()).unflatten(0, left.shape)
        found = self._experience(states, trajectory.actions, 1.0)
        if len(found.targets):
            self._gather(found)
            self._measure(found, 1.0)
        windows = math.ceil(horizon / self.window.steps)
        places = torch.arange(count, device=begun.device)
        self._leave_at(states[places * windows // count * self.window.steps, places])

    def _leave_at(self, states: Tensor) -> None:
        """Keep where the episodes are, (batch_size, n). One that is not finite is over: another begins."""
        lost = ~states.isfinite().all(dim=1)
        states = states.masked_fill(lost.unsqueeze(1), 0.0)
        self._under_way = self.window.at(self.window.inner(states), self.window.left(states))

    def _next_states(self, number: int) -> Tensor:
        """Where the windows of update `number` begin, (batch_size, n)."""
        assert self._under_way is not None
        over = self.window.episode_over(self._under_way)
        states = self.window.at(self.window.inner(self._under_way), self.window.left(self._under_way))
        fresh = int(over.sum())
        if fresh:  # update 0 has those of `_set_out`
            states[over] = self._begun(self._start_states.some(fresh, number + 1))
        return states

    @torch.no_grad()
    def _go_on(self, number: int) -> dict[str, float]:
        """Learn from the windows, and keep where they ended; numbers of `OWN`."""
        system, trajectory = self.choice.engine.system, self._trajectory
        states, actions, entropies = trajectory.states, trajectory.actions, None
        if isinstance(system, AugmentedSystem):
            entropies = system.entropies(actions) if self._soft else None
            states, actions = system.inner(states), system.action(actions)
        found = self._experience(states, actions, self.config.td_lambda, entropies)
        if len(found.targets):
            self._gather(found)
            self._measure(found, MEASURED)
            left = self._fit(found, number)
            self._slow.follow()
        self._leave_at(states[-1])
        return {"critic_loss": left} if len(found.targets) else {}

    # What is learnt from them

    def _experience(self, states: Tensor, actions: Tensor, decay: float, entropies: Tensor | None = None) -> Experience:
        """What S steps of windows teach, without what is not finite, or too large for a mean square.

        Args:
            states: of the window, (S + 1, B, n).
            actions: (S, B, *action_shape).
            decay: lambda of the critic's targets.
            entropies: of the actions, (S, B), if they count.
        """
        window, shape = self.window, actions.shape[:2]
        before, after = states[:-1].flatten(0, 1), states[1:].flatten(0, 1)
        costs = window.step_cost(before, window.bound(actions.flatten(0, 1)), after)
        to_pay, over = window.to_pay(after, self._slow.network.worst), window.episode_over(states)
        if entropies is not None:
            costs = costs - self._end.temperature * entropies.flatten().masked_fill(over[:-1].flatten(), 0.0)
        wanted = targets(costs.view(shape), to_pay.view(shape), over[1:], self.config.discount, decay).flatten()
        seen = window.observe(before)
        rows = ~over[:-1].flatten() & _countable(wanted) & _countable(seen.flatten(1)).all(dim=1)
        return Experience(seen[rows], window.left(before)[rows], wanted[rows])

    def _gather(self, found: Experience) -> None:
        """Normalise by what was observed, too."""
        self.critic.normalizer.gather(found.observations)
        if isinstance(self.controller, Normalized):
            self.controller.normalizer.gather(found.observations)

    def _measure(self, found: Experience, share: float) -> None:
        """Let targets have that share in the unit of the values."""
        for critic in (self.critic, self._slow.network):
            critic.measure(found.targets, share)

    def _fit(self, found: Experience, number: int) -> float:
        """Fit the critic to its targets, by steps in the mean square of what is left, in its unit; that before it."""
        config, critic = self.config, self.critic
        inputs = critic.inputs(found.observations, found.left)
        wanted = (found.targets - critic.middle) / critic.unit
        before = float((critic.relative(inputs) - wanted).square().mean())
        generator = torch.Generator().manual_seed(stream_seed(ORDER, config.seed, number))
        for _ in range(config.critic_iterations):
            order = torch.randperm(len(wanted), generator=generator).to(wanted.device)
            shuffled = (one[order].chunk(config.critic_minibatches) for one in (inputs, wanted))
            for some_inputs, some_wanted in zip(*shuffled, strict=True):
                direction = critic.slopes(some_inputs, some_wanted)
                norm = float(direction.norm())
                if self._critic_optimizer.objection(direction, norm) is None:
                    self._critic_optimizer.step(number, direction, norm)
        return before

    # Where it goes on from

    def state_dict(self) -> Checkpoint:
        """Those of the controller and its optimizer, of the critic, its slow copy and optimizer, and the episodes."""
        learner = {
            "critic": copy.deepcopy(self.critic.state_dict()),
            "slow_critic": copy.deepcopy(self._slow.network.state_dict()),
            "critic_optimizer": self._critic_optimizer.state_dict(),
            "under_way": None if self._under_way is None else self._under_way.clone(),
        }
        return super().state_dict() | {"learner": learner}

    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        learner = state["learner"]
        self.critic.load_state_dict(learner["critic"])
        self._slow.network.load_state_dict(learner["slow_critic"])
        self._critic_optimizer.load_state_dict(learner["critic_optimizer"])
        under_way = learner["under_way"]
        self._under_way = None if under_way is None else under_way.to(self.train_states)


def _countable(values: Tensor) -> Tensor:
    """Whether each of the values has a square that is finite, with room for the sum of many."""
    return (1e3 * values).square().isfinite()
