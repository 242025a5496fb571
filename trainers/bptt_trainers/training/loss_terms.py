"""Terms of a user's own in the loss that a run trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from bptt_envs import System, check_system, checks
from bptt_envs.task import StepCost, until_end

Regularizer = Callable[[nn.Module], Tensor]
"""From a controller to a number, differentiable by its parameters."""


def with_extra_cost(system: System, extra_cost: StepCost | None, states: Tensor) -> System:
    """The system with `extra_cost` in its running cost, by the same physics; the system itself for None.

    Args:
        system: the physics.
        extra_cost: the further term.
        states: of the dtype and on the device of what is trained.

    Raises:
        TypeError: if it is no function.
        ValueError: if it is not a cost of a step, (B,), differentiable and each sample's own.
    """
    if extra_cost is None:
        return system
    if not callable(extra_cost):
        raise TypeError(
            f"extra_cost must be a function of state, action and next_state; got {checks.shown(extra_cost)}."
        )
    extended = copy.copy(system)
    vars(extended)["running_cost"] = _WithExtra(system, extra_cost)
    try:
        check_system(extended, dtype=states.dtype, device=states.device)
    except ValueError as error:
        raise ValueError(f"extra_cost is no cost of a step (in the running_cost below): {error}") from error
    return extended


class _WithExtra:
    """The cost of a step by a system and a further one, until the episode ends."""

    def __init__(self, system: System, extra: StepCost) -> None:
        self.system = system
        self.extra = extra

    def __call__(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        extra = until_end(self.extra, self.system.episode_over(state), state, action, next_state)
        return self.system.running_cost(state, action, next_state) + extra


def regularizer_gradient(regularizer: Regularizer, controller: nn.Module, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradient of a regularizer by n parameters, (n,), one parameter after the other.

    Raises:
        TypeError: if it is no function, or its value no tensor.
        ValueError: if its value is not one number that depends on a parameter of the controller.
    """
    if not callable(regularizer):
        raise TypeError(f"regularizer must be a function of the controller; got {checks.shown(regularizer)}.")
    own = list(parameters)
    with torch.enable_grad():
        value = regularizer(controller)
    if not isinstance(value, Tensor):
        raise TypeError(f"regularizer must return a tensor; got {checks.shown(value)}.")
    if value.numel() != 1 or value.is_complex() or not value.requires_grad:
        depends = "" if value.requires_grad else " that depends on none"
        raise ValueError(
            "regularizer must return one real number that depends on the parameters; got a tensor of "
            f"{value.dtype}, of shape {tuple(value.shape)}{depends}."
        )
    gradients = torch.autograd.grad(value.sum(), own, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
