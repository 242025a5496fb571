"""Controllers with memory and noise: what they are handed is taken for a part of the state, so that all engines serve.

A controller with a `memory_shape` maps observations and memories to actions and memories, one with a `noise_shape` is
handed standard normal numbers, too. Beside a system it is a controller of a larger one that has neither: the state is
(x, e, h), e the noise of the step and h the memory, the action (u, h'). The step of the larger one is the system's in
x, puts what the controller wants to remember in h, and leaves e empty: whoever rolls out draws it and puts it there.
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
from bptt_trainers.directions.recursion import pullback_of

Act = Callable[[Tensor], Tensor]
"""From observations to actions, as the engines have them."""


EntropyWeight = Callable[[Tensor], Tensor]
"""From states of the system, (B, *state_shape), to what the entropy of the action there is worth, (B,)."""


def memory_shape_of(controller: Any) -> tuple[int, ...]:
    """The shape of what a controller remembers of one episode; () of one without memory.

    Raises:
        ValueError: if its `memory_shape` is no shape.
    """
    return _shape_of(controller, "memory_shape")


def noise_shape_of(controller: Any) -> tuple[int, ...]:
    """The shape of the noise that a controller is handed at one step; () of one without.

    Raises:
        ValueError: if its `noise_shape` is no shape.
    """
    return _shape_of(controller, "noise_shape")


def gives_entropy(controller: Any) -> bool:
    """Whether the entropy of each action's distribution is the last of what a controller gives."""
    return bool(getattr(controller, "gives_entropy", False))


def _shape_of(controller: Any, name: str) -> tuple[int, ...]:
    given = getattr(controller, name, None)
    none = given is None or (isinstance(given, (tuple, list)) and not given)
    return () if none else checks.shape(name, given)


def memory_size_of(system: System) -> int:
    """Numbers of a memory in the state of a system; 0 where there is none."""
    return system.memory_size if isinstance(system, AugmentedSystem) else 0


def augmented(system: System, controller: Any, entropy: float | EntropyWeight = 0.0) -> System:
    """The system as the engines have it: with memory and noise of the controller in its state, if that has any.

    Args:
        system: the physics.
        controller: whose memory and noise.
        entropy: weight of the entropy of the controller's actions in the loss, see `AugmentedSystem`.

    Raises:
        ValueError: if there is a weight, and the controller does not give its entropy.
    """
    if isinstance(system, AugmentedSystem):
        return system
    system = as_task(system)
    gives = gives_entropy(controller)
    if entropy and not gives:
        raise ValueError(
            f"entropy must be 0 for a controller that does not give its entropy; got {entropy} for "
            f'{type(controller).__name__}. A Gaussian gives it (deviation="constant" or "state").'
        )
    memory, noise = memory_shape_of(controller), noise_shape_of(controller)
    if not (memory or noise or gives):
        return system
    return AugmentedSystem(system, memory, noise, gives_entropy=gives, entropy=entropy)


def acting(system: System, controller: Any) -> Act:
    """From what `system` lets see to what it is to be stepped with, both with memory and noise if there are any."""
    return system.acting(controller) if isinstance(system, AugmentedSystem) else controller


def with_noise(system: System, state: Tensor, noise: Tensor | None) -> Tensor:
    """States, (..., *state_shape), with that noise, (..., *noise_shape), in place of theirs.

    None: with none, as a step leaves them. The states of a system that is not augmented have no room for any.
    """
    return system.with_noise(state, noise) if isinstance(system, AugmentedSystem) else state


