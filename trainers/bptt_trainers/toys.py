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
from bptt_trainers.fields import SHOWN_RULES, STENCIL_STEP, Sample, Table, evaluate, grid, rules_sample
from bptt_trainers.planes import natural_plane
from bptt_trainers.rollout import rollout
from bptt_trainers.rules import MODIFIED, REGULAR, RULES, Directions, combined
from bptt_trainers.stacked import StackedController

# The integrator
X_0, TARGET, HORIZON = -0.3, 2.0, 4
REACH = 4.0  # theta in [-4, 4]^2
SIZE = 81  # points of the grid along each axis
STARTS = 41  # likewise, where Adam starts
LEARNING_RATES = (0.01, 0.1)
STEPS = 2000
SOLVED = 1e-4  # a loss below this counts as a global minimum, where it is 0

# The rotation
START = (2.0, 4.0)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
ROTATION_RATES = (0.01, 0.03, 0.1)
ROTATION_STEPS = 3000
REACHED = 1e-3

SPAN = (1.0, 99.0)  # percentiles between which the decades of a magnitude are counted
AT_ONCE = 2**15  # parameter vectors

Row = dict[str, str | int | float]


class Quadratic(nn.Module):
    """The controller theta_1 x^2 + theta_2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """States (B, 1) -> actions (B, 1)."""
        return self.theta[0] * x**2 + self.theta[1] * x


def toy_fields(sample: Sample, reach: float = REACH, size: int = SIZE) -> Table:
    """The fields over theta in [-reach, reach]^2: a is theta_1, b is theta_2."""
    plane = natural_plane({"theta": torch.zeros(2, dtype=torch.float64)}, (r"$\theta_1$", r"$\theta_2$"))
    step = STENCIL_STEP * 2.0 * reach / (size - 1)
    return evaluate(sample, plane, grid((0.0, 0.0), reach, size), step, at_once=AT_ONCE)


# The integrator


def integrator_sample() -> Sample:
    """Loss and directions of the integrator from x_0, by theta."""
    return rules_sample(_integrator(), Quadratic(), _x_0(1))


def residual(theta: Tensor) -> Tensor:
    """x_4 - y by theta, (E, 2): (E,). The loss is half its square."""
    stack = StackedController(Quadratic(), {"theta": theta}, 1)
    return rollout(_integrator(), stack, _x_0(len(theta))).states[-1, :, 0] - TARGET


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
        rows.append({"of": name, "1 %": low, "median": middle, "99 %": high, "decades": math.log10(high / low)})
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
    sample: Sample, starts: Tensor, learning_rate: float, steps: int, keep_every: int = 1
) -> dict[str, Descent]:
    """Adam on the fields of R, M and C, from many starts at once: it works on each component alone.

    Args:
        sample: gives the directions, which take the gradient's place.
        starts: (E, 2).
        learning_rate: of Adam; its other settings are torch's defaults.
        steps: how many.
        keep_every: keep the start and what comes after every so many steps.

    Returns:
        By rule.
    """
    theta = starts.repeat(len(SHOWN_RULES), 1).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=learning_rate)
    kept, paths, losses = [], [], []
    for step in range(steps + 1):
        loss, directions = sample({"theta": theta.detach()})
        theta.grad = torch.cat(
            [directions[rule]["theta"].chunk(len(SHOWN_RULES))[i] for i, rule in enumerate(SHOWN_RULES)]
        )
        if step % keep_every == 0:
            kept.append(step)
            paths.append(theta.detach().clone())
            losses.append(loss)
        if step < steps:
            optimizer.step()
    stands = (theta.grad == 0.0).all(1)
    parts = (torch.stack(paths).chunk(3, dim=1), torch.stack(losses).chunk(3, dim=1), stands.chunk(3))
    return {
        rule: Descent(np.array(kept), path.numpy(), loss.numpy(), stand.numpy())
        for rule, path, loss, stand in zip(SHOWN_RULES, *parts, strict=True)
    }


def starts_grid(count: int, reach: float = REACH) -> Tensor:
    """A grid of starts in [-reach, reach]^2, (count^2, 2)."""
    return grid((0.0, 0.0), reach, count)


def adam_rows(learning_rate: float, found: Mapping[str, Descent]) -> list[Row]:
    """The share of starts that end in a global minimum, and that stand where the direction is 0 elsewhere."""
    rows: list[Row] = []
    for rule, descent in found.items():
        solved = descent.losses[-1] < SOLVED
        row: Row = {"rule": rule, "learning rate": learning_rate, "steps": int(descent.steps[-1])}
        row |= {"starts": len(solved), "solved": float(solved.mean())}
        row |= {"direction 0": float((descent.stands & ~solved).mean()), "median loss": float(np.median(descent.losses[-1]))}
        rows.append(row)
    return rows


def rotation_rows(strength: float, learning_rate: float, found: Mapping[str, Descent]) -> list[Row]:
    """When the loss is below 1e-3 first, and from when on for good; how often Adam went around the minimum."""
    rows: list[Row] = []
    for rule, descent in found.items():
        loss = descent.losses[:, 0]
        below = np.flatnonzero(loss < REACHED)
        above = np.flatnonzero(~(loss < REACHED))
        first = int(below[0]) if len(below) else math.inf
        row: Row = {"strength": strength, "learning rate": learning_rate, "rule": rule, "first below 1e-3": first}
        row |= {"below from": int(above[-1]) + 1 if above[-1] < len(loss) - 1 else math.inf}
        row |= {"turns before": turns(descent.paths[: (below[0] if len(below) else len(loss)), 0])}
        row |= {"loss at the end": float(loss[-1]), "largest of the last 1000": float(loss[-1000:].max())}
        rows.append(row)
    return rows


def turns(path: np.ndarray) -> float:
    """How often a path (K, 2) goes around (0, 0), anticlockwise."""
    angles = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))
    return float(angles[-1] - angles[0]) / (2.0 * math.pi)
