"""The two toy examples of arXiv 2405.02041: two parameters, so that the fields of R, M and C can be drawn whole.

An integrator of 4 steps with a controller theta_1 x^2 + theta_2 x; and a paraboloid to whose gradient a rotation
is added. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs.systems import Integrator
from bptt_studies.toys.descent import descend
from bptt_trainers.analysis.fields import SHOWN_RULES, STENCIL_STEP, Sample, Table, evaluate, grid, rules_sample
from bptt_trainers.analysis.planes import natural_plane
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, RULES, Directions, combined
from bptt_trainers.directions.stacked import StackedController

# The integrator
X_0, TARGET, HORIZON = -0.3, 2.0, 4
REACH = 4.0  # theta in [-4, 4]^2
SIZE = 81  # points of the grid along each axis
FINE = 401  # likewise, to find where the loss is 0
STARTS = 33  # likewise, where Adam starts
LEARNING_RATES = (0.01, 0.1)
STEPS = 2000
DRAWN_EVERY = 4  # of them, along each axis, have their path drawn
KEEP_EVERY = 20  # steps of a path
SOLVED = 1e-4  # a loss below this counts as a global minimum, where it is 0

# The rotation
START = (2.0, 4.0)
STRENGTHS = (1.0, 2.0, 4.0)
ROTATION_RATES = (0.01, 0.03, 0.1)
ROTATION_STEPS = 3000
REACHED = 1e-3
LATE = 1000  # steps, the last ones
SHOWN = ((2.0, 0.03), (2.0, 0.1))  # strength and learning rate of what is drawn

SPAN = (1.0, 99.0)  # percentiles between which the decades of a magnitude are counted
AT_ONCE = 2**15  # parameter vectors

LABELS = (r"$\theta_1$", r"$\theta_2$")

Row = dict[str, str | int | float]


class Quadratic(nn.Module):
    """The controller theta_1 x^2 + theta_2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """States (B, 1) -> actions (B, 1)."""
        return self.theta[0] * x**2 + self.theta[1] * x


def toy_fields(sample: Sample, size: int = SIZE) -> Table:
    """The fields over theta in [-4, 4]^2: a is theta_1, b is theta_2."""
    plane = natural_plane({"theta": torch.zeros(2, dtype=torch.float64)}, LABELS)
    return evaluate(sample, plane, square_grid(size), STENCIL_STEP * REACH, at_once=AT_ONCE)


def square_grid(count: int) -> Tensor:
    """A grid over theta in [-4, 4]^2, (count^2, 2)."""
    return grid((0.0, 0.0), REACH, count)


# The integrator


def integrator_sample() -> Sample:
    """Loss and directions of the integrator from x_0, by theta."""
    return rules_sample(_integrator(), Quadratic(), _x_0(1))


def residual(theta: Tensor) -> Tensor:
    """x_4 - y by theta, (E, 2): (E,). The loss is half its square."""
    stack = StackedController(Quadratic(), {"theta": theta})
    return rollout(_integrator(), stack, _x_0(len(theta))).states[-1, :, 0] - TARGET


def zero_loss_points(size: int = FINE) -> Tensor:
    """Where the lines of a fine grid cross the curves on which the loss is 0, interpolated: (P, 2)."""
    theta = square_grid(size)
    error, theta = residual(theta).view(size, size), theta.view(size, size, 2)
    found = []
    for axis in (0, 1):
        (before, after), (start, end) = ([p.narrow(axis, i, size - 1) for i in (0, 1)] for p in (error, theta))
        crosses = before.sign() != after.sign()
        share = (before / (before - after))[crosses].unsqueeze(1)
        found.append(start[crosses] + share * (end - start)[crosses])
    return torch.cat(found)


def minima_rows(theta: Tensor) -> list[Row]:
    """What the fields do beside the curves of zero loss, by points on them, (P, 2).

    R and M both have the factor x_4 - y. With g_R and g_M what is left of them, descent along M changes
    x_4 - y at the rate -(x_4 - y) g_R . g_M: to 0 where g_R . g_M > 0, away from it elsewhere. The same with C.
    """
    _, directions = integrator_sample()({"theta": theta})
    R = directions["R"]["theta"]
    rows: list[Row] = []
    for rule in SHOWN_RULES:
        towards = (R * directions[rule]["theta"]).sum(1)
        row: Row = {"rule": rule, "points": len(theta)}
        for name, share in (("attracts", towards > 0.0), ("repels", towards < 0.0), ("is_0", towards == 0.0)):
            row[name] = float(share.double().mean())
        rows.append(row)
    return rows


def _integrator() -> Integrator:
    return Integrator(target=TARGET, horizon=HORIZON)


def _x_0(batch: int) -> Tensor:
    return torch.full((batch, 1), X_0, dtype=torch.float64)


