"""The settings of a run by short windows with soft values (SAPO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bptt_envs.settings import Count, Positive, Share
from bptt_trainers.controllers.defaults import DeviationName
from bptt_trainers.training.shac_config import SHACConfig

LARGEST_ENTROPY = math.log(2.0)
"""That of a component of an action within its bounds, which are 2 apart in the unit of half its range."""


@dataclass(frozen=True)
class SAPOConfig(SHACConfig):
    """Settings of one run of soft analytic policy optimisation (arXiv 2412.12089).

    The short-horizon actor-critic whose actor is stochastic and rewarded for the entropy of its actions.

    Raises:
        ValueError: if a setting is of another type or out of range; the message names it.
    """

    learner: ClassVar[str] = "SAPO"

    deviation: DeviationName = "state"
    """Noise in its actions while it learns, of a deviation that is learned: the network's (state), or the same in every
    state (constant). It is judged by the mean, without noise."""

    squash: bool = True
    """Bend its actions by tanh within their bounds, in place of the clamp, which has no slope beyond them."""

    target_rate: Share = 1.0
    """Share of the way to the critic that its slow copy goes in an update; 1: there is none, as published."""

    critics: Count = 2
    """Critics side by side: the actor follows their mean, the targets are of the one that expects most to be paid."""

    temperature: Positive = 0.1
    """What entropy is worth at the start, for a step: as a share of the deviation of what the untrained controller
    still has to pay (at least a hundredth of its mean; 1, where nothing costs anything), over the horizon."""

    temperature_learning_rate: Positive = 5e-3
    """Step size by which the logarithm of that follows what the entropy should be."""

    target_entropy: float = -0.5
    """What the entropy should be, for each component of an action as a share of half its range; below log 2 with
    squash."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deviation == "none":
            raise ValueError("deviation must be 'state' or 'constant', as entropy is that of noise; got 'none'.")
        if self.squash and self.target_entropy >= LARGEST_ENTROPY:
            raise ValueError(
                f"target_entropy must be below log 2, about {LARGEST_ENTROPY:.4f}, where squash is True: no component "
                "of an action that is bent within its bounds has more, as a share of half its range; "
                f"got {self.target_entropy}."
            )
