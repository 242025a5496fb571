"""Controllers with memory: what they remember is taken for a part of the state, so that both engines serve them.

A controller with a `memory_shape` maps observations and memories to actions and memories. Beside a system it is a
controller without memory of a larger one, whose state is (x, h) and whose action (u, h'): its step is that of the
system in x, and what the controller wants to remember in h.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bptt_envs import System, checks
from bptt_envs.system import Pullback
from bptt_envs.task import as_task

Act = Callable[[Tensor], Tensor]
"""From observations to actions, as the engines have them."""


def memory_shape_of(controller: Any) -> tuple[int, ...]:
    """The shape of what a controller remembers of one episode; () of one without memory.

    Raises:
        ValueError: if its `memory_shape` is no shape.
    """
    given = getattr(controller, "memory_shape", None)
    none = given is None or (isinstance(given, (tuple, list)) and not given)
    return () if none else checks.shape("memory_shape", given)


def memory_size_of(system: System) -> int:
    """Numbers of a memory in the state of a system; 0 where there is none."""
    return system.memory_size if isinstance(system, Remembering) else 0


def remembering(system: System, controller: Any) -> System:
    """The system as the engines have it: with the memory of the controller in its state, if that has one."""
    system, shape = as_task(system), memory_shape_of(controller)
    return system if not shape or isinstance(system, Remembering) else Remembering(system, shape)


def acting(system: System, controller: Any) -> Act:
    """From what `system` lets see to what it is to be stepped with, both with the memory if there is one."""
    return system.acting(controller) if isinstance(system, Remembering) else controller


def at_start(system: System, state: Tensor) -> Tensor:
    """Start states, (B, *state_shape of the system without memory), with nothing remembered yet."""
    return system.at_start(state)


class Remembering(System):
    """A system with what its controller remembers: what the engines ask of a system, and no more.

    State: the system's, flattened, then the memory, (n + q,), and so the observation. Action: the system's, flattened,
    then the memory that is to be, (m + q,).

    Args:
        system: the physics; its settings count as they are whenever something is asked.
        memory_shape: of what the controller remembers of one episode.
    """

    def __init__(self, system: System, memory_shape: tuple[int, ...]) -> None:  # all that System's sets is the system's
        self.system = system
        self.memory_shape = memory_shape

    @property
    def memory_size(self) -> int:
        """Numbers that are remembered of one episode, q."""
        return math.prod(self.memory_shape)

    horizon: Any = property(lambda self: self.system.horizon)
    state_shape: Any = property(lambda self: (self.system.state_size + self.memory_size,))
    action_shape: Any = property(lambda self: (self.system.action_size + self.memory_size,))
    observation_shape: Any = property(lambda self: (math.prod(self.system.observation_shape) + self.memory_size,))
    class_name: Any = property(lambda self: self.system.class_name)
    dense_jacobians: Any = property(lambda self: self.system.dense_jacobians)
    has_bounds: Any = property(lambda self: self.system.has_bounds)

    @property
    def slope_numbers(self) -> int:
        """Numbers that the slopes of a step take for one sample, about, those of the controller among them."""
        own = self.state_size**2 if self.dense_jacobians else self.system.slope_numbers
        return own + 4 * self.action_size * self.state_size

    def acting(self, controller: Any) -> Act:
        """The controller from observations and memories, (B, n + q), to actions and memories, (B, m + q)."""

        def act(seen: Tensor) -> Tensor:
            observation, memory = self._split(seen, self.system.observation_shape)
            try:
                answer = controller(observation, memory.contiguous())
            except TypeError as error:
                self._check_signature(controller, error)
                raise
            self._check(controller, answer, seen)
            return torch.cat([one.flatten(1) for one in answer], dim=-1)

        return act

    def _check_signature(self, controller: Any, error: TypeError) -> None:
        """Raise ValueError if a controller does not take a memory at all."""
        try:
            inspect.signature(getattr(controller, "forward", controller)).bind(None, None)
        except TypeError:
            raise ValueError(
                f"{self._must(controller)}: forward(observation, memory) -> (action, memory). It takes no memory."
            ) from error

    def _must(self, controller: Any) -> str:
        action, memory = (", ".join(map(str, shape)) for shape in (self.system.action_shape, self.memory_shape))
        return (
            f"controller {type(controller).__name__} has memory_shape {self.memory_shape}, so that it must map "
            f"observations and memories to actions (B, {action}) and memories (B, {memory}), all of one dtype"
        )

    def _check(self, controller: Any, answer: Any, like: Tensor) -> None:
        wanted = [(len(like), *shape) for shape in (self.system.action_shape, self.memory_shape)]
        pair = answer if isinstance(answer, (tuple, list)) else (answer,)
        if [tuple(one.shape) if isinstance(one, Tensor) else None for one in pair] != wanted:
            got = (tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in pair)
            raise ValueError(f"{self._must(controller)}; got {' and '.join(map(str, got))} for B = {len(like)}.")
        if any(one.dtype is not like.dtype for one in pair):
            raise ValueError(f"{self._must(controller)}; got {pair[0].dtype} and {pair[1].dtype} for {like.dtype}.")

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system, and remember what is to be remembered."""
        inner, _ = self._split(state, self.system.state_shape)
        own, memory = self._split(action, self.system.action_shape)
        return torch.cat([self.system.step(inner, own).flatten(1), memory.flatten(1)], dim=-1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, with nothing remembered."""
        return self.at_start(self.system.initial_states(batch, generator, dtype))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation, flattened, and the memory."""
        inner, memory = self._split(state, self.system.state_shape)
        return torch.cat([self.system.observe(inner).flatten(1), memory.flatten(1)], dim=-1)

    def bound(self, action: Tensor) -> Tensor:
        """The system's actions within their bounds; a memory has none."""
        if not self.system.has_bounds:
            return action
        own, memory = self._split(action, self.system.action_shape)
        rows = action.shape[:-1]
        return torch.cat([self.system.bound(own).reshape(*rows, -1), memory.reshape(*rows, -1)], dim=-1)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's, (B,)."""
        own, _ = self._split(action, self.system.action_shape)
        return self.system.running_cost(self.inner(state), own, self.inner(next_state))

    def final_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.final_cost(self.inner(state))

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians; what is remembered is what the action says, whatever the state."""
        own, _ = self._split(action, self.system.action_shape)
        by_state, by_action = self.system.linearize(self.inner(state), own)
        pad, n, m, q = torch.nn.functional.pad, self.system.state_size, self.system.action_size, self.memory_size
        remembered = pad(torch.eye(q, dtype=state.dtype, device=state.device), (m, 0, n, 0))
        return pad(by_state, (0, q, 0, q)), pad(by_action, (0, q, 0, q)) + remembered

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products, and those with the memory as they are."""
        own, _ = self._split(action, self.system.action_shape)
        pull, n, q = self.system.pullback(self.inner(state), own), self.system.state_size, self.memory_size

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            by_state, by_action = pull(rows, vectors[..., :n])
            return torch.nn.functional.pad(by_state, (0, q)), torch.cat([by_action, vectors[..., n:]], dim=-1)

        return pulled

    def at_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Start states of the system, (B, *state_shape), with a memory of zeros."""
        if state.shape[1:] == self.state_shape:
            return state
        return torch.nn.functional.pad(self.system.at_start(state, generator).flatten(1), (0, self.memory_size))

    def inner(self, state: Tensor) -> Tensor:
        """The system's states, (..., n + q) -> (..., *state_shape of the system)."""
        return self._split(state, self.system.state_shape)[0]

    def memory(self, state: Tensor) -> Tensor:
        """What is remembered, (..., n + q) -> (..., *memory_shape)."""
        return self._split(state, self.system.state_shape)[1]

    def action(self, action: Tensor) -> Tensor:
        """The system's actions, (..., m + q) -> (..., *action_shape of the system)."""
        return self._split(action, self.system.action_shape)[0]

    def without_gradients(self, state: Tensor, *, of_state: bool, of_memory: bool) -> Tensor:
        """The state with its system's part or its memory detached."""
        n = self.system.state_size
        inner, memory = state[..., :n], state[..., n:]
        return torch.cat([inner.detach() if of_state else inner, memory.detach() if of_memory else memory], dim=-1)

    def _split(self, rows: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Rows of something of that shape and a memory, (..., *shape) and (..., *memory_shape)."""
        first, memory = rows.split_with_sizes([math.prod(shape), self.memory_size], dim=-1)
        first = first.contiguous()  # a system may take views of its states
        first = first if len(shape) == 1 else first.unflatten(-1, shape)
        return first, memory if len(self.memory_shape) == 1 else memory.unflatten(-1, self.memory_shape)
