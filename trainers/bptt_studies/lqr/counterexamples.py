"""Counterexamples to "M removes critical points": scalar tasks on which M rests where the gradient does not."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bptt_envs.systems import LQR, Integrator
from bptt_studies.lqr.descents import Descents, StudyConfig, Task, descents
from bptt_studies.lqr.linear_gains import LinearQuadratic
from bptt_studies.lqr.tables import share, short, spread
from bptt_trainers.directions.policy_gradient import policy_gradient
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.records.tables import Row

LEARNING_RATES = (0.03, 0.3)  # with which descents start
CLOSE = 0.01  # a gain so close to a rest point is there


@dataclass(frozen=True)
class Counterexample:
    """A scalar task on which M rests, stably, where R does not.

    Attributes:
        name: shown in tables.
        task: of one gain k for all steps, u = -k x.
        problem: its closed forms.
        least: the least loss there is.
        guess: a gain near the rest point.
        starts: the gains between which descents start.
    """

    name: str
    task: Task
    problem: LinearQuadratic
    least: float
    guess: float
    starts: tuple[float, float]

    def resting(self) -> Tensor:
        """The gain at which M rests, (1, 1), by Newton's method."""
        return self.problem.resting_gain("M", torch.tensor([[self.guess]], dtype=torch.float64))

    def directions(self, gain: Tensor) -> dict[str, float]:
        """Those of every rule by the gain, (1, 1), and the loss: from the engine that is the definition."""
        controller = copy.deepcopy(self.task.controller)
        with torch.no_grad():
            controller.get_parameter(self.task.parameter).copy_(self.task.sign * gain)
        found = {}
        for rule in PAPER_RULES:
            result = policy_gradient(self.task.system, controller, self.task.states, rule, "autograd")
            found[rule] = self.task.sign * float(result.directions[self.task.parameter])
        return found | {"loss": float(result.loss)}

    def row(self) -> Row:
        """M's rest point, and R there."""
        gain = self.resting()
        here = self.directions(gain)
        return {
            "system": self.name,
            "M rests at k": f"{float(gain):.4f}",
            "loss": f"{here['loss']:.4g}",
            "least loss": f"{self.least:.4g}",
            "M": f"{here['M']:.1g}",
            "slope of M": f"{float(self.problem.slope(gain, 'M')):.3g}",
            "R": f"{here['R']:.4g}",
        }


def unstable_scalar() -> Counterexample:
    """Of x' = 1.5 x + u over 10 steps: M also rests at a gain that lets x grow."""
    system = LQR(A=[[1.5]], B=[[1.0]], Q=[[1.0]], R=[[0.1]], Q_T=[[1.0]], horizon=10)
    states = torch.ones(1, 1, dtype=torch.float64)
    least = float(system.optimal_cost(states))
    task = Task.constant(system, states)
    return Counterexample("x' = 1.5 x + u", task, LinearQuadratic.of(system), least, 2.75, (0.0, 4.0))


def toy_integrator() -> Counterexample:
    """The toy system of arXiv 2405.02041 with target 0, over 4 steps: M also rests where x_4 = x_0."""
    system = Integrator(target=0.0, horizon=4)
    one = torch.ones(1, 1, dtype=torch.float64)
    moment = one / 3.0  # of x ~ U(-1, 1)
    problem = LinearQuadratic(A=one, B=one, Q=0.0 * one, R=0.0 * one, Q_T=one / 2.0, horizon=4, moment=moment)
    return Counterexample("x' = x + u", Task.constant(system, moment.sqrt()), problem, 0.0, 1.9, (0.0, 3.0))


COUNTEREXAMPLES = (unstable_scalar, toy_integrator)


@dataclass(frozen=True)
class ExampleStudy:
    """The descents on a counterexample at one learning rate, from gains evenly spread."""

    example: Counterexample
    learning_rate: float
    found: Descents

    def run_rows(self) -> list[Row]:
        """A row for each descent."""
        found = self.found
        start = np.linspace(*self.example.starts, found.stands.shape[1])
        return [
            {
                "system": self.example.name,
                "learning_rate": self.learning_rate,
                "rule": rule,
                "k_at_start": short(start[i]),
                "k": short(k),
                "loss_at_start": short(found.losses[0, p, i]),
                "loss": short(found.losses[-1, p, i]),
                "direction_is_0": int(found.stands[p, i]),
            }
            for p, rule in enumerate(PAPER_RULES)
            for i, k in enumerate(found.gains[p].flatten())
        ]

    def summary_rows(self) -> list[Row]:
        """A row for each rule: where its descents end."""
        there = ((self.found.gains.flatten(2).squeeze(2) - self.example.resting().squeeze()).abs() < CLOSE).numpy()
        return [
            {
                "system": self.example.name,
                "learning rate": f"{self.learning_rate:g}",
                "rule": rule,
                "end where M rests": share(there[p]),
                "direction 0 where R is not": share(self.found.stuck[p]),
                "loss": spread(self.found.losses[-1, p], ""),
            }
            for p, rule in enumerate(PAPER_RULES)
        ]


def study_example(example: Counterexample, learning_rate: float, config: StudyConfig) -> ExampleStudy:
    """Descend from gains spread evenly over the range of a counterexample."""
    start = torch.linspace(*example.starts, config.starts, dtype=torch.float64).view(-1, 1, 1)
    found = descents(example.task, start, config, learning_rate, f"{example.name}, learning rate {learning_rate:g}")
    return ExampleStudy(example, learning_rate, found)
