"""What a planner is given: the losses of episodes as functions of all their actions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs import System
from bptt_trainers.directions.rollout import loss_of


class Problem:
    """Episodes from given start states, each to be planned by itself.

    Args:
        system: the physics, or the task.
        states: the start of each episode, (B, *state_shape).

    Attributes:
        low: the least value of each action component, (*action_shape); minus infinity where there is none.
        high: the largest.
    """

    def __init__(self, system: System, states: Tensor) -> None:
        self.system = system
        self.states = states
        ends = ((system.action_low, -math.inf), (system.action_high, math.inf))
        self.low, self.high = (
            torch.as_tensor(end if bound is None else bound).to(states).expand(system.action_shape)
            for bound, end in ends
        )

    def __len__(self) -> int:
        """Episodes, B."""
        return len(self.states)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the actions of all episodes: (T, B, *action_shape)."""
        return (self.system.horizon, len(self), *self.system.action_shape)

    def some(self, rows: Tensor) -> Problem:
        """Some of the episodes, by their indices."""
        return Problem(self.system, self.states[rows])

    def clamped(self, actions: Tensor) -> Tensor:
        """Actions within their bounds."""
        return actions.clamp(self.low, self.high)

    def trajectory(self, actions: Tensor) -> Tensor:
        """States of the episodes under actions within the bounds: (T, B, *action_shape) -> (T + 1, B, *state_shape)."""
        states = [self.states]
        for action in actions:
            states.append(self.system.step(states[-1], action))
        return torch.stack(states)

    def loss(self, actions: Tensor) -> Tensor:
        """The loss of each episode, (B,), by actions within the bounds; differentiable."""
        return loss_of(self.system, self.trajectory(actions), actions)

    @torch.no_grad()
    def losses(self, candidates: Tensor) -> Tensor:
        """The losses of several plans each, (K, T, B, *action_shape) -> (K, B); what is no number is infinite."""
        many = Problem(self.system, self.states.repeat(len(candidates), *[1] * (self.states.dim() - 1)))
        found = many.loss(candidates.transpose(0, 1).flatten(1, 2))
        return found.view(len(candidates), len(self)).nan_to_num(math.inf, math.inf, math.inf)


def best_of(candidates: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The best plan of each episode, (T, B, ...), and its loss, (B,), of K of them, (K, T, B, ...) and (K, B)."""
    lowest, which = losses.min(0)
    return candidates[which, :, torch.arange(len(which))].transpose(0, 1), lowest
