"""One environment over any system, with Gymnasium's interface."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from bptt_envs.checks import flag
from bptt_envs.compiled_step import CompiledStep, stepped
from bptt_envs.differentiable import (
    Differentiable,
    action_space,
    as_action,
    as_states,
    check_reset_options,
    check_reset_seed,
    episode_generator,
    load_system,
    observation_space,
    to_numpy,
)
from bptt_envs.rendering import Viewer
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import System


class DifferentiableEnv(Differentiable, gym.Env[np.ndarray, np.ndarray]):
    """An environment whose physics can be differentiated.

    `step` and `step_differentiable` run the same function. The rewards of an episode add up to minus the
    loss of its trajectory. The horizon is part of the task: an episode ends there, or before it where the system
    says so, with `terminated`.

    Args:
        system: a `System`, or the import path "module:Class" of one, which is built with `options`.
        render_mode: None, "rgb_array" (`render` returns an (H, W, 3) uint8 array) or "human" (a window).
        compile: make one compiled program of the step: equal within rounding, and several times faster. Needs a C++
            compiler; takes some seconds the first time and is kept on disk. `step_differentiable` is not compiled.
        options: options of the system, and those of every environment (see `Task`).

    Raises:
        ValueError: if an option is unknown or out of range.
        CompilerError: if the step cannot be compiled.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 50}  # noqa: RUF012, Gymnasium's form

    @own_surroundings()
    def __init__(
        self, system: System | str, *, render_mode: str | None = None, compile: bool = False, **options: Any
    ) -> None:
        self.system = load_system(system, options, owner=type(self).__name__)
        self.metadata = {**self.metadata, "render_fps": max(1, round(1 / self.system.dt))}
        self.render_mode = render_mode
        self.observation_space = observation_space(self.system)
        self.action_space = action_space(self.system)
        self._viewer = Viewer(render_mode, self.metadata["render_fps"], modes=self.metadata["render_modes"])
        self._generator: torch.Generator | None = None
        self._state: Tensor | None = None
        self._action: Tensor | None = None
        self._steps = 0
        self._over = False
        self._loss = 0.0
        self._compiled = CompiledStep(self.system, 1) if flag("compile", compile) else None

    @property
    def state(self) -> Tensor:
        """The current state, (state_shape)."""
        return self._current_state()[0].clone()

    @own_surroundings()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds the start states of this and the following episodes.
            options: {"state": (state_shape)} starts from that state; with a task that may be one of its system.

        Raises:
            ValueError: if an option is unknown, or the state has a wrong shape or is not finite.
        """
        super().reset(seed=check_reset_seed(seed))
        if self._state is None:
            self._warn_of_time_limit()
        if self._compiled is not None:
            self._compiled.refresh(self.system)
        options = check_reset_options(options, known=["state"])
        if seed is not None or self._generator is None:
            self._generator = episode_generator(self.np_random)
        if "state" in options:
            self._state = as_states(options["state"], self.system, self._generator)
        else:
            with torch.no_grad():
                self._state = self.system.initial_states(1, self._generator)
        self._action = None
        self._steps = 0
        self._over = False
        self._loss = 0.0
        if self.render_mode == "human":
            self.render()
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step.

        Args:
            action: (action_shape), finite.

        Returns:
            Observation, reward, terminated (the horizon is reached, or the system says so), truncated (never), and
            info, which holds the "loss" of the trajectory when the episode ends.

        Raises:
            ResetNeeded: before the first reset and after the end of an episode.
            ValueError: if the action has a wrong shape or is not finite.
        """
        state, system = self._current_state(), self.system
        if self._over:
            raise ResetNeeded(f"step was called after the episode's {self._steps} steps; call reset to start another.")
        self._action = action = as_action(action, system.action_shape)
        step = self._step if self._compiled is None else self._compiled
        self._state, reward, observed, ended = step(system, state, action)
        self._steps += 1
        paid = reward.item()
        if self._steps == system.horizon or (ended is not None and bool(ended)):
            self._over = True
            with torch.no_grad():
                paid = float(reward + self.final_reward(self._state))
        self._loss -= paid
        if self.render_mode == "human":
            self.render()
        info = {"loss": self._loss} if self._over else {}
        return observed.numpy()[0].copy(), paid, self._over, False, info

    @own_surroundings()
    @torch.no_grad()
    def _step(self, system: System, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What `CompiledStep` gives, operation by operation."""
        return stepped(system, state, action)

    @own_surroundings()
    def render(self) -> np.ndarray | None:
        """Draw the current state: an (H, W, 3) array for "rgb_array", on a window for "human"."""
        if self.render_mode is None:
            gym.logger.warn('render was called without a render mode; pass render_mode="rgb_array" to gym.make.')
            return None
        state = self._current_state()
        action = None if self._action is None else self.system.bound(self._action)[0]
        loss = self._loss
        if not self._over:  # what it would be if the episode ended here
            loss += float(self.system.final_cost(state))
        caption = f"step {self._steps}/{self.horizon}   loss {loss:.3g}"
        return self._viewer.show(self.system, state[0], action, caption)

    def close(self) -> None:
        """Close the window, if there is one."""
        self._viewer.close()

    def _warn_of_time_limit(self) -> None:
        """Warn if this is called within the reset of a TimeLimit that ends an episode before its final cost.

        `gym.make(id, max_episode_steps=...)` puts one around the environment, which does not get to know of it.
        """
        frame = inspect.currentframe()
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, gym.wrappers.TimeLimit) and caller.unwrapped is self:
                if caller._max_episode_steps < self.horizon:
                    gym.logger.warn(
                        f"max_episode_steps={caller._max_episode_steps} cuts an episode of {self.horizon} steps off "
                        f"before its final cost is paid; shorten it with horizon={caller._max_episode_steps}."
                    )
                return
            frame = frame.f_back

    def _current_state(self) -> Tensor:
        if self._state is None:
            raise ResetNeeded("the environment has no state yet; call reset first.")
        return self._state

    def _observation(self) -> np.ndarray:
        return to_numpy(self.observe(self._current_state())[0])


def make_env(env_id: str, **options: Any) -> DifferentiableEnv:
    """The environment of an id itself, without Gymnasium's wrappers: what gradients go through.

    Args:
        env_id: one of this package's, or of yours that `register` registered.
        options: of the environment.

    Raises:
        gymnasium.error.Error: if there is no such id.
        TypeError: if it is none with a differentiable system.
        ValueError: if an option is unknown or out of range.
    """
    env = gym.make(env_id, **options).unwrapped
    if not isinstance(env, DifferentiableEnv):
        raise TypeError(f"{env_id} makes a {type(env).__name__}, which is no DifferentiableEnv.")
    return env
