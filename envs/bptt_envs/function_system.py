"""A system whose physics is somebody else's: a function, a world model, an environment of another library."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bptt_envs import checks
from bptt_envs.system import Bound, System
from bptt_envs.task import StateCost, StepCost

Transition = Callable[[Tensor, Tensor], Tensor]
"""From states (B, *state_shape) and bounded actions (B, *action_shape) to the next states."""

Start = Callable[[int, torch.Generator, torch.dtype], Tensor]
"""From a number B, a generator and a dtype to start states, (B, *state_shape), drawn from the generator only."""

ARGUMENTS = {
    "step": ("state", "action"),
    "start": ("number", "generator", "dtype"),
    "cost": ("state",),
    "running_cost": ("state", "action", "next_state"),
    "final_cost": ("state",),
}
"""What the functions are called with, in order."""

OF_TORCH = "It takes states (B, ...) and actions (B, ...) of torch; of a function in JAX, jax_step makes such a one."


class FunctionSystem(System):
    """A system made of functions, for physics that is at hand already.

    Its slopes are those that autograd finds in the function: `linearize` and `pullback` are the defaults, a backward
    pass for each vector. Whatever takes a `System` takes it: environments, trainers, `check_system`, `Task`.

    Args:
        step: from states (B, *state_shape) and bounded actions (B, *action_shape) to the next states, differentiable.
            Of an `nn.Module`, such as a world model, the parameters count as constants, as they are at the time, in
            the dtype of the states: no gradient reaches them through the physics, and whoever trains them goes on
            doing so.
        start: draws start states: (number, generator, dtype) -> (number, *state_shape), on the generator's device.
        cost: what a state costs, (B, *state_shape) -> (B,): at the last step with objective "final", as the mean over
            the steps with "continuous". None: nothing, where one of the two below is given.
        running_cost: instead of it, as of a `Task`: the cost of one step, of which the loss is the sum, a function of
            states, bounded actions and next states, -> (B,).
        final_cost: instead of it, the cost of the last state, (B, *state_shape) -> (B,).
        state_shape: shape of one state.
        action_shape: shape of one action.
        horizon: steps of an episode.
        dt: duration of a step.
        objective: "final" or "continuous".
        max_action: every action component is clamped to [-max_action, max_action]; None leaves it unbounded.
        action_low: instead, the least value of every action component, or of each.
        action_high: the same for the largest.

    Raises:
        ValueError: if an argument is out of range; the message names it.
        TypeError: if a function is none or takes other arguments; when it steps, if it takes or gives no tensors.
    """

    def __init__(
        self,
        *,
        step: Transition,
        start: Start,
        cost: StateCost | None = None,
        running_cost: StepCost | None = None,
        final_cost: StateCost | None = None,
        state_shape: Sequence[int],
        action_shape: Sequence[int],
        horizon: int,
        dt: float = 1.0,
        objective: str = "final",
        max_action: float | None = None,
        action_low: Bound = None,
        action_high: Bound = None,
    ) -> None:
        costs = {"cost": cost, "running_cost": running_cost, "final_cost": final_cost}
        self.costs: dict[str, Any] = {name: one for name, one in costs.items() if one is not None}
        if not self.costs:
            raise ValueError("cost must be given, or running_cost or final_cost in its place; got none of them.")
        for name, function in {"step": step, "start": start, **self.costs}.items():
            _check_function(name, function)
        self.state_shape = checks.shape("state_shape", state_shape)
        self.action_shape = checks.shape("action_shape", action_shape)
        super().__init__(
            horizon=horizon,
            dt=dt,
            objective=objective,
            max_action=max_action,
            action_low=action_low,
            action_high=action_high,
        )
        self.transition, self.start = step, start

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """What the function gives for the states and actions."""
        if isinstance(self.transition, nn.Module):
            held = {**dict(self.transition.named_parameters()), **dict(self.transition.named_buffers())}
            constants = {name: _as_constant(one, state.dtype) for name, one in held.items()}
            return functional_call(self.transition, constants, (state, action))  # type: ignore[no-any-return]
        try:
            following = self.transition(state, action)
        except TypeError as error:
            raise TypeError(f"step fails on tensors: {str(error).splitlines()[0]} {OF_TORCH}") from error
        if not isinstance(following, Tensor):
            raise TypeError(f"step must give the next states; got {checks.shown(following)}. {OF_TORCH}")
        return following

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """What `start` draws."""
        return self.start(batch, generator, dtype)

    def state_cost(self, state: Tensor) -> Tensor:
        """What `cost` says."""
        cost: StateCost = self.costs.get("cost", super().state_cost)
        return cost(state)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """What the function of this name says, or what `cost` does by the objective."""
        cost: StepCost = self.costs.get("running_cost", super().running_cost)
        return cost(state, action, next_state)

    def final_cost(self, state: Tensor) -> Tensor:
        """What the function of this name says, or what `cost` does by the objective."""
        cost: StateCost = self.costs.get("final_cost", super().final_cost)
        return cost(state)


def _check_function(name: str, function: Any) -> None:
    """Raise TypeError if it cannot be called with what it is to be called with, as far as Python knows."""
    wanted = f"{name} must be a function of {', '.join(ARGUMENTS[name])}"
    if not callable(function):
        raise TypeError(f"{wanted}; got {checks.shown(function)}.")
    try:
        takes = inspect.signature(function)
    except ValueError:  # one of C has none
        return
    try:
        takes.bind(*ARGUMENTS[name])
    except TypeError as error:
        hint = " A cost of the action, too, is running_cost." if name == "cost" else ""
        raise TypeError(f"{wanted}; got one of {takes}.{hint}") from error


def _as_constant(held: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor without gradients; floating-point numbers in the dtype."""
    return held.detach().to(dtype) if held.is_floating_point() else held
