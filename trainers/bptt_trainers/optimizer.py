"""From directions to weights: clipping, Adam under a falling learning rate, an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt_trainers.adam import Adam
from bptt_trainers.config import TrainConfig


class Optimizer:
    """Trains parameters by `config`'s settings of clipping, learning rate, Adam and averaging.

    With `config.average` set there are two sets of weights: those that are trained and, after n steps with weights
    w_1 ... w_n, their exponential moving average

        (1 - decay) / (1 - decay^n)  sum_i decay^(n - i) w_i,

    free of the bias towards where it starts (Kingma and Ba, ICLR 2015, section 7.2). The parameters hold those that are
    trained within `training`, and their average elsewhere. Buffers are not averaged.

    Args:
        parameters: n numbers in all.
        config: the settings.
        updates: of the whole run.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig, updates: int) -> None:
        self.config = config
        self.updates = updates
        self._parameters = parameters
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        self._adam = Adam(
            parameters.values(), config.learning_rate, config.adam_epsilon, config.adam_betas, config.amsgrad
        )
        self._trained: Tensor | None = None  # both (n,), and None as long as there was no step
        self._average: Tensor | None = None

    def learning_rate(self, update: int) -> float:
        """That of an update, numbered from 0 through the run: half a cosine (Loshchilov and Hutter, ICLR 2017)."""
        first, last = self.config.learning_rate, self.config.final_learning_rate
        if last is None:
            return first
        return last + (first - last) * (1.0 + math.cos(math.pi * update / self.updates)) / 2.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, the parameters are those that are trained."""
        if self._trained is not None:
            self._write(self._trained)
        try:
            yield
        finally:
            if self._average is not None:
                self._trained = self._weights()
                self._write(self._average)

    def step(self, update: int, direction: Tensor, norm: float) -> None:
        """Step against a direction, (n,) and of that norm, in an update numbered from 0 through the run."""
        if self.config.clip == "value":
            direction = direction.clamp(-1.0, 1.0)
        elif self.config.clip == "norm" and norm > 1.0:
            direction = direction / norm
        self._adam.learning_rate = self.learning_rate(update)
        self._adam.step(direction)
        if self.config.average:
            decay, weights = self.config.average, self._weights()
            share = (1.0 - decay) / (1.0 - decay**self._adam.steps)
            self._average = weights if self._average is None else self._average.lerp_(weights, share)

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint beside that of the parameters, for `load_state_dict`."""
        state = {"optimizer": self._adam.state_dict()}
        if self.config.average:
            trained = self._weights() if self._trained is None else self._trained
            state["trained_weights"] = dict(zip(self._parameters, self._split(trained), strict=True))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose parameters are there already."""
        self._adam.load_state_dict(state["optimizer"])
        self._trained = self._average = None
        if self.config.average and self._adam.steps:
            self._trained = torch.cat([state["trained_weights"][name].flatten() for name in self._parameters])
            self._average = self._weights()

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters.values()])

    def _split(self, weights: Tensor) -> list[Tensor]:
        parts = weights.split(self._sizes)
        return [part.view(p.shape) for part, p in zip(parts, self._parameters.values(), strict=True)]

    @torch.no_grad()
    def _write(self, weights: Tensor) -> None:
        for parameter, part in zip(self._parameters.values(), self._split(weights), strict=True):
            parameter.copy_(part)
