"""The critic of an actor that learns in windows: what is still to be paid, its targets, how it is fitted to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from bptt_trainers.controllers.networks import glorot_linear
from bptt_trainers.controllers.normalized import Normalizer

LEAST_UNIT = 1e-6  # of values: those of a task that costs nothing are not divided by 0


class Critic(nn.Module):
    """What is still to be paid of an episode, by what is observed and the share of the horizon that is left.

    V(o, left) = middle + unit f((o - mean) / deviation, left / T): a multi-layer perceptron f with ELU, as published,
    on normalised observations, whose outcome counts in the unit of the costs, see `measure`.

    Args:
        observation_shape: shape of one observation.
        horizon: steps of an episode, T.
        hidden: widths of the hidden layers.
        generator: draws the weights.
    """

    def __init__(
        self, observation_shape: Sequence[int], horizon: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.normalizer = Normalizer(observation_shape)
        sizes = [math.prod(observation_shape) + 1, *hidden, 1]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [glorot_linear(inputs, outputs, generator), nn.ELU()]
        self.network = nn.Sequential(*layers[:-1])
        self.middle = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.unit = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, observation: Tensor, left: Tensor) -> Tensor:
        """Observations (B, *observation_shape) and steps that are left, (B,), to values, (B,)."""
        value: Tensor = self.middle + self.unit * self.network(self.inputs(observation, left)).squeeze(1)
        return value

    def inputs(self, observation: Tensor, left: Tensor) -> Tensor:
        """What the network is shown, (B, observation_size + 1)."""
        return torch.cat([self.normalizer(observation).flatten(1), (left / self.horizon).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Take the mean of values, (M,), for the middle, and their deviation for the unit."""
        self.middle.copy_(values.mean())
        self.unit.copy_(values.std(correction=0).clamp_min(LEAST_UNIT))


def targets(costs: Tensor, to_pay: Tensor, over: Tensor, discount: float, decay: float) -> Tensor:
    """What a critic is fitted to: TD(lambda) within a window, (S, B).

    As arXiv 2204.07137, equations 6 to 8, with costs in place of rewards. With v_k what is to be paid from step k by
    the estimate, or the final cost where the episode is over, their mean of returns of all lengths is, backwards,

        y_k = cost_k + gamma ((1 - lambda) v_{k+1} + lambda y_{k+1}),   y_S = v_S,   y_k = v_k where it is over.

    Args:
        costs: of each step, (S, B).
        to_pay: v at the steps after each, (S, B).
        over: whether the episode is over there, (S, B).
        discount: gamma.
        decay: lambda.
    """
    target, found = to_pay[-1], []
    for cost, value, ended in zip(costs.flip(0), to_pay.flip(0), over.flip(0), strict=True):
        target = cost + discount * torch.where(ended, value, (1.0 - decay) * value + decay * target)
        found.append(target)
    return torch.stack(found[::-1])


class SlowCopy:
    """A copy of a critic that follows it: the target network.

    Args:
        critic: the critic.
        rate: share of the difference by which it moves at a time.

    Attributes:
        network: the copy.
    """

    def __init__(self, critic: Critic, rate: float) -> None:
        self.network = copy.deepcopy(critic).requires_grad_(False)
        self._critic = critic
        self._rate = rate

    @torch.no_grad()
    def follow(self) -> None:
        """Move the weights that are trained, and take over the rest."""
        for slow, fast in zip(self.network.parameters(), self._critic.parameters(), strict=True):
            if fast.requires_grad:
                slow.lerp_(fast, self._rate)
        self.take_over()

    @torch.no_grad()
    def take_over(self) -> None:
        """Take over what is not trained, such as the unit, as it is."""
        for slow, fast in zip(self.network.parameters(), self._critic.parameters(), strict=True):
            if not fast.requires_grad:
                slow.copy_(fast)
