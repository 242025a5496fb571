"""Does a rule that drops K_t still reach a known optimum? Descents under R, M, S and C on DiffLQR-v0.

Two classes of linear controllers: one gain for all steps, and a gain for each step. Where the descents end is
held against the optimum, and against the rest points of `lqr/linear_gains.py`, which no engine takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bptt_envs.systems import LQR
from bptt_studies.lqr.counterexamples import COUNTEREXAMPLES, LEARNING_RATES, study_example
from bptt_studies.lqr.descents import Descents, StudyConfig, Task, descents
from bptt_studies.lqr.figure import Curves, curves_figure
from bptt_studies.lqr.linear_gains import CLOSED_FORMS, LinearQuadratic
from bptt_studies.lqr.tables import markdown, share, short, spread
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.figures.style import save_figure
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.tables import Row, to_csv

OBJECTIVES = ("continuous", "final")
CLASSES = ("constant", "time-varying")
NEAR = 1.0  # %: a loss so close to the best of its class counts as there


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

    @property
    def ends(self) -> np.ndarray:
        """The losses at the end, (P, E)."""
        ends: np.ndarray = self.found.losses[-1]
        return ends

    @property
    def diverged(self) -> np.ndarray:
        """Whether a descent ends with no number, or with a larger loss than without control, (P, E)."""
        idle = float(self.problem.loss(self._zero))
        diverged: np.ndarray = ~(self.ends <= idle)
        return diverged

    def resting(self, rule: str) -> Tensor:
        """Where R, M or S rests by the closed forms: (m, n) or (T, m, n)."""
        if self.gains == "time-varying":
            return self.problem.resting_gains(rule)
        return self.problem.resting_gain(rule, self._zero)

    def run_rows(self) -> list[Row]:
        """A row for each descent."""
        found = self.found
        first = found.gains.flatten(2)[..., : self._zero.numel()]
        diverged = self.diverged
        rows: list[Row] = []
        for p, rule in enumerate(PAPER_RULES):
            for i, loss in enumerate(self.ends[p]):
                row: Row = {"objective": self.objective, "gains": self.gains, "rule": rule, "start": i}
                row |= {"loss_at_start": short(found.losses[0, p, i]), "loss": short(loss)}
                row |= {"over_optimum_percent": short(over(loss, self.optimum))}
                row |= {f"first_gain_{j + 1}": short(k) for j, k in enumerate(first[p, i])}
                row |= {"direction_is_0": int(found.stands[p, i]), "R": short(found.slope[p, i])}
                row |= {"diverged": int(diverged[p, i])}
                rows.append(row)
        return rows

    def summary_rows(self) -> list[Row]:
        """A row for each rule: where its descents end."""
        best = float(self.problem.loss(self.resting("R")))
        near = self.ends <= (1.0 + NEAR / 100.0) * best
        diverged = self.diverged
        return [
            {
                "objective": self.objective,
                "gains": self.gains,
                "rule": rule,
                "over the optimum": spread(over(self.ends[p], self.optimum), " %"),
                f"within {NEAR:g} % of the class's best": share(near[p]),
                "direction 0 where R is not": share(self.found.stuck[p]),
                "diverged": share(diverged[p]),
            }
            for p, rule in enumerate(PAPER_RULES)
        ]

    def rest_rows(self) -> list[Row]:
        """A row for each of R, M and S: its rest point by the closed forms, and how far from it its descents end."""
        rows: list[Row] = []
        for rule in CLOSED_FORMS:
            p = list(PAPER_RULES).index(rule)
            point = self.resting(rule)
            loss = float(self.problem.loss(point))
            first = point.flatten()[: self._zero.numel()]
            eigenvalues = torch.linalg.eigvals(self.problem.slope(point, rule))
            rows.append(
                {
                    "objective": self.objective,
                    "gains": self.gains,
                    "rule": rule,
                    "rests at (first step)": ", ".join(f"{k:.4f}" for k in first),
                    "loss": f"{loss:.6f}",
                    "over the optimum": f"{round(over(loss, self.optimum), 2) + 0.0:.2f} %",  # + 0.0: no -0.00
                    "least eigenvalue": f"{float(eigenvalues.real.min()):.2g}",
                    "loss of the descents": f"{np.median(self.ends[p]):.6f}",
                    "largest difference": f"{100.0 * np.abs(self.ends[p] / loss - 1.0).max():.1g} %",
                }
            )
        return rows

    @property
    def _zero(self) -> Tensor:
        """No control, as one gain for all steps."""
        return torch.zeros_like(self.problem.B.mT)


def study_block(objective: str, gains: str, config: StudyConfig) -> BlockStudy:
    """Descend from random gains of one class under every rule, on the default system.

    The mean over the start states sqrt(n) e_i is that over N(0, I), exactly, as the loss is quadratic in them.
    """
    varying = gains == "time-varying"
    system = LQR(objective=objective, clock=varying)
    n = len(system.A)
    states = torch.nn.functional.pad(n**0.5 * torch.eye(n, dtype=torch.float64), (0, int(varying)))
    task = Task.varying(system, states) if varying else Task.constant(system, states)
    generator = torch.Generator().manual_seed(config.seed)
    start = config.spread * torch.randn(config.starts, *task.shape, generator=generator, dtype=torch.float64)
    found = descents(task, start, config, config.learning_rate, f"{objective}, {gains}")
    optimum = float(system.optimal_cost(states).mean())
    return BlockStudy(objective, gains, LinearQuadratic.of(system), optimum, found)


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
    counterexamples = [make() for make in COUNTEREXAMPLES]
    examples = [study_example(example, rate, config) for example in counterexamples for rate in LEARNING_RATES]
    tables = {
        "Where the descents end": [row for b in blocks for row in b.summary_rows()],
        "Rest points by the closed forms, and the ends of the descents": [row for b in blocks for row in b.rest_rows()],
        "Other rest points of M": [example.row() for example in counterexamples],
        "Descents on these systems": [row for e in examples for row in e.summary_rows()],
    }
    text = "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items())
    curves = [Curves.of(b.objective, b.gains, over(b.found.losses, b.optimum)) for b in blocks]
    data = {
        "runs": [row for b in blocks for row in b.run_rows()],
        "curves": [row for each in curves for row in each.rows()],
        "counterexamples": [row for e in examples for row in e.run_rows()],
    }
    for name, rows in data.items():
        write_atomic(out / f"{name}.csv", to_csv(rows).encode())
    save_figure(curves_figure(curves), out / "lqr.png", vector=True)
    write_atomic(out / "tables.md", f"# LQR under R, M, S and C\n\n    {command}\n\n{text}\n".encode())
    return text
