"""Gradient descent over all actions, through the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bptt_envs.settings import Count, read
from bptt_trainers.planning.problem import Problem

STEPS = tuple(4.0**-i for i in range(-1, 9))  # shares of a step that are tried at once
FIRST = 0.1  # of the range of actions: the most that a step along the plain gradient changes any
PATIENCE = 3  # iterations in a row without a better plan, after which an episode is done
TOLERANCE = 1e-12  # of the loss: less is no better plan


@dataclass(frozen=True)
class GRAPE:
    """Gradient descent over the actions with exact gradients, by L-BFGS, batched over episodes.

    For quantum control it is GRAPE (N. Khaneja et al., J. Magn. Reson. 172, 2005) with quasi-Newton steps (P. de
    Fouquieres et al., J. Magn. Reson. 212, 2011). One backward pass through the episode gives the gradient, so that the
    state may be large. L-BFGS (J. Nocedal, Math. Comput. 35, 1980) works on the components that are not held at a
    bound; of steps of several lengths the best is taken, and the loss never rises.

    Args:
        iterations: at most so many.
        memory: steps, with what they changed in the gradient, that are kept.
    """

    iterations: Count = 300
    memory: Count = 20

    summary: ClassVar[str] = "gradient descent over the actions, by L-BFGS (for quantum control: GRAPE)"

    def __post_init__(self) -> None:
        read(self)

    def improve(self, problem: Problem, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Better actions, (T, B, *action_shape), and the iterations taken."""
        reach = FIRST * float((problem.system.action_at(torch.ones(problem.system.action_shape))).abs().max())
        shares = torch.tensor(STEPS).to(actions).view(-1, 1, 1)
        low, high = (_flat(bound.expand(problem.shape)) for bound in (problem.low, problem.high))
        plan = _flat(actions)
        loss, slopes = _loss_and_slopes(problem, plan)
        pairs = _Pairs(self.memory)
        stalled = torch.zeros_like(loss)
        for iteration in range(self.iterations):
            if bool((stalled >= PATIENCE).all()):
                return _steps(problem, plan), iteration
            held = ((plan <= low) & (slopes > 0)) | ((plan >= high) & (slopes < 0))
            downhill = slopes.masked_fill(held, 0.0)
            direction = pairs.product(downhill).masked_fill(held, 0.0)
            plain = (((direction * downhill).sum(1) <= 0.0) | (stalled > 0) | pairs.none).unsqueeze(1)
            largest = downhill.abs().amax(1, keepdim=True).clamp(min=torch.finfo(plan.dtype).tiny)
            direction = torch.where(plain, downhill * (reach / largest), direction)
            tried = (plan - shares * direction).clamp(low, high)
            losses = problem.losses(torch.stack([_steps(problem, one) for one in tried]))
            lowest, which = losses.min(0)
            better = (lowest < loss).unsqueeze(1)
            following = torch.where(better, tried[which, torch.arange(len(which))], plan)
            _, slopes_there = _loss_and_slopes(problem, following)
            pairs.add(following - plan, slopes_there - slopes, forget=stalled > 0)
            gained = lowest < loss - TOLERANCE * loss.abs() - TOLERANCE**1.5
            stalled = torch.where(gained, 0.0, stalled + 1)
            plan, slopes, loss = following, slopes_there, torch.minimum(lowest, loss)
        return _steps(problem, plan), self.iterations


class _Pairs:
    """The last steps s, with what they changed in the gradient, y: L-BFGS's model of the inverse Hessian.

    Args:
        most: pairs that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, (B, D), and 1 / s.y, (B, 1), 0 for none

    @property
    def none(self) -> Tensor:
        """Which episodes have no pair, (B,)."""
        if not self._pairs:
            return torch.ones((), dtype=torch.bool)
        return torch.stack([inverse[:, 0] == 0.0 for _, _, inverse in self._pairs]).all(0)

    def add(self, s: Tensor, y: Tensor, forget: Tensor) -> None:
        """Keep a pair of each episode, (B, D), if its curvature is positive; `forget`, (B,): those kept so far."""
        self._pairs = [(a, b, inverse.masked_fill(forget.unsqueeze(1), 0.0)) for a, b, inverse in self._pairs]
        product = (s * y).sum(1, keepdim=True)
        good = product > 1e-12 * s.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True)
        self._pairs.append((s, y, torch.where(good, 1.0 / product, 0.0)))
        del self._pairs[: -self._most]

    def product(self, slopes: Tensor) -> Tensor:
        """The model times a gradient, (B, D): Nocedal's two loops."""
        product, shares = slopes, []
        scale = torch.ones_like(slopes[:, :1])
        for _, y, inverse in self._pairs:
            scale = torch.where(inverse > 0.0, 1.0 / (inverse * y.square().sum(1, keepdim=True)), scale)
        for s, y, inverse in reversed(self._pairs):
            share = inverse * (s * product).sum(1, keepdim=True)
            shares.append(share)
            product = product - share * y
        product = scale * product
        for (s, y, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            product = product + (share - inverse * (y * product).sum(1, keepdim=True)) * s
        return product


def _flat(actions: Tensor) -> Tensor:
    """(T, B, *action_shape) -> (B, D)."""
    return actions.transpose(0, 1).flatten(1)


def _steps(problem: Problem, flat: Tensor) -> Tensor:
    """(B, D) -> (T, B, *action_shape)."""
    horizon, count, *shape = problem.shape
    return flat.view(count, horizon, *shape).transpose(0, 1)


def _loss_and_slopes(problem: Problem, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each episode, (B,), and its slopes by the actions, (B, D)."""
    with torch.enable_grad():
        leaf = flat.detach().requires_grad_()
        loss = problem.loss(_steps(problem, leaf))
        (slopes,) = torch.autograd.grad(loss.sum(), leaf, materialize_grads=True, allow_unused=True)
    return loss.detach().nan_to_num(torch.inf), slopes.nan_to_num(0.0, 0.0, 0.0)
