"""A window of an episode as a system of its own: some steps from where the episode is, then the value of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bptt_envs import System
from bptt_envs.fingerprint import Onlooker
from bptt_envs.system import ObservePullback, Pullback
from bptt_envs.task import as_task, until_end, where_over, while_going_on
from bptt_trainers.directions.recursion import pullback_of

Value = Callable[[Tensor, Tensor], Tensor]
"""From observations (B, *observation_shape) and the steps that are left, (B,), to what is still to be paid, (B,)."""


class EndValue(Onlooker):
    """What a window ends with, which changes with every update: no engine and no program holds anything of it.

    Attributes:
        value: what is still to be paid by an estimate.
        temperature: what the entropy of an action is worth, in windows that count it.
    """

    def __init__(self, value: Value, temperature: float = 0.0) -> None:
        self.value = value
        self.temperature = temperature


class Window(System):
    """Some steps of episodes that are under way, with the value of what follows as the final cost.

    With w_k = gamma^k after k steps of the window, its loss is that of the actor of SHAC (arXiv 2204.07137, equation 5)
    with costs in place of rewards,

        sum_k w_k running_cost(x_k, u_k, x_{k+1}) + w_h V(o(x_h), steps left),

    and where an episode ends within the window, by its horizon or early, w_k final_cost(x_k) at that step: the state
    stays as it is from there, and nothing more is paid.

    State: the system's, flattened; the steps that the episode has left, 0 when it is over; with a discount below 1, w;
    where entropy counts, what it is worth. No slope goes through these. Observations and actions are the system's.

    Args:
        system: the physics.
        steps: of a window, h.
        discount: gamma.
        end: the value V.
        soft: whether the entropy of actions counts, see `entropy_weight`.
    """

    def __init__(  # all that System's sets is the system's
        self, system: System, steps: int, discount: float, end: EndValue, *, soft: bool = False
    ) -> None:
        self.system = as_task(system)
        self.steps = steps
        self.discount = discount
        self.end = end
        self.soft = soft

    @property
    def _held(self) -> int:
        """Components of the state after the system's."""
        return 1 + self._discounts + self.soft

    @property
    def _discounts(self) -> int:
        """Components of the state that are what a cost counts."""
        return int(self.discount != 1.0)

    horizon: Any = property(lambda self: self.steps)
    state_shape: Any = property(lambda self: (self.system.state_size + self._held,))
    action_shape: Any = property(lambda self: self.system.action_shape)
    observation_shape: Any = property(lambda self: self.system.observation_shape)
    class_name: Any = property(lambda self: self.system.class_name)
    dense_jacobians: Any = property(lambda self: self.system.dense_jacobians)
    has_bounds: Any = property(lambda self: self.system.has_bounds)

    @property
    def slope_numbers(self) -> int:
        """Numbers that the slopes of a step take for one sample, about."""
        return self.state_size**2 if self.dense_jacobians else int(self.system.slope_numbers)

    # The state

    def at(self, state: Tensor, left: Tensor) -> Tensor:
        """States at the start of a window: the system's, (B, *state_shape of it), with so many steps left, (B,)."""
        ones = state.new_ones(len(state), self._discounts)
        worth = state.new_full((len(state), int(self.soft)), self.end.temperature)
        return torch.cat([state.flatten(1), left.to(state).unsqueeze(1), ones, worth], dim=1)

    def inner(self, state: Tensor) -> Tensor:
        """The system's states, (..., n) -> (..., *state_shape of the system)."""
        rows = state[..., : self.system.state_size].contiguous()
        return rows if len(self.system.state_shape) == 1 else rows.unflatten(-1, self.system.state_shape)

    def left(self, state: Tensor) -> Tensor:
        """The steps that are left of the episode, (..., n) -> (...,)."""
        return state[..., self.system.state_size].detach()

    def weight(self, state: Tensor) -> Tensor:
        """What a cost counts, w, (..., n) -> (...,)."""
        at = self.system.state_size + 1
        return state[..., at].detach() if self._discounts else torch.ones_like(state[..., 0])

    def entropy_weight(self, state: Tensor) -> Tensor:
        """What the entropy of an action counts, (..., n) -> (...,): what it is worth times w."""
        return self.weight(state) * state[..., -1].detach()

    def episode_over(self, state: Tensor) -> Tensor:
        """Whether the episode is over, (..., n) -> (...,) of bool."""
        return self.left(state) < 0.5

    # What a system says

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system; where the episode is over, stay."""
        inner, over, left = self.inner(state), self.episode_over(state), self.left(state)
        following = where_over(over, inner, self.system.step(*while_going_on(over, inner, action)))
        early = self.system.episode_over(following)
        left = torch.where(over, left, left - 1.0)
        left = left if early is None else left.masked_fill(early.detach(), 0.0)
        weight = torch.where(over, self.weight(state), self.discount * self.weight(state))
        held = [left.unsqueeze(1), *([weight.unsqueeze(1)] if self._discounts else [])]
        held += [state[:, -1:].detach()] if self.soft else []
        return torch.cat([following.flatten(1), *held], dim=1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at the start of an episode."""
        states = self.system.initial_states(batch, generator, dtype)
        return self.at(states, states.new_full((batch,), float(self.system.horizon)))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation."""
        return self.system.observe(self.inner(state))

    def bound(self, action: Tensor) -> Tensor:
        """The system's bounds."""
        return self.system.bound(action)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's times w, (B,); 0 when the episode is over."""
        return self.weight(state) * self.step_cost(state, action, next_state)

    def step_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's cost of a step, whatever the window's start, (B,); 0 when the episode is over."""
        over, inner = self.episode_over(state), self.inner(state)
        return until_end(self.system.running_cost, over, inner, action, self.inner(next_state))

    def final_cost(self, state: Tensor) -> Tensor:
        """What is still to be paid, times w, (B,)."""
        return self.weight(state) * self.to_pay(state)

    def to_pay(self, state: Tensor, value: Value | None = None) -> Tensor:
        """The system's final cost where the episode is over, and the value of the state where it goes on, (B,).

        Args:
            state: (B, n).
            value: in the place of V.
        """
        over, inner = self.episode_over(state), self.inner(state)
        (going_on,) = while_going_on(over, inner)
        (ended,) = while_going_on(~over, inner)
        rest = (value or self.end.value)(self.system.observe(going_on), self.left(state))
        return torch.where(over, self.system.final_cost(ended), rest)

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians; where the episode is over, the state is the next one."""
        inner, over = self.inner(state), self.episode_over(state)
        by_state, by_action = self.system.linearize(inner, action)
        unit = torch.eye(self.system.state_size, dtype=state.dtype, device=state.device)
        by_state = where_over(over, unit, by_state)
        by_action = where_over(over, by_action.new_zeros(()), by_action)
        held, pad = self._held, torch.nn.functional.pad
        return pad(by_state, (0, held, 0, held)), pad(by_action, (0, 0, 0, held))

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products."""
        pull, over = pullback_of(self.system, self.inner(state), action), self.episode_over(state)
        n, held = self.system.state_size, self._held

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            inner = vectors[..., :n]
            by_state, by_action = pull(rows, inner)
            stays = over[rows].unsqueeze(-1)
            by_state, by_action = torch.where(stays, inner, by_state), by_action.masked_fill(stays, 0.0)
            return torch.nn.functional.pad(by_state, (0, held)), by_action

        return pulled

    def observe_pullback(self, state: Tensor) -> ObservePullback:
        """The system's products."""
        pull, held = self.system.observe_pullback(self.inner(state)), self._held

        def pulled(rows: slice, vectors: Tensor) -> Tensor:
            return torch.nn.functional.pad(vectors if pull is None else pull(rows, vectors), (0, held))

        return pulled


def window_steps(horizon: int, longest: int) -> int:
    """Steps of a window: the horizon in as few equal parts as `longest` allows, so that few steps are left idle."""
    return math.ceil(horizon / math.ceil(horizon / longest))


def updates_per_epoch(states: int, batch: int, horizon: int, longest: int) -> int:
    """Updates of an epoch, which has about as many steps as its start states have episodes."""
    return max(1, round(states * horizon / (batch * window_steps(horizon, longest))))
