"""Baselines that learn nothing: what a comparison should at least beat."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt_envs import System, checks


class ZeroController:
    """Never acts.

    Args:
        system: the system to act on.
    """

    def __init__(self, system: System) -> None:
        self.system = system

    def __call__(self, observation: Tensor) -> Tensor:
        """Observations (B, ...) -> zero actions (B, *action_shape)."""
        return observation.new_zeros(observation.shape[0], *self.system.action_shape)


class RandomController:
    """Acts uniformly at random in the action space: within the bounds, without any up to `nominal_action`.

    Args:
        system: the system to act on.
        seed: seeds the actions; they go on from call to call.
    """

    def __init__(self, system: System, seed: int = 0) -> None:
        self.system = system
        self._generator = torch.Generator().manual_seed(checks.seed("seed", seed))

    def __call__(self, observation: Tensor) -> Tensor:
        """Observations (B, ...) -> actions (B, *action_shape)."""
        shape = (observation.shape[0], *self.system.action_shape)
        uniform = torch.rand(shape, generator=self._generator, dtype=observation.dtype)
        return self.system.action_at(2.0 * uniform - 1.0).to(observation.device)
