"""What the loss depends on: the states and actions that have an influence, and where a slope is no number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt_envs import System, Task
from bptt_trainers.directions.rollout import Trajectory


@dataclass(frozen=True)
class Influence:
    """How the loss of an episode depends on its states and actions, by the physics alone: the actions are given.

    Attributes:
        by_state: the largest |dL/dx_t| of each component of the state over steps and episodes, (n,).
        by_action: the largest |dL/du_t| of each component of the bounded action, (m,).
    """

    by_state: Tensor
    by_action: Tensor


def influence(system: System, trajectory: Trajectory) -> Influence:
    """Differentiate the losses of episodes by their states and actions.

    Args:
        system: the physics.
        trajectory: T steps of B episodes, of which the actions are taken as they are.
    """
    with torch.enable_grad():
        actions = [system.bound(action).detach().requires_grad_() for action in trajectory.actions]
        states = [trajectory.states[0].detach().requires_grad_()]
        total = trajectory.states.new_zeros(trajectory.states.shape[1])
        for action in actions:
            states.append(system.step(states[-1], action))
            total = total + system.running_cost(states[-2], action, states[-1])
        total = (total + system.final_cost(states[-1])).sum()
        wanted = [one for one in (*states, *actions) if one.requires_grad]
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if total.requires_grad:
            found = torch.autograd.grad(total, wanted, allow_unused=True)
    slopes = {id(one): slope for one, slope in zip(wanted, found, strict=True) if slope is not None}
    return Influence(_largest(states, slopes), _largest(actions, slopes))


def _largest(tensors: list[Tensor], slopes: dict[int, Tensor]) -> Tensor:
    """The largest slope of each component over all tensors, (width,); NaN counts as one."""
    there = [slopes[id(one)] for one in tensors if id(one) in slopes]
    if not there:
        return tensors[0].new_zeros(tensors[0][0].numel())
    return torch.stack(there).flatten(2).abs().nan_to_num(1.0).amax((0, 1))


@dataclass(frozen=True)
class NoNumber:
    """Where a slope is not finite first.

    Attributes:
        method: of the system.
        argument: by which argument.
        component: of it, the first one.
        step: t.
        sample: the episode.
        share: of the steps and episodes, that have such slopes.
    """

    method: str
    argument: str
    component: int
    step: int
    sample: int
    share: float


def not_finite(system: System, trajectory: Trajectory) -> list[NoNumber]:
    """Where slopes along a trajectory are infinite or no numbers: a square root at 0, an angle of nothing.

    Args:
        system: the physics.
        trajectory: T steps of B episodes, of finite states.
    """
    steps, batch = trajectory.actions.shape[:2]
    states, following = trajectory.states[:-1].flatten(0, 1), trajectory.states[1:].flatten(0, 1)
    actions = system.bound(trajectory.actions.flatten(0, 1))
    asked: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]]] = {
        "step": (system.step, {"state": states, "action": actions}),
        "observe": (system.observe, {"state": states}),
        "running_cost": (system.running_cost, {"state": states, "action": actions, "next_state": following}),
        "final_cost": (system.final_cost, {"state": trajectory.states[-1]}),
    }
    found = []
    for method, (function, arguments) in asked.items():
        with torch.enable_grad():
            leaves = [one.detach().clone().requires_grad_() for one in arguments.values()]
            result = function(*leaves)
            if not result.requires_grad:
                continue
            weights = torch.rand(result[0].shape, generator=torch.Generator().manual_seed(0)).to(result) + 0.5
            slopes = torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)
        for name, slope in zip(arguments, slopes, strict=True):
            bad = None if slope is None else ~slope.flatten(1).isfinite()
            if bad is None or not bad.any():
                continue
            row, component = (int(i) for i in bad.nonzero()[0])
            step, sample = (steps, row) if method == "final_cost" else divmod(row, batch)
            found.append(NoNumber(method, name, component, step, sample, float(bad.any(1).double().mean())))
    return found


def unmoved(system: System, episodes: Sequence[Trajectory]) -> Tensor:
    """The share of the states at which no component of the next state has a slope by an action component, (m,).

    Args:
        system: the physics.
        episodes: of finite states; what is over is left out, unless all is.
    """
    states = torch.cat([one.states[:-1].flatten(0, 1) for one in episodes])
    actions = system.bound(torch.cat([one.actions.flatten(0, 1) for one in episodes]))
    over = system.episode_over(states)
    if over is not None and not over.all():
        states, actions = states[~over], actions[~over]
    with torch.enable_grad():
        leaf = actions.detach().clone().requires_grad_()
        following = system.step(states.detach(), leaf).flatten(1)
        if not following.requires_grad:
            return actions.new_ones(system.action_size)
        vectors = torch.randn(following.shape, generator=torch.Generator().manual_seed(0)).to(following)
        (slope,) = torch.autograd.grad((following * vectors).sum(), leaf, materialize_grads=True, allow_unused=True)
    return (slope.flatten(1) == 0.0).double().mean(0)


def constant_observations(system: System, states: Tensor) -> list[int]:
    """The components of an observation that are the same for all states, and have no slope.

    Args:
        system: the physics.
        states: (N, *state_shape), of several steps.
    """
    with torch.enable_grad():
        leaf = states.detach().clone().requires_grad_()
        seen = system.observe(leaf).flatten(1)
    own = seen.shape[1] if not isinstance(system, Task) else system.system.observe(system.inner(states))[0].numel()
    still = (seen == seen[0]).all(0)[:own].nonzero().flatten().tolist()
    return [i for i in still if not _has_slope(seen[:, i], leaf)]


def _has_slope(values: Tensor, leaf: Tensor) -> bool:
    if not values.requires_grad:
        return False
    (slope,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True, allow_unused=True)
    return slope is not None and bool(slope.any())


def clamped(system: System, trajectory: Trajectory) -> Tensor:
    """The share of a controller's actions that are beyond their bounds, where no slope goes through, (m,)."""
    actions = trajectory.actions.flatten(0, 1)
    return (system.bound(actions) != actions).flatten(1).double().mean(0)
