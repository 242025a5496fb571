"""The fields of the update rules over a plane in parameter space.

R, M and C are taken in the full parameter space at each point and then projected on the plane. A field that is
a gradient has no rotation there; those of M and C need not be one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System, checks
from bptt_trainers.analysis.planes import Plane
from bptt_trainers.directions.augmented import augmented
from bptt_trainers.directions.policy_gradient import stacked_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR, RULES, Directions, combined
from bptt_trainers.records.tables import csv_text, read_rows

SHOWN_RULES = ("R", "M", "C")
OF_A_RULE = ("a", "b", "norm", "curl", "rotation")
COLUMNS = ("a", "b", "loss", *(f"{rule}_{what}" for rule in SHOWN_RULES for what in OF_A_RULE), "C_zero")

Table = dict[str, np.ndarray]
"""P points: for each of COLUMNS an array (P,), see `evaluate`."""

Sample = Callable[[Directions], tuple[Tensor, Mapping[str, Directions]]]
"""From E parameter vectors, (E, *shape) each, to losses, (E,), and for each rule directions, (E, *shape)."""

# What goes through at once, at most. On one core cart-pole was fastest with some 1,000 episodes.
EPISODES = 1024
STATE_NUMBERS = 2**25
PARAMETER_NUMBERS = 2**22

STENCIL = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
STENCIL_STEP = 0.003  # of half the width of a square


def rules_sample(system: System, controller: nn.Module, initial_states: Tensor) -> Sample:
    """The loss and R, M and C of a controller, as functions of its parameters.

    Args:
        system: the physics.
        controller: a module that the adjoint engine can serve; its own parameters are not used.
        initial_states: (B, *state_shape); loss, R and M are means over them, C is that of the means.

    Raises:
        ValueError: if the adjoint engine cannot serve the controller.
    """
    engine = stacked_engine(system, controller, initial_states, "fields")

    def sample(parameters: Directions) -> tuple[Tensor, Mapping[str, Directions]]:
        members = len(next(iter(parameters.values())))
        states = initial_states.expand(members, *initial_states.shape)
        losses, passes = engine(parameters, states, (REGULAR, MODIFIED))
        return losses.mean(1), {rule: combined(RULES[rule], passes) for rule in SHOWN_RULES}

    return sample


def vectors_at_once(system: System, controller: nn.Module, episodes: int) -> int:
    """How many parameter vectors to evaluate at once, from `episodes` start states each."""
    numbers = sum(p.numel() for p in controller.parameters() if p.requires_grad)
    trajectory = episodes * system.horizon * augmented(system, controller).state_size
    return max(1, min(EPISODES // episodes, STATE_NUMBERS // trajectory, PARAMETER_NUMBERS // numbers))


def grid(center: tuple[float, float], radius: float, size: int) -> Tensor:
    """The points of a square around `center`, (size^2, 2), row by row: a varies first.

    Raises:
        ValueError: if the radius is not above 0, or the size not an integer above 1.
    """
    radius, size = checks.positive("radius", radius), checks.integer("size", size, 2)
    checks.in_memory("size", size, 8 * size)
    offsets = torch.linspace(-radius, radius, size, dtype=torch.float64)
    b, a = torch.meshgrid(center[1] + offsets, center[0] + offsets, indexing="ij")
    return torch.stack([a.flatten(), b.flatten()], dim=1)


def evaluate(
    sample: Sample,
    plane: Plane,
    points: Tensor,
    step: float,
    *,
    at_once: int,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Table:
    """The fields at points of a plane.

    The derivatives in the plane are central differences over points of their own, `step` to either side, so
    that they do not depend on how fine a grid is.

    Args:
        sample: gives losses and directions.
        plane: where.
        points: coordinates in it, (P, 2).
        step: of the differences.
        at_once: parameter vectors that are evaluated together; five are needed for a point.
        on_progress: called with a number of points when they are done.

    Returns:
        Columns (P,), NaN where a value is not finite:
        a, b, loss;
        R_a, R_b, ...: components of the field along the axes;
        R_norm, ...: norm of the direction in the full parameter space;
        R_curl, ...: d(R_b)/da - d(R_a)/db;
        R_rotation, ...: curl / (sqrt(2) |J|), with |J| the Frobenius norm of the derivatives of (R_a, R_b) by
        (a, b): from -1 to 1, 0 for a gradient, 1 for a pure rotation, anticlockwise. NaN where J is 0;
        C_zero: share of the components, in the full space, that are 0 in C.
    """
    parts = []
    for part in points.double().split(max(1, at_once // len(STENCIL))):
        parts.append(_evaluate(sample, plane, part, step))
        on_progress(len(part))
    return {column: np.concatenate([part[column] for part in parts]) for column in COLUMNS}


def _evaluate(sample: Sample, plane: Plane, points: Tensor, step: float) -> Table:
    around = (points.unsqueeze(1) + step * STENCIL).flatten(0, 1)
    losses, directions = sample(plane.points(around))
    table = {"a": points[:, 0], "b": points[:, 1], "loss": losses.double()[:: len(STENCIL)]}
    for rule in SHOWN_RULES:
        field = plane.project(dict(directions[rule])).unflatten(0, (-1, len(STENCIL)))  # (P, 5, 2)
        here = {name: d[:: len(STENCIL)].double().flatten(1) for name, d in directions[rule].items()}
        norm = torch.stack([d.square().sum(1) for d in here.values()]).sum(0).sqrt()
        by_a, by_b = ((field[:, i] - field[:, i + 1]) / (2.0 * step) for i in (1, 3))
        curl, rotation = rotation_of(torch.stack([by_a, by_b], dim=2))
        columns = (field[:, 0, 0], field[:, 0, 1], norm, curl, rotation)
        table |= {f"{rule}_{what}": column for what, column in zip(OF_A_RULE, columns, strict=True)}
    zeros = torch.cat([(d == 0.0).double() for d in here.values()], dim=1).mean(1)
    table["C_zero"] = torch.where(norm.isfinite(), zeros, math.nan)
    return {name: torch.where(column.isfinite(), column, math.nan).numpy() for name, column in table.items()}


def rotation_of(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """The curl of plane fields, and the same relative to all of their derivatives.

    Args:
        jacobian: (P, 2, 2), the derivative of component i by coordinate j at [:, i, j].

    Returns:
        curl, (P,), and curl / (sqrt(2) |jacobian|), (P,), between -1 and 1; NaN where the jacobian is 0.
    """
    curl = jacobian[:, 1, 0] - jacobian[:, 0, 1]
    return curl, curl / (math.sqrt(2.0) * jacobian.flatten(1).norm(dim=1))


def to_csv(tables: Mapping[int, Table]) -> str:
    """Tables by epoch as CSV text, to 6 digits."""
    rows = (
        (epoch, *(f"{value:.6g}" for value in row))
        for epoch, table in tables.items()
        for row in zip(*table.values(), strict=True)
    )
    return csv_text(("epoch", *COLUMNS), rows)


def read_csv(path: Path) -> dict[int, Table]:
    """Tables by epoch, as `to_csv` wrote them; none if there is no such file.

    Raises:
        RunFolderError: if it cannot be read or has other columns.
    """
    columns = ("epoch", *COLUMNS)
    rows = read_rows(path, lambda line: [float(cell) for cell in line.values()], columns=columns, missing_ok=True)
    values = np.array(rows).reshape(-1, len(columns))
    epochs = values[:, 0].astype(int)
    return {
        epoch: {name: values[epochs == epoch, 1 + i] for i, name in enumerate(COLUMNS)}
        for epoch in dict.fromkeys(epochs.tolist())
    }
