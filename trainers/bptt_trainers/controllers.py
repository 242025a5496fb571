"""What a controller is: a torch module from observations to actions, with `predict`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.snapshot import evaluating


class Controller(nn.Module):
    """A torch module from observations (B, *observation_shape) to actions (B, *action_shape), with `predict`.

    Any torch module of that signature can be trained; deriving from this class lets stable-baselines3
    evaluate it too. A subclass implements `forward`.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.
    """

    def __init__(self, observation_shape: Sequence[int], action_shape: Sequence[int]) -> None:
        super().__init__()
        self.observation_shape = tuple(observation_shape)
        self.action_shape = tuple(action_shape)

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
        shape = np.shape(observation)
        single = shape == self.observation_shape
        if not single and shape[1:] != self.observation_shape:
            expected = ", ".join(map(str, self.observation_shape))
            raise ValueError(f"observation must have shape ({expected}) or (N, {expected}); got {shape}.")
        parameter = next(self.parameters())
        with own_surroundings(parameter.dtype, parameter.device), torch.no_grad(), evaluating(self):
            batch = torch.as_tensor(np.asarray(observation), dtype=parameter.dtype, device=parameter.device)
            actions: np.ndarray = self(batch.unsqueeze(0) if single else batch).cpu().numpy()
        return (actions[0] if single else actions), state
