"""Controllers: torch modules from observations to actions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.checks import one_of, positive_integer
from bptt_envs.systems import QuantumControl


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
        self.hidden = _widths(hidden)
        widths = [math.prod(self.observation_shape), *self.hidden, math.prod(self.action_shape)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [_glorot_linear(inputs, outputs, generator, bias=bias), Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {"hidden": list(self.hidden), "bias": self.bias}

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, *observation_shape) -> actions (B, *action_shape)."""
        actions: Tensor = self.layers(observation.flatten(1))
        return actions.view(-1, *self.action_shape)


class ConvNet(Controller):
    """Convolutions along one axis with tanh, then a linear layer: the paper's controller for quantum control.

    Each convolution has kernel 3, stride 2 and no padding. It is held as the `nn.Linear` that acts on each
    patch: the weight of the equivalent `nn.Conv1d`, (out, in, 3), is `linear.weight.view(out, in, 3)`. This
    is several times as fast as `nn.Conv1d` on small batches, and the adjoint engine serves it layer by layer.
    Glorot-uniform weights, zero biases.

    Args:
        observation_shape: (L, channels).
        action_shape: shape of one action.
        hidden: output channels of each convolution.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if the observation is not of that form, or too short for so many convolutions.
    """

    KERNEL, STRIDE = 3, 2

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] = (60, 60),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        self.hidden = _widths(hidden)
        if len(self.observation_shape) != 2:
            raise ValueError(
                f"observation_shape must be (length, channels) for a ConvNet; got {self.observation_shape}. "
                "An MLP takes any shape."
            )
        length, channels = self.observation_shape
        convolutions = []
        for outputs in self.hidden:
            if length < self.KERNEL:
                raise ValueError(
                    f"hidden must name fewer convolutions: {len(self.hidden)} of kernel {self.KERNEL} and stride "
                    f"{self.STRIDE} do not fit an observation of length {self.observation_shape[0]}."
                )
            length = (length - self.KERNEL) // self.STRIDE + 1
            convolutions.append(_glorot_linear(channels * self.KERNEL, outputs, generator, kernel=self.KERNEL))
            channels = outputs
        self.convolutions = nn.ModuleList(convolutions)
        self.tanh = Tanh()
        self.head = _glorot_linear(channels * length, math.prod(self.action_shape), generator)

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {"hidden": list(self.hidden)}

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, L, channels) -> actions (B, *action_shape)."""
        x = observation
        for convolution in self.convolutions:
            x = self.tanh(convolution(_Patches.apply(x)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        actions: Tensor = self.head(x.transpose(1, 2).flatten(1))
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


class _Patches(torch.autograd.Function):
    """The patches that a convolution meets, (B, L, C) -> (B, positions, C kernel); torch's own slope is slow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.unfold(1, ConvNet.KERNEL, ConvNet.STRIDE).flatten(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope = grad.new_zeros(ctx.shape)
        by_tap = grad.unflatten(2, (-1, ConvNet.KERNEL)).unbind(-1)
        for tap, part in enumerate(by_tap):
            slope[:, tap : tap + ConvNet.STRIDE * (grad.shape[1] - 1) + 1 : ConvNet.STRIDE] += part
        return slope


CONTROLLERS: dict[str, type[MLP | ConvNet]] = {"mlp": MLP, "conv": ConvNet}
"""The controllers that settings and run folders name."""

DEFAULTS: dict[type[System], str] = {QuantumControl: "conv"}
"""The paper's controller for each system; an MLP for those that are not here."""

ControllerName = Literal["default", "mlp", "conv"]
CONTROLLER_NAMES = get_args(ControllerName)


def default_controller(
    system: System, seed: int = 0, hidden: Sequence[int] | None = None, kind: ControllerName = "default"
) -> Controller:
    """The paper's controller for `system`: an MLP 100-100, for quantum control a ConvNet 60-60.

    Args:
        system: whose observations it takes and whose actions it gives.
        seed: its weights are drawn from this.
        hidden: widths of an MLP's hidden layers or output channels of convolutions; None: the paper's.
        kind: "default", "mlp" or "conv".

    Raises:
        ValueError: if the kind is unknown or does not fit the observation.
    """
    one_of("controller", kind, CONTROLLER_NAMES)
    if kind == "default":
        names = (DEFAULTS[base] for base in type(system).__mro__ if base in DEFAULTS)
        name = next(names, "mlp")
    else:
        name = kind
    given: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
    generator = torch.Generator().manual_seed(seed)
    return CONTROLLERS[name](system.observation_shape, system.action_shape, generator=generator, **given)


def _widths(hidden: Sequence[int]) -> tuple[int, ...]:
    return tuple(positive_integer("hidden", width) for width in hidden)


def _glorot_linear(
    inputs: int, outputs: int, generator: torch.Generator | None, *, bias: bool = True, kernel: int = 1
) -> nn.Linear:
    """A linear layer with Glorot-uniform weights, those of a convolution if `kernel` is above 1; zero bias."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # draws no global random numbers
    nn.init.xavier_uniform_(linear.weight.view(outputs, inputs // kernel, kernel), generator=generator)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
