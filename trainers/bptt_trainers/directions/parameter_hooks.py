"""Hooks on parameters (`Tensor.register_hook`), which autograd calls once a backward pass with the whole gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from bptt_trainers.directions.rules import Directions


def hooked(module: nn.Module) -> bool:
    """Whether a parameter has a hook."""
    return any(parameter._backward_hooks for parameter in module.parameters())


@contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """Within, no hook of a parameter is called: what is taken there are parts of a direction."""
    hooks = [parameter._backward_hooks for parameter in module.parameters() if parameter._backward_hooks]
    before = [dict(one) for one in hooks]
    for one in hooks:
        one.clear()
    try:
        yield
    finally:
        for one, entries in zip(hooks, before, strict=True):
            one.update(entries)


def after_hooks(directions: Directions, parameters: Mapping[str, Tensor]) -> Directions:
    """The directions of one pass as the hooks of the parameters change them."""
    return {name: _after_hooks(direction, parameters[name]) for name, direction in directions.items()}


def _after_hooks(direction: Tensor, parameter: Tensor) -> Tensor:
    for hook in list((parameter._backward_hooks or {}).values()):
        answer = hook(direction)
        direction = direction if answer is None else answer
    return direction
