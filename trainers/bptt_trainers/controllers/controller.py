"""What a controller is: a torch module from observations to actions, with `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from bptt_envs.checks import path, real_array, shape, shown
from bptt_envs.surroundings import own_surroundings
from bptt_trainers.controllers import model_folder
from bptt_trainers.directions.augmented import memory_shape_of, noise_shape_of
from bptt_trainers.directions.snapshot import evaluating


class Controller(nn.Module):
    """A torch module from observations (B, *observation_shape) to actions (B, *action_shape), with `predict`.

    Any torch module of that signature can be trained; deriving from this class lets stable-baselines3
    evaluate it too. A subclass implements `forward`.

    A controller with memory has a `memory_shape`, and its `forward` maps observations and memories, (B, *memory_shape),
    to actions and the next memories. A memory starts at zero in every episode. One with noise has a `noise_shape`, and
    its `forward` is handed standard normal numbers, (B, *noise_shape), after these. If it `gives_entropy`, the entropy
    of each action's distribution, (B,), is the last of what it returns.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.

    Raises:
        ValueError: if a shape is not a tuple of integers of at least 1.
    """

    memory_shape: tuple[int, ...] = ()
    noise_shape: tuple[int, ...] = ()
    gives_entropy: bool = False

    def __init__(self, observation_shape: Sequence[int], action_shape: Sequence[int]) -> None:
        super().__init__()
        self.observation_shape = shape("observation_shape", observation_shape)
        self.action_shape = shape("action_shape", action_shape)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations, in eval mode, with the signature of stable-baselines3's policies.

        The controller is left as it was.

        Args:
            observation: (*observation_shape) or (N, *observation_shape).
            state: what was handed back by the call before, of a controller with memory; None: an episode begins. Handed
                back as it came by one without.
            episode_start: (N,), which of the episodes begin here, so that nothing of them is remembered; None: none.
            deterministic: of a controller with noise, whether to act without it; otherwise it is drawn by torch's
                random numbers.

        Returns:
            Actions, (*action_shape) or (N, *action_shape), and what is remembered, ((N, *memory_shape),).

        Raises:
            ValueError: if an argument has a wrong shape.
        """
        array = real_array(observation)
        got = None if array is None else array.shape
        single = got == self.observation_shape
        if array is None or not (single or array.shape[1:] == self.observation_shape):
            expected = ", ".join(map(str, self.observation_shape))
            what = shown(observation) if got is None else got
            raise ValueError(f"observation must be numbers of shape ({expected}) or (N, {expected}); got {what}.")
        parameter = next(self.parameters())
        noise = self._noise(1 if single else len(array), deterministic)
        with own_surroundings(parameter.dtype, parameter.device), torch.no_grad(), evaluating(self):
            batch = torch.as_tensor(array, dtype=parameter.dtype, device=parameter.device)
            batch = batch.unsqueeze(0) if single else batch
            handed = [self._memory(state, episode_start, batch)] if memory_shape_of(self) else []
            handed += [] if noise is None else [noise.to(batch)]
            answer = self(batch, *handed)
            given = answer if isinstance(answer, (tuple, list)) else (answer,)
            if memory_shape_of(self):
                state = (given[1].cpu().numpy(),)
            actions: np.ndarray = given[0].cpu().numpy()
        return (actions[0] if single else actions), state

    def save_pretrained(self, folder: str | Path, env: Any = None) -> None:
        """Write this controller into a folder to share: weights as safetensors, what it is as JSON, a model card.

        `load_pretrained` reads it. `bptt share` does the same for a run, with its settings, losses and a picture.

        Args:
            folder: the folder, new or empty; it is written whole or not at all.
            env: the environment that it is for, made by a registered id; None leaves that unsaid.

        Raises:
            ValueError: if this is a controller of your own, which no file can name, or not for this environment.
            RunFolderError: if the folder is not empty, or cannot be written.
            DependencyNotInstalled: if safetensors is missing: pip install "stable-bptt[models]".
        """
        model_folder.save(self, path("folder", folder), env)

    def push_to_hub(self, repo_id: str, env: Any = None, *, private: bool = False, token: str | None = None) -> str:
        """Put on the Hugging Face hub what `save_pretrained` writes.

        Args:
            repo_id: where to, such as "name/cart-pole"; made if need be.
            env: as that of `save_pretrained`.
            private: whether only you see one that is made.
            token: of the hub; None: that of `hf auth login`.

        Returns:
            Its address there.

        Raises:
            ValueError, DependencyNotInstalled: as `save_pretrained`.
            Exception: of huggingface_hub, if the hub refuses.
        """
        with TemporaryDirectory() as folder:
            model_folder.save(self, Path(folder), env)
            return model_folder.upload(Path(folder), repo_id, private=private, token=token)

    def _noise(self, count: int, deterministic: bool) -> torch.Tensor | None:
        """What so many episodes are handed, (N, *noise_shape), zeros if `deterministic`; None without a noise_shape."""
        shape = noise_shape_of(self)
        if not shape:
            return None
        with own_surroundings():
            return torch.zeros(count, *shape) if deterministic else torch.randn(count, *shape)

    def _memory(self, state: Any, episode_start: Any, like: torch.Tensor) -> torch.Tensor:
        """What is remembered of each episode, (N, *memory_shape): zeros where one begins."""
        wanted = (len(like), *memory_shape_of(self))
        begins = np.zeros(len(like), dtype=bool) if episode_start is None else np.atleast_1d(episode_start)
        if begins.dtype != bool or begins.shape != (len(like),):
            raise ValueError(f"episode_start must be booleans of shape ({len(like)},); got {shown(episode_start)}.")
        if state is None:
            return like.new_zeros(wanted)
        given = real_array(state[0]) if isinstance(state, (tuple, list)) and len(state) == 1 else None
        if given is None or given.shape != wanted:
            raise ValueError(f"state must be what predict handed back, a tuple of numbers of shape {wanted}.")
        memory = torch.as_tensor(given, dtype=like.dtype, device=like.device)
        going_on = torch.from_numpy(~begins).to(like.device).reshape(-1, *(1 for _ in wanted[1:]))
        return torch.where(going_on, memory, 0.0)
