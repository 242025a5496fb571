"""Many environments over one system, stepped as one torch batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from bptt_envs.batch import Batch
from bptt_envs.checks import flag, positive_integer
from bptt_envs.compiled_step import CompiledStep
from bptt_envs.differentiable import action_space, as_actions, as_states, load_system, observation_space, to_numpy
from bptt_envs.rendering import Viewer
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import System


class DifferentiableVectorEnv(Batch, VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` environments in one batch, with Gymnasium's vector interface.

    `reset(seed=s)` starts environment i with the episode that a single environment starts with
    `reset(seed=s + i)`; later episodes draw from one stream for the whole batch.

    Args:
        system: a `System`, or the import path "module:Class" of one, which is built with `options`.
        num_envs: number of environments, N.
        render_mode: None or "rgb_array" (`render` returns a tuple of N arrays, (H, W, 3) uint8).
        autoreset_mode: when an ended episode is followed by the next one, as in Gymnasium.
        max_episode_steps: what Gymnasium's registry says of the length of an episode; not less than the horizon.
        compile: make one compiled program of the step, for this number of environments: equal within rounding, and
            faster. Needs a C++ compiler; takes some seconds the first time and is kept on disk. `step_differentiable`
            is not compiled.
        options: options of the system, and those of every environment (see `Task`).

    Raises:
        ValueError: if an option is unknown or out of range.
        CompilerError: if the step cannot be compiled.
    """

    metadata = {  # noqa: RUF012, Gymnasium's form
        "render_modes": ["rgb_array"],
        "render_fps": 50,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    @own_surroundings()
    def __init__(
        self,
        system: System | str,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        compile: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(load_system(system, options, owner=type(self).__name__), num_envs, autoreset_mode)
        if max_episode_steps is not None and positive_integer("max_episode_steps", max_episode_steps) < self.horizon:
            raise ValueError(
                f"max_episode_steps must not be less than the horizon, {self.horizon}, where the final cost is paid; "
                f"got {max_episode_steps!r}. Shorten episodes with horizon={max_episode_steps!r}."
            )
        self.metadata = {
            **self.metadata,
            "render_fps": max(1, round(1 / self.system.dt)),
            "autoreset_mode": self.autoreset_mode,
        }
        self.render_mode = render_mode
        self.single_observation_space = observation_space(self.system)
        self.single_action_space = action_space(self.system)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._viewer = Viewer(render_mode, self.metadata["render_fps"], modes=self.metadata["render_modes"])
        self._action: Tensor | None = None
        self._losses = np.zeros(self.num_envs)
        self._compiled = CompiledStep(self.system, self.num_envs) if flag("compile", compile) else None

    @own_surroundings()
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every environment, or in those of a mask.

        Args:
            seed: environment i starts like a single one with `reset(seed=seed + i)`; or a list of seeds.
            options: {"state": (N, *state_shape)} starts from those states, with a task also from its system's;
                {"reset_mask": (N,) bool} leaves the environments where it is False as they are.

        Raises:
            ResetNeeded: if a mask leaves out an environment that was never started.
            ValueError: if an option is unknown, or a value has a wrong shape or is not finite.
        """
        mask = self._begin(seed, options)
        self._action = None
        self._losses[mask] = 0.0
        return to_numpy(self.observe(self._current_state())), {}

    @own_surroundings()
    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every environment by one step.

        Args:
            actions: (N, *action_shape), finite.

        Returns:
            Observations, rewards, terminations, truncations (all False) and infos. Where an episode ended,
            infos["loss"] holds the loss of its trajectory; with same-step autoreset infos["final_obs"]
            holds its last observation and infos["final_info"] its info.

        Raises:
            ResetNeeded: before the first reset, and after an episode's end when autoreset is disabled.
            ValueError: if the actions have a wrong shape or are not finite.
        """
        self._check_may_step()
        self._action = as_actions(actions, self.num_envs, self.system.action_shape)
        with torch.no_grad():
            observed, reward, terminated, ends = self._advance(self._action)
        rewards = reward.numpy().astype(np.float64)
        self._losses -= rewards
        infos = self._infos(terminated) if ends else {}
        if ends and self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = {
                "final_obs": _by_env(to_numpy(observed), terminated),
                "_final_obs": terminated.copy(),
            } | {
                "final_info": infos,
                "_final_info": terminated.copy(),
            }
            self._restart(terminated)
            observed = self.observe(self._current_state())
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        return to_numpy(observed), rewards, terminated, truncated, infos

    @own_surroundings()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """Draw the current states: a tuple of N (H, W, 3) arrays."""
        if self.render_mode is None:
            return None
        state = self._current_state()
        actions = None if self._action is None else self.system.bound(self._action)
        final_costs = self.system.final_cost(state).double().numpy()  # paid already where the episode is over
        losses = self._losses + np.where(self._over, 0.0, final_costs)
        frames = []
        for i in range(self.num_envs):
            caption = f"step {self._steps[i]}/{self.horizon}   loss {losses[i]:.3g}"
            action = None if actions is None else actions[i]
            frames.append(self._viewer.show(self.system, state[i], action, caption))
        return tuple(frame for frame in frames if frame is not None)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the episodes stand, and the random numbers that later ones are drawn by.

        Raises:
            ResetNeeded: before the first reset.
        """
        state = self._current_state().clone()
        assert self._generator is not None
        books = {"steps": self._steps, "losses": self._losses, "over": self._over}
        copies = {name: torch.from_numpy(one.copy()) for name, one in books.items()}
        return {"state": state, "generator": self._generator.get_state(), **copies}

    def load_state_dict(self, stored: dict[str, Tensor]) -> None:
        """Go on from where the episodes of another vector environment of this kind stood.

        Args:
            stored: what its `state_dict` gave.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: if they are episodes of another number or system.
        """
        if stored["state"].shape != self._current_state().shape or stored["steps"].shape != self._steps.shape:
            raise ValueError(
                f"stored must hold states {tuple(self._current_state().shape)}; got {tuple(stored['state'].shape)}."
            )
        assert self._generator is not None
        self._generator.set_state(stored["generator"])
        self._state, self._action = stored["state"].clone(), None
        self._steps, self._losses, self._over = (stored[one].numpy().copy() for one in ("steps", "losses", "over"))

    def close_extras(self, **kwargs: Any) -> None:
        """Free what drawing took."""
        self._viewer.close()

    def _given_states(self, states: Any, generator: torch.Generator) -> Tensor:
        return as_states(states, self.system, generator, self.num_envs)

    def _restart(self, mask: np.ndarray, starts: Tensor | None = None) -> None:
        super()._restart(mask, starts)
        if self._action is not None:  # the action of the episode before is not drawn into the new one
            self._action = self._action.masked_fill(self._rows(mask, self._action.dim()), 0.0)
        self._losses[mask] = 0.0

    def _infos(self, terminated: np.ndarray) -> dict[str, Any]:
        return {"loss": np.where(terminated, self._losses, 0.0), "_loss": terminated.copy()}


def _by_env(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An object array with the row of each environment in `mask` and None elsewhere, as Gymnasium has it."""
    result = np.full(len(rows), None, dtype=object)
    for i in np.flatnonzero(mask):
        result[i] = rows[i]
    return result
