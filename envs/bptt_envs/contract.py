"""Check that a system keeps its contract."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt_envs.system import System

SAMPLES = 3


@torch.no_grad()
def check_system(
    system: System, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", thorough: bool = True
) -> None:
    """Step a few samples of a system, and say in words what its class should do otherwise.

    Shapes and dtypes, samples that have an influence on one another, start states that do not come from the
    generator alone. Environments and the trainer check every system so. Gradients are checked best by
    `torch.autograd.gradcheck` in float64.

    Raises:
        ValueError: naming the method, what it returned and what would be right.
    """
    name = type(system).__name__
    generator = torch.Generator()
    states = system.initial_states(SAMPLES, generator.manual_seed(0))
    _check(f"{name}.initial_states", states, (SAMPLES, *system.state_shape))
    if not torch.equal(states, system.initial_states(SAMPLES, generator.manual_seed(0))):
        raise ValueError(f"{name}.initial_states must draw from its generator only; the same seed gave other states.")
    actions = 0.1 * torch.randn(SAMPLES, *system.action_shape, generator=generator)
    _check(f"{name}.observe", system.observe(states), (SAMPLES, *system.observation_shape))
    next_states = system.step(states, actions)
    _check(f"{name}.step", next_states, tuple(states.shape))
    costs = {
        "running_cost": system.running_cost(states, actions, next_states),
        "final_cost": system.final_cost(next_states),
    }
    for method, cost in costs.items():
        _check(f"{name}.{method}", cost, (SAMPLES,))
    alone = system.step(states[:1], actions[:1])
    if not torch.allclose(alone, next_states[:1], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(f"{name}.step must treat samples apart; a sample alone steps elsewhere than in a batch.")


def _check(what: str, value: object, shape: tuple[int, ...]) -> None:
    got = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype is not torch.float32:
        raise ValueError(f"{what} must return {shape}, torch.float32, for {shape[0]} float32 samples; got {got}.")


def linear_backward(system: System, states: Tensor, actions: Tensor) -> str | None:
    """Why the slopes of a system are not one linear map backwards, such as a clip in a backward function; None if so."""
    return None
