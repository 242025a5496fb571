"""Adam on a stack of parameter vectors: descents from many starts under several rules at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bptt_trainers.analysis.fields import Sample
from bptt_trainers.directions.rules import Directions


@dataclass(frozen=True)
class Point:
    """Where the descents are: those of P rules from E starts."""

    parameters: Directions  # (P, E, *shape) by name
    losses: Tensor  # (P, E)
    directions: Directions  # (P, E, *shape) by name, each rule's own


def descend(
    sample: Sample,
    start: Mapping[str, Tensor],
    rules: Sequence[str],
    learning_rates: Sequence[float],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Iterator[Point]:
    """Descend by Adam from each start under each rule; the directions need not be a gradient.

    Adam acts on every component by itself, so each descent is what it would be alone.

    Args:
        sample: losses and directions by rule of a stack of parameter vectors.
        start: the stack to start from, (E, *shape) by name; it is left as it is.
        rules: P of those that `sample` knows.
        learning_rates: one for each step, such as `[0.1] * 500` or `falling(0.1, 500)`.
        betas: how slowly Adam forgets the mean of the directions and that of their squares.
        eps: added to the root of the latter.

    Yields:
        The start, then the point after each step.
    """
    count = len(rules)
    stack = {name: nn.Parameter(value.repeat(count, *(1 for _ in value.shape[1:]))) for name, value in start.items()}
    optimizer = torch.optim.Adam(stack.values(), betas=betas, eps=eps)
    for rate in (*learning_rates, None):
        here = {name: parameter.detach().clone() for name, parameter in stack.items()}
        losses, by_rule = sample(here)
        directions = {
            name: torch.stack([by_rule[rule][name].chunk(count)[i] for i, rule in enumerate(rules)]) for name in here
        }
        parts = {name: value.unflatten(0, (count, -1)) for name, value in here.items()}
        yield Point(parts, losses.view(count, -1), directions)
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate
            for name, parameter in stack.items():
                parameter.grad = directions[name].flatten(0, 1)
            optimizer.step()


def falling(rate: float, steps: int) -> list[float]:
    """Learning rates from `rate` to near 0 along half a cosine, one for each step, so that descents come to rest."""
    return [0.5 * rate * (1.0 + math.cos(math.pi * step / steps)) for step in range(steps)]
