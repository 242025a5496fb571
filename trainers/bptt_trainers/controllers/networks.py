"""The paper's controllers: a multi-layer perceptron, convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import checks
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.directions.convolutions import Convolutions
from bptt_trainers.directions.perceptron import Parts

Numbers = float | Sequence[Any] | Tensor
"""A number, or one for each component."""

Range = tuple[Numbers, Numbers] | Sequence[Numbers]


class MLP(Controller):
    """A multi-layer perceptron with tanh, Glorot-uniform weights and zero biases: the paper's controller.

    Args:
        observation_shape: shape of one observation; observations are flattened.
        action_shape: shape of one action.
        hidden: width of each hidden layer.
        bias: whether the layers have biases.
        squash: the least and the largest action, each a number or one for each component, between which the actions are
            bent, see `Squash`. None leaves them as they are.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if a width is not an integer of at least 1, or another argument not what it should be.
    """

    squash: Squash | None

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] = (100, 100),
        *,
        bias: bool = True,
        squash: Range | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        checks.generator("generator", generator)
        self.bias = checks.flag("bias", bias)
        self.hidden = widths("hidden", hidden)
        sizes = [math.prod(self.observation_shape), *self.hidden, math.prod(self.action_shape)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [glorot_linear(inputs, outputs, generator, bias=bias), Tanh()]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_module("squash", squash_of(squash, self.action_shape))

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {"hidden": list(self.hidden), "bias": self.bias} | settings_of_squash(self.squash)

    def perceptron(self) -> Parts:
        """What `forward` does, see `Parts`."""
        return Parts(self.layers, self.action_shape, squash=self.squash)

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, *observation_shape) -> actions (B, *action_shape)."""
        actions: Tensor = self.layers(observation.flatten(1)).view(-1, *self.action_shape)
        return actions if self.squash is None else self.squash(actions)


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
        squash: as that of `MLP`.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if the observation is not of that form, or too short for so many convolutions.
    """

    KERNEL, STRIDE = 3, 2

    squash: Squash | None

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] = (60, 60),
        *,
        squash: Range | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        checks.generator("generator", generator)
        self.hidden = widths("hidden", hidden)
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
            convolutions.append(glorot_linear(channels * self.KERNEL, outputs, generator, kernel=self.KERNEL))
            channels = outputs
        self.convolutions = nn.ModuleList(convolutions)
        self.tanh = Tanh()
        self.register_module("squash", squash_of(squash, self.action_shape))
        self.head = glorot_linear(channels * length, math.prod(self.action_shape), generator)

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {"hidden": list(self.hidden)} | settings_of_squash(self.squash)

    def perceptron(self) -> Parts | None:
        """What `forward` does, see `Parts`; None where an action is not a single number."""
        if math.prod(self.action_shape) != 1:
            return None
        between = (part for convolution in self.convolutions for part in (convolution, self.tanh))
        form = partial(Convolutions, length=self.observation_shape[0], kernel=self.KERNEL, stride=self.STRIDE)
        return Parts(nn.Sequential(*between, self.head), self.action_shape, squash=self.squash, form=form)

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, L, channels) -> actions (B, *action_shape)."""
        x = observation
        for convolution in self.convolutions:
            x = self.tanh(convolution(_patches(x)))
        actions: Tensor = self.head(x.transpose(1, 2).flatten(1)).view(-1, *self.action_shape)
        return actions if self.squash is None else self.squash(actions)


