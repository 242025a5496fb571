"""Linear layers whose products with the slopes of a loss are taken from one backward pass for all rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

# A product of many rows with a matrix of few columns takes several times as long as that of the transposes. Measured
# with MKL, float32, 100 numbers a row, of the transposes over the other: 4 columns 0.43, 0.28 and 0.23 for 64, 200 and
# 4,096 rows, 2 and 8 columns 0.5 and 0.3, 12 columns 0.6 and 16 as long; 8 rows 1.4 times. In float64 0.4 to 0.8.
FEW_COLUMNS = range(2, 9)
MANY_ROWS = 64


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """The product of rows, (..., R, k), with a matrix, (k, n), or with E of them, (..., E, R, k) with (E, k, n)."""
    if matrix.shape[-1] not in FEW_COLUMNS or rows.is_cuda:
        return rows @ matrix
    flat = rows.flatten(0, -2) if matrix.dim() == 2 else rows
    if flat.shape[-2] < MANY_ROWS:
        return rows @ matrix
    return (matrix.mT @ flat.mT).mT.view(*rows.shape[:-1], -1)


class StackedLinear(nn.Module):
    """E linear layers at once: each of E equal parts of the rows, one after the other, meets weights of its own.

    Args:
        weight: (E, out, in).
        bias: (E, out), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        """(E R, ..., in) -> (E R, ..., out)."""
        members, outputs, inputs = self.weight.shape
        rows = input.reshape(members, -1, inputs)
        weight = self.weight.mT
        y = rows @ weight if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), rows, weight)
        return y.view(*input.shape[:-1], outputs)


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of a controller, and the names of its parameters there; None for one that is not trained."""

    module: nn.Linear | StackedLinear
    weight: str | None
    bias: str | None

    @classmethod
    def of(cls, module: nn.Linear | StackedLinear, names: Mapping[nn.Parameter, str]) -> LinearLayer:
        """`module` with the names of its parameters."""
        name = {own: names.get(p) for own, p in module.named_parameters()}
        return cls(module, name["weight"], name.get("bias"))

    def pulled(self, vectors: Tensor, steps: int) -> Tensor:
        """Vectors by what the layer gave as vectors by what it was given, (P, R, out) -> (P, R, in).

        Args:
            vectors: P for each of R rows; of E layers at once, those of each step are E equal parts.
            steps: of which the rows are.
        """
        weight: Tensor = self.module.weight.detach()
        if isinstance(self.module, StackedLinear):
            parts = vectors.unflatten(1, (steps, len(weight), -1)).permute(2, 0, 1, 3, 4)  # (E, P, S, B, out)
            met = product(parts.flatten(1, 3), weight)
            return met.view(*parts.shape[:-1], -1).permute(1, 2, 0, 3, 4).flatten(1, 3)
        return product(vectors, weight)

    def products_of_slopes(self, inputs: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """What one call adds to the directions of P passes by the weight and by the bias.

        Args:
            inputs: what the layer was given, (N, in), or of E layers at once (E, R, in).
            slopes: those of the loss of each pass by what it gave, (P, N, out).

        Returns:
            (P, *weight.shape) and (P, *bias.shape).
        """
        if isinstance(self.module, StackedLinear):
            slopes = slopes.unflatten(1, (len(self.module.weight), -1))
            inputs = inputs.reshape(len(self.module.weight), -1, inputs.shape[-1])
        return slopes.mT @ inputs, slopes.sum(-2)

    def products(self, inputs: Tensor, slopes: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """What one call adds to the directions of P passes by the weight and by the bias.

        Args:
            inputs: what the layer was given, (N, ..., in), or of E layers at once (E, R, in).
            slopes: those of each of m action components by what it gave, (N, ..., out).
            weights: the slopes of the loss by the actions, (N, P, m).

        Returns:
            (P, *weight.shape) and (P, *bias.shape).
        """
        members = self.module.weight.shape[0] if isinstance(self.module, StackedLinear) else 1
        by_weight, by_bias = _products(members, inputs, slopes, weights)
        if isinstance(self.module, StackedLinear):
            return by_weight.transpose(0, 1), by_bias.transpose(0, 1)
        return by_weight.squeeze(0), by_bias.squeeze(0)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | StackedLinear]:
    """Whether the module is a plain linear layer that owns its weight.

    No subclass, no reparametrization, no forward of its own.
    """
    plain = type(module) in (nn.Linear, StackedLinear) and "forward" not in vars(module)
    return plain and isinstance(module._parameters.get("weight"), nn.Parameter)


def _products(members: int, inputs: Tensor, slopes: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j (c_j delta_j)^T h for E members and P passes: (E, P, out, in), and the same without h, (E, P, out).

    h: inputs, (N, ..., in); delta_j: slopes, m of (N, ..., out); c: weights, (N, P, m); N = E R rows.
    """
    passes, components = weights.shape[1:]
    wide_in, wide_out = inputs.shape[-1], slopes[0].shape[-1]
    inner = inputs.shape[:-1].numel() // len(weights)  # positions at which the layer meets each sample
    h = inputs.reshape(members, -1, wide_in)
    c = weights.reshape(members, -1, 1, passes, components).expand(-1, -1, inner, -1, -1).flatten(1, 2)
    if components > 1:
        delta = torch.stack([slope.reshape(members, -1, wide_out) for slope in slopes], dim=2)  # (E, R, m, out)
        scaled = (c @ delta).flatten(2)  # (E, R, P out)
        by_weight = (scaled.mT @ h).unflatten(1, (passes, wide_out))
        return by_weight, scaled.sum(1).unflatten(1, (passes, wide_out))
    delta = slopes[0].reshape(members, -1, wide_out)
    by_bias = c.squeeze(-1).mT @ delta
    if wide_in < wide_out:  # scale the narrower of the two factors
        scaled = (c * h.unsqueeze(2)).flatten(2)  # (E, R, P in)
        by_weight = (scaled.mT @ delta).unflatten(1, (passes, wide_in)).mT
    else:
        scaled = (c * delta.unsqueeze(2)).flatten(2)  # (E, R, P out)
        by_weight = (scaled.mT @ h).unflatten(1, (passes, wide_out))
    return by_weight, by_bias
