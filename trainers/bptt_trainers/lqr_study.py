"""Does a rule that drops K_t still reach a known optimum? Descents under R, M, S and C on DiffLQR-v0.

Two classes of linear controllers: one gain for all steps, and a gain for each step. Where the descents end is
held against the optimum, and against the rest points of `linear_gains.py`, which no engine takes part in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from bptt_envs import System
from bptt_envs.checks import positive, positive_integer
from bptt_envs.systems import LQR, Integrator
from bptt_trainers.comparison_table import to_csv
from bptt_trainers.descent import descend, falling
from bptt_trainers.files import write_atomic
from bptt_trainers.gradient import policy_gradient
from bptt_trainers.linear_gains import CLOSED_FORMS, LinearQuadratic, TimeVaryingGains, rest_point, slope
from bptt_trainers.lqr_figure import curves_figure, curves_of, to_png
from bptt_trainers.networks import MLP
from bptt_trainers.rules import RULES, Directions, combined
from bptt_trainers.stacked import stacked_directions

OBJECTIVES = ("continuous", "final")
CLASSES = ("constant", "time-varying")
PASSES = tuple(dict.fromkeys(feedback for rule in RULES.values() for feedback in rule.passes))

EPS = 1e-14  # of Adam: far below any direction
NEAR = 1.0  # %: a loss so close to the best of its class counts as there
ZERO = 1e-9  # R is 0 where no component is larger
CLOSE = 0.01  # a gain so close to a rest point is there
EXAMPLE_RATES = (0.03, 0.3)  # with which descents of the counterexamples start

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class StudyConfig:
    """How many descents, and how long.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    starts: int = 64
    """Random starting gains of each class."""
    steps: int = 800
    """Steps of a descent."""
    learning_rate: float = 0.3
    """Of Adam, at first; it falls to 0."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Of Adam. It forgets within some ten steps, as the first directions can be 1e9 times the last."""
    spread: float = 3.0
    """Every component of the starting gains is drawn from N(0, spread^2)."""
    seed: int = 0
    """Seeds the starting gains."""

    def __post_init__(self) -> None:
        positive_integer("starts", self.starts)
        positive_integer("steps", self.steps)
        positive("learning_rate", self.learning_rate)
        positive("spread", self.spread)


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
        losses, passes = stacked_directions(self.system, self.controller, parameters, self.states, PASSES)
        return losses, {name: combined(rule, passes) for name, rule in RULES.items()}


