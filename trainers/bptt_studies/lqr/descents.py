"""Descents to linear gains under R, M, S and C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from bptt_envs import System
from bptt_envs.settings import Count, Decay, Positive, Seed, read
from bptt_studies.lqr.linear_gains import TimeVaryingGains
from bptt_studies.toys.descent import descend, falling
from bptt_trainers.controllers.networks import MLP
from bptt_trainers.directions.rules import PAPER_RULES, Directions, combined
from bptt_trainers.directions.stacked import StackedEngine

PASSES = tuple(dict.fromkeys(feedback for rule in PAPER_RULES.values() for feedback in rule.passes))

EPS = 1e-14  # of Adam: far below any direction
ZERO = 1e-9  # R is 0 where no component is larger


@dataclass(frozen=True)
class StudyConfig:
    """How many descents, and how long.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    starts: Count = 64
    """Random starting gains of each class."""
    steps: Count = 800
    """Steps of a descent."""
    learning_rate: Positive = 0.3
    """Of Adam, at first; it falls to 0."""
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    """Of Adam. It forgets within some ten steps, as the first directions can be 1e9 times the last."""
    spread: Positive = 3.0
    """Every component of the starting gains is drawn from N(0, spread^2)."""
    seed: Seed = 0
    """Seeds the starting gains."""

    def __post_init__(self) -> None:
        read(self)


@dataclass(frozen=True)
class Task:
    """What descents go down: the loss of linear gains, u = -K x, over their only parameter.

    Attributes:
        system: the physics.
        controller: acts by the gains.
        states: start states of the same mean loss as all of the system's: such gains know second moments only.
        parameter: its name; it is the gains, or minus them.
        sign: which of both.
    """

    system: System
    controller: nn.Module
    states: Tensor
    parameter: str
    sign: int

    @classmethod
    def constant(cls, system: System, states: Tensor) -> Task:
        """Of one gain for all steps, (m, n): a linear layer without bias."""
        layer = MLP(system.observation_shape, system.action_shape, hidden=(), bias=False).double()
        return cls(system, layer, states, "layers.0.weight", -1)

    @classmethod
    def varying(cls, system: System, states: Tensor) -> Task:
        """Of a gain for each step, (T, m, n), for a system with a clock."""
        gains = TimeVaryingGains(system.horizon, system.action_size, system.state_size - 1)
        return cls(system, gains, states, "gains", 1)

    @property
    def shape(self) -> torch.Size:
        """That of the gains."""
        return self.controller.get_parameter(self.parameter).shape

    def sample(self, parameters: Directions) -> tuple[Tensor, Mapping[str, Directions]]:
        """Losses and directions of a stack of gains by rule."""
        states = self.states.expand(len(parameters[self.parameter]), *self.states.shape)
        losses, passes = StackedEngine(self.system, self.controller)(parameters, states, PASSES)
        return losses.mean(1), {name: combined(rule, passes) for name, rule in PAPER_RULES.items()}


@dataclass(frozen=True)
class Descents:
    """What became of E descents under each of P rules, in the order of PAPER_RULES.

    Attributes:
        losses: before the first step and after each, (S + 1, P, E).
        gains: at the end, (P, E, *shape).
        stands: every component of the rule's own direction is 0 at the end, (P, E).
        slope: the largest component of R at the end, (P, E).
    """

    losses: np.ndarray
    gains: Tensor
    stands: np.ndarray
    slope: np.ndarray

    @property
    def stuck(self) -> np.ndarray:
        """Whether a descent stands where R would not, (P, E)."""
        return self.stands & (self.slope > ZERO)


def descents(task: Task, start: Tensor, config: StudyConfig, learning_rate: float, name: str) -> Descents:
    """Descend from the gains `start`, (E, *shape), under every rule; `name` is shown beside the progress bar."""
    rates = falling(learning_rate, config.steps)
    steps = descend(
        task.sample, {task.parameter: task.sign * start}, tuple(PAPER_RULES), rates, betas=config.betas, eps=EPS
    )
    losses = []
    for point in tqdm(steps, desc=name, total=len(rates) + 1, unit="step", leave=False):
        losses.append(point.losses)
    end, own = point.parameters[task.parameter], point.directions[task.parameter]
    _, directions = task.sample({task.parameter: end.flatten(0, 1)})
    regular = directions["R"][task.parameter].unflatten(0, end.shape[:2])
    return Descents(
        torch.stack(losses).numpy(),
        task.sign * end,
        (own.flatten(2) == 0.0).all(2).numpy(),
        regular.flatten(2).abs().amax(2).numpy(),
    )