def magnitude_rows(table: Table) -> list[Row]:
    """How many decades the lengths of the fields span, and what is left without the factor x_4 - y in them."""
    error = np.sqrt(2.0 * table["loss"])
    lengths = {rule: table[f"{rule}_norm"] for rule in SHOWN_RULES}
    lengths |= {"|x_4 - y|": error} | {f"{rule} / |x_4 - y|": lengths[rule] / error for rule in SHOWN_RULES}
    rows: list[Row] = []
    for name, values in lengths.items():
        low, middle, high = np.percentile(values[np.isfinite(values) & (values > 0)], (SPAN[0], 50.0, SPAN[1]))
        rows.append({"of": name, "p1": low, "median": middle, "p99": high, "decades": math.log10(high / low)})
    return rows


# The rotation


def rotation_sample(strength: float) -> Sample:
    """L = theta_1^2 + theta_2^2. R is its gradient; M is R and `strength` times R turned by 90 degrees."""

    def sample(parameters: Directions) -> tuple[Tensor, Mapping[str, Directions]]:
        theta = parameters["theta"]
        R = 2.0 * theta
        M = R + strength * torch.stack([-R[:, 1], R[:, 0]], dim=1)
        C = combined(RULES["C"], {REGULAR: {"theta": R}, MODIFIED: {"theta": M}})
        return theta.square().sum(1), {"R": {"theta": R}, "M": {"theta": M}, "C": C}

    return sample


# Adam on the fields


@dataclass(frozen=True)
class Descent:
    """What Adam went through on one field, from E starts.

    Attributes:
        steps: those that are kept, (K,); 0 is the start.
        paths: where it was after them, (K, E, 2).
        losses: likewise, (K, E).
        stands: whether the direction at the end is 0, (E,).
    """

    steps: np.ndarray
    paths: np.ndarray
    losses: np.ndarray
    stands: np.ndarray


def descents(
    sample: Sample, starts: Tensor, learning_rates: Sequence[float], steps: int, keep_every: int = 1
) -> dict[float, dict[str, Descent]]:
    """Adam on the fields of R, M and C, from many starts at once: it works on each component alone.

    Args:
        sample: gives the directions, which take the gradient's place.
        starts: (E, 2).
        learning_rates: of Adam; its other settings are torch's defaults.
        steps: how many.
        keep_every: keep the start and what comes after every so many steps.

    Returns:
        By learning rate and rule.
    """
    return {rate: _descents(sample, starts, [rate] * steps, keep_every) for rate in learning_rates}


def _descents(sample: Sample, starts: Tensor, rates: Sequence[float], keep_every: int) -> dict[str, Descent]:
    points = list(descend(sample, {"theta": starts}, SHOWN_RULES, rates))
    kept = points[::keep_every]
    paths = torch.stack([point.parameters["theta"] for point in kept], dim=1).numpy()  # (rules, K, E, 2)
    losses = torch.stack([point.losses for point in kept], dim=1).numpy()
    stands = (points[-1].directions["theta"] == 0.0).all(-1).numpy()
    steps = keep_every * np.arange(len(kept))
    return {rule: Descent(steps, paths[i], losses[i], stands[i]) for i, rule in enumerate(SHOWN_RULES)}


def drawn_starts() -> np.ndarray:
    """Those of the STARTS x STARTS starts whose paths are drawn."""
    return np.arange(STARTS**2).reshape(STARTS, STARTS)[::DRAWN_EVERY, ::DRAWN_EVERY].flatten()


def adam_rows(learning_rate: float, found: Mapping[str, Descent]) -> list[Row]:
    """The shares of the starts that end in a global minimum, and that stand elsewhere as the direction is 0."""
    rows: list[Row] = []
    for rule, descent in found.items():
        solved = descent.losses[-1] < SOLVED
        row: Row = {"rule": rule, "learning_rate": learning_rate, "steps": int(descent.steps[-1])}
        row |= {"starts": len(solved), "solved": float(solved.mean())}
        row |= {"stands": float((descent.stands & ~solved).mean())}
        row |= {"median_loss": float(np.median(descent.losses[-1]))}
        rows.append(row)
    return rows


def rotation_rows(strength: float, learning_rate: float, found: Mapping[str, Descent]) -> list[Row]:
    """Steps until the loss is below 1e-3 first, and for good; turns around the minimum until first; late losses."""
    rows: list[Row] = []
    for rule, descent in found.items():
        loss = descent.losses[:, 0]
        below = np.flatnonzero(loss < REACHED)
        above = np.flatnonzero(~(loss < REACHED))
        first = int(below[0]) if len(below) else math.inf
        row: Row = {"strength": strength, "learning_rate": learning_rate, "rule": rule, "first": first}
        row |= {"for_good": int(above[-1]) + 1 if above[-1] < len(loss) - 1 else math.inf}
        row |= {"turns": turns(descent.paths[: (below[0] if len(below) else len(loss)), 0])}
        row |= {"end_loss": float(loss[-1]), "late_max": float(loss[-LATE:].max())}
        rows.append(row)
    return rows


def turns(path: np.ndarray) -> float:
    """How often a path (K, 2) goes around (0, 0), anticlockwise."""
    angles = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
    return float(angles[-1] - angles[0]) / (2.0 * math.pi)