class Squash(nn.Module):
    """Bends actions by tanh between bounds: mid + reach tanh((u - mid) / reach), of slope 1 in the middle.

    A clamp leaves an action within the bounds alone and has no slope beyond them; this has one everywhere.

    Args:
        low: the least action, a number or one for each component, (*action_shape).
        high: the largest, likewise.

    Raises:
        ValueError: if they are not finite numbers, or low is not below high.
    """

    mid: Tensor
    reach: Tensor

    def __init__(self, low: Numbers, high: Numbers) -> None:
        super().__init__()
        least, most = checks.real_array(low), checks.real_array(high)
        fault = f"; got {checks.shown(low)} and {checks.shown(high)}."
        if least is None or most is None or not (least.shape == most.shape or () in (least.shape, most.shape)):
            raise ValueError(f"squash must be the least and the largest action, numbers or one a component{fault}")
        self.low, self.high = least.tolist(), most.tolist()
        _, reach = self._placed(device="cpu")  # whose values there are, whatever device is the default
        if not bool((reach.isfinite() & (reach > 0)).all()):
            raise ValueError(f"squash must be finite bounds, the least below the largest{fault}")
        for name, buffer in zip(("mid", "reach"), self._placed(), strict=True):
            self.register_buffer(name, buffer, persistent=False)
        self.tanh = Tanh()

    def forward(self, action: Tensor) -> Tensor:
        """Actions (B, *action_shape) -> actions between the bounds."""
        bent: Tensor = self.mid + self.reach * self.tanh((action - self.mid) / self.reach)
        return bent

    def log_slope(self, action: Tensor) -> Tensor:
        """The logarithm of the slope of what it does, at actions (B, *action_shape) before they are bent, likewise.

        1 - tanh(y)^2 = 4 / (exp(y) + exp(-y))^2, so that the logarithm is finite where the slope rounds to 0.
        """
        y = (action - self.mid) / self.reach
        return 2.0 * (math.log(2.0) - y - nn.functional.softplus(-2.0 * y))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Squash:
        """Move it, to another dtype with the bounds as they were given: not as the dtype before had rounded them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.mid, self.reach = self._placed(dtype=self.mid.dtype, device=self.mid.device)
        return self

    def _placed(self, **kind: Any) -> tuple[Tensor, Tensor]:
        """Middle and reach as tensors of that kind, such that no rounding leads beyond the bounds."""
        low, high = (torch.tensor(bound, **kind) for bound in (self.low, self.high))
        mid = low / 2 + high / 2
        reach = torch.minimum(high - mid, mid - low)
        beyond = (mid + reach > high) | (mid - reach < low)
        return mid, torch.where(beyond, reach * (1 - 2 * torch.finfo(reach.dtype).eps), reach)


def squash_of(squash: Range | None, action_shape: tuple[int, ...]) -> Squash | None:
    """What bends the actions of a network.

    Raises:
        ValueError: if `squash` is not two bounds for actions of that shape.
    """
    if squash is None:
        return None
    if not isinstance(squash, (tuple, list)) or len(squash) != 2:
        raise ValueError(f"squash must be two bounds, such as (-1.0, 1.0), or None; got {checks.shown(squash)}.")
    made = Squash(*squash)
    shape = tuple(made.mid.shape)
    if shape not in ((), action_shape):
        raise ValueError(f"squash must be bounds of actions of shape {action_shape}; got some of shape {shape}.")
    return made


def settings_of_squash(squash: Squash | None) -> dict[str, Any]:
    """What a network's constructor takes of it, as plain data."""
    return {} if squash is None else {"squash": [squash.low, squash.high]}


class _TanhInPlace:
    """`Tanh` of a layer that is scaled, as `Perceptron` has it: the same numbers."""

    def scale(self, like: Tensor) -> int:
        """By what a layer multiplies what it gives for `settling`, a power of two."""
        return 2 if _by_sigmoid(like) else 1

    def settling(self, like: Tensor) -> Callable[[Tensor], object]:
        """What puts the function of what a layer gave in the place of what it gave times `scale`."""
        if not _by_sigmoid(like):
            return torch.tanh_
        return lambda scaled: torch.add(_MINUS_ONE, scaled.sigmoid_(), alpha=2, out=scaled)

    def pull(self, vectors: Tensor, value: Tensor) -> Tensor:
        """Vectors times the slopes where the function has these values."""
        slope: Tensor = torch.ops.aten.tanh_backward(vectors, value)
        return slope


class Tanh(nn.Module):
    """tanh; on the CPU in float32 as 2 sigmoid(2x) - 1, several times as fast as torch.tanh (error 1e-7)."""

    activation = _TanhInPlace()

    def forward(self, x: Tensor) -> Tensor:
        """X of any shape -> tanh(x)."""
        if not _by_sigmoid(x):
            return x.tanh()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _sigmoid_tanh(x)
        y: Tensor = _SigmoidTanh.apply(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y


_MINUS_ONE = torch.tensor(-1.0)


def _by_sigmoid(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.device.type == "cpu"


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
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.tanh_backward(grad, y)
        return slope

    jvp = backward  # the slope is diagonal


def _patches(x: Tensor) -> Tensor:
    """The patches that a convolution meets, (B, L, C) -> (B, positions, C kernel)."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _Patches.forward(x)
    y: Tensor = _Patches.apply(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return y


class _Patches(torch.autograd.Function):
    """`_patches` with its slope; torch's own is slow."""

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

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Patches.forward(tangent)  # it is linear


def widths(name: str, value: Any, wanted: str = "a tuple of widths, such as (100, 100)") -> tuple[int, ...]:
    """Return `value` as the widths of hidden layers, else raise ValueError that says what is `wanted`."""
    return checks.each(name, value, checks.positive_integer, wanted)


def glorot_linear(
    inputs: int, outputs: int, generator: torch.Generator | None, *, bias: bool = True, kernel: int = 1
) -> nn.Linear:
    """A linear layer with Glorot-uniform weights, those of a convolution if `kernel` is above 1; zero bias."""
    checks.in_memory("hidden", outputs, inputs)
    with torch.random.fork_rng(devices=()):  # draws no global random numbers; skip_init would import sympy, seconds
        linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(linear.weight.view(outputs, inputs // kernel, kernel), generator=generator)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
