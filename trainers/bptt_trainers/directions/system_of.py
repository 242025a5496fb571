"""The system behind an environment: every public function that takes a system takes an environment of it, too."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from bptt_envs import System, checks
from bptt_envs.task import as_task

Physics = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any] | System
"""A system, or an environment of this package, whose system is meant."""


def system_of(env: Physics, name: str = "env") -> System:
    """The system behind an environment, or the system itself, as a task if its episodes end early.

    Args:
        env: what the argument is.
        name: of the argument, for messages.

    Raises:
        ValueError: as `given_system`.
    """
    return as_task(given_system(env, name))


def given_system(given: Physics, name: str = "system") -> System:
    """The system that is given, or the one behind the environment that is given.

    Args:
        given: what the argument is.
        name: of the argument, for messages.

    Raises:
        ValueError: if it is neither of this package's, or a wrapper changes what the controller would see,
            do or be paid: backpropagation goes through the system and would pass it by.
    """
    if isinstance(given, System):
        return given
    system = getattr(getattr(given, "unwrapped", None), "system", None)
    if not isinstance(system, System):
        raise ValueError(
            f"{name} must be a differentiable environment of bptt_envs or a System; got {checks.shown(given)}."
        )
    layer: Any = given
    while layer is not given.unwrapped:
        if not _only_watches(layer, system):
            raise ValueError(
                f"{name} is wrapped in {type(layer).__name__}, which backpropagation through the system does not see; "
                "pass env.unwrapped to go without the wrapper."
            )
        layer = layer.env
    return system


_WATCHING_WRAPPERS = (
    gym.wrappers.PassiveEnvChecker,
    gym.wrappers.OrderEnforcing,
    gym.wrappers.RecordVideo,
    gym.wrappers.RecordEpisodeStatistics,
    gym.wrappers.HumanRendering,
    gym.wrappers.RenderCollection,
    gym.wrappers.vector.RecordEpisodeStatistics,
)


def _only_watches(layer: Any, system: System) -> bool:
    """Whether a wrapper changes nothing that a controller would see, do or be paid."""
    if isinstance(layer, gym.wrappers.TimeLimit):
        return bool(layer._max_episode_steps >= system.horizon)
    monitor = type(layer).__name__ == "Monitor"  # of stable-baselines3, which is slow to import
    return monitor or isinstance(layer, _WATCHING_WRAPPERS)
