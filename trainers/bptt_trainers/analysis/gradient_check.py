"""Check the gradients of an environment, and how they come back through the horizon of an episode."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System, Task, checks
from bptt_envs.contract import check_at, promises
from bptt_trainers.analysis.differences import Comparison, compare_slopes
from bptt_trainers.analysis.findings import Finding, Level, report
from bptt_trainers.analysis.growth import feedback, stretches
from bptt_trainers.analysis.influence import clamped, constant_observations, influence, not_finite
from bptt_trainers.analysis.update_cost import UpdateCost, update_costs
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.policy_gradient import adjoint_engine, check_parameters, system_of
from bptt_trainers.directions.rollout import Trajectory, rollout
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.records.tables import csv_text

BATCH = 8  # episodes, and start states of an update that is timed
COMPARED_TIMES = 8  # steps of an episode whose slopes are compared with differences
COMPARED_EPISODES = 2
MOST_NAMED = 4  # components that are named one by one
SATURATED = 0.5  # share of clamped actions from which on it is warned of
MANY = 1e6  # times: feedback that grows or shrinks by more over the horizon is warned of
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


@dataclass(frozen=True)
class GradientCheck:
    """What `check_gradients` found.

    Attributes:
        findings: line by line.
        slopes: of each function by each argument against central differences.
        horizon: None where the adjoint engine cannot serve the controller, or errors left nothing to look at.
        costs: of an update by each engine.
    """

    findings: tuple[Finding, ...]
    slopes: tuple[Comparison, ...] = ()
    horizon: Horizon | None = None
    costs: tuple[UpdateCost, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something is wrong."""
        return any(one.level == "error" for one in self.findings)

    def text(self, width: int = 80) -> str:
        """The findings, for readers."""
        return report(self.findings, width)

    def steps_csv(self) -> str:
        """The numbers of `horizon`, a line a step; what was not measured is empty."""
        head = [
            "t",
            "feedback_R",
            "feedback_M",
            *(f"{end}_{loop}" for loop in LOOPS for end in ("largest", "smallest")),
        ]
        if self.horizon is None:
            return csv_text(head, [])
        arriving, places = self.horizon.feedback, {int(t): k for k, t in enumerate(self.horizon.times)}
        rows = []
        for t in range(arriving.shape[1] + 1):
            back = ["", ""] if t == 0 else [f"{value:.6g}" for value in arriving[:, t - 1]]
            here = self.horizon.stretches[..., places[t]].flatten().tolist() if t in places else []
            rows.append([t, *back, *(f"{value:.6g}" for value in here)] + [""] * (4 - len(here)))
        return csv_text(head, rows)


LOOPS = ("A", "A+BK")


def check_gradients(
    env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any] | System, controller: nn.Module | None = None
) -> GradientCheck:
    """Look for what spoils the gradients of an environment, and say it in words.

    The contract of its system, as a trainer checks it; in float64, along episodes of the controller and of random
    actions, slopes against central differences and `linearize` and `pullback` against autograd; where slopes are no
    numbers; how much single steps stretch perturbations, and how feedback grows on its way back under R and under M;
    states, actions and observations without any influence, actions beyond their bounds; what an update costs by either
    engine. It takes some seconds. Nothing is changed, random numbers of the caller's included.

    Args:
        env: an environment of this package, single or vectorised, or a system.
        controller: the one whose episodes are looked at, trained or not. None: the untrained default controller.

    Raises:
        TypeError, ValueError: if `env` is none of this package's, or the controller none that can be trained.
    """
    system = system_of(env)
    if controller is not None:
        checks.instance("controller", controller, nn.Module, "a torch.nn.Module")
        check_parameters(controller)
    like = next(iter(() if controller is None else controller.parameters()), torch.empty(0))
    with torch.random.fork_rng([like.device] if like.is_cuda else []), computing(like):
        found = _promised(system, like)
        if any(one.level == "error" for one in found):
            return GradientCheck(tuple(found))
        return _looked_at(system, default_controller(system) if controller is None else controller, found)


