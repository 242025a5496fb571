"""Start states: for training from a seed, held out the same for everybody."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bptt_envs import System

WEIGHTS, TRAINING, HELD_OUT, MASKS = range(4)  # streams of random numbers that never meet


def stream_seed(stream: int, seed: int = 0, *parts: int) -> int:
    """A seed for torch, different for every stream, seed and numbered part of the stream."""
    return int(np.random.SeedSequence([stream, seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


def training_states(system: System, count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw (count, *state_shape) start states for training from `seed`."""
    generator = torch.Generator().manual_seed(stream_seed(TRAINING, seed))
    return system.initial_states(count, generator, dtype)


def held_out_states(system: System, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (count, *state_shape) held-out start states, on which every method and seed is judged."""
    generator = torch.Generator().manual_seed(stream_seed(HELD_OUT))
    return system.initial_states(count, generator, dtype)
