"""Check the gradients of an environment, and how they come back through the horizon of an episode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from bptt_envs import System, checks
from bptt_envs.contract import promises
from bptt_envs.raised import raised
from bptt_trainers.analysis.differences import Comparison
from bptt_trainers.analysis.findings import MOST_NAMED, Finding, Level, component, components, report
from bptt_trainers.analysis.horizon import LOOPS, Horizon, through_the_horizon
from bptt_trainers.analysis.influence import clamped, constant_observations, unmoved
from bptt_trainers.analysis.slope_findings import compared, numbers
from bptt_trainers.analysis.update_cost import UpdateCost, update_costs
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.policy_gradient import check_parameters
from bptt_trainers.directions.rollout import Trajectory, rollout
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.host.user_code import raised_by_user
from bptt_trainers.records.tables import csv_text

BATCH = 8  # episodes, and start states of an update that is timed
FLAT = 0.5  # share of states without a slope by an action from which on it is warned of
SATURATED = 0.5  # share of clamped actions from which on it is warned of


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
        if not any(one.requires_grad for one in controller.parameters()):
            raise ValueError(f"controller {type(controller).__name__} has no parameter that requires a gradient.")
    like = next(iter(() if controller is None else controller.parameters()), torch.empty(0))
    with torch.random.fork_rng([like.device] if like.is_cuda else []), computing(like):
        found = _promised(system, like)
        if any(one.level == "error" for one in found):
            return GradientCheck(tuple(found))
        controller = default_controller(system) if controller is None else controller
        try:
            return _looked_at(system, controller, found)
        except Exception as error:
            outside = f"the controller, or a function that a method of {system.class_name} gave,"
            words = raised(error, outside if raised_by_user(error) else None)
            if words is None:
                raise
            return GradientCheck((*found, Finding("error", words)))


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
        slopes, said = compared(system, acted, pushed)
        found += [*said, *numbers(system, acted), *_moving(system, (acted, pushed))]
        horizon, said = through_the_horizon(system, double, start, acted, pushed)
        found += [*said, _observed(system, acted, pushed), _bounded(system, acted)]
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


def _moving(system: System, episodes: Sequence[Trajectory]) -> list[Finding]:
    """Which actions do not move the next state, and at how many of the states, in words."""
    shares = unmoved(system, episodes).tolist()
    if not any(shares):
        return [Finding("ok", "the next state has a slope by every component of the action at all states.")]
    return [
        Finding(
            "warning" if share >= FLAT else "note",
            f"next_state has slope 0 by {component(system, 'action', i)} at {share:.1%} of the states along "
            "episodes of the controller and of random actions: nothing comes back through step there, as where it "
            "rounds, has a dead zone or clamps the action itself. Bounds are for super().__init__, such as max_action=1.0.",
        )
        for i, share in enumerate(shares)
        if share
    ][:MOST_NAMED]


def _observed(system: System, acted: Trajectory, pushed: Trajectory) -> Finding:
    """Which observations tell nothing, in words."""
    states = torch.cat([one.states.flatten(0, 1) for one in (acted, pushed)])
    constant = constant_observations(system, states)
    if constant:
        names = components(system, "observation", constant)
        return Finding("warning", f"the same in all states of these episodes: {names}.")
    return Finding("ok", "every component of the observation depends on the state.")


def _bounded(system: System, acted: Trajectory) -> Finding:
    """How many actions are beyond their bounds, in words."""
    if not system.has_bounds:
        return Finding("ok", "actions have no bounds.")
    shares = clamped(system, acted)
    many = (shares >= SATURATED).nonzero().flatten().tolist()
    if not many:
        words = f"the controller is beyond the bounds in {float(shares.amax()):.0%} of the steps at most."
        return Finding("ok", words)
    return Finding(
        "warning",
        f"the controller is beyond the bounds in {SATURATED:.0%} of the steps or more, where no slope goes through: "
        f"{components(system, 'action', many)}. squash=True bends actions instead; smaller weights stay within.",
    )


def _costs(cost: UpdateCost) -> str:
    if cost.obstacle is not None:
        return f"an update by the {cost.engine} engine: {cost.obstacle}"
    what = f"an update of {BATCH} episodes by rule C, {cost.engine} engine"
    return f"{what}: {cost.time}; tensors alive at once: {cost.memory}."
