"""The native vector environment behind stable-baselines3's VecEnv: one torch batch, no loop over environments."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from bptt_envs import DifferentiableVectorEnv, checks, make_env
from bptt_trainers.directions.system_of import Physics
from bptt_trainers.rl.view import RLView


class SB3VecEnv(VecEnv):
    """`num_envs` copies of a system, seen as `RLView` shows it, for the learners of stable-baselines3.

    An ended episode is followed by the next within the same step, as stable-baselines3 wants it: the info
    of that step holds "terminal_observation", and "episode" with its return "r" and length "l". Episodes end
    by termination, never by truncation. `set_options([{"state": x}, ...])`, one state of the system for each
    environment, starts the next `reset` from there.

    Args:
        system: the system, an environment of it, or the id of one.
        num_envs: number of environments, N.
        dense: pay the final cost step by step (see `RLView`).
        options: of the environment, where `system` is an id.

    Raises:
        gymnasium.error.Error: if there is no such id.
        ValueError: if `system` is nothing of this package, or an option is unknown or out of range.
    """

    def __init__(self, system: Physics | str, num_envs: int, *, dense: bool = False, **options: Any) -> None:
        if isinstance(system, str):
            system = make_env(system, **options)
        elif options:
            raise ValueError(
                f"options go with an id, such as 'DiffCartPole-v0'; got {', '.join(options)} beside "
                f"{checks.shown(system)}, which has its own."
            )
        self.view = RLView(system, dense=dense)
        self.env = DifferentiableVectorEnv(self.view, num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        self.render_mode = None
        self._began = time.perf_counter()
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        super().__init__(num_envs, self.env.single_observation_space, self.env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment; observations, (N, observation_size + 1)."""
        options: dict[str, Any] = {}
        states = [one["state"] for one in self._options if "state" in one]
        if states:
            if len(states) != self.num_envs:
                raise ValueError(
                    f"options must hold a state for each of the {self.num_envs} environments; got {len(states)}."
                )
            stacked = torch.stack([torch.as_tensor(state, dtype=torch.float32) for state in states])
            seed = next((one for one in self._seeds if one is not None), None)
            drawing = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
            options["state"] = self.view.episode_start(stacked, drawing)
        seeds = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observations, _ = self.env.reset(seed=seeds, options=options)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions, (N, *action_shape), in [-1, 1]."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step; observations (N, observation_size + 1), rewards (N,), dones (N,) and N infos."""
        observations, rewards, dones, _, native = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._returns += rewards
        self._lengths += 1
        if dones.any():
            seconds = time.perf_counter() - self._began
            for i in np.flatnonzero(dones):
                episode = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds}
                infos[i] = {"terminal_observation": native["final_obs"][i], "episode": episode}
            self._returns[dones] = 0.0
            self._lengths[dones] = 0
        return observations, rewards.astype(np.float32), dones, infos

    def state_dict(self) -> dict[str, Any]:
        """Where the episodes stand: tensors."""
        books = {"returns": self._returns, "lengths": self._lengths}
        return {"env": self.env.state_dict()} | {name: torch.from_numpy(one.copy()) for name, one in books.items()}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, after a first `reset`."""
        self.env.load_state_dict(stored["env"])
        self._returns, self._lengths = (stored[name].numpy().copy() for name in ("returns", "lengths"))

    def close(self) -> None:
        """Close the native environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute, once for each environment: they share it."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not supported: the environments are one object."""
        raise NotImplementedError("the environments of SB3VecEnv are one object; build another one instead.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Not supported: the environments are one object."""
        raise NotImplementedError("the environments of SB3VecEnv are one object; call the methods of .env instead.")

    def env_is_wrapped(self, wrapper_class: Any, indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment is wrapped: by none, but the infos hold what a Monitor adds."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
