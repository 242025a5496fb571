"""Whether slopes are what they should be at states along episodes, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bptt_envs import System
from bptt_envs.contract import check_at
from bptt_trainers.analysis.differences import Comparison, compare_slopes
from bptt_trainers.analysis.findings import Finding, component
from bptt_trainers.analysis.influence import not_finite
from bptt_trainers.directions.rollout import Trajectory

COMPARED_TIMES = 8  # steps of an episode whose slopes are compared with differences
COMPARED_EPISODES = 2


def compared(system: System, acted: Trajectory, pushed: Trajectory) -> tuple[list[Comparison], list[Finding]]:
    """Compare slopes with differences and closed forms with autograd.

    Args:
        system: the physics.
        acted: episodes of a controller, float64.
        pushed: episodes of random actions, as many.
    """
    count = min(acted.horizon, COMPARED_TIMES)
    times = torch.linspace(0, acted.horizon - 1, count).round().long().unique()
    parts = [one.states[times][:, :COMPARED_EPISODES].flatten(0, 1) for one in (acted, pushed)]
    states = torch.cat(parts)
    actions = torch.cat([one.actions[times][:, :COMPARED_EPISODES].flatten(0, 1) for one in (acted, pushed)])
    over = system.episode_over(states)
    if over is not None:
        states, actions = states[~over], actions[~over]
    if not len(states):
        return [], [Finding("warning", "every episode is over at its start: slopes were not compared.")]
    actions = system.bound(actions)
    where = f"at {len(states)} states along episodes, in float64"
    slopes = compare_slopes(system, states, actions)
    single = any(one.single for one in slopes if one.method == "step")
    try:
        check_at(system, states, actions, digits=torch.float32 if single else None)
        found = [Finding("ok", f"values and closed forms keep their contract {where}, too.")]
    except ValueError as error:
        found = [Finding("error", f"{error} This is seen {where}.")]
    found += [_difference(system, one) for one in slopes if not one.right]
    found += [_rough(system, method) for method in dict.fromkeys(one.method for one in slopes if one.single)]
    return slopes, found + _agreement(slopes)


def _rough(system: System, method: str) -> Finding:
    """That a function computes in float32 inside, in words."""
    return Finding(
        "warning",
        f"{system.class_name}.{method} computes in float32 inside, or to a tolerance like it, though what comes in is "
        "float64: changes of an argument by 1e-9 of its size do not show in what it gives. Its slopes were compared "
        "over larger steps, less exactly, and float64 has no use with it. If that is not meant, keep the dtype of what "
        "comes in: no float(), constants in that dtype, in JAX 64 bits (jax_enable_x64).",
    )


def _difference(system: System, one: Comparison) -> Finding:
    """Slopes that are not those of differences, in words."""
    result = {"step": "next_state", "observe": "observation"}.get(one.method)
    of = "" if result is None else f" of {component(system, result, one.result)}"
    size = "infinitely" if math.isinf(one.error) else f"by {one.error:.1e} of the largest"
    words = (
        f"{system.class_name}.{one.method}: autograd's slope{of} by {component(system, one.argument, one.component)} "
        f"is {one.slope:.6g}, central differences say {one.difference:.6g}, off {size}"
    )
    if system.surrogate_gradient and one.method == "step":
        return Finding("note", f"{words}: the class declares that it is another one on purpose (surrogate_gradient).")
    mended = "The backward pass must be the slope of the function: no detach, no backward function of another kind."
    if one.method == "step":
        mended += " If it is on purpose, as of a smoothed contact, let the class say so: surrogate_gradient = True."
    return Finding("error", f"{words}. {mended}")


def _agreement(slopes: Sequence[Comparison]) -> list[Finding]:
    """The functions whose slopes are those of differences, in words."""
    right = [one for one in slopes if one.right and not math.isnan(one.error)]
    blind = [one for one in slopes if math.isnan(one.error)]
    found = []
    if right:
        error = max(one.error for one in right)
        points, left_out = sum(one.points for one in right), sum(one.left_out for one in right)
        words = (
            f"autograd's slopes of {_named(right)} are central differences, to {error:.0e} of the largest; {left_out} "
            f"of {points} points left out, at kinks or jumps."
        )
        found.append(Finding("ok", words))
    if blind:
        words = f"{_named(blind)}: no differences to compare with, at kinks only or next to states that are refused."
        found.append(Finding("warning", words))
    return found


def _named(slopes: Sequence[Comparison]) -> str:
    """Functions with the arguments by which they are looked at, in words."""
    names: dict[str, list[str]] = {}
    for one in slopes:
        names.setdefault(one.method, []).append(one.argument)
    return ", ".join(f"{method} by {' and '.join(arguments)}" for method, arguments in names.items())


def numbers(system: System, trajectory: Trajectory) -> list[Finding]:
    """Where slopes are not finite along the controller's episodes, in words."""
    bad = not_finite(system, trajectory)
    if not bad:
        return [Finding("ok", "slopes are finite along the controller's episodes.")]
    return [
        Finding(
            "error",
            f"{system.class_name}.{one.method}: its slope by {component(system, one.argument, one.component)} is "
            f"infinite or no number at step {one.step} of {trajectory.horizon} of episode {one.sample}, and at "
            f"{one.share:.1%} of all. A square root, a norm, a power or an arc function at the end of its domain does "
            "that: keep what is in it away from there, by a small number added or a clamp before it.",
        )
        for one in bad
    ]
