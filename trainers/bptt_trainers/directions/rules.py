"""The update rules of arXiv 2405.02041 as data: which paths feedback takes, how two directions combine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bptt_envs.checks import nearest, positive_integer, share, shown, string
from bptt_envs.settings import By, Count, read


def _factor(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)):
        return float(value)
    try:
        return abs(share(name, value))  # no -0.0
    except ValueError:
        raise ValueError(f"{name} must be a number from 0 to 1, or True or False; got {shown(value)}.") from None


Factor = Annotated[float, By(_factor)]


@dataclass(frozen=True)
class Feedback:
    """How much of each path a backward pass takes from step t + 1 to step t, from nothing (0, False) to all (1, True).

    lambda_t = dl/dx_t + physics A_t^T lambda_{t+1} + controller K_t^T (B_t^T lambda_{t+1} + dl/du_t),
    with A_t, B_t the Jacobians of the physics and K_t that of the controller.

    A controller with memory has a third path, from what it remembers to what it remembered; docs/rules.md has the
    equations. By default as much is taken of it as of that of the others of which more is; what `dataclasses.replace`
    makes of a pass keeps its.

    A pass that is cut `every` k steps takes no path back to a state x_t with t a multiple of k: it goes through the
    windows [0, k), [k, 2 k), ... of an episode, each apart. The slope dl/dx_t of a state's own cost stays. None: it is
    not cut. With k = 1 nothing is fed back at all: such a pass is that with factors of 0.
    """

    physics: Factor
    controller: Factor
    memory: Factor | None = None
    every: Count | None = None

    def __post_init__(self) -> None:
        read(self)
        memory = max(self.physics, self.controller) if self.memory is None else self.memory
        object.__setattr__(self, "memory", memory)
        if self.every == 1:
            for path in ("physics", "controller", "memory"):
                object.__setattr__(self, path, 0.0)
        if self.stopped:
            object.__setattr__(self, "every", None)

    @property
    def stopped(self) -> bool:
        """Whether nothing is fed back."""
        return not (self.physics or self.controller or self.memory)

    def at(self, step: int) -> Feedback:
        """The paths back to the state at a step: none where the pass is cut."""
        return STOPPED if self.every is not None and step % self.every == 0 else self

    def faded(self, decay: float, every: int | None) -> Feedback:
        """The pass with all of its factors times `decay`, and, unless `every` is None, cut every so many steps."""
        return Feedback(
            physics=decay * self.physics,
            controller=decay * self.controller,
            memory=decay * (self.memory or 0.0),
            every=self.every if every is None else every,
        )


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


def faded(rule: Rule, decay: float | None = None, every: int | None = None) -> Rule:
    """The rule with its feedback decayed, cut, or both, in each of its passes; its name says so.

    Args:
        rule: the rule.
        decay: times which feedback is taken at each step, from 0 to 1 (gradient decay, arXiv 2407.10648). None: not.
        every: steps after which feedback is cut (truncated backpropagation through time), see `Feedback`. None: not.
    """
    name, summary, factor = rule.name, rule.summary, 1.0
    if decay is not None:
        factor = abs(share("decay", decay))
        name, summary = f"{name} decay {_digits(factor)}", f"{summary}; feedback times {_digits(factor)} a step"
    if every is not None:
        every = positive_integer("every", every)
        name, summary = f"{name} every {every}", f"{summary}; feedback cut every {every} steps"
    return Rule(name, tuple(one.faded(factor, every) for one in rule.passes), summary)


def _digits(number: float) -> str:
    return repr(number).removesuffix(".0")


_R = Rule("R", (REGULAR,), "regular: the gradient")
_C = Rule("C", (REGULAR, MODIFIED), "combined: M where its sign agrees with R's, else 0")

RULES = {
    rule.name: rule
    for rule in (
        _R,
        Rule("M", (MODIFIED,), "modified: feedback through the physics only"),
        Rule("S", (STOPPED,), "stopped: no feedback, one-step gradients"),
        _C,
        Rule("M without memory", (MODIFIED_FORGETFUL,), "M, with nothing fed back through what a controller remembers"),
        faded(_R, decay=0.9),
        faded(_C, decay=0.9),
        faded(_R, every=16),
        faded(_C, every=16),
    )
}
"""The rules. Any of them but S with a decay, a window or both is one, too, by its name: see `get_rule`."""

PAPER_RULES = {name: RULES[name] for name in ("R", "M", "S", "C")}
"""Those of the paper."""

Directions = dict[str, Tensor]
"""One tensor for each parameter, by its name."""


def get_rule(rule: str | Rule) -> Rule:
    """The rule of that name, or the rule itself.

    Args:
        rule: a name of `RULES`, or one with a decay, a window or both: "R decay 0.95", "C every 8",
            "M decay 0.9 every 32"; or a `Rule`.

    Raises:
        ValueError: if there is no rule of that name.
    """
    return rule if isinstance(rule, Rule) else named_rule("rule", rule)


def named_rule(name: str, value: Any) -> Rule:
    """The rule whose name is `value`, see `get_rule`.

    Args:
        name: of the argument, for messages.
        value: what the argument is.

    Raises:
        ValueError: if there is no rule of that name.
    """
    if isinstance(value, str) and value in RULES:
        return RULES[value]
    base, decay, every = _parts(value) if isinstance(value, str) else ("", None, None)
    if base not in RULES or base == value or base_of(base) != base:
        plain = ", ".join(repr(one) for one in RULES if base_of(one) == one)
        hint = NO_RULES.get(value) if isinstance(value, str) else None
        raise ValueError(
            f"{name} must be one of {plain}, {OR_FADED}; got {shown(value)}.{hint or nearest(value, RULES)}"
        )
    if all(one.stopped for one in RULES[base].passes):
        raise ValueError(f"{name} must be {base!r} alone, which feeds nothing back to decay or cut; got {value!r}.")
    return faded(
        RULES[base],
        None if decay is None else share(f"the decay of {name} {value!r}", _read(decay, float)),
        None if every is None else positive_integer(f"the window of {name} {value!r}", _read(every, int)),
    )


NO_RULES = {
    name: f" {name} {what.format(name)}."
    for names, what in (
        (("PPO", "SAC"), "is a method of stable-baselines3: bptt compare trains it"),
        (("SHAC", "SAPO"), "learns by any rule: give {0} as the learner (--learner {0})"),
    )
    for name in names
}
"""What may be taken for a rule, and where it is."""

OR_FADED = "or a rule with a decay, a window or both, such as 'R decay 0.9', 'C every 16', 'M decay 0.9 every 16'"


def base_of(name: str) -> str:
    """The name of the rule that is decayed or cut: "R" of "R decay 0.9"; of any other, itself."""
    return _parts(name)[0]


def _parts(name: str) -> tuple[str, str | None, str | None]:
    """The name of a rule, its decay and its window."""
    match = _NAME.fullmatch(name)
    return (name, None, None) if match is None else (match["base"], match["decay"], match["every"])


_NAME = re.compile(r"(?P<base>.+?)(?: decay (?P<decay>\S+))?(?: every (?P<every>\S+))?")


def _read(text: str, kind: type[float] | type[int]) -> float | str:
    try:
        return kind(text)
    except ValueError:
        return text  # which is refused as none


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
