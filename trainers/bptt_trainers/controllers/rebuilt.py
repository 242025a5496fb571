"""Controllers from what a file says of them, also a stranger's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.defaults import CONTROLLERS
from bptt_trainers.records.files import DATA_LIMIT

KNOWN: dict[str, type[Any]] = {kind.__name__: kind for kind in CONTROLLERS}
"""The controllers that can be built from what a file says of them."""

LAYERS = 1000  # that a file may ask for


def rebuilt(described: Mapping[str, Any], observation_shape: Sequence[int], action_shape: Sequence[int]) -> Controller:
    """The controller, untrained, that `described` gave, of a type in `KNOWN`.

    Raises:
        ValueError: if it is larger than a file may ask for, or its settings are not what its constructor takes.
    """
    kind, settings = KNOWN[described["type"]], dict(described["settings"])
    check_size("the number of hidden layers", len(settings["hidden"]), LAYERS)
    with torch.device("meta"):  # of a stranger's widths, first how much they are
        sketch = kind(observation_shape, action_shape, **settings)
    if {name: list(p.shape) for name, p in sketch.named_parameters()} != described["parameters"]:
        raise ValueError("its controller's settings and parameters are not of the same shapes")
    check_size("the size of the controller", 4 * sum(p.numel() for p in sketch.parameters()), DATA_LIMIT)
    made: Controller = kind(observation_shape, action_shape, **settings)
    return made


def take_weights(controller: nn.Module, weights: Mapping[str, Any]) -> None:
    """Take over weights in the dtypes that they have."""
    own = {name: one for name, one in controller.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
    stored = {name: one for name, one in weights.items() if isinstance(one, Tensor)}
    for name in own.keys() & stored.keys():
        if own[name].is_floating_point() != stored[name].is_floating_point():
            raise ValueError(f"{name} is {stored[name].dtype}, not {own[name].dtype}")
    floating = [{one.dtype for one in of.values() if one.is_floating_point()} for of in (own, stored)]
    if [len(dtypes) for dtypes in floating] == [1, 1]:
        controller.to(floating[1].pop())  # with what is not in its state_dict
    for name, one in controller.state_dict(keep_vars=True).items():
        if name in stored and one.dtype != stored[name].dtype:
            one.data = one.data.to(stored[name].dtype)
    controller.load_state_dict(weights)


def check_size(name: str, value: Any, largest: int) -> None:
    """Raise ValueError if a whole number that a file holds is larger than what it may ask for."""
    if type(value) is int and value > largest:
        raise ValueError(f"{name} is {value:.3g}, more than the {largest} that a file may ask for")
