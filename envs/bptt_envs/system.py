"""The contract between a physical system and everything that steps, trains or draws it."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bptt_envs.checks import nearest, one_of, positive, positive_integer

if TYPE_CHECKING:
    from bptt_envs.rendering import Canvas

OBJECTIVES = ("final", "continuous")


class System(ABC):
    """A differentiable physical system with a cost, start states and a picture.

    Tensors are batch-first: B samples that do not depend on one another. Methods are pure and keep the
    device and dtype of what they are given. The loss of a trajectory x_0, u_0, x_1, ..., x_T is

        L = sum_t running_cost(x_t, u_t, x_{t+1}) + final_cost(x_T),

    averaged over the batch. A subclass sets `state_shape` and `action_shape` and implements `step`,
    `initial_states` and at least one of the two costs; the rest has defaults.

    Args:
        horizon: steps of an episode, T.
        dt: duration of a step, in s.
        objective: "final" (the cost counts at step T only) or "continuous" (at every step).
        max_action: every action component is clamped to [-max_action, max_action]; None leaves it unbounded.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    state_shape: tuple[int, ...]
    action_shape: tuple[int, ...]

    #: Half-width of the action space that is declared to RL libraries while `max_action` is None. It tells
    #: them where to explore (they need finite bounds) and clamps nothing.
    nominal_action: ClassVar[float] = 1.0

    #: What each state component is, with its unit, in order; for tables and pictures.
    state_labels: tuple[str, ...] = ()
    #: The same for the action.
    action_labels: tuple[str, ...] = ()

    def __init__(self, *, horizon: int, dt: float, objective: str = "final", max_action: float | None = None) -> None:
        self.horizon = positive_integer("horizon", horizon)
        self.dt = positive("dt", dt)
        self.objective = one_of("objective", objective, OBJECTIVES)
        self.max_action = None if max_action is None else positive("max_action", max_action)

    @abstractmethod
    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Advance by `dt`. state: (B, *state_shape), action: (B, *action_shape) -> (B, *state_shape)."""

    @abstractmethod
    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw (batch, *state_shape) start states on the device of `generator`."""

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Cost of one step, (B,). Scaled so that the sum over an episode is its part of the loss."""
        return next_state.new_zeros(next_state.shape[0])

    def final_cost(self, state: Tensor) -> Tensor:
        """Cost of the state at step T, (B,)."""
        return state.new_zeros(state.shape[0])

    def observe(self, state: Tensor) -> Tensor:
        """What a controller sees of `state`, (B, *observation_shape): the state itself unless overridden."""
        return state

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.state_shape

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        """Draw one `state` (state_shape) and the `action` that led to it on `canvas`.

        The default is a bar for each state component.
        """
        canvas.bars([float(value) for value in state.flatten()], self.state_labels)

    # What follows is derived from the above.

    @property
    def state_size(self) -> int:
        """Number of state components."""
        return math.prod(self.state_shape)

    @property
    def action_size(self) -> int:
        """Number of action components."""
        return math.prod(self.action_shape)

    def bound(self, action: Tensor) -> Tensor:
        """Clamp `action` to the range of `max_action`; the same tensor if there is none.

        Whoever calls `step` bounds the action first, so that systems and their slopes need not.
        """
        return action if self.max_action is None else action.clamp(-self.max_action, self.max_action)

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Jacobians of `step`: A = d next/d state, (B, n, n), and B = d next/d action, (B, n, m).

        n and m count the flattened state and action. This default takes one vector-Jacobian product for
        each state component, which works for any differentiable `step`; override it where a closed form
        is at hand, it is the larger part of a training step.
        """
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            action = action.detach().requires_grad_()
            components = self.step(state, action).flatten(1).sum(0)
            rows = [
                torch.autograd.grad(
                    component, (state, action), retain_graph=True, materialize_grads=True, allow_unused=True
                )
                for component in components
            ]
        by_state = torch.stack([row[0].flatten(1) for row in rows], dim=1)
        by_action = torch.stack([row[1].flatten(1) for row in rows], dim=1)
        return by_state, by_action

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Options of the constructor with their defaults, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @classmethod
    def check_options(cls, options: dict[str, Any], owner: str) -> None:
        """Raise ValueError if `options` holds a name that the constructor does not know.

        Args:
            options: option values by name.
            owner: whose options these are, for the message.
        """
        known = cls.options()
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{owner} has no option {name!r}.{nearest(name, known)} Its options: {', '.join(known)}."
                )