def draw_noise(controller: Any, steps: int, states: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
    """Draw the noise of whole episodes, (T, B, *noise_shape), for a controller that is handed any; None for others.

    Args:
        controller: who is handed it.
        steps: of an episode, T.
        states: (B, *state_shape), of whose dtype and on whose device it is.
        generator: on the CPU, so that every device has the same. None: torch's random numbers.
    """
    shape = noise_shape_of(controller)
    if not shape:
        return None
    checks.in_memory("noise_shape", steps * len(states), math.prod(shape))
    return torch.randn(steps, len(states), *shape, generator=generator, dtype=states.dtype, device="cpu").to(
        states.device
    )


class AugmentedSystem(System):
    """A system with what its controller remembers and its noise: what the engines ask of a system, and no more.

    State: the system's, flattened, then the noise of the step, then the memory, (n + e + q,), and so the observation.
    Action: the system's, flattened, then the memory that is to be, (m + q,). With an entropy weight w there is one
    number more between them: the entropy that the controller gives, of which -w / T is a cost of the step.

    Args:
        system: the physics; its settings count as they are whenever something is asked.
        memory_shape: of what the controller remembers of one episode; () for nothing.
        noise_shape: of the noise that it is handed at one step; () for none.
        gives_entropy: whether it gives its entropy.
        entropy: the weight w; or what takes the place of w / T, which may differ from state to state.
    """

    def __init__(  # all that System's sets is the system's
        self,
        system: System,
        memory_shape: tuple[int, ...] = (),
        noise_shape: tuple[int, ...] = (),
        *,
        gives_entropy: bool = False,
        entropy: float | EntropyWeight = 0.0,
    ) -> None:
        self.system = system
        self.memory_shape = memory_shape
        self.noise_shape = noise_shape
        self.gives_entropy = gives_entropy
        self.entropy = entropy

    @property
    def memory_size(self) -> int:
        """Numbers that are remembered of one episode, q."""
        return math.prod(self.memory_shape) if self.memory_shape else 0

    @property
    def noise_size(self) -> int:
        """Numbers of the noise of one step, e."""
        return math.prod(self.noise_shape) if self.noise_shape else 0

    @property
    def _entropies(self) -> int:
        """Components of the action that are an entropy."""
        return int(self.entropy != 0.0)

    horizon: Any = property(lambda self: self.system.horizon)
    state_shape: Any = property(lambda self: (self.system.state_size + self.noise_size + self.memory_size,))
    action_shape: Any = property(lambda self: (self.system.action_size + self._entropies + self.memory_size,))
    observation_shape: Any = property(
        lambda self: (math.prod(self.system.observation_shape) + self.noise_size + self.memory_size,)
    )
    class_name: Any = property(lambda self: self.system.class_name)
    dense_jacobians: Any = property(lambda self: self.system.dense_jacobians)
    has_bounds: Any = property(lambda self: self.system.has_bounds)

    @property
    def slope_numbers(self) -> int:
        """Numbers that the slopes of a step take for one sample, about, those of the controller among them."""
        own = self.state_size**2 if self.dense_jacobians else self.system.slope_numbers
        return own + 4 * self.action_size * self.state_size

    def acting(self, controller: Any) -> Act:
        """The controller from what is seen, noise and memory, (B, n + e + q), to actions and memories."""

        def act(seen: Tensor) -> Tensor:
            observation, noise, memory = self._split_state(seen, self.system.observation_shape)
            handed = [one for one, shape in ((memory, self.memory_shape), (noise, self.noise_shape)) if shape]
            try:
                answer = controller(observation, *(one.contiguous() for one in handed))
            except TypeError as error:
                self._check_signature(controller, len(handed), error)
                raise
            return torch.cat([one.flatten(1) for one in self._checked(controller, answer, seen)], dim=-1)

        return act

    def _check_signature(self, controller: Any, handed: int, error: TypeError) -> None:
        """Raise ValueError if a controller does not take what it is handed at all."""
        try:
            inspect.signature(getattr(controller, "forward", controller)).bind(*[None] * (1 + handed))
        except TypeError:
            raise ValueError(f"{self._must(controller)}. It does not take them.") from error

    def _must(self, controller: Any) -> str:
        """What a controller must do, in words."""
        named = [("memory", self.memory_shape), ("noise", self.noise_shape)]
        entropy = ["gives_entropy"] if self.gives_entropy else []
        has = " and ".join([*(f"{name}_shape {shape}" for name, shape in named if shape), *entropy])
        takes = ", ".join(["observation", *(name for name, shape in named if shape)])
        wanted = [*self._wanted().items()]
        gives = ", ".join(name for name, _ in wanted)
        shapes = ", ".join(f"{name} (B{''.join(f', {size}' for size in shape)})" for name, shape in wanted)
        return (
            f"controller {type(controller).__name__} has {has}, so that it must be a function forward({takes}) -> "
            f"{f'({gives})' if len(wanted) > 1 else gives} with {shapes}, all of one dtype"
        )

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        """What a controller is to give, with the shape of each."""
        wanted = {"action": self.system.action_shape}
        if self.memory_shape:
            wanted["memory"] = self.memory_shape
        if self.gives_entropy:
            wanted["entropy"] = ()
        return wanted

    def _checked(self, controller: Any, answer: Any, like: Tensor) -> list[Tensor]:
        """What a controller gives, in the order of the components of the action, if that is what it must give."""
        wanted = self._wanted()
        given = answer if isinstance(answer, (tuple, list)) else (answer,)
        got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in given]
        if got != [(len(like), *shape) for shape in wanted.values()]:
            shapes = " and ".join(map(str, got))
            raise ValueError(f"{self._must(controller)}; got {shapes} for B = {len(like)}.")
        if any(one.dtype is not like.dtype for one in given):
            raise ValueError(f"{self._must(controller)}; got {given[0].dtype} and {given[-1].dtype} for {like.dtype}.")
        by_name = dict(zip(wanted, given, strict=True))
        entropy = [by_name["entropy"].unsqueeze(1)] if self._entropies and self.gives_entropy else []
        return [by_name["action"], *entropy, *([by_name["memory"]] if self.memory_shape else [])]

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system, and remember what is to be remembered; there is no noise yet."""
        own, _, memory = self._split_action(action)
        following = self.system.step(self.inner(state), own).flatten(1)
        return self._joined(following, following.new_zeros(len(state), self.noise_size), memory)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, with nothing remembered and no noise."""
        return self.episode_start(self.system.initial_states(batch, generator, dtype))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation, flattened, the noise and the memory."""
        inner, noise, memory = self._split_state(state, self.system.state_shape)
        return self._joined(self.system.observe(inner).flatten(1), noise, memory)

    def bound(self, action: Tensor) -> Tensor:
        """The system's actions within their bounds; a memory and an entropy have none."""
        if not self.system.has_bounds:
            return action
        own, entropy, memory = self._split_action(action)
        rows = action.shape[:-1]
        return torch.cat([self.system.bound(own).reshape(*rows, -1), entropy, memory.reshape(*rows, -1)], dim=-1)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's, (B,), less what entropy is worth."""
        own, entropy, _ = self._split_action(action)
        cost = self.system.running_cost(self.inner(state), own, self.inner(next_state))
        if self._entropies:
            over = self.episode_over(state)
            worth = entropy[..., 0] if over is None else entropy[..., 0].masked_fill(over, 0.0)
            given = self.entropy
            weight = given(self.inner(state)) if callable(given) else float(given) / int(self.horizon)
            cost = cost - weight * worth
        return cost

    def episode_over(self, state: Tensor) -> Tensor | None:
        """The system's, (B,) of bool."""
        return self.system.episode_over(self.inner(state))

    def final_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,)."""
        return self.system.final_cost(self.inner(state))

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The system's Jacobians; what is remembered is what the action says, whatever the state."""
        by_state, by_action = self.system.linearize(self.inner(state), self.action(action))
        pad, n, e, q = torch.nn.functional.pad, self.system.state_size, self.noise_size, self.memory_size
        left = self.system.action_size + self._entropies
        remembered = pad(torch.eye(q, dtype=state.dtype, device=state.device), (left, 0, n + e, 0))
        return pad(by_state, (0, e + q, 0, e + q)), pad(by_action, (0, self._entropies + q, 0, e + q)) + remembered

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The system's products, and those with the memory as they are."""
        pull = pullback_of(self.system, self.inner(state), self.action(action))
        n, e, q = self.system.state_size, self.noise_size, self.memory_size

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            by_state, by_action = pull(rows, vectors[..., :n])
            by_action = torch.nn.functional.pad(by_action, (0, self._entropies))
            return (
                torch.nn.functional.pad(by_state, (0, e + q)),
                torch.cat([by_action, vectors[..., n + e :]], dim=-1) if q else by_action,
            )

        return pulled

    def episode_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Start states of the system, (B, *state_shape), with a memory of zeros and no noise."""
        if state.shape[1:] == self.state_shape:
            return state
        started = self.system.episode_start(state, generator).flatten(1)
        return torch.nn.functional.pad(started, (0, self.noise_size + self.memory_size))

    def with_noise(self, state: Tensor, noise: Tensor | None) -> Tensor:
        """States, (..., n + e + q), with that noise, (..., *noise_shape), in place of theirs; None: with none."""
        if not self.noise_size:
            return state
        before, own, memory = state.split_with_sizes([self.system.state_size, self.noise_size, self.memory_size], -1)
        return torch.cat([before, own.new_zeros(own.shape) if noise is None else noise.view_as(own), memory], dim=-1)

    def inner(self, state: Tensor) -> Tensor:
        """The system's states, (..., n + e + q) -> (..., *state_shape of the system)."""
        return self._split_state(state, self.system.state_shape)[0]

    def memory(self, state: Tensor) -> Tensor:
        """What is remembered, (..., n + e + q) -> (..., *memory_shape)."""
        return self._split_state(state, self.system.state_shape)[2]

    def action(self, action: Tensor) -> Tensor:
        """The system's actions, (..., m + q) -> (..., *action_shape of the system)."""
        return self._split_action(action)[0]

    def entropies(self, action: Tensor) -> Tensor:
        """The entropy that the controller gives, (..., m + 1 + q) -> (...,)."""
        return self._split_action(action)[1][..., 0]

    def _joined(self, first: Tensor, noise: Tensor, memory: Tensor) -> Tensor:
        """The system's part, (B, n), noise and memory as one row for each sample; empty ones are left out."""
        return torch.cat([first, *(one.flatten(1) for one in (noise, memory) if one.numel())], dim=-1)

    def _split_state(self, rows: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of something of that shape, noise and memory: each in its own shape."""
        first, noise, memory = rows.split_with_sizes([math.prod(shape), self.noise_size, self.memory_size], dim=-1)
        # Contiguous, as a system may take views of its states
        return _shaped(first.contiguous(), shape), _shaped(noise, self.noise_shape), _shaped(memory, self.memory_shape)

    def _split_action(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The system's actions, (..., *action_shape), the entropy, (..., 0 or 1), the memory, (..., *memory_shape)."""
        sizes = [self.system.action_size, self._entropies, self.memory_size]
        first, entropy, memory = rows.split_with_sizes(sizes, dim=-1)
        return _shaped(first.contiguous(), self.system.action_shape), entropy, _shaped(memory, self.memory_shape)


def _shaped(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows, (..., prod(shape)), in that shape."""
    return rows if len(shape) < 2 else rows.unflatten(-1, shape)
