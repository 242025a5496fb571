"""What a controller is: a torch module from observations to actions, with `predict`; how one is run and left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from bptt_envs.checks import real_array, shape, shown


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
        """Actions for observations, with the signature of stable-baselines3's policies.

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
        batch = torch.as_tensor(array, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            actions: np.ndarray = self(batch.unsqueeze(0) if single else batch).cpu().numpy()
        return (actions[0] if single else actions), state


@contextmanager
def forked_rng(module: nn.Module) -> Iterator[None]:
    """Undo, at the end, what is drawn of torch's random numbers on the CPU and on the module's devices."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def left_as_it_was(controller: nn.Module) -> Iterator[None]:
    """Undo, at the end, what running a controller does to torch's random numbers and to the module's buffers."""
    buffers = [(buffer, buffer.clone()) for buffer in controller.buffers()]
    with forked_rng(controller):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def evaluating(controller: nn.Module) -> Iterator[None]:
    """Put a controller into eval mode, without dropout and the like, and leave it as it was."""
    training = [(part, part.training) for part in controller.modules()]
    controller.eval()
    try:
        with left_as_it_was(controller):
            yield
    finally:
        for part, mode in training:
            part.training = mode
