"""What is asked of a system beyond what the system itself says.

Costs of one's own, parameters that differ from episode to episode, early ends, the time in the observation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.canvas import Canvas
from bptt_envs.charts import Chart
from bptt_envs.system import ObservePullback, Pullback, System, constant_like

if TYPE_CHECKING:
    from typing_extensions import Self


StepCost = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From states (B, *state_shape), bounded actions (B, *action_shape) and next states to the cost of the step, (B,)."""

StateCost = Callable[[Tensor], Tensor]
"""From states (B, *state_shape) to their cost, (B,)."""

Condition = Callable[[Tensor], Tensor]
"""From states (B, *state_shape) to whether an episode ends in them, (B,) of bool."""


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
    drawn: Tensor  # (..., P), parameters of the episode, from -1 to 1 of their ranges
    alive: Tensor  # (..., 1), 1 until the episode has ended, then 0
    steps: Tensor  # (..., 1), steps done


class Task(System):
    """Another face of a system: the same physics, bounds and pictures, with what is asked of it said apart.

    What it needs of an episode it carries in the state, after the system's own numbers, so that whatever serves a
    system serves a task.

    State: the system's, flattened, then what is in use of: the parameters that `randomize` has drawn, each from -1 to 1
    of its range; 1 as long as the episode goes on and 0 when it has ended, if episodes end early; the number of steps
    done, with `observe_time`. When an episode has ended, its state stays as it is to the horizon.
    Observation: the system's; if more is shown, flattened, then these parameters (`show_parameters`), then the share of
    the horizon that is over, from 0 to 1 (`observe_time`).
    Start: the system's, with parameters drawn after the states, at step 0.

    Its settings (`horizon`, `dt`, `objective`, `max_action`) are those of the system: set in one, they change in both.

    Args:
        system: the physics; it is `task.system`, too.
        running_cost: instead of the system's, the cost of one step, (B,), a differentiable torch function of the
            system's states (B, *state_shape), bounded actions (B, *action_shape) and next states. The loss is the sum
            over the steps.
        final_cost: instead of the system's, the cost of the last state, (B,), a function of (B, *state_shape).
        terminated: instead of the system's, whether an episode ends in a state, (B,) of bool, a function of (B,
            *state_shape). The first state for which it is true is the last one: its `final_cost` counts, and no running
            cost after it. No gradient goes through the time at which that is.
        randomize: parameters of the system that are drawn anew for each episode, uniformly, and held through it:
            {name: (low, high)}. Which ones a system has, its class says (`System.parameters`). No gradient goes through
            them; for that, see `System.with_parameters`.
        show_parameters: show the controller what was drawn; without, it acts well on all of them or finds out.
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
    surrogate_gradient = _of_system("surrogate_gradient")
    class_name = _of_system("class_name")

    def __init__(
        self,
        system: System,
        *,
        running_cost: StepCost | None = None,
        final_cost: StateCost | None = None,
        terminated: Condition | None = None,
        randomize: Mapping[str, tuple[float, float]] | None = None,
        show_parameters: bool = False,
        observe_time: bool = False,
    ) -> None:  # all that System's sets is the inner system's
        checks.instance("system", system, System, "a System, such as env.unwrapped.system")
        if isinstance(system, Task):
            raise ValueError("system must be one without a task; got a Task. Take its .system.")
        self.system = system
        bounds = vars(system)  # as they were given, whether or not max_action counts before them
        vars(self).update({name: bounds[name] for name in ("action_low", "action_high") if name in bounds})
        self._functions = _functions(running_cost=running_cost, final_cost=final_cost, terminated=terminated)
        self.ends_early = terminated is not None or ends_by_itself(system)
        self.randomize = _ranges(system, randomize)
        ends = torch.tensor(list(self.randomize.values()), dtype=torch.float64).view(-1, 2)
        self._middle, self._half = ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2
        self.show_parameters = checks.flag("show_parameters", show_parameters)
        if self.show_parameters and not self.randomize:
            raise ValueError("show_parameters shows what randomize draws; give randomize={name: (low, high)}, too.")
        self.observe_time = checks.flag("observe_time", observe_time)
        slopes = [1.0] * len(self.randomize) + [0.0] * self.ends_early + [1.0] * self.observe_time
        self._held = torch.tensor(slopes, dtype=torch.float64)  # of what is held, by itself a step before

    def __copy__(self) -> Task:
        """A copy whose settings are its own, as those of a copy of any system are."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self) | {"system": copy.copy(self.system)})
        return twin

    @property
    def asked(self) -> dict[str, Any]:
        """What it asks that the system does not say by itself: its options that are in use, by name."""
        names = ("randomize", "show_parameters", "observe_time")
        return self._functions | {name: value for name in names if (value := getattr(self, name))}

    @property
    def own_costs(self) -> bool:
        """Whether it has costs in the place of the system's."""
        return "running_cost" in self._functions or "final_cost" in self._functions

    @property
    def condition(self) -> Condition:
        """Whether an episode ends in states of the system, (B,) of bool."""
        return self._own("terminated", self.system)  # type: ignore[no-any-return]

    # The state: the system's numbers, then what is held

    @property
    def _sizes(self) -> list[int]:
        return [self.system.state_size, len(self.randomize), int(self.ends_early), int(self.observe_time)]

    state_shape: Any = property(lambda task: (sum(task._sizes),))

    @property
    def state_labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """The system's, a number for what it does not name, the parameters, "alive" and "steps"."""
        named = self.system.state_labels
        numbered = (f"state {i}" for i in range(len(named), self.system.state_size))
        drawn = (f"{name} (of its range)" for name in self.randomize)
        return (*named, *numbered, *drawn, *["alive"] * self.ends_early, *["steps"] * self.observe_time)

    def at_start(self, state: Tensor, generator: torch.Generator | None = None, **parameters: float | Tensor) -> Tensor:
        """States at the start of an episode from the system's; states of the task stay as they are.

        Args:
            state: (B, *state_shape of the system).
            generator: draws the parameters of `randomize`. None: the same ones for the same number of states.
            parameters: values of some of them instead, by name, each a number or (B,), outside of their ranges, too.

        Returns:
            (B, *state_shape).
        """
        if state.shape[1:] != self.system.state_shape:
            return self._with_others(state, parameters) if parameters else state
        shape = (len(state), len(self.randomize))
        generator = torch.Generator().manual_seed(0) if generator is None and self.randomize else generator
        drawn = state.new_empty(shape)
        if generator is not None and self.randomize:
            drawn = 2 * torch.rand(shape, generator=generator, device=generator.device, dtype=state.dtype) - 1
        drawn = self._with_given(drawn.to(state.device), parameters)
        alive, steps = state.new_ones(len(state), int(self.ends_early)), state.new_zeros(len(state), self.observe_time)
        begun = _joined(state, drawn, alive, steps)
        if not self.ends_early:
            return begun
        alive = alive.masked_fill(self.terminated(begun).unsqueeze(-1), 0.0)
        return _joined(state, drawn, alive, steps)

    def episode_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `at_start`, with nothing given."""
        return self.at_start(state, generator)

    def _with_others(self, state: Tensor, parameters: Mapping[str, float | Tensor]) -> Tensor:
        """States of the task with other parameters."""
        if state.shape[1:] != self.state_shape:
            expected = f"{self.system.state_shape} or {self.state_shape}"
            raise ValueError(f"state must hold states of shape {expected}; got {tuple(state.shape)}.")
        inner, drawn, *held = state.split_with_sizes(self._sizes, dim=-1)
        return torch.cat([inner, self._with_given(drawn, parameters), *held], dim=-1)

    def _with_given(self, drawn: Tensor, parameters: Mapping[str, float | Tensor]) -> Tensor:
        """What was drawn, (B, P), with values that are given in its place."""
        columns = dict(zip(self.randomize, drawn.unbind(-1), strict=True))
        for name, value in parameters.items():
            if name not in columns:
                known = ", ".join(columns) or "nothing"
                raise ValueError(f"randomize has no {name!r}.{checks.nearest(name, columns)} It has: {known}.")
            low, high = self.randomize[name]
            if low == high:
                raise ValueError(f"{name} is {low:g} in all episodes, by randomize; it cannot be given.")
            value = value if isinstance(value, Tensor) else checks.finite(name, value)
            if isinstance(value, Tensor) and value.shape not in ((), (len(drawn),)):
                raise ValueError(f"{name} must be a number or of shape ({len(drawn)},); got {tuple(value.shape)}.")
            columns[name] = torch.zeros_like(columns[name]) + (2 * value - low - high) / (high - low)
        return torch.stack(list(columns.values()), dim=-1) if columns else drawn

    def parameters_of(self, state: Tensor) -> dict[str, Tensor]:
        """The parameters of `randomize` in states, by name, in their units: (..., *state_shape) -> (...,) each."""
        drawn = state.narrow(-1, self.system.state_size, len(self.randomize))
        values = torch.addcmul(constant_like(self._middle, state), constant_like(self._half, state), drawn)
        return dict(zip(self.randomize, values.unbind(-1), strict=True))

    def with_parameters(self, **values: float | Tensor) -> Self:
        """The same task of the system with other parameters, none of them drawn; see `System.with_parameters`."""
        for name in values:
            if name in self.randomize:
                raise ValueError(f"{name} is drawn for each episode, by randomize; leave it out there to give a value.")
        twin = copy.copy(self)
        twin.system = self.system.with_parameters(**values)
        return twin

    def _system(self, state: Tensor) -> System:
        """The system with the parameters of states; no gradient goes through them."""
        return self.system.with_parameters(**self.parameters_of(state.detach())) if self.randomize else self.system

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
        """Step the system and count the step; where the episode has ended, stay."""
        inner, drawn, _, steps = self._split(state)
        system, over = self._system(state), self.episode_over(state)
        if over is None:
            return _joined(system.step(inner, action), drawn, steps + 1)
        following = where_over(over, inner, system.step(*while_going_on(over, inner, action)))
        over_next = (over | self._own("terminated", system)(following)).unsqueeze(-1)
        return _joined(following, drawn, 1.0 - over_next.to(state.dtype), steps + ~over.unsqueeze(-1))

    def terminated(self, state: Tensor) -> Tensor:
        """Whether an episode ends in a state by what it asks of the system's part, (B,) of bool."""
        over: Tensor = self._own("terminated", self._system(state))(self.inner(state))
        return over

    def episode_over(self, state: Tensor) -> Tensor | None:
        """Whether the episode of a state has ended, in it or before, (...,) of bool; None if none ends early."""
        return state[..., self.system.state_size + len(self.randomize)] < 0.5 if self.ends_early else None

    def going_on(self, state: Tensor) -> Tensor:
        """The same states, (B, *state_shape), of episodes that go on, in whatever state they are."""
        inner, drawn, alive, steps = state.split_with_sizes(self._sizes, dim=-1)
        return torch.cat([inner, drawn, torch.ones_like(alive), steps], dim=-1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at step 0, with parameters drawn after them."""
        return self.at_start(self.system.initial_states(batch, generator, dtype), generator)

    def state_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self._system(state).state_cost(self.inner(state))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of one step, (B,); 0 when the episode has ended."""
        cost = self._own("running_cost", self._system(state))
        return until_end(cost, self.episode_over(state), self.inner(state), action, self.inner(next_state))

    def final_cost(self, state: Tensor) -> Tensor:
        """The cost of the state in which an episode ends, (B,)."""
        cost: StateCost = self._own("final_cost", self._system(state))
        return cost(self.inner(state))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation and, flat after it, what the task shows."""
        inner, drawn, _, steps = self._split(state)
        system, over = self._system(state), self.episode_over(state)
        if over is None:
            seen = system.observe(inner)
        else:  # a controller acts on what is over, too: 0 for what is no number there, as it is to be one
            seen = system.observe(*while_going_on(over, inner))
            seen = where_over(over, seen.nan_to_num(0.0, 0.0, 0.0), seen)
        if not self._shown:
            return seen
        return _joined(seen, drawn[:, : len(self.randomize) * self.show_parameters], steps / self.horizon)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """That of the system, or (observation_size + what is shown,)."""
        shape = self.system.observation_shape
        return (math.prod(shape) + self._shown,) if self._shown else shape

    @property
    def _shown(self) -> int:
        """Numbers of an observation after the system's."""
        return len(self.randomize) * self.show_parameters + self.observe_time

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians; what is held depends on itself alone, and no action moves it.

        Where the episode has ended, the state is the next one.
        """
        by_state, by_action = self._system(state).linearize(self.inner(state), action)
        n, size, pad = self.system.state_size, len(self._held), torch.nn.functional.pad
        over = self.episode_over(state)
        if over is not None:
            by_state = where_over(over, torch.eye(n, dtype=state.dtype, device=state.device), by_state)
            by_action = where_over(over, by_action.new_zeros(()), by_action)
        held = pad(constant_like(self._held, state).diag(), (n, 0)).expand(state.shape[0], size, -1)
        return torch.cat([pad(by_state, (0, size)), held], dim=1), pad(by_action, (0, 0, 0, size))

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products, and those with what is held, which depends on itself alone."""
        pull, n = self._system(state).pullback(self.inner(state), action), self.system.state_size
        over, slopes = self.episode_over(state), constant_like(self._held, state)

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            inner, held = vectors[..., :n], vectors[..., n:]
            by_state, by_action = pull(rows, inner)
            if over is not None:
                stays = over[rows].unsqueeze(-1)
                by_state, by_action = torch.where(stays, inner, by_state), by_action.masked_fill(stays, 0.0)
            return torch.cat([by_state, slopes * held], dim=-1), by_action

        return pulled

    def observe_pullback(self, state: Tensor) -> ObservePullback:
        """The system's products, and those with what the task shows, which is what is held or a share of it."""
        pull = self._system(state).observe_pullback(self.inner(state))
        over, size = self.episode_over(state), math.prod(self.system.observation_shape)
        shown = len(self.randomize) * self.show_parameters

        def pulled(rows: slice, vectors: Tensor) -> Tensor:
            seen, drawn, steps = vectors.split_with_sizes([size, shown, int(self.observe_time)], dim=-1)
            by_state = seen if pull is None else pull(rows, seen)
            if over is not None:
                by_state = by_state.masked_fill(over[rows].unsqueeze(-1), 0.0)
            hidden = len(self.randomize) - shown + self.ends_early
            return torch.cat([by_state, drawn, seen.new_zeros(*seen.shape[:2], hidden), steps / self.horizon], dim=-1)

        return pulled

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        """The system's picture."""
        values = {name: float(value) for name, value in self.parameters_of(state).items()}
        self.system.with_parameters(**values).draw(canvas, self.inner(state), action)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """The system's charts, with the parameters that each episode starts with."""
        return self._system(states[0]).charts(self.inner(states), actions)

    def _own(self, name: str, system: System) -> Any:
        """A function of the task's own, or that of the system."""
        return self._functions.get(name) or getattr(system, name)


def ends_by_itself(system: System) -> bool:
    """Whether a system says that episodes end early; a task counts as what it is of."""
    own = system.terminated
    return callable(own) and getattr(own, "__func__", None) is not System.terminated


def as_task(system: System) -> System:
    """The system, as a task if it says that episodes end early, which is nobody else's business."""
    return Task(system) if not isinstance(system, Task) and ends_by_itself(system) else system


def until_end(cost: StepCost, over: Tensor | None, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """The cost of a step, (B,), 0 for samples that are over: neither it nor its slopes are looked at there."""
    if over is None:
        return cost(state, action, next_state)
    return cost(*while_going_on(over, state, action, next_state)).masked_fill(over, 0.0)


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


def _ranges(system: System, given: Any) -> dict[str, tuple[float, float]]:
    """The ranges of parameters, by name; the system must take both ends.

    Raises:
        ValueError: if it does not, or has no such parameter, or a range is none.
    """
    ranges: dict[str, tuple[float, float]] = {}
    for name, value in ({} if given is None else checks.mapping("randomize", given)).items():
        if name not in system.parameter_names:
            raise ValueError(f"randomize: {system.no_parameter(name)}")
        low, high = checks.finite_pair(f"randomize[{name!r}]", value)
        if low > high:
            raise ValueError(f"randomize[{name!r}] must be (low, high) with low <= high; got {checks.shown(value)}.")
        for end in (low, high):
            try:
                system.rebuilt(**{name: end})
            except ValueError as error:
                raise ValueError(f"randomize[{name!r}] reaches to what the system does not take: {error}") from error
        ranges[name] = low, high
    return ranges


def where_over(over: Tensor, ended: Tensor, going_on: Tensor) -> Tensor:
    """Samples of the one where an episode is over, (B,), of the other where it goes on, (B, ...)."""
    return torch.where(over[(..., *[None] * (going_on.dim() - over.dim()))], ended, going_on)


def while_going_on(over: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The same values, cut off from the graph where an episode is over: slopes there may be anything, NaN too."""
    if not torch.is_grad_enabled():
        return tensors
    return tuple(where_over(over, one.detach(), one) for one in tensors)


def _joined(first: Tensor, *others: Tensor) -> Tensor:
    """Rows flattened, one after the other, (B, ...)."""
    return torch.cat([first.flatten(1), *others], dim=-1)
