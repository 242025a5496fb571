"""What a controller is: a torch module from observations to actions, with `predict`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bptt_envs.checks import real_array, shape, shown
from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.snapshot import evaluating


class Controller(nn.Module):
    """A torch module from observations (B, *observation_shape) to actions (B, *action_shape), with `predict`.

    Any torch module of that signature can be trained; deriving from this class lets stable-baselines3
    evaluate it too. A subclass implements `forward`.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.

    Raises:
        ValueError: if a shape is not a tuple of integers of at least 1.
    """

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
            state: handed back as it came; the controller keeps none.
            episode_start: not used.
            deterministic: not used; the controller is deterministic.

        Returns:
            Actions, (*action_shape) or (N, *action_shape), and `state`.

        Raises:
            ValueError: if the observation has a wrong shape.
        """
        array = real_array(observation)
        got = None if array is None else array.shape
        single = got == self.observation_shape
        if array is None or not (single or array.shape[1:] == self.observation_shape):
            expected = ", ".join(map(str, self.observation_shape))
            what = shown(observation) if got is None else got
            raise ValueError(f"observation must be numbers of shape ({expected}) or (N, {expected}); got {what}.")
        parameter = next(self.parameters())
        with own_surroundings(parameter.dtype, parameter.device), torch.no_grad(), evaluating(self):
            batch = torch.as_tensor(array, dtype=parameter.dtype, device=parameter.device)
            actions: np.ndarray = self(batch.unsqueeze(0) if single else batch).cpu().numpy()
        return (actions[0] if single else actions), state
