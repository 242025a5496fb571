"""What the gradients of R and M are over a sample of episodes: their size, their noise, their angle, their balance."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.task import as_task
from bptt_trainers.analysis.diagnostics import diagnose
from bptt_trainers.directions.rules import MODIFIED, REGULAR, Directions, cosine, sign_agreement
from bptt_trainers.directions.stacked import StackedEngine

PASSES = (REGULAR, MODIFIED)
BALANCE = 5, 95  # percentiles of |dL/dx_t| over the steps, between which its decades are counted


@dataclass(frozen=True)
class Gradients:
    """Directions R and M at one controller.

    Attributes:
        norm_R: norm of the mean over the episodes.
        norm_M: likewise.
        noise_R: root of the mean squared distance of an episode's direction from the mean, over the norm of the mean;
            NaN where the mean is 0.
        noise_M: likewise.
        cosine: of the angle between the means.
        agreement: share of the components in which the means have the same sign, which is what C keeps.
        balance_R: decades between the 5th and the 95th percentile over the steps t of |dL/dx_t|, as R feeds it back.
        balance_M: likewise, as M does.
        growth_physics: log10 of the largest singular value of A_{T-1} ... A_0, the mean over a few episodes.
        growth_loop: likewise of the closed loop, A_t + B_t K_t.
    """

    norm_R: float
    norm_M: float
    noise_R: float
    noise_M: float
    cosine: float
    agreement: float
    balance_R: float
    balance_M: float
    growth_physics: float
    growth_loop: float


def measure(system: System, controller: nn.Module, states: Tensor) -> Gradients:
    """Measure the directions of a controller, in float64.

    Args:
        system: the physics.
        controller: one that the adjoint engine can serve; it is left as it is.
        states: start states, (B, *state_shape).
    """
    system, controller, states = as_task(system), copy.deepcopy(controller).double(), states.double()
    found = diagnose(system, controller, states)
    members = {n: p.detach().expand(len(states), *p.shape).clone() for n, p in controller.named_parameters()}
    _, passes = StackedEngine(system, controller)(members, states.unsqueeze(1), PASSES, look=False)
    sizes = {feedback: _size_and_noise(by_name) for feedback, by_name in passes.items()}
    R, M = ({name: one.mean(0) for name, one in passes[feedback].items()} for feedback in PASSES)
    return Gradients(
        norm_R=sizes[REGULAR][0],
        norm_M=sizes[MODIFIED][0],
        noise_R=sizes[REGULAR][1],
        noise_M=sizes[MODIFIED][1],
        cosine=cosine(R, M),
        agreement=sign_agreement(R, M),
        balance_R=_decades(found.adjoints[0]),
        balance_M=_decades(found.adjoints[1]),
        growth_physics=float(found.growth[0, 0]),
        growth_loop=float(found.growth[1, 0]),
    )


def _size_and_noise(directions: Directions) -> tuple[float, float]:
    """The norm of the mean of directions (B, ...), and their noise, which is NaN where that is 0."""
    each = torch.cat([one.flatten(1) for one in directions.values()], dim=1)
    mean = each.mean(0)
    norm, off = float(mean.norm()), float((each - mean).square().sum(1).mean().sqrt())
    return norm, off / norm if norm else math.nan


def _decades(sizes: np.ndarray) -> float:
    """Between two percentiles of what is above 0; 0 where nothing is."""
    above = sizes[sizes > 0.0]
    return float(np.subtract(*np.percentile(np.log10(above), BALANCE[::-1]))) if len(above) else 0.0
