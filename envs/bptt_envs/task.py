"""What is asked of a system beyond what the system itself says: costs of one's own, the time in the observation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.charts import Chart
from bptt_envs.system import Pullback, System

if TYPE_CHECKING:
    from bptt_envs.rendering import Canvas

StepCost = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From states (B, *state_shape), bounded actions (B, *action_shape) and next states to the cost of the step, (B,)."""

StateCost = Callable[[Tensor], Tensor]
"""From states (B, *state_shape) to their cost, (B,)."""


def _of_system(name: str) -> Any:
    """An attribute that is the inner system's, to read and to set."""

    def read(task: Task) -> Any:
        return getattr(task.system, name)

    def write(task: Task, value: Any) -> None:
        setattr(task.system, name, value)

    return property(read, write)


class _Parts(NamedTuple):
    """What the state of a task holds, apart; what is not in use has width 0."""

    inner: Tensor  # (..., *state_shape of the system)
    steps: Tensor  # (..., 1), steps done


class Task(System):
    """Another face of a system: the same physics, bounds and pictures, with what is asked of it said apart.

    What it needs of an episode it carries in the state, after the system's own numbers, so that whatever serves a
    system serves a task.

    State: the system's, flattened, then, with `observe_time`, the number of steps done.
    Observation: the system's; with `observe_time` flattened, then the share of the horizon that is over, from 0 to 1.
    Start: the system's, at step 0.

    Its settings (`horizon`, `dt`, `objective`, `max_action`) are those of the system: set in one, they change in both.

    Args:
        system: the physics; it is `task.system`, too.
        running_cost: instead of the system's, the cost of one step, (B,), a differentiable torch function of the
            system's states (B, *state_shape), bounded actions (B, *action_shape) and next states. The loss is the sum
            over the steps.
        final_cost: instead of the system's, the cost of the last state, (B,), a function of (B, *state_shape).
        observe_time: show the controller the share of the horizon that is over: with a finite horizon, what a state is
            worth depends on the time.

    Raises:
        TypeError, ValueError: if the system is no System or a Task already, or another argument is not what it should
            be; the message names it.
    """

    horizon = _of_system("horizon")
    dt = _of_system("dt")
    objective = _of_system("objective")
    max_action = _of_system("max_action")
    nominal_action = _of_system("nominal_action")
    time_unit = _of_system("time_unit")
    action_shape = _of_system("action_shape")
    action_labels = _of_system("action_labels")
    step_weight = _of_system("step_weight")
    dense_jacobians = _of_system("dense_jacobians")
    slope_numbers = _of_system("slope_numbers")
    class_name = _of_system("class_name")

    def __init__(
        self,
        system: System,
        *,
        running_cost: StepCost | None = None,
        final_cost: StateCost | None = None,
        observe_time: bool = False,
    ) -> None:  # all that System's sets is the inner system's
        checks.instance("system", system, System, "a System, such as env.unwrapped.system")
        if isinstance(system, Task):
            raise ValueError("system must be one without a task; got a Task. Take its .system.")
        self.system = system
        bounds = vars(system)  # as they were given, whether or not max_action counts before them
        vars(self).update({name: bounds[name] for name in ("action_low", "action_high") if name in bounds})
        self._functions = _functions(running_cost=running_cost, final_cost=final_cost)
        self.observe_time = checks.flag("observe_time", observe_time)

    def __copy__(self) -> Task:
        """A copy whose settings are its own, as those of a copy of any system are."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self) | {"system": copy.copy(self.system)})
        return twin

    @property
    def asked(self) -> dict[str, Any]:
        """What it asks that the system does not say by itself: its options that are in use, by name."""
        flags = {"observe_time": self.observe_time}
        return self._functions | {name: value for name, value in flags.items() if value}

    @property
    def own_costs(self) -> bool:
        """Whether it has costs in the place of the system's."""
        return "running_cost" in self._functions or "final_cost" in self._functions

    # The state: the system's numbers, then what is held

    @property
    def _sizes(self) -> list[int]:
        return [self.system.state_size, int(self.observe_time)]

    state_shape: Any = property(lambda task: (sum(task._sizes),))

    @property
    def state_labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The system's, a number for what it does not name, and "steps"."""
        named = self.system.state_labels
        numbered = (f"state {i}" for i in range(len(named), self.system.state_size))
        return (*named, *numbered, *["steps"] * self.observe_time)

    def at_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The state at the start of an episode from the system's, (B, *state_shape of the system) -> (B, *state_shape).

        States of the task stay as they are.
        """
        if state.shape[1:] != self.system.state_shape:
            return state
        return torch.nn.functional.pad(state.flatten(1), (0, int(self.observe_time)))

    def inner(self, state: Tensor) -> Tensor:
        """The system's state, (..., *state_shape) -> (..., *state_shape of the system)."""
        return self._split(state).inner

    def _split(self, state: Tensor) -> _Parts:
        inner, *held = state.split_with_sizes(self._sizes, dim=-1)
        shape = self.system.state_shape
        inner = inner.contiguous()  # a system may take views of its states
        return _Parts(inner if len(shape) == 1 else inner.unflatten(-1, shape), *held)

    # What a system says

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system and count the step."""
        inner, steps = self._split(state)
        return _joined(self.system.step(inner, action), steps + 1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at step 0."""
        return self.at_start(self.system.initial_states(batch, generator, dtype), generator)

    def state_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.state_cost(self.inner(state))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of one step, (B,)."""
        cost: StepCost = self._function("running_cost", self.system)
        return cost(self.inner(state), action, self.inner(next_state))

    def final_cost(self, state: Tensor) -> Tensor:
        """The cost of the state in which an episode ends, (B,)."""
        cost: StateCost = self._function("final_cost", self.system)
        return cost(self.inner(state))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation and, flat after it, what the task shows."""
        inner, steps = self._split(state)
        seen = self.system.observe(inner)
        return _joined(seen, steps / self.horizon) if self.observe_time else seen

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """That of the system, or (observation_size + what is shown,)."""
        shape = self.system.observation_shape
        return (math.prod(shape) + 1,) if self.observe_time else shape

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians; what is held depends on itself alone, and no action moves it."""
        by_state, by_action = self.system.linearize(self.inner(state), action)
        n, *held = self._sizes
        pad, size = torch.nn.functional.pad, sum(held)
        itself = pad(torch.eye(size, dtype=state.dtype, device=state.device), (n, 0)).expand(state.shape[0], size, -1)
        return torch.cat([pad(by_state, (0, size)), itself], dim=1), pad(by_action, (0, 0, 0, size))

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products, and of each vector its components of what is held as they are."""
        pull, n = self.system.pullback(self.inner(state), action), self.system.state_size

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            by_state, by_action = pull(rows, vectors[..., :n])
            return torch.cat([by_state, vectors[..., n:]], dim=-1), by_action

        return pulled

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        """The system's picture."""
        self.system.draw(canvas, self.inner(state), action)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """The system's charts."""
        return self.system.charts(self.inner(states), actions)

    def _function(self, name: str, system: System) -> Any:
        """A function of the task's own, or that of the system."""
        return self._functions.get(name) or getattr(system, name)


def with_time(system: System) -> Task:
    """The system, or the task, with the time in its observation."""
    if not isinstance(system, Task):
        return Task(system, observe_time=True)
    return system if system.observe_time else Task(system.system, **system.asked | {"observe_time": True})


def _functions(**given: Any) -> dict[str, Any]:
    """Those of the arguments that are given, which must be functions."""
    for name, one in given.items():
        if one is not None and not callable(one):
            raise TypeError(f"{name} must be a function of states, or None for the system's; got {checks.shown(one)}.")
    return {name: one for name, one in given.items() if one is not None}


def _joined(first: Tensor, *others: Tensor) -> Tensor:
    """Rows flattened, one after the other, (B, ...)."""
    return torch.cat([first.flatten(1), *others], dim=-1)
