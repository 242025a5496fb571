"""A system whose controller is shown the time, too: what the option `observe_time` of every environment makes."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.charts import Chart
from bptt_envs.system import Pullback, System

if TYPE_CHECKING:
    from bptt_envs.rendering import Canvas


def _of_system(name: str) -> Any:
    """An attribute that is the inner system's, to read and to set."""

    def read(timed: Timed) -> Any:
        return getattr(timed.system, name)

    def write(timed: Timed, value: Any) -> None:
        setattr(timed.system, name, value)

    return property(read, write)


class Timed(System):
    """Another face of a system: the same physics, costs, bounds and pictures, with the time in its observation.

    With a finite horizon, what a state is worth depends on the time.

    State: the system's, flattened, then the number of steps done, (state_size + 1,).
    Observation: the system's, flattened, then the share of the horizon that is over, from 0 to 1.
    Start: the system's, at step 0.

    Its settings (`horizon`, `dt`, `objective`, `max_action`) are those of the system: set in one, they change in both.

    Args:
        system: the system to look at; it is `timed.system`, too.

    Raises:
        TypeError, ValueError: if it is no System, or shows the time in this way already.
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

    def __init__(self, system: System) -> None:  # all that System's sets is the inner system's
        checks.instance("system", system, System, "a System, such as env.unwrapped.system")
        if isinstance(system, Timed):
            raise ValueError("system must be one that does not show the time yet; got a Timed. Take its .system.")
        self.system = system
        bounds = vars(system)  # as they were given, whether or not max_action counts before them
        vars(self).update({name: bounds[name] for name in ("action_low", "action_high") if name in bounds})

    def __copy__(self) -> Timed:
        """A copy whose settings are its own, as those of a copy of any system are."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self) | {"system": copy.copy(self.system)})
        return twin

    state_shape: Any = property(lambda timed: (timed.system.state_size + 1,))

    @property
    def state_labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The system's, a number for what it does not name, and "steps"."""
        named = self.system.state_labels
        return (*named, *(f"state {i}" for i in range(len(named), self.system.state_size)), "steps")

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system and count the step."""
        inner, steps = self._split(state)
        return torch.cat([self.system.step(inner, action).flatten(1), steps + 1], dim=-1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at step 0."""
        return self.at_start(self.system.initial_states(batch, generator, dtype))

    def state_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.state_cost(self.inner(state))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.running_cost(self.inner(state), action, self.inner(next_state))

    def final_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.final_cost(self.inner(state))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation, flattened, and the share of the horizon that is over."""
        inner, steps = self._split(state)
        return torch.cat([self.system.observe(inner).flatten(1), steps / self.horizon], dim=-1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """(observation_size + 1,)."""
        return (math.prod(self.system.observation_shape) + 1,)

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians, with a last row and column for the steps: they count on, and no action moves them."""
        by_state, by_action = self.system.linearize(self.inner(state), action)
        pad = torch.nn.functional.pad
        steps = pad(state.new_ones(1, 1), (self.system.state_size, 0)).expand(state.shape[0], 1, -1)
        return torch.cat([pad(by_state, (0, 1)), steps], dim=1), pad(by_action, (0, 0, 0, 1))

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products, and of each vector its component of the steps as it is."""
        pull = self.system.pullback(self.inner(state), action)

        def pull_timed(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            by_state, by_action = pull(rows, vectors[..., :-1])
            return torch.cat([by_state, vectors[..., -1:]], dim=-1), by_action

        return pull_timed

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        """The system's picture."""
        self.system.draw(canvas, self.inner(state), action)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """The system's charts."""
        return self.system.charts(self.inner(states), actions)

    def at_start(self, state: Tensor) -> Tensor:
        """The state at step 0 of the system's, (B, *state_shape of the system) -> (B, state_size + 1)."""
        return torch.nn.functional.pad(state.flatten(1), (0, 1))

    def inner(self, state: Tensor) -> Tensor:
        """The system's state, (..., state_size + 1) -> (..., *state_shape of the system)."""
        return self._split(state)[0]

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The system's state, (..., *state_shape of the system), and the number of steps done, (..., 1)."""
        inner, steps = state.split_with_sizes([self.system.state_size, 1], dim=-1)
        shape = self.system.state_shape
        inner = inner.contiguous()  # a system may take views of its states
        return inner if len(shape) == 1 else inner.unflatten(-1, shape), steps
