"""Roll a controller out through a system, without gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import System, checks
from bptt_envs.differentiable import start_states
from bptt_envs.surroundings import own_surroundings
from bptt_envs.task import Task, as_task
from bptt_trainers.directions.augmented import Act, AugmentedSystem, acting, augmented, with_noise
from bptt_trainers.directions.system_of import Physics, given_system, system_of

Policy = Callable[..., Any]
"""From observations (B, *observation_shape) to actions (B, *action_shape): any torch module is one.

One that has a `memory_shape` is called with memories, (B, *memory_shape), too, and gives the next ones beside its
actions; one that has a `noise_shape` with noise, (B, *noise_shape), after these.
"""


@dataclass(frozen=True)
class Trajectory:
    """What B episodes of T steps went through."""

    states: Tensor  # (T + 1, B, *state_shape)
    actions: Tensor  # (T, B, *action_shape), as the controller gave them, before any bound
    memories: Tensor | None = None  # (T + 1, B, *memory_shape), what a controller with memory had in mind
    noise: Tensor | None = None  # (T, B, *noise_shape), what one that is handed noise was handed; None: zeros

    @property
    def horizon(self) -> int:
        """Steps, T."""
        return self.actions.shape[0]


def rollout(
    system: Physics,
    policy: Policy,
    initial_states: Tensor,
    steps: int | None = None,
    *,
    noise: Tensor | None = None,
    inference: bool = False,
    act: Act | None = None,
) -> Trajectory:
    """Run one episode from each of `initial_states`, (B, *state_shape); of it, the first `steps` if given.

    No gradients are recorded; a policy or a system that takes some of its own switches them on itself.

    Args:
        system: the physics, or an environment of it.
        policy: from observations to actions.
        initial_states: (B, *state_shape).
        steps: of the horizon, those to run. None: all.
        noise: for a policy that is handed noise, that of all steps, (T, B, *noise_shape), see `draw_noise`. None:
            zeros, with which a stochastic controller takes the middle of its distribution.
        inference: run in torch's inference mode, which saves a tenth of the time of small operations, but for the first
            step: what either of them keeps from its first call can be differentiated through later. For policies and
            systems that take no gradients of their own.
        act: what the policy does, by a faster way that an engine knows; called once a step, in order. None: the policy.

    Raises:
        TypeError, ValueError: if an argument is not what it should be, or the policy's actions do not have shape
            (B, *action_shape) or another dtype than the states.
    """
    system = system_of(system, "system")
    larger = augmented(system, policy)
    if larger is not system:
        assert isinstance(larger, AugmentedSystem)
        return _parted(larger, policy, initial_states, steps, noise, inference)
    if not callable(policy):
        raise TypeError(f"policy must be a torch module or another function; got {checks.shown(policy)}.")
    initial_states = start_states("initial_states", initial_states, system)
    parameter = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None
    if parameter is not None and parameter.device != initial_states.device:
        raise ValueError(f"initial_states must be on {parameter.device} like the policy; got {initial_states.device}.")
    steps = system.horizon if steps is None else checks.positive_integer("steps", steps)
    checks.in_memory("steps", steps + 1, initial_states.shape[0] * system.state_size)
    check_noise(system, noise, steps, initial_states)
    states: list[Tensor] = []
    actions: list[Tensor] = []
    acts = acting(system, policy) if act is None else act
    has_bounds = system.has_bounds

    def advance(count: int) -> None:
        state = states[-1]
        for _ in range(count):
            if noise is not None:
                states[-1] = state = with_noise(system, state, noise[len(actions)])
            action = acts(system.observe(state))
            if not actions:
                check_actions(system, action, initial_states)
            state = system.step(state, system.bound(action) if has_bounds else action)
            states.append(state)
            actions.append(action)

    with own_surroundings(initial_states.dtype, initial_states.device), torch.no_grad():
        states.append(initial_states.clone() if initial_states.is_inference() else initial_states)
        advance(1)
        with torch.inference_mode() if inference else nullcontext():
            advance(steps - 1)
        return Trajectory(torch.stack(states), torch.stack(actions))


def _parted(
    system: AugmentedSystem,
    policy: Policy,
    initial_states: Tensor,
    steps: int | None,
    noise: Tensor | None,
    inference: bool,
) -> Trajectory:
    """The trajectory of a controller with memory or noise, with these apart."""
    initial_states = start_states("initial_states", initial_states, system.system)
    with own_surroundings(initial_states.dtype, initial_states.device), torch.no_grad():
        initial_states = initial_states.clone() if initial_states.is_inference() else initial_states
        whole = rollout(system, policy, system.episode_start(initial_states), steps, noise=noise, inference=inference)
        memories = system.memory(whole.states) if system.memory_size else None
        return Trajectory(system.inner(whole.states), system.action(whole.actions), memories, noise)


def losses(system: Physics, trajectory: Trajectory) -> Tensor:
    """The loss of each episode, (B,), in a system or an environment of it."""
    system = given_system(system)
    checks.instance("trajectory", trajectory, Trajectory, "what `rollout` returns")
    refuse_samples(system)
    system, states = as_task(system), trajectory.states
    with own_surroundings(states.dtype, states.device), torch.no_grad():
        return loss_of(system, states, system.bound(trajectory.actions))


def loss_of(system: System, states: Tensor, actions: Tensor) -> Tensor:
    """The loss of each episode, (B,), differentiable.

    Args:
        system: the physics, or the task.
        states: (T + 1, B, *state_shape).
        actions: (T, B, *action_shape), bounded.
    """
    running = system.running_cost(states[:-1].flatten(0, 1), actions.flatten(0, 1), states[1:].flatten(0, 1))
    return running.view(actions.shape[:2]).sum(0) + system.final_cost(states[-1])


def check_actions(system: System, action: Any, states: Tensor) -> None:
    """Raise ValueError unless `action` has shape (B, *action_shape) and the dtype of `states`, (B, *state_shape)."""
    batch = states.shape[0]
    shape = tuple(action.shape) if isinstance(action, Tensor) else type(action).__name__
    if shape != (batch, *system.action_shape):
        raise ValueError(
            f"the controller must map observations (B, {', '.join(map(str, system.observation_shape))}) to actions "
            f"(B, {', '.join(map(str, system.action_shape))}); got shape {shape} for B = {batch}."
            + (" One that gives a memory, too, has an attribute memory_shape." if isinstance(action, tuple) else "")
        )
    if action.dtype is not states.dtype:
        raise ValueError(f"the controller must give actions in {states.dtype}, as the states are; got {action.dtype}.")


def refuse_samples(system: System) -> None:
    """Raise ValueError if a system has parameters with a value for each sample: here the samples are of many steps."""
    physics = system.system if isinstance(system, Task) else system
    for name in physics.parameter_names:
        value = getattr(physics, name)
        if isinstance(value, Tensor) and value.dim():
            raise ValueError(
                f"{name} has a value for each of {len(value)} samples, by with_parameters, which is for steps of your "
                f"own; for whole episodes draw it, Task(system, randomize={{{name!r}: (low, high)}}), or give it with "
                f"the start states, task.at_start(states, {name}=...)."
            )


def check_noise(system: System, noise: Any, steps: int, states: Tensor) -> None:
    """Raise ValueError unless `noise` is None or that of so many steps from `states`, (B, *state_shape)."""
    if noise is None:
        return
    shape = system.noise_shape if isinstance(system, AugmentedSystem) else ()
    if not shape:
        raise ValueError("noise must be None for a controller without a noise_shape.")
    wanted = (steps, len(states), *shape)
    alike = isinstance(noise, Tensor) and noise.dtype is states.dtype and noise.device == states.device
    if not alike or tuple(noise.shape) != wanted:
        raise ValueError(
            f"noise must be a tensor of shape (steps, B, *noise_shape), here {wanted}, {states.dtype} on "
            f"{states.device}; got {checks.shown(noise)}."
        )
