"""What a single and a vector environment share: a system, its spaces and its differentiable face."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from bptt_envs import checks
from bptt_envs.contract import check_system
from bptt_envs.registration import build_system, threshold_of
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import System
from bptt_envs.task import Task, as_task

FLOAT32 = np.dtype(np.float32)

PRECISIONS = (torch.float32, torch.float64)  # that states may have

HALF = (torch.float16, torch.bfloat16)  # what a controller gives under autocast


def load_system(system: System | str, options: dict[str, Any], owner: str) -> System:
    """Return `system`, or build it where it is an import path "module:Class" with `options`.

    It is a task if its episodes end early.

    Raises:
        ValueError: if an option is unknown, or given with a system that is built already, or the system does not
            keep its contract.
    """
    if isinstance(system, System):
        if options:
            raise ValueError(
                f"options {sorted(options)} were given with a built system; pass them to "
                f"{type(system).__name__}(...) instead."
            )
        built = as_task(system)
    else:
        built = build_system(system, options, owner)
    check_system(built, thorough=False)
    return built


class Differentiable:
    """The differentiable interface of an environment. Shapes are batch-first, B samples."""

    system: System
    dtype: torch.dtype = torch.float32
    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How Gymnasium made it.

        Its `max_episode_steps` is the horizon, its `reward_threshold` None where options make another task of the id's.
        """
        if self._spec is not None:
            self._spec.max_episode_steps = self.horizon
            self._spec.reward_threshold = threshold_of(self._spec)
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = spec

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return self.system.horizon

    def step_differentiable(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Step any batch of states through the physics, with gradients.

        The environment's own state does not change.

        Args:
            state: (B, *state_shape).
            action: (B, *action_shape), in the dtype of the state or, as autocast gives it, in half precision; clamped
                like the actions of `step`.

        Returns:
            The next state, (B, *state_shape), and the reward, (B,), which is minus the running cost. What the
            end of an episode costs (all of it with objective "final") is the business of `final_reward`.

        Raises:
            ValueError: if a shape is wrong, or the tensors do not hold floats of one dtype on one device.
        """
        check_batch("state", state, self.system.state_shape)
        check_batch("action", action, self.system.action_shape, (*PRECISIONS, *HALF))
        if state.shape[0] != action.shape[0]:
            raise ValueError(
                f"state and action must hold the same number of samples; got {state.shape[0]} and {action.shape[0]}."
            )
        if state.device != action.device:
            raise ValueError(f"state and action must be on one device; got {state.device} and {action.device}.")
        if action.dtype not in (state.dtype, *HALF):
            raise ValueError(
                f"state and action must be of one dtype; got {state.dtype} and {action.dtype}. In float64 states "
                "are states.double() (initial_states(..., dtype=torch.float64) draws other ones by the same seed), a "
                "controller is controller.double()."
            )
        with own_surroundings(state.dtype, state.device):
            action = self.system.bound(action)
            next_state = self.system.step(state, action)
            return next_state, -self.system.running_cost(state, action, next_state)

    def final_reward(self, state: Tensor) -> Tensor:
        """Reward of the state at the end of an episode, (B,): minus the final cost. Differentiable."""
        check_batch("state", state, self.system.state_shape)
        with own_surroundings(state.dtype, state.device):
            return -self.system.final_cost(state)

    def initial_states(
        self, batch: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw start states.

        Args:
            batch: how many.
            generator: by which they are drawn; None: torch's own.
            dtype: of the states, torch.float32 or torch.float64; None: that of the environment. Other numbers are drawn
                in each: states of the one in the other are states.double().

        Returns:
            (batch, *state_shape).

        Raises:
            ValueError: if an argument is something else, or the states do not fit into the memory.
        """
        dtype = self.dtype if dtype is None else precision("dtype", dtype)
        drawn = checks.generator("generator", generator)
        count = checks.in_memory("batch", checks.positive_integer("batch", batch), self.system.state_size)
        with own_surroundings():
            return self.system.initial_states(count, torch.default_generator if drawn is None else drawn, dtype)

    def observe(self, state: Tensor) -> Tensor:
        """What a controller sees of `state`, (B, *observation_shape). Differentiable."""
        check_batch("state", state, self.system.state_shape)
        with own_surroundings(state.dtype, state.device):
            return self.system.observe(state)


def observation_space(system: System) -> spaces.Box:
    """All observations: the physics sets no bound."""
    return spaces.Box(-np.inf, np.inf, system.observation_shape, np.float32)


def action_space(system: System) -> spaces.Box:
    """The actions within their bounds; without any, the nominal range in which RL libraries explore."""
    low, high = (end.float().numpy() for end in system.action_range)
    return spaces.Box(low, high, system.action_shape, np.float32)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor without gradients to a float32 array that the caller may change."""
    return np.array(tensor.numpy(), dtype=np.float32)


def as_action(action: Any, shape: tuple[int, ...]) -> Tensor:
    """Return an action of `shape` as a float32 tensor of one more dimension, the batch, else raise ValueError."""
    return torch.from_numpy(_as_finite("action", action, shape, batched=True))


def as_actions(actions: Any, count: int, shape: Sequence[int]) -> Tensor:
    """Return the actions of a batch as a float32 tensor (count, *shape), else raise ValueError."""
    return torch.from_numpy(_as_finite("action", actions, (count, *shape)))


def as_states(states: Any, system: System, generator: torch.Generator, count: int | None = None) -> Tensor:
    """Return the reset option "state" as float32 states at the start of episodes, else raise ValueError.

    Args:
        states: (count, *state_shape), or in a task the same of its system; without `count` one of them.
        system: the physics, or the task.
        generator: what a task draws for an episode is drawn by it.
        count: how many there must be; None: one, without the dimension of the batch.

    Returns:
        (count or 1, *state_shape).
    """
    leading = () if count is None else (count,)
    shapes = [system.state_shape] + ([system.system.state_shape] if isinstance(system, Task) else [])
    given = torch.from_numpy(_as_finite("options['state']", states, *((*leading, *shape) for shape in shapes)))
    return system.episode_start(given.unsqueeze(0) if count is None else given, generator)


def check_reset_options(options: dict[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """Return the reset options, an empty dict for None; raise ValueError for a name that is not `known`."""
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(
            f"options must be a dict of reset options ({', '.join(known)}) or None; got {checks.shown(options)}."
        )
    for name in options:
        if name not in known:
            hint = checks.nearest(name, known)
            raise ValueError(f"reset has no option {checks.shown(name)}.{hint} Its options: {', '.join(known)}.")
    return options


def check_reset_seed(seed: Any) -> int | None:
    """Return the seed of a reset as an int, or None; raise ValueError for anything else."""
    return None if seed is None else checks.seed("seed", seed)


def episode_generator(np_random: np.random.Generator) -> torch.Generator:
    """A torch generator for start states, seeded from Gymnasium's."""
    return torch.Generator().manual_seed(int(np_random.integers(2**63 - 1)))


def _as_finite(name: str, value: Any, *shapes: tuple[int, ...], batched: bool = False) -> np.ndarray:
    """A float32 copy of finite numbers of one of the shapes, with a first dimension of 1 if `batched`.

    Raises:
        ValueError: if they are something else.
    """
    if type(value) is np.ndarray and value.dtype is FLOAT32 and value.shape in shapes:  # as a policy gives it
        array = value
    else:
        array = _as_float32(name, value, shapes)
    finite = math.isfinite(array.item()) if array.size == 1 else np.count_nonzero(np.isfinite(array)) == array.size
    if not finite:
        raise ValueError(f"{name} must be finite; got {checks.shown(value)}.")
    return np.array(array, order="C", ndmin=array.ndim + batched)  # a copy: torch shares what it is handed


def _as_float32(name: str, value: Any, shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """Numbers of one of the shapes in float32, else ValueError."""
    allowed = " or ".join(dict.fromkeys(str(tuple(shape)) for shape in shapes))
    given = checks.as_array(value)
    if given is not None and given.shape not in map(tuple, shapes):
        raise ValueError(f"{name} must have shape {allowed}; got shape {given.shape}.")
    numbers = checks.real_array(given)
    if numbers is None:
        raise ValueError(f"{name} must be numbers of shape {allowed}; got {checks.shown(value)}.")
    with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused
        return np.asarray(numbers, dtype=np.float32)


def precision(name: str, value: Any) -> torch.dtype:
    """Return `value` if it is a dtype that states may have, else raise ValueError."""
    if not isinstance(value, torch.dtype) or value not in PRECISIONS:
        raise ValueError(f"{name} must be {' or '.join(map(str, PRECISIONS))}; got {checks.shown(value)}.")
    return value


def start_states(name: str, states: Tensor, system: System, generator: torch.Generator | None = None) -> Tensor:
    """Return states at the start of an episode, (B, *state_shape); those of the system within a task are taken there.

    Args:
        name: of the argument, for the message.
        states: what was given.
        system: the physics, or a task.
        generator: what is drawn for an episode is drawn by it; None: always the same.

    Raises:
        ValueError: if they are of neither shape, or no floating-point numbers.
    """
    if isinstance(states, Tensor) and states.dim():
        states = system.episode_start(states, generator)
    check_batch(name, states, system.state_shape)
    return states


def check_batch(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: Sequence[torch.dtype] = PRECISIONS) -> None:
    """Raise ValueError unless `tensor` has shape (B, *shape) and one of the dtypes."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        fault = f"; got {checks.shown(tensor)}"
    elif tensor.shape[1:] != shape or tensor.dim() != len(shape) + 1:
        fault = f"; got shape {tuple(tensor.shape)}"
    elif tensor.dtype not in dtypes:
        fault = f", of {' or '.join(map(str, dtypes))}; got {tensor.dtype}"
    else:
        return
    raise ValueError(f"{name} must be a tensor of shape (B, {', '.join(map(str, shape))}){fault}.")
