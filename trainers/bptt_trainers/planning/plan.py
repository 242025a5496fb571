"""Plan the actions from given start states: the door to the planners, and the table of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import torch
from torch import Tensor

from bptt_envs import System, Task, checks
from bptt_envs.differentiable import start_states
from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.planning.grape import GRAPE
from bptt_trainers.planning.ilqr import ILQR
from bptt_trainers.planning.mppi import MPPI
from bptt_trainers.planning.problem import Problem, best_of

KNOTS = 6  # of a random plan, between which it is linear


class Planner(Protocol):
    """One row: a dataclass of its settings, which improves plans."""

    summary: ClassVar[str]

    def __init__(self, **settings: Any) -> None: ...

    def improve(self, problem: Problem, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Better actions within the bounds than `actions`, (T, B, *action_shape), and the iterations taken."""


PLANNERS: dict[str, type[Planner]] = {"iLQR": ILQR, "MPPI": MPPI, "GRAPE": GRAPE}


@dataclass(frozen=True)
class Plan:
    """What a planner found.

    Attributes:
        actions: (T, B, *action_shape), within the bounds, float64.
        losses: (B,), float64.
        iterations: that it took.
        seconds: that these took.
        gains: of iLQR alone, (T, B, m, n), float64: u + K (x - x*) is the feedback around the plan u and its states x*,
            all flattened, to first order what is best where a state x is off; 0 for actions that a bound holds. The
            state is that which is planned with: of a task, with what it carries.
    """

    actions: Tensor
    losses: Tensor
    iterations: int
    seconds: float
    gains: Tensor | None = None


def planner_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a planner, with `restarts`, as plain data.

    Raises:
        ValueError: if there is no such planner, or a setting is unknown or out of range.
    """
    kind = PLANNERS[checks.one_of("method", method, PLANNERS)]
    known = ["restarts", *(one.name for one in fields(kind))]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            hint = checks.nearest(name, known)
            raise ValueError(f"{method} has no setting {name!r}.{hint} Its settings: {', '.join(known)}.")
    restarts = checks.integer("restarts", settings.get("restarts", 2), 0)
    given = {name: value for name, value in settings.items() if name != "restarts"}
    values: dict[str, Any] = asdict(kind(**given))  # type: ignore[call-overload]
    return {"restarts": restarts} | values


def plan(
    system: System | gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
    states: Tensor,
    method: str = "iLQR",
    *,
    actions: Tensor | None = None,
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """The best actions from each of some start states that a planner finds, in float64.

    It starts from the middle of the actions' range, from `restarts` random plans and from `actions`, all at once, and
    gives the best of each state. Nothing is learned, and the plan is open loop: what is found is a bound (to what the
    planner finds) on what any controller reaches from these states.

    Args:
        system: the physics, a task, or an environment, as `policy_gradient` takes it: its system.
        states: (B, *state_shape).
        method: "iLQR", "MPPI" or "GRAPE".
        actions: a plan to start from, too, (T, B, *action_shape), such as `rollout(...).actions`.
        seed: draws the random plans.
        settings: of the planner, by name: see `PLANNERS`; and `restarts`, random plans to start from, 2 by default.

    Raises:
        TypeError, ValueError: if an argument is not what it should be; the message names it.
    """
    system = system_of(system, "system")
    values = planner_settings(method, settings)
    restarts = values.pop("restarts")
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    _check_parameters(system)
    states = start_states("states", states, system).detach().double()
    if states.is_meta or not len(states) or not bool(states.isfinite().all()):
        raise ValueError(f"states must be one or more finite states; got {checks.shown(states)}.")
    checks.in_memory("restarts", restarts, 10 * system.horizon * len(states) * (system.state_size + system.action_size))
    if actions is not None:
        shape = (system.horizon, len(states), *system.action_shape)
        fits = isinstance(actions, Tensor) and actions.is_floating_point() and tuple(actions.shape) == shape
        if not fits or not bool(actions.isfinite().all()):
            raise ValueError(f"actions must be a tensor of {shape} finite numbers; got {checks.shown(actions)}.")
    begun = time.perf_counter()
    with own_surroundings(states.dtype, states.device):
        problem = Problem(system, states)
        starts = [_middle(problem), *(_random(problem, generator) for _ in range(restarts))]
        starts += [] if actions is None else [actions.detach().to(states)]
        many = Problem(system, states.repeat(len(starts), *[1] * (states.dim() - 1)))
        together = many.clamped(torch.cat(starts, dim=1))
        planner = PLANNERS[method](**values)
        found, iterations = planner.improve(many, together, generator)
        candidates = found.unflatten(1, (len(starts), len(states))).transpose(0, 1)
        best, losses = best_of(candidates, problem.losses(candidates))
        seconds = time.perf_counter() - begun
        gains = planner.gains(problem, best) if isinstance(planner, ILQR) else None
        return Plan(best, losses, iterations, seconds, gains)


def plan_in_turn(
    system: System,
    states: Tensor,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    actions: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Plan]:
    """Plan by several methods, by name with their settings; each has the plan of the one before it to start from."""
    plans: dict[str, Plan] = {}
    for method, settings in methods.items():
        plans[method] = plan(system, states, method, actions=actions, seed=seed, **settings)
        actions = plans[method].actions
    return plans


def _check_parameters(system: System) -> None:
    """Raise ValueError if a parameter has a value for each sample: here each start state is several of them."""
    system = system.system if isinstance(system, Task) else system
    for name in system.parameter_names:
        value = getattr(system, name)
        if isinstance(value, Tensor) and value.numel() > 1:
            raise ValueError(
                f"{name} must be one number for all episodes, in a system to plan with; got a tensor of "
                f"{tuple(value.shape)}. Plan with each value by itself."
            )


def _middle(problem: Problem) -> Tensor:
    """The middle of the actions' range, which is 0 where it is symmetric."""
    return problem.system.action_at(torch.zeros(problem.shape).to(problem.states))


def _random(problem: Problem, generator: torch.Generator) -> Tensor:
    """A plan of straight lines between random actions, within half of their range."""
    horizon, count, *shape = problem.shape
    size = problem.system.action_size
    knots = torch.rand(count, size, KNOTS, generator=generator, dtype=problem.states.dtype) - 0.5
    lines = torch.nn.functional.interpolate(knots, horizon, mode="linear", align_corners=True)
    return problem.system.action_at(lines.permute(2, 0, 1).reshape(horizon, count, *shape).to(problem.states))