@dataclass(frozen=True)
class Descents:
    """What became of E descents under each of P rules, in the order of RULES.

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


def descents(task: Task, start: Tensor, config: StudyConfig, name: str) -> Descents:
    """Descend from the gains `start`, (E, *shape), under every rule; `name` is shown by the progress bar."""
    rates = falling(config.learning_rate, config.steps)
    steps = descend(task.sample, {task.parameter: task.sign * start}, tuple(RULES), rates, betas=config.betas, eps=EPS)
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


# The block


def block(objective: str, gains: str) -> Task:
    """The default system of DiffLQR-v0 with one of the classes of gains.

    The mean over the start states sqrt(n) e_i is that over N(0, I), exactly, as the loss is quadratic in them.
    """
    varying = gains == "time-varying"
    system = LQR(objective=objective, clock=varying)
    n = len(system.A)
    states = torch.nn.functional.pad(n**0.5 * torch.eye(n, dtype=torch.float64), (0, int(varying)))
    return Task.varying(system, states) if varying else Task.constant(system, states)


def resting_gains(problem: LinearQuadratic, gains: str, rule: str) -> Tensor:
    """Where R, M or S rests, by the closed forms: (m, n) or (T, m, n)."""
    if gains == "time-varying":
        return problem.resting_gains(rule)
    m, n = problem.B.mT.shape
    return rest_point(partial(problem.constant_direction, rule=rule), torch.zeros(m, n, dtype=torch.float64))


def over(losses: Any, optimum: float) -> Any:
    """How far losses are above the optimum, in %."""
    return 100.0 * (losses / optimum - 1.0)


@dataclass(frozen=True)
class BlockStudy:
    """The descents of one objective and class, and what they are held against.

    Attributes:
        objective: "continuous" or "final".
        gains: "constant" or "time-varying".
        problem: its closed forms.
        optimum: the least loss of all controllers.
        found: the descents.
    """

    objective: str
    gains: str
    problem: LinearQuadratic
    optimum: float
    found: Descents

    def run_rows(self) -> list[Row]:
        """A row for each descent."""
        rows: list[Row] = []
        first = self.found.gains.flatten(3)[:, :, 0] if self.gains == "constant" else self.found.gains[:, :, 0, 0]
        diverged = self._diverged()
        for p, rule in enumerate(RULES):
            for i in range(self.found.losses.shape[2]):
                row: Row = {"objective": self.objective, "gains": self.gains, "rule": rule, "start": i}
                row |= {"loss_at_start": _short(self.found.losses[0, p, i])}
                row |= {"loss": _short(self.found.losses[-1, p, i])}
                row |= {"over_optimum_percent": _short(over(self.found.losses[-1, p, i], self.optimum))}
                row |= {f"first_gain_{j + 1}": _short(k) for j, k in enumerate(first[p, i])}
                row |= {"direction_is_0": int(self.found.stands[p, i]), "R": _short(self.found.slope[p, i])}
                row |= {"diverged": int(diverged[p, i])}
                rows.append(row)
        return rows

    def summary_rows(self) -> list[Row]:
        """A row for each rule."""
        best = over(self._loss(resting_gains(self.problem, self.gains, "R")), self.optimum)
        end = over(self.found.losses[-1], self.optimum)
        near = self.found.losses[-1] <= (1.0 + NEAR / 100.0) * (1.0 + best / 100.0) * self.optimum
        stuck = self.found.stands & (self.found.slope > ZERO)
        diverged = self._diverged()
        return [
            {
                "objective": self.objective,
                "gains": self.gains,
                "rule": rule,
                "over the optimum": _spread(end[p]),
                f"within {NEAR:g} % of the best of the class": _share(near[p]),
                "stands at 0 where R is not": _share(stuck[p]),
                "diverged": _share(diverged[p]),
            }
            for p, rule in enumerate(RULES)
        ]

    def rest_rows(self) -> list[Row]:
        """A row for each of R, M and S: its rest point by the closed forms, and how far from it descents end."""
        rows: list[Row] = []
        for rule in CLOSED_FORMS:
            point = resting_gains(self.problem, self.gains, rule)
            of_rule = self.problem.directions if self.gains == "time-varying" else self.problem.constant_direction
            derivative = torch.linalg.eigvals(slope(partial(of_rule, rule=rule), point))
            loss = self._loss(point)
            p = list(RULES).index(rule)
            end = self.found.losses[-1, p]
            away = (self.found.gains[p] - point).abs().flatten(1).amax(1)
            rows.append(
                {
                    "objective": self.objective,
                    "gains": self.gains,
                    "rule": rule,
                    "rests at": ", ".join(f"{k:.4f}" for k in point.flatten()[: len(self.problem.A)]),
                    "loss": f"{loss:.6f}",
                    "over the optimum": f"{over(loss, self.optimum):.4g} %",
                    "eigenvalues": f"{derivative.real.min():.2g} to {derivative.real.max():.2g}",
                    "largest imaginary part": f"{derivative.imag.abs().max():.2g}",
                    "loss of the descents": f"{np.median(end):.6f}",
                    "largest difference of the loss": f"{100.0 * np.abs(end / loss - 1.0).max():.1g} %",
                    "of a gain": f"{float(away.max()):.1g}" if self.gains == "constant" else "",
                }
            )
        return rows

    def _loss(self, gains: Tensor) -> float:
        return float(self.problem.loss(gains if self.gains == "time-varying" else self.problem.constant(gains)))

    def _diverged(self) -> np.ndarray:
        """Whether a descent ends with no number, or with more than no control costs, (P, E)."""
        m, n = self.problem.B.mT.shape
        idle = float(self.problem.loss(self.problem.constant(torch.zeros(m, n, dtype=torch.float64))))
        return ~(self.found.losses[-1] <= idle)


def study_block(objective: str, gains: str, config: StudyConfig) -> BlockStudy:
    """Descend from random gains of one class under every rule."""
    task = block(objective, gains)
    assert isinstance(task.system, LQR)
    generator = torch.Generator().manual_seed(config.seed)
    start = config.spread * torch.randn(config.starts, *task.shape, generator=generator, dtype=torch.float64)
    found = descents(task, start, config, f"{objective}, {gains}")
    optimum = float(task.system.optimal_cost(task.states).mean())
    return BlockStudy(objective, gains, LinearQuadratic.of(task.system), optimum, found)


# Counterexamples


@dataclass(frozen=True)
class Counterexample:
    """A scalar task on which M rests, stably, where R does not.

    Attributes:
        name: shown in tables.
        task: of one constant gain k.
        problem: its closed forms.
        least: the least loss there is.
        guess: k near the rest point.
        starts: the range of k from which descents start.
    """

    name: str
    task: Task
    problem: LinearQuadratic
    least: float
    guess: float
    starts: tuple[float, float]

    @property
    def resting(self) -> float:
        """Where M rests, by Newton's method."""
        guess = torch.tensor([[self.guess]], dtype=torch.float64)
        return float(rest_point(partial(self.problem.constant_direction, rule="M"), guess))

    def directions(self, k: float) -> dict[str, float]:
        """Those of R, M, S and C by k, and the loss there, from the engine that is the definition."""
        controller = MLP((1,), (1,), hidden=(), bias=False).double()
        with torch.no_grad():
            controller.layers[0].weight.fill_(-k)
        found = {}
        for rule in RULES:
            result = policy_gradient(self.task.system, controller, self.task.states, rule, "autograd")
            found[rule] = -float(result.directions["layers.0.weight"])
        return found | {"loss": float(result.loss)}