def _promised(system: System, like: Tensor) -> list[Finding]:
    """The contract of a system, in the dtype and on the device of its controller."""
    found = []
    for one in promises(system, dtype=like.dtype, device=like.device):
        found += [Finding("warning", words) for words in one.warned]
        if one.breach is not None:
            found.append(Finding("error", one.breach))
        elif not one.warned:
            found.append(Finding("ok", f"{one.words}."))
    return list(dict.fromkeys(found))


def _looked_at(system: System, controller: nn.Module, found: list[Finding]) -> GradientCheck:
    like = next(controller.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    with torch.no_grad():
        start = system.episode_start(system.initial_states(BATCH, generator, torch.float64), generator)
    double = copy.deepcopy(controller).double()
    with computing(start):
        acted = rollout(system, double, start)
        pushed = rollout(system, _random_policy(system, generator), start)
        for what, one in (("the controller", acted), ("random actions", pushed)):
            found += _finite_episodes(what, one)
        if not acted.states.isfinite().all():
            return GradientCheck(tuple(found))
        pushed = pushed if bool(pushed.states.isfinite().all()) else acted
        slopes = _compared(system, acted, pushed, found)
        found += _numbers(system, acted)
        horizon = _through_the_horizon(system, double, start, acted, pushed, found)
        _observed(system, acted, pushed, found)
        _bounded(system, acted, found)
    if any(one.level == "error" for one in found):
        return GradientCheck(tuple(found), tuple(slopes), horizon)
    with computing(like):
        costs = update_costs(system, copy.deepcopy(controller), start.to(like.dtype))
    found += [Finding("ok" if one.obstacle is None else "note", _costs(one)) for one in costs]
    return GradientCheck(tuple(found), tuple(slopes), horizon, tuple(costs))


def _random_policy(system: System, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    def act(observation: Tensor) -> Tensor:
        shape = (len(observation), *system.action_shape)
        uniform = torch.rand(shape, generator=generator, dtype=observation.dtype, device=observation.device)
        return system.action_at(2 * uniform - 1)

    return act


def _finite_episodes(what: str, trajectory: Trajectory) -> list[Finding]:
    bad = ~trajectory.states.flatten(1).isfinite().all(1)
    if not bad.any():
        return []
    level: Level = "error" if what == "the controller" else "warning"
    return [
        Finding(
            level,
            f"episodes of {what} are not finite from step {int(bad.nonzero()[0])} of {trajectory.horizon} on: fewer "
            "steps (horizon), a smaller dt or tighter bounds of the actions keep them finite.",
        )
    ]


# Slopes


def _compared(system: System, acted: Trajectory, pushed: Trajectory, found: list[Finding]) -> list[Comparison]:
    """Slopes against differences, closed forms against autograd, at states of both episodes."""
    count = min(acted.horizon, COMPARED_TIMES)
    times = torch.linspace(0, acted.horizon - 1, count).round().long().unique()
    parts = [one.states[times][:, :COMPARED_EPISODES].flatten(0, 1) for one in (acted, pushed)]
    states = torch.cat(parts)
    actions = torch.cat([one.actions[times][:, :COMPARED_EPISODES].flatten(0, 1) for one in (acted, pushed)])
    over = system.episode_over(states)
    if over is not None:
        states, actions = states[~over], actions[~over]
    if not len(states):
        found.append(Finding("warning", "every episode is over at its start: slopes were not compared."))
        return []
    actions = system.bound(actions)
    where = f"at {len(states)} states along episodes, in float64"
    try:
        check_at(system, states, actions)
        found.append(Finding("ok", f"values and closed forms keep their contract {where}, too."))
    except ValueError as error:
        found.append(Finding("error", f"{error} This is seen {where}."))
    slopes = compare_slopes(system, states, actions)
    found += [_difference(system, one) for one in slopes if not one.right]
    found += _agreement(slopes)
    return slopes


def _difference(system: System, one: Comparison) -> Finding:
    """Slopes that are not those of differences, in words."""
    result = {"step": "next_state", "observe": "observation"}.get(one.method)
    of = "" if result is None else f" of {_component(system, result, one.result)}"
    size = "infinitely" if math.isinf(one.error) else f"by {one.error:.1e} of the largest"
    words = (
        f"{system.class_name}.{one.method}: autograd's slope{of} by {_component(system, one.argument, one.component)} "
        f"is {one.slope:.6g}, central differences say {one.difference:.6g}, off {size}"
    )
    if system.surrogate_gradient and one.method == "step":
        return Finding("note", f"{words}: the class declares that it is another one on purpose (surrogate_gradient).")
    return Finding(
        "error",
        f"{words}. The backward pass must be the slope of the function: no detach, no backward function of another "
        "kind. If it is another one on purpose, as of a smoothed contact, let the class say so: "
        "surrogate_gradient = True.",
    )


def _components(system: System, argument: str, components: Sequence[int]) -> str:
    """Components in words, the first few of many."""
    named = [_component(system, argument, i) for i in components[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(components) - MOST_NAMED} more" if len(components) > MOST_NAMED else "")


def _agreement(slopes: Sequence[Comparison]) -> list[Finding]:
    """The functions whose slopes are those of differences, in words."""
    right = [one for one in slopes if one.right and not math.isnan(one.error)]
    blind = [one for one in slopes if math.isnan(one.error)]
    found = []
    if right:
        error, kinks = max(one.error for one in right), 1 - min(one.compared for one in right)
        left_out = f"; up to {kinks:.1%} of the places are at kinks or jumps and left out" if kinks else ""
        words = (
            f"autograd's slopes of {_named(right)} are central differences, to {error:.0e} of the largest{left_out}."
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


def _component(system: System, argument: str, component: int | None) -> str:
    """A component in words, by its label if it has one."""
    if component is None:
        return f"a random mixture of {argument}"
    labels = {"action": system.action_labels, "observation": ()}.get(argument, system.state_labels)
    named = f" ({labels[component]})" if component < len(labels) else ""
    return f"component {component}{named} of {argument}"


def _numbers(system: System, trajectory: Trajectory) -> list[Finding]:
    """Where slopes are not finite along the controller's episodes, in words."""
    bad = not_finite(system, trajectory)
    if not bad:
        return [Finding("ok", "slopes are finite along the controller's episodes.")]
    return [
        Finding(
            "error",
            f"{system.class_name}.{one.method}: its slope by {_component(system, one.argument, one.component)} is "
            f"infinite or no number at step {one.step} of {trajectory.horizon} of episode {one.sample}, and at "
            f"{one.share:.1%} of all. A square root, a norm, a power or an arc function at the end of its domain does "
            "that: keep what is in it away from there, by a small number added or a clamp before it.",
        )
        for one in bad
    ]


# Through the horizon


def _through_the_horizon(
    system: System,
    controller: nn.Module,
    start: Tensor,
    acted: Trajectory,
    pushed: Trajectory,
    found: list[Finding],
) -> Horizon | None:
    n = system.system.state_size if isinstance(system, Task) else system.state_size
    by_loop: Tensor | None = None
    horizon = None
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
            found += [_stretched(name, one) for name, one in zip(LOOPS, values, strict=True)]
        else:
            found.append(Finding("note", f"single steps were not looked at: their Jacobians have {n}^2 numbers."))
        for rule, norm in zip(("R", "M"), norms, strict=True):
            found.append(_fed_back(rule, norm.tolist()))
        horizon = Horizon(norms.cpu().numpy(), np.array(times), values.cpu().numpy())
    _influences(system, [acted, pushed], by_loop, n, found)
    return horizon


def _stretched(name: str, values: Tensor) -> Finding:
    """The singular values of single steps in words, (2, K)."""
    largest, smallest = values
    where = {"A": "the physics alone, A", "A+BK": "the loop with the controller, A + B K"}[name]
    return Finding(
        "ok",
        f"single steps of {where}: singular values of {float(smallest.min()):.3g} to {float(largest.max()):.3g}, the "
        f"largest {float(largest.median()):.3g} in the median step.",
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
    pace = f"a factor of 10 every {(last - first) / abs(decades):.3g} steps" if abs(decades) >= 1.0 else ""
    if abs(decades) < 1.0:
        return Finding("ok", f"{words}, which is within a factor of 10.")
    level: Level = "warning" if abs(decades) > math.log10(MANY) else "ok"
    grows = "grows" if decades > 0 else "fades"
    verb = {("ok", "grows"): "grows", ("ok", "fades"): "fades", ("warning", "grows"): "explodes"}
    return Finding(level, f"{words}: on its way back it {verb.get((level, grows), 'vanishes')} by {pace}.")


def _influences(
    system: System, episodes: Sequence[Trajectory], by_loop: Tensor | None, n: int, found: list[Finding]
) -> None:
    """Which actions and states have no influence on the loss."""
    each = [influence(system, one) for one in episodes]
    by_action = torch.stack([one.by_action for one in each]).amax(0)
    by_state = torch.stack([one.by_state for one in each]).amax(0)[:n]
    dead, still = _without(by_action), _without(by_state)
    unseen = [i for i in still if by_loop is not None and i in _without(by_loop)]
    fed = [i for i in still if i not in unseen]
    if dead:
        words = f"no influence on the loss, at any step of these episodes: {_components(system, 'action', dead)}."
        found.append(Finding("warning", f"{words} Nothing trains what gives it."))
    else:
        found.append(Finding("ok", "every component of the action has an influence on the loss."))
    if unseen:
        names = _components(system, "state", unseen)
        found.append(Finding("warning", f"no influence on the loss, nor does the controller act on it: {names}."))
    if fed:
        words = f"no influence on the loss but through the controller: {_components(system, 'state', fed)}."
        found.append(Finding("note", f"{words} M feeds nothing back by it."))
    if not still:
        found.append(Finding("ok", "every component of the state has an influence on the loss."))


def _without(slopes: Tensor) -> list[int]:
    """The components whose slope is nothing beside the largest."""
    return (slopes <= NOTHING * slopes.amax()).nonzero().flatten().tolist()


# What is seen and done


def _observed(system: System, acted: Trajectory, pushed: Trajectory, found: list[Finding]) -> None:
    states = torch.cat([one.states.flatten(0, 1) for one in (acted, pushed)])
    constant = constant_observations(system, states)
    if constant:
        names = _components(system, "observation", constant)
        found.append(Finding("warning", f"the same in all states of these episodes: {names}."))
    else:
        found.append(Finding("ok", "every component of the observation depends on the state."))


def _bounded(system: System, acted: Trajectory, found: list[Finding]) -> None:
    if not system.has_bounds:
        found.append(Finding("ok", "actions have no bounds."))
        return
    shares = clamped(system, acted)
    many = (shares >= SATURATED).nonzero().flatten().tolist()
    if many:
        words = (
            f"the controller is beyond the bounds in {SATURATED:.0%} of the steps or more, where no slope goes "
            f"through: {_components(system, 'action', many)}. squash=True bends actions instead; smaller weights stay "
            "within."
        )
        found.append(Finding("warning", words))
    else:
        words = f"the controller is beyond the bounds in {float(shares.amax()):.0%} of the steps at most."
        found.append(Finding("ok", words))


def _costs(cost: UpdateCost) -> str:
    if cost.obstacle is not None:
        return f"an update by the {cost.engine} engine: {cost.obstacle}"
    size = "not counted" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:.3g} MB"
    return (
        f"an update of {BATCH} episodes by rule C, {cost.engine} engine: {1e3 * cost.seconds:.3g} ms, {size} of "
        "tensors alive at once."
    )
