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

LEAST_UNIT = 1e-9  # of values: those of a task that costs nothing are not divided by 0


class Critic(nn.Module):
    """What is still to be paid of an episode, by what is observed and the share of the horizon that is left.

    V(o, left) = middle + unit f((o - mean) / deviation, left / T): a multi-layer perceptron f with ELU, as published,
    on normalised observations, whose outcome counts in the unit of the costs, see `measure`. Of several perceptrons
    side by side it is the mean.

    Args:
        observation_shape: shape of one observation.
        horizon: steps of an episode, T.
        hidden: widths of the hidden layers.
        generator: draws the weights.
        count: of perceptrons.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        horizon: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        count: int = 1,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.normalizer = Normalizer(observation_shape)
        sizes = [math.prod(observation_shape) + 1, *hidden, 1]
        self.networks = nn.ModuleList(_perceptron(sizes, generator) for _ in range(count))
        self.middle = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.unit = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, observation: Tensor, left: Tensor) -> Tensor:
        """Observations (B, *observation_shape) and steps that are left, (B,), to values, (B,)."""
        return self.middle + self.unit * self.relative(self.inputs(observation, left)).mean(0)

    def worst(self, observation: Tensor, left: Tensor) -> Tensor:
        """The largest of the perceptrons' values, (B,): what is to be paid by the one that expects most."""
        return self.middle + self.unit * self.relative(self.inputs(observation, left)).amax(0)

    def relative(self, inputs: Tensor) -> Tensor:
        """The values of all perceptrons from the middle, in their unit, for `inputs`, (count, B)."""
        return torch.stack([network(inputs).squeeze(1) for network in self.networks])

    @torch.no_grad()
    def slopes(self, inputs: Tensor, wanted: Tensor) -> Tensor:
        """The slopes of the perceptrons' mean square errors by all their parameters, one after the other, (n,).

        In closed form, as autograd takes as long again, and an exponential where what ELU gave is enough.

        Args:
            inputs: what the perceptrons are shown, (B, observation_size + 1).
            wanted: the values from the middle, in their unit, (B,).
        """
        found: list[Tensor] = []
        for network in self.networks:
            layers = [layer for layer in network if isinstance(layer, nn.Linear)]  # type: ignore[attr-defined]
            given = [inputs]
            for layer in layers[:-1]:
                given.append(nn.functional.elu_(layer(given[-1])))
            slope = (layers[-1](given[-1]) - wanted.unsqueeze(1)) * (2.0 / len(wanted))
            by_layer = [(slope.mT @ given[-1], slope.sum(0))]
            for i in range(len(layers) - 1, 0, -1):
                slope = torch.ops.aten.elu_backward(slope @ layers[i].weight, 1.0, 1.0, 1.0, True, given[i])
                by_layer.append((slope.mT @ given[i - 1], slope.sum(0)))
            found += [one.flatten() for pair in by_layer[::-1] for one in pair]
        return torch.cat(found)

    def inputs(self, observation: Tensor, left: Tensor) -> Tensor:
        """What the perceptrons are shown, (B, observation_size + 1)."""
        return torch.cat([self.normalizer(observation).flatten(1), (left / self.horizon).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def measure(self, values: Tensor, share: float) -> None:
        """Let values, (M,), have that share in the middle, which is their mean, and the unit, which is their deviation.

        What it says stays what it was (van Hasselt et al., arXiv 1602.07714), unless they are all that counts: costs
        fall by orders of magnitude while a controller learns, and a perceptron has only so many digits.
        """
        mean = torch.lerp(self.middle, values.mean(), share)
        square = torch.lerp(self.unit.square() + (self.middle - mean).square(), (values - mean).square().mean(), share)
        unit = square.sqrt().clamp_min(LEAST_UNIT)
        for network in self.networks if share < 1.0 else ():
            last = network[-1]  # type: ignore[index]  # they are sequences of layers
            last.weight.mul_(self.unit / unit)
            last.bias.mul_(self.unit).add_(self.middle - mean).div_(unit)
        self.middle.copy_(mean)
        self.unit.copy_(unit)


def _perceptron(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """One that says 0 at first: what it does not know yet has no slope."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [glorot_linear(inputs, outputs, generator), nn.ELU()]
    nn.init.zeros_(layers[-2].weight)  # type: ignore[arg-type]  # of the last linear layer
    return nn.Sequential(*layers[:-1])


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
        """Move the weights that are trained, and take over the rest, such as the unit, as it is."""
        for slow, fast in zip(self.network.parameters(), self._critic.parameters(), strict=True):
            slow.lerp_(fast, self._rate if fast.requires_grad else 1.0)