def unstable_scalar() -> Counterexample:
    """X' = 1.5 x + u over 10 steps: M also rests at a gain that lets x grow."""
    system = LQR(A=[[1.5]], B=[[1.0]], Q=[[1.0]], R=[[0.1]], Q_T=[[1.0]], horizon=10)
    states = torch.ones(1, 1, dtype=torch.float64)
    least = float(system.optimal_cost(states))
    task = Task.constant(system, states)
    return Counterexample("x' = 1.5 x + u", task, LinearQuadratic.of(system), least, 2.75, (0.0, 4.0))


def integrator() -> Counterexample:
    """The toy system of arXiv 2405.02041 with target 0 over 4 steps: M also rests where x_T = x_0."""
    system = Integrator(target=0.0, horizon=4)
    one = torch.ones(1, 1, dtype=torch.float64)
    moment = one / 3.0  # of x ~ U(-1, 1)
    problem = LinearQuadratic(A=one, B=one, Q=0 * one, R=0 * one, Q_T=one / 2.0, horizon=4, moment=moment)
    return Counterexample("x' = x + u", Task.constant(system, moment.sqrt()), problem, 0.0, 1.9, (0.0, 3.0))


COUNTEREXAMPLES = (unstable_scalar, integrator)


def study_counterexample(example: Counterexample, config: StudyConfig) -> tuple[list[Row], Row]:
    """Descend from gains spread evenly over its range: a row for each descent, and a summary."""
    k = torch.linspace(*example.starts, config.starts, dtype=torch.float64).view(-1, 1, 1)
    found = descents(example.task, k, config, example.name)
    resting = example.resting
    here = example.directions(resting)
    ends = found.gains.flatten(1)
    rows: list[Row] = [
        {
            "system": example.name,
            "rule": rule,
            "k_at_start": _short(k[i]),
            "k": _short(ends[p, i]),
            "loss_at_start": _short(found.losses[0, p, i]),
            "loss": _short(found.losses[-1, p, i]),
        }
        for p, rule in enumerate(RULES)
        for i in range(config.starts)
    ]
    there = (ends - resting).abs() < CLOSE
    curvature = float(slope(partial(example.problem.constant_direction, rule="M"), torch.tensor([[resting]]).double()))
    summary: Row = {
        "system": example.name,
        "M rests at k": f"{resting:.4f}",
        "loss there": f"{here['loss']:.4g}",
        "least loss": f"{example.least:.4g}",
        "M there": f"{here['M']:.1e}",
        "its slope": f"{curvature:.3g}",
        "R there": f"{here['R']:.4g}",
    }
    summary |= {f"{rule} ends there": _share(there[p].numpy()) for p, rule in enumerate(RULES)}
    summary |= {f"median loss of {rule}": f"{np.median(found.losses[-1, p]):.3g}" for p, rule in enumerate(RULES)}
    return rows, summary


# All of it


def study(config: StudyConfig, out: Path, command: str) -> str:
    """Run everything, write tables, data and the figure to a folder, and return the tables.

    Args:
        config: how many descents, and how long.
        out: the folder.
        command: what was run, for the head of the tables.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    blocks = [study_block(objective, gains, config) for objective in OBJECTIVES for gains in CLASSES]
    examples = [study_counterexample(make(), config) for make in COUNTEREXAMPLES]
    curves = [row for b in blocks for row in curves_of(b.objective, b.gains, over(b.found.losses, b.optimum))]
    tables = {
        "Where the descents end": [row for b in blocks for row in b.summary_rows()],
        "Rest points by the closed forms, and the descents": [row for b in blocks for row in b.rest_rows()],
        "Other rest points of M": [summary for _, summary in examples],
    }
    text = f"    {command}\n\n" + "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items())
    write_atomic(out / "runs.csv", to_csv([row for b in blocks for row in b.run_rows()]).encode())
    write_atomic(out / "counterexamples.csv", to_csv([row for rows, _ in examples for row in rows]).encode())
    write_atomic(out / "curves.csv", to_csv(curves).encode())
    write_atomic(out / "tables.md", f"# LQR under R, M, S and C\n\n{text}\n".encode())
    write_atomic(out / "lqr.png", to_png(curves_figure(curves)))
    return text


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(number: Any) -> float:
    """Six digits, for a CSV."""
    return float(f"{float(number):.6g}")


def _spread(values: np.ndarray) -> str:
    """Median (least to largest) of percentages."""
    middle, least, largest = np.median(values), values.min(), values.max()
    return f"{middle:.3g} % ({least:.3g} to {largest:.3g})"


def _share(flags: np.ndarray) -> str:
    return f"{int(flags.sum())}/{flags.size}"
