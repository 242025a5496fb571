"""A stochastic controller a step earlier: what it gives is the distribution that its actions are drawn from.

The slopes v_t of the recursion are then those of the loss by the parameters of the distribution, its mean and the
logarithm of its deviation. Drawing the action with the noise at hand is a part of the step, so that the pass R is the
pathwise gradient; what an estimator puts in the place of v_t needs no slopes of the physics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.system import Pullback
from bptt_trainers.directions.augmented import AugmentedSystem, memory_shape_of, noise_shape_of


class Drawing(Protocol):
    """A stochastic controller that tells its actions' distribution, as a `Gaussian` does, which says more."""

    noise_shape: tuple[int, ...]

    def distribution(self, observation: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """Mean and log deviation of the action before it is bent or bounded, (B, *action_shape), the next memories."""

    def sample(self, mean: Tensor, log_deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions, each component from its own mean, log deviation and noise, and the entropy of each, (B,)."""


def gives_distribution(controller: Any) -> bool:
    """Whether a controller tells its actions' distribution and draws from it, as a `Gaussian` does."""
    return callable(getattr(controller, "distribution", None)) and callable(getattr(controller, "sample", None))


class Distribution(nn.Module):
    """What a stochastic controller gives before it draws.

    Args:
        controller: one with `distribution` and `sample`, see `Gaussian`.
    """

    def __init__(self, controller: nn.Module) -> None:
        super().__init__()
        self.controller = controller

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """The controller's."""
        return memory_shape_of(self.controller)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The controller's, whose noise is handed on to the step."""
        return noise_shape_of(self.controller)

    def forward(self, observation: Tensor, *handed: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Mean and log deviation, (B, 2, *action_shape), and the next memories, if there are any."""
        *memory, _ = handed
        drawing: Drawing = cast(Any, self.controller)
        mean, log_deviation, *remembered = drawing.distribution(observation, *memory)
        both = torch.stack([mean, log_deviation], dim=1)
        return (both, *remembered) if remembered else both


class SampledSystem(AugmentedSystem):
    """An augmented system whose action is a distribution, (2 m + q,): mean, log deviation, the memory that is to be.

    The noise is given, and nothing is fed back to it.

    Args:
        system: the physics.
        controller: who draws; nothing that it learns is used.
        entropy: weight of the entropy of its actions, see `AugmentedSystem`.
    """

    def __init__(self, system: System, controller: Drawing, entropy: float = 0.0) -> None:
        super().__init__(system, memory_shape_of(controller), noise_shape_of(controller), entropy=entropy)
        self.controller = controller

    action_shape: Any = property(lambda self: (2 * self.system.action_size + self.memory_size,))
    has_bounds: Any = property(lambda self: False)

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        return super()._wanted() | {"action": (2, *self.system.action_shape)}

    def bound(self, action: Tensor) -> Tensor:
        """Distributions as they are."""
        return action

    def parts(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, log deviation and noise, (..., m), and memory, (..., q), of states and actions."""
        m, q = self.system.action_size, self.memory_size
        mean, log_deviation, memory = action.split_with_sizes([m, m, q], dim=-1)
        sizes = [self.system.state_size, self.noise_size, q]
        return mean, log_deviation, state.split_with_sizes(sizes, dim=-1)[1].detach(), memory

    def drawn(self, state: Tensor, action: Tensor) -> Tensor:
        """What the augmented system is stepped with: bounded actions, the entropy if it counts, memories."""
        mean, log_deviation, noise, memory = self.parts(state, action)
        shape = (len(state), *self.system.action_shape)
        own, entropy = self.controller.sample(*(one.reshape(shape) for one in (mean, log_deviation, noise)))
        worth = [entropy.unsqueeze(1)] if self._entropies else []
        return torch.cat([self.system.bound(own).flatten(1), *worth, memory], dim=-1)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Draw, and step the augmented system."""
        return super().step(state, self.drawn(state, action))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The augmented system's, (B,)."""
        return super().running_cost(state, self.drawn(state, action), next_state)

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented system's Jacobians, those by the action times its slopes by mean and log deviation."""
        drawn, slopes = self._drawn_with_slopes(state, action)
        by_state, by_action = super().linearize(state, drawn)
        own, memory = self._by_drawn(by_action)
        return by_state, torch.cat([*(own * slope.unsqueeze(1) for slope in slopes), memory], dim=-1)

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """Products with these Jacobians."""
        drawn, slopes = self._drawn_with_slopes(state, action)
        pull = super().pullback(state, drawn)

        def pulled(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            by_state, by_action = pull(rows, vectors)
            own, memory = self._by_drawn(by_action)
            return by_state, torch.cat([*(own * slope[rows] for slope in slopes), memory], dim=-1)

        return pulled

    def _by_drawn(self, slopes: Tensor) -> Sequence[Tensor]:
        """Of slopes by what the augmented system is stepped with those by actions, (..., m), and memories, (..., q)."""
        own, _, memory = slopes.split_with_sizes([self.system.action_size, self._entropies, self.memory_size], dim=-1)
        return own, memory

    def _drawn_with_slopes(self, state: Tensor, action: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What is drawn, and the slopes of each bounded action by its own mean and log deviation, (N, m) each."""
        m = self.system.action_size
        with torch.enable_grad():
            leaf = action.detach().requires_grad_()
            drawn = self.drawn(state.detach(), leaf)
            (slope,) = torch.autograd.grad(drawn[:, :m].sum(), leaf)
        return drawn.detach(), (slope[:, :m], slope[:, m : 2 * m])
