"""The update rules of arXiv 2405.02041 as data: which paths feedback takes, how two directions combine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bptt_envs.checks import one_of, shown, string
from bptt_envs.settings import read


@dataclass(frozen=True)
class Feedback:
    """Which paths a backward pass takes from step t + 1 to step t.

    lambda_t = dl/dx_t + [physics] A_t^T lambda_{t+1} + [controller] K_t^T (B_t^T lambda_{t+1} + dl/du_t),
    with A_t, B_t the Jacobians of the physics and K_t that of the controller.

    A controller with memory has a third path, from what it remembers to what it remembered; docs/rules.md has the
    equations. By default it is open in every pass with any other; what `dataclasses.replace` makes of a pass keeps its.
    """

    physics: bool
    controller: bool
    memory: bool | None = None

    def __post_init__(self) -> None:
        read(self)
        if self.memory is None:
            object.__setattr__(self, "memory", self.physics or self.controller)


REGULAR = Feedback(physics=True, controller=True)
MODIFIED = Feedback(physics=True, controller=False)
STOPPED = Feedback(physics=False, controller=False)
MODIFIED_FORGETFUL = Feedback(physics=True, controller=False, memory=False)

Combine = Literal["modified", "regular", "random", "turned"]
COMBINE = get_args(Combine)


@dataclass(frozen=True)
class Rule:
    """An update rule.

    With one pass the direction is that of the pass. With two, a component is kept where both passes have
    the same sign (0 agrees with 0 only) and is 0 elsewhere.

    Raises:
        ValueError: if there are not one or two passes.
    """

    name: str
    passes: tuple[Feedback, ...]
    summary: str

    def __post_init__(self) -> None:
        string("name", self.name)
        if not isinstance(self.passes, tuple) or not all(isinstance(one, Feedback) for one in self.passes):
            raise TypeError(f"passes of rule {self.name!r} must be a tuple of Feedback; got {shown(self.passes)}.")
        if len(self.passes) not in (1, 2):
            raise ValueError(f"passes of rule {self.name!r} must be one or two; got {len(self.passes)}.")


RULES = {
    rule.name: rule
    for rule in (
        Rule("R", (REGULAR,), "regular: the gradient"),
        Rule("M", (MODIFIED,), "modified: feedback through the physics only"),
        Rule("S", (STOPPED,), "stopped: no feedback, one-step gradients"),
        Rule("C", (REGULAR, MODIFIED), "combined: M where its sign agrees with R's, else 0"),
        Rule("M without memory", (MODIFIED_FORGETFUL,), "M, with nothing fed back through what a controller remembers"),
    )
}

PAPER_RULES = {name: RULES[name] for name in ("R", "M", "S", "C")}
"""Those of the paper."""

Directions = dict[str, Tensor]
"""One tensor for each parameter, by its name."""


def get_rule(rule: str | Rule) -> Rule:
    """The rule of that name, or the rule itself.

    Raises:
        ValueError: if there is no rule of that name.
    """
    return rule if isinstance(rule, Rule) else RULES[one_of("rule", rule, RULES)]


def combined(
    rule: Rule,
    directions: dict[Feedback, Directions],
    combine: Combine = "modified",
    generator: torch.Generator | None = None,
) -> Directions:
    """The direction of `rule` from those of its passes.

    Args:
        rule: the rule.
        directions: the direction of each pass, at least those of the rule.
        combine: the component that a rule of two passes keeps, "modified" (the second pass, as in the
            authors' experiments) or "regular" (the first). "random" keeps the second pass's at random places: as
            many of each tensor as have the same sign. It tells agreement from sparsity. "turned" has the sizes of the
            second pass and the signs of the first: where they disagree the component is turned round instead of 0.
        generator: on the CPU, of the random places. None: torch's random numbers.
    """
    if len(rule.passes) == 1:
        return directions[rule.passes[0]]
    first, second = (directions[feedback] for feedback in rule.passes)
    result = {}
    for name, one in first.items():
        other = second[name]
        if combine == "turned":
            direction = other.abs() * one.sign()
        else:
            kept = one.sign() == other.sign()
            if combine == "random":  # drawn on the CPU, so that every device has the same
                places = torch.randperm(kept.numel(), generator=generator).to(kept.device)
                kept = kept.flatten()[places].view(kept.shape)
            direction = torch.where(kept, one if combine == "regular" else other, 0.0)
        undefined = (one + other).isnan()  # torch has sign(NaN) = 0, which would hide it
        result[name] = direction.masked_fill(undefined, math.nan)
    return result


def flat(directions: Directions) -> Tensor:
    """All components, (*shape) each, in one vector of float64: its norm does not overflow."""
    return torch.cat([direction.double().flatten() for direction in directions.values()])


def cosine(first: Directions, second: Directions) -> float:
    """Cosine of the angle between two directions."""
    return float(torch.cosine_similarity(flat(first), flat(second), dim=0))


def sign_agreement(first: Directions, second: Directions) -> float:
    """Share of the components in which two directions have the same sign; NaN if one is not a number."""
    one, other = flat(first), flat(second)
    if (one + other).isnan().any():  # torch has sign(NaN) = 0
        return math.nan
    return float((one.sign() == other.sign()).double().mean())
