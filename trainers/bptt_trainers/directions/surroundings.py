"""The surroundings in which directions are computed, whatever those of the caller are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bptt_envs.surroundings import own_surroundings


@contextmanager
def computing(like: Tensor) -> Iterator[None]:
    """Within, gradients are on and nothing else of the caller's is, see `own_surroundings`.

    Nor are parametrizations cached (`torch.nn.utils.parametrize.cached`): a cache that a rollout fills, which takes no
    gradients, would leave the weights without any.

    Args:
        like: a tensor of the dtype and on the device of what is computed.
    """
    cached = parametrize._cache_enabled
    parametrize._cache_enabled = 0
    try:
        with own_surroundings(like.dtype, like.device), torch.enable_grad():
            yield
    finally:
        parametrize._cache_enabled = cached
