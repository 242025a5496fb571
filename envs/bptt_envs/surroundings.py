"""What the caller's program has switched on around us does not change what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def own_surroundings(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, torch's defaults are ours, and neither autocast nor inference mode is on.

    A caller may have set a default dtype or device, or be within autocast or inference mode: what is made and computed
    here is the same. Whether gradients are on is left to the caller; inference mode counts as off. Also a decorator.
    Where nothing differs it takes about a microsecond.

    Args:
        dtype: torch's default dtype within, that of the tensors that are worked on.
        device: what a default device that the caller has set is replaced by, that of the tensors that are worked on.
            Where the caller has set none, none is: it would slow down every operation.
    """
    if torch.compiler.is_compiling():  # torch.compile guards what is switched on, and cannot look at it
        yield
        return
    own_dtype = torch.get_default_dtype() is dtype
    own_device = torch._C._len_torch_function_stack() == 0 or torch.get_default_device() == torch.device(device)
    inference = torch.is_inference_mode_enabled()
    any_cast = torch._C._is_any_autocast_enabled()
    cast = [kind for kind in AUTOCAST_DEVICES if torch.is_autocast_enabled(kind)] if any_cast else []
    if own_dtype and own_device and not inference and not cast:
        yield
        return
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        if not own_dtype:
            torch.set_default_dtype(dtype)
            stack.callback(torch.set_default_dtype, before)
        if not own_device:
            stack.enter_context(torch.device(device))
        if inference:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode switches gradients on
        for kind in cast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
