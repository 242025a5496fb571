"""A JAX function as a torch function with gradients. An extra: "stable-bptt[jax]"."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from gymnasium.error import DependencyNotInstalled
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.dlpack import from_dlpack

from bptt_envs.checks import shown

try:
    import jax
except ImportError as error:
    raise DependencyNotInstalled('JAX is not installed; run pip install "stable-bptt[jax]".') from error

Array = Any  # jax is an extra: where it is missing, so are its types

with_64_bits = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # before JAX 0.8


def jax_step(function: Callable[[Array, Array], Array], *, batched: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Turn a step in JAX into one in torch, for `FunctionSystem`.

    It is compiled by `jax.jit`, its slopes are `jax.vjp`'s, once: they have none of their own. Tensors are handed over
    by dlpack, on the device where they are, which JAX must have, too. It works in their dtype, in float64 with JAX's 64
    bits switched on meanwhile; constants that the function holds in float32 are then as exact as that.

    Args:
        function: from one state (state_shape) and one action (action_shape) to the next state, pure, of JAX arrays.
        batched: whether it takes batches, (B, ...), of its own; else `jax.vmap` makes it do so.

    Returns:
        From states (B, *state_shape) and actions (B, *action_shape) in torch to next states, (B, *state_shape).
        `compile=True` cannot record it.

    Raises:
        DependencyNotInstalled: on import, without JAX.
        TypeError: when it steps, if the function does not give one array.
    """
    each = function if batched else jax.vmap(function)

    def step(state: Array, action: Array) -> Array:
        following = each(state, action)
        if not isinstance(following, jax.Array):
            raise TypeError(f"function must give the next state, one JAX array; got {shown(following)}.")
        return following.astype(state.dtype)  # which constants in 64 bits may have raised

    forward = jax.jit(step)
    forward_and_pull = jax.jit(lambda state, action: jax.vjp(step, state, action))
    backward = jax.jit(lambda pull, slope: pull(slope))

    class Step(torch.autograd.Function):
        """The step, with what JAX keeps of it for the way back."""

        @staticmethod
        def forward(ctx: Any, state: Tensor, action: Tensor) -> Tensor:
            with _bits_of(state):
                following, ctx.pull = forward_and_pull(_to_jax(state), _to_jax(action))
                return _to_torch(following)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
            with _bits_of(slope):
                by_state, by_action = backward(ctx.pull, _to_jax(slope))
                return _to_torch(by_state), _to_torch(by_action)

    def stepped(state: Tensor, action: Tensor) -> Tensor:
        """Step a batch."""
        _refuse_to_be_recorded(state)
        if torch.is_grad_enabled() and (state.requires_grad or action.requires_grad):
            following: Tensor = Step.apply(state, action)  # type: ignore[no-untyped-call]
            return following
        with _bits_of(state):
            return _to_torch(forward(_to_jax(state), _to_jax(action)))

    return stepped


def _bits_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """JAX's 64 bits for a tensor that has them; else as the caller has it."""
    return with_64_bits(True) if tensor.dtype is torch.float64 else nullcontext()


def _to_jax(tensor: Tensor) -> Array:
    """A copy: JAX holds what it is given for unchangeable."""
    return jax.dlpack.from_dlpack(tensor.detach().clone(memory_format=torch.contiguous_format))


def _to_torch(array: Array) -> Tensor:
    """A copy that torch may change."""
    return from_dlpack(array).clone()


def _refuse_to_be_recorded(state: Tensor) -> None:
    """Have a recorder of torch's operations stop, to which what JAX gives would be a constant."""
    if torch._C._len_torch_dispatch_stack():
        state.sum().item()  # which depends on values
