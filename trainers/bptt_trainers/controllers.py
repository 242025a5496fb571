"""Controllers: torch modules from observations to actions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.checks import positive_integer


class Controller(nn.Module):
    """A torch module from observations (B, *observation_shape) to actions (B, *action_shape), with `predict`.

    Any torch module of that signature can be trained; deriving from this class lets stable-baselines3
    evaluate it too. A subclass implements `forward`.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.
    """

    def __init__(self, observation_shape: Sequence[int], action_shape: Sequence[int]) -> None:
        super().__init__()
        self.observation_shape = tuple(observation_shape)
        self.action_shape = tuple(action_shape)

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
        shape = np.shape(observation)
        single = shape == self.observation_shape
        if not single and shape[1:] != self.observation_shape:
            expected = ", ".join(map(str, self.observation_shape))
            raise ValueError(f"observation must have shape ({expected}) or (N, {expected}); got {shape}.")
        parameter = next(self.parameters())
        batch = torch.as_tensor(np.asarray(observation), dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            actions: np.ndarray = self(batch.unsqueeze(0) if single else batch).cpu().numpy()
        return (actions[0] if single else actions), state


class MLP(Controller):
    """A multi-layer perceptron with tanh, Glorot-uniform weights and zero biases: the paper's controller.

    Args:
        observation_shape: shape of one observation; observations are flattened.
        action_shape: shape of one action.
        hidden: width of each hidden layer.
        bias: whether the layers have biases.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if a width is not an integer of at least 1.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] = (100, 100),
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        self.bias = bias
        self.hidden = tuple(positive_integer("hidden", width) for width in hidden)
        widths = [math.prod(self.observation_shape), *self.hidden, math.prod(self.action_shape)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # draws no global random numbers
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            if bias:
                nn.init.zeros_(linear.bias)
            layers += [linear, Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, *observation_shape) -> actions (B, *action_shape)."""
        actions: Tensor = self.layers(observation.flatten(1))
        return actions.view(-1, *self.action_shape)


class Tanh(nn.Module):
    """tanh; on the CPU in float32 as 2 sigmoid(2x) - 1, several times as fast as torch.tanh (error 1e-7)."""

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape -> tanh(x)."""
        if x.dtype is not torch.float32 or x.device.type != "cpu":
            return x.tanh()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _sigmoid_tanh(x)
        y: Tensor = _SigmoidTanh.apply(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y


_MINUS_ONE = torch.tensor(-1.0)


def _sigmoid_tanh(x: Tensor) -> Tensor:
    return torch.add(_MINUS_ONE, (x + x).sigmoid_(), alpha=2)


class _SigmoidTanh(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _sigmoid_tanh(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.tanh_backward(grad, y)
        return slope


@contextmanager
def left_as_it_was(controller: nn.Module) -> Iterator[None]:
    """Undo, at the end, what running a controller does to torch's random numbers and to the module's buffers."""
    buffers = [(buffer, buffer.clone()) for buffer in controller.buffers()]
    with torch.random.fork_rng():
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


def default_controller(system: System, seed: int = 0, hidden: Sequence[int] = (100, 100)) -> MLP:
    """The paper's controller for `system`: an MLP 100-100 whose weights are drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return MLP(system.observation_shape, system.action_shape, hidden, generator=generator)
