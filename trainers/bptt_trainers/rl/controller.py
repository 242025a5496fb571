"""What reinforcement learning has learnt, as a controller of the system."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.directions.system_of import Physics
from bptt_trainers.rl.view import RLView


class RLController:
    """A policy of stable-baselines3 with its normalisation, frozen: from observations of `RLView` to its actions.

    Deterministic. Actions are shares of the system's action range, in [-1, 1]; `rollout` gives back the
    system's own states and actions.

    Args:
        policy: the policy.
        mean: of each observation component while it learned, (observation_size + 1,).
        var: the variance likewise.
    """

    CLIP: ClassVar[float] = 10.0  # of normalised observations, and
    EPSILON: ClassVar[float] = 1e-8  # added to the variance: the defaults of VecNormalize

    def __init__(self, policy: BasePolicy, mean: np.ndarray, var: np.ndarray) -> None:
        self.policy = policy
        self.mean = mean
        self.var = var

    def __call__(self, observation: Tensor) -> Tensor:
        """Observations (B, observation_size + 1) -> actions (B, *action_shape)."""
        return torch.from_numpy(self.predict(observation.cpu().numpy())[0]).to(observation)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations of an `SB3VecEnv`, with the signature of stable-baselines3's policies."""
        normal = (observation - self.mean) / np.sqrt(self.var + self.EPSILON)
        normal = np.clip(normal, -self.CLIP, self.CLIP).astype(np.float32)
        with own_surroundings():
            return self.policy.predict(normal, state, episode_start, deterministic)

    def rollout(self, system: Physics, initial_states: Tensor) -> Trajectory:
        """Run one episode from each of `initial_states`, (B, *state_shape), in the system's own units.

        `system` is one that `RLConfig.judged_system` gave, or one with the same observation.
        """
        view = RLView(system)
        return view.inner_trajectory(rollout(view, self, view.episode_start(initial_states)))

    def evaluate(self, system: Physics, initial_states: Tensor) -> Tensor:
        """The loss of the episode from each of `initial_states`, (B,)."""
        return losses(system, self.rollout(system, initial_states))
