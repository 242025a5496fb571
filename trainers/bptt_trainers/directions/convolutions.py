"""Convolutions along one axis in closed form: as a perceptron whose layers but the last meet patches.

A patch is a stretch of what came before, (length, channels) one after the other in memory, so that patches are copied
as they lie, tap by tap. The weights of the layers, which have them channel by channel, are put into that order once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bptt_trainers.directions.linear_layer import product
from bptt_trainers.directions.perceptron import Perceptron


class Convolutions(Perceptron):
    """As `Perceptron`; every layer but the last acts on each patch of what the one before gave.

    Args:
        given: as those of `Perceptron`.
        length: positions of an observation, (length, channels).
        kernel: positions of a patch.
        stride: positions from one patch to the next, at most `kernel`.
    """

    def __init__(self, *given: Any, length: int, kernel: int, stride: int) -> None:
        self.kernel, self.stride = kernel, stride
        self._lengths = [length]  # before each layer
        for _ in given[1][:-1]:
            self._lengths.append((self._lengths[-1] - kernel) // stride + 1)
        super().__init__(*given)

    is_chain = False

    @property
    def widths(self) -> list[int]:
        """Numbers that each layer gives for a sample."""
        wide = super().widths
        return [*(p * w for p, w in zip(self._lengths[1:], wide, strict=False)), wide[-1]]

    def run(self, observation: Tensor, places: Sequence[Tensor] | None = None) -> list[Tensor]:
        """As that of `Perceptron`."""
        given = self.seen(observation)
        given = given.unflatten(0, (*self.members, -1)) if self.members else given
        outputs = []
        for i, ((run, settle), place) in enumerate(zip(self._runs, places or self._nowhere, strict=True)):
            rows = self._patches(i, given).flatten(-3, -2) if i < len(self.modules) - 1 else given
            out = None if place is None else place.view(*self.members, rows.shape[-2], -1)
            rows = run(rows, out=out)
            if settle is not None:
                settle(rows)
            given = rows.view(*given.shape[:-1], -1)
            outputs.append(given)
        return outputs

    def inputs(self, observation: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """As that of `Perceptron`; patches, (N, positions, in)."""
        before = [observation, *(one.flatten(0, -2) for one in outputs[:-1])]
        return [*(self._patches(i, one) for i, one in enumerate(before[:-1])), before[-1]]

    def pulled(self, layer: int, vectors: Tensor) -> Tensor:
        """As that of `Perceptron`."""
        weight = self.weights[layer]
        if layer == len(self.modules) - 1:
            return vectors @ weight
        met = product(vectors.unflatten(-1, (-1, weight.shape[-2])).flatten(-3, -2), weight)  # (..., R positions, in)
        taps = met.unflatten(-2, (-1, self._lengths[layer + 1])).unflatten(-1, (self.kernel, -1))
        positions, channels, covered = taps.shape[-3], taps.shape[-1], taps.shape[-3] * self.stride
        summed = met.new_empty(*taps.shape[:-3], self._lengths[layer], channels)
        summed[..., covered:, :] = 0.0
        summed[..., :covered, :].unflatten(-2, (positions, self.stride)).copy_(taps[..., : self.stride, :])
        for tap in range(self.stride, self.kernel):
            summed[..., tap : tap + covered - self.stride + 1 : self.stride, :] += taps[..., tap, :]
        together: Tensor = summed.flatten(-2)
        return together

    def unbent(self, layer: int, vectors: Tensor, value: Tensor) -> Tensor:
        """As that of `Perceptron`; in positions, as a compiler looks for the tap of each number else."""
        shape = (self._lengths[layer + 1], -1)
        slopes: Tensor = super().unbent(layer, vectors.unflatten(-1, shape), value.unflatten(-1, shape)).flatten(-2)
        return slopes

    def by_row(self, layer: int, slope: Tensor) -> Tensor:
        """As that of `Perceptron`; (m, N, positions, out)."""
        if layer == len(self.modules) - 1:
            return slope
        return slope.view(*slope.shape[:-1], self._lengths[layer + 1], -1)

    def restored(self, layer: int, products: Tensor) -> Tensor:
        """As that of `Perceptron`; channel by channel."""
        by_channel: Tensor = products.unflatten(-1, (self._taps(layer), -1)).mT.flatten(-2)
        return by_channel

    def weight_of(self, layer: int) -> Tensor:
        """As that of `Perceptron`; tap by tap."""
        weight = super().weight_of(layer)
        return weight.view(*weight.shape[:-1], -1, self._taps(layer)).mT.flatten(-2)

    def _taps(self, layer: int) -> int:
        """Positions that a layer meets at once: those of a patch, and the last one all that there are."""
        return self.kernel if layer < len(self._lengths) - 1 else self._lengths[-1]

    def _patches(self, layer: int, given: Tensor) -> Tensor:
        """What a layer meets, (..., R, length channels) -> (..., R, positions, kernel channels); a view."""
        channels = given.shape[-1] // self._lengths[layer]
        return given.unfold(-1, self.kernel * channels, self.stride * channels)
