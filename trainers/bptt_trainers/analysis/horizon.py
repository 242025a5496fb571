"""How feedback comes back through the horizon, and what it reaches, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System, Task
from bptt_trainers.analysis.findings import Finding, components
from bptt_trainers.analysis.growth import feedback, stretches
from bptt_trainers.analysis.influence import influence
from bptt_trainers.directions.policy_gradient import adjoint_engine
from bptt_trainers.directions.rollout import Trajectory

LOOPS = ("A", "A+BK")
MANY = 1e6  # times: feedback that grows or shrinks by more over the horizon is warned of
JUMP = 10.0  # a factor over one step that is named
OVERFLOW = 3e38  # the largest number of float32
NOTHING = 1e-12  # of the largest slope: a component below it has no influence
LARGE_STATE = 256  # numbers of a state up to which single steps are looked at by their Jacobians
PURPOSE = "norms under R"  # what needs the adjoint engine, in messages


@dataclass(frozen=True)
class Horizon:
    """How perturbations and feedback go through the steps of the controller's episodes.

    Attributes:
        feedback: mean over the episodes of |dL/dx_t| at t = 1 .. T, as R and as M feed it back, (2, T).
        times: the steps t of `stretches`, (K,).
        stretches: largest and smallest singular value of A_t and of A_t + B_t K_t, (2, 2, K), the most extreme of the
            first few episodes.
    """

    feedback: np.ndarray
    times: np.ndarray
    stretches: np.ndarray


def through_the_horizon(
    system: System,
    controller: nn.Module,
    start: Tensor,
    acted: Trajectory,
    pushed: Trajectory,
) -> tuple[Horizon | None, list[Finding]]:
    """Look at feedback on its way back, and at what it reaches.

    Args:
        system: the physics.
        controller: in float64.
        start: (B, *state_shape), float64.
        acted: the controller's episodes from there.
        pushed: episodes of random actions from there.
    """
    n = system.system.state_size if isinstance(system, Task) else system.state_size
    by_loop: Tensor | None = None
    horizon, found = None, []
    try:
        engine = adjoint_engine(system, controller, start, PURPOSE)
    except ValueError as error:
        found.append(Finding("note", f"the feedback under R and M was not looked at: {error}"))
    else:
        arriving, _ = feedback(engine, acted)
        by_loop = arriving[:, 0, :, :n].abs().amax((0, 1))
        norms = arriving.norm(dim=-1).mean(-1).t()
        times: list[int] = []
        values = torch.empty(2, 2, 0)
        if n <= LARGE_STATE:
            times, values = stretches(system, controller, acted)
            found += [_stretched(name, one, times) for name, one in zip(LOOPS, values, strict=True)]
        else:
            found.append(Finding("note", f"single steps were not looked at: their Jacobians have {n}^2 numbers."))
        for rule, norm in zip(("R", "M"), norms, strict=True):
            found.append(_fed_back(rule, norm.tolist()))
        horizon = Horizon(norms.cpu().numpy(), np.array(times), values.cpu().numpy())
    return horizon, found + _influences(system, [acted, pushed], by_loop, n)


def _stretched(name: str, values: Tensor, times: Sequence[int]) -> Finding:
    """The singular values of single steps, (2, K), at steps t, (K,), in words."""
    largest, smallest = values
    where = {"A": "the physics alone, A", "A+BK": "the loop with the controller, A + B K"}[name]
    low, high = (f"{float(one):.3g} (step {times[int(i)]})" for one, i in (smallest.min(0), largest.max(0)))
    middle = float(largest.median())
    return Finding(
        "ok",
        f"single steps of {where}: singular values of {low} to {high}, the largest {middle:.3g} in the median step.",
    )


def _fed_back(rule: str, norms: Sequence[float]) -> Finding:
    """How the norm of dL/dx_t goes from the end to the start, in words."""
    steps = len(norms)
    bad = [t for t, norm in enumerate(norms, start=1) if not norm <= OVERFLOW]
    if bad:
        return Finding(
            "error",
            f"feedback under {rule}, |dL/dx_t|, is more than float32 holds ({OVERFLOW:.0e}) or no number from step "
            f"{bad[-1]} of {steps} back: fewer steps (horizon), a smaller dt or shorter feedback would keep it finite.",
        )
    there = [(t, norm) for t, norm in enumerate(norms, start=1) if norm > 0.0]
    if len(there) < steps / 2:
        words = f"feedback under {rule}, |dL/dx_t|, is 0 at {steps - len(there)} of {steps} steps: nothing comes back."
        return Finding("warning", words)
    (first, begin), (last, end) = there[0], there[-1]
    words = f"feedback under {rule}, |dL/dx_t|: {end:.2g} at step {last}, {begin:.2g} at step {first}"
    decades = math.log10(begin) - math.log10(end)
    middle, most = max(there, key=lambda one: abs(math.log10(one[1]) - math.log10(end)))
    extreme = abs(math.log10(most) - math.log10(end))
    if extreme > abs(decades) + 1.0:
        words += f", {most:.2g} at step {middle} between them"
    many = extreme > math.log10(MANY)
    if abs(decades) < 1.0:
        words += ", which is within a factor of 10" if extreme < 1.0 else ""
    else:
        verb = {True: ("grows", "explodes"), False: ("fades", "vanishes")}[decades > 0][many]
        words += f": on its way back it {verb} by a factor of 10 every {(last - first) / abs(decades):.3g} steps"
    return Finding("warning" if many else "ok", f"{words}{_jump(there)}.")


def _jump(there: Sequence[tuple[int, float]]) -> str:
    """The largest change over one step, if it is large beside what all of them do, in words."""
    factors = [(t, before / after) for (t, before), (_, after) in pairwise(there)]
    step, factor = max(factors, key=lambda one: abs(math.log10(one[1])), default=(0, 1.0))
    usual = abs(math.log10(there[0][1] / there[-1][1])) / max(1, len(factors))
    alike = abs(math.log10(factor)) < math.log10(JUMP) + usual
    return "" if alike else f"; by a factor of {factor:.2g} from step {step + 1} to {step} alone"


def _influences(system: System, episodes: Sequence[Trajectory], by_loop: Tensor | None, n: int) -> list[Finding]:
    """Which actions and states have no influence on the loss."""
    found = []
    each = [influence(system, one) for one in episodes]
    by_action = torch.stack([one.by_action for one in each]).amax(0)
    by_state = torch.stack([one.by_state for one in each]).amax(0)[:n]
    dead, still = _without(by_action), _without(by_state)
    unseen = [i for i in still if by_loop is not None and i in _without(by_loop)]
    fed = [i for i in still if i not in unseen]
    if dead:
        words = f"no influence on the loss, at any step of these episodes: {components(system, 'action', dead)}."
        found.append(Finding("warning", f"{words} Nothing trains what gives it."))
    else:
        found.append(Finding("ok", "every component of the action has an influence on the loss."))
    if unseen:
        names = components(system, "state", unseen)
        found.append(Finding("warning", f"no influence on the loss, nor does the controller act on it: {names}."))
    if fed:
        words = f"no influence on the loss but through the controller: {components(system, 'state', fed)}."
        found.append(Finding("note", f"{words} M feeds nothing back by it."))
    if not still:
        found.append(Finding("ok", "every component of the state has an influence on the loss."))
    return found


def _without(slopes: Tensor) -> list[int]:
    """The components whose slope is nothing beside the largest."""
    return (slopes <= NOTHING * slopes.amax()).nonzero().flatten().tolist()
