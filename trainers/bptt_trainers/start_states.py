"""Start states: for training from a seed; for validation and held out, each the same for everybody."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bptt_envs import System, checks

WEIGHTS, TRAINING, HELD_OUT, MASKS, VALIDATION = range(5)  # streams of random numbers that never meet


def stream_seed(stream: int, seed: int = 0, *parts: int) -> int:
    """A seed for torch, different for every stream, seed and numbered part of the stream."""
    return int(np.random.SeedSequence([stream, seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


def training_states(system: System, count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw (count, *state_shape) start states for training from `seed`.

    Raises:
        TypeError, ValueError: if an argument is not what it should be; the message names it.
    """
    return _drawn(system, count, stream_seed(TRAINING, checks.seed("seed", seed)), dtype)


def held_out_states(system: System, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (count, *state_shape) held-out start states, on which every method and seed is judged.

    Raises:
        TypeError, ValueError: as `training_states`.
    """
    return _drawn(system, count, stream_seed(HELD_OUT), dtype)


def validation_states(system: System, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (count, *state_shape) start states by which settings are chosen, none of them trained on or held out.

    Raises:
        TypeError, ValueError: as `training_states`.
    """
    return _drawn(system, count, stream_seed(VALIDATION), dtype)


def _drawn(system: System, count: int, seed: int, dtype: torch.dtype) -> Tensor:
    checks.instance("system", system, System, "a System, such as env.unwrapped.system")
    if dtype is not torch.float32 and dtype is not torch.float64:
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {checks.shown(dtype)}.")
    count = checks.in_memory("count", checks.positive_integer("count", count), system.state_size)
    return system.initial_states(count, torch.Generator().manual_seed(seed), dtype)
