"""From directions to weights: clipping, Adam under a falling learning rate, an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bptt_trainers.adam import Adam
from bptt_trainers.config import Schedule, TrainConfig

Moments = dict[str, Tensor]
"""What Adam knows of one parameter."""

SCHEDULES: dict[Schedule, Callable[[int, int], float]] = {
    "cosine": lambda update, updates: (1.0 + math.cos(math.pi * update / updates)) / 2.0,
    "linear": lambda update, updates: 1.0 - update / updates,
}
"""How much of the way from the final learning rate to the first is left in an update of so many. The cosine is that of
Loshchilov and Hutter, ICLR 2017, without restarts."""


class Optimizer:
    """Trains parameters by `config`'s settings of clipping, learning rate, Adam and averaging.

    With `config.average` set there are two sets of weights: those that are trained and, after n steps with weights
    w_1 ... w_n, their exponential moving average

        (1 - decay) / (1 - decay^n)  sum_i decay^(n - i) w_i,

    free of the bias towards where it starts (Kingma and Ba, ICLR 2015, section 7.2). The parameters hold those that are
    trained within `training`, and their average elsewhere. Buffers are not averaged.

    What is known of a parameter (moments, steps, average) belongs to its name and shape: the parameters may change in
    the middle of a run, see `follow`.

    Args:
        parameters: n numbers in all, of float32 or float64.
        config: the settings.
        updates: of the whole run.

    Raises:
        ValueError: if there is no parameter, or one that cannot be trained.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig, updates: int) -> None:
        self.config = config
        self.updates = updates
        self._bind(parameters)
        self._trained: Tensor | None = None  # (n,), while the parameters hold the average
        self._average: Tensor | None = None  # (n,), once there was a step

    def learning_rate(self, update: int) -> float:
        """The step size of an update, numbered from 0 through the run."""
        first, last = self.config.learning_rate, self.config.final_learning_rate
        left = 1.0 if last is None else SCHEDULES[self.config.schedule](update, self.updates)
        rate = first if last is None else last + (first - last) * left
        rising = self.config.warmup * self.updates  # updates, not always whole
        return rate * (update + 1) / rising if update + 1 < rising else rate

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, the parameters are those that are trained."""
        if self._trained is not None and self._average is not None:
            held = self._weights()  # the average, but for what was assigned meanwhile
            self._write(torch.where(held == self._average, self._trained, held))
            self._trained, self._average = None, held
        try:
            yield
        finally:
            if self._average is not None:
                self._trained = self._weights()
                self._write(self._average)
                self._average = self._weights()  # as the parameters hold it, should their dtypes differ

    def objection(self, direction: Tensor, norm: float) -> str | None:
        """Why there can be no step against a direction, (n,) and of that norm; None if there can.

        It is not finite, or after clipping so large that a moment of Adam would not be: that parameter would never move
        again.
        """
        if norm <= self._adam.harmless:
            return None
        names, parts = list(self._parameters), direction.split(self._sizes)
        bad = [name for name, part in zip(names, parts, strict=True) if not part.isfinite().all()]
        if bad:
            return f"the direction of {', '.join(bad)} is not finite"
        if not math.isfinite(norm):
            return f"the direction has a norm of {norm}"
        large = [names[i] for i in self._adam.overflowing(self._clipped(direction, norm))]
        return f"the direction of {', '.join(large)} is too large for Adam's moments" if large else None

    def step(self, update: int, direction: Tensor, norm: float) -> None:
        """Step against a direction, (n,) and of that norm, in an update numbered from 0 through the run."""
        self._adam.learning_rate = self.learning_rate(update)
        self._adam.step(self._clipped(direction, norm))
        if self.config.average:
            decay, weights = self.config.average, self._weights()
            share = self._adam.for_each([(1.0 - decay) / (1.0 - decay**steps) for steps in self._adam.steps])
            self._average = weights if self._average is None else self._average.lerp_(weights, share)

    def follow(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Train these parameters from now on.

        One that was trained already, by name and shape, keeps its moments, its number of steps and its average; a new
        one starts without any, its average at its present value; what is gone is forgotten.

        Raises:
            ValueError: if there is no parameter, or one that cannot be trained.
        """
        if _kinds(parameters) == self._kinds:
            return
        moments = self._moments()
        trained, average = self._named(self._trained), self._named(self._average)
        self._bind(parameters)
        self._take_over(moments)
        self._trained, self._average = self._gathered(trained), self._gathered(average)

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint beside that of the parameters, for `load_state_dict`."""
        state: dict[str, Any] = {"optimizer": self._adam.state_dict(), "trained": list(self._parameters)}
        if self.config.average:
            state["trained_weights"] = self._named(self._weights() if self._trained is None else self._trained)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose parameters are there already."""
        names = dict(enumerate(state.get("trained", self._parameters)))  # older checkpoints do not name them
        self._take_over({names[i]: moments for i, moments in state["optimizer"]["state"].items()})
        self._trained = self._average = None
        if self.config.average and any(self._adam.steps):
            self._trained = self._gathered(state["trained_weights"])
            self._average = self._weights()

    def _bind(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start with parameters of which nothing is known."""
        _check_trainable(parameters)
        self._parameters = dict(parameters)
        self._kinds = _kinds(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]  # a parameter's own may change
        self._sizes = [shape.numel() for shape in self._shapes]
        config = self.config
        self._adam = Adam(
            parameters.values(),
            config.learning_rate,
            config.adam_epsilon,
            config.adam_betas,
            config.amsgrad,
            config.weight_decay,
        )

    def _moments(self) -> dict[str, Moments]:
        names = list(self._parameters)
        return {names[i]: moments for i, moments in self._adam.state_dict()["state"].items()}

    def _take_over(self, moments: Mapping[str, Moments]) -> None:
        """Let Adam go on from moments, by name, where the parameter of that name has their shape."""
        known = {
            i: moments[name]
            for i, (name, parameter) in enumerate(self._parameters.items())
            if name in moments and moments[name]["exp_avg"].shape == parameter.shape
        }
        self._adam.load_state_dict({"state": known})

    def _named(self, vector: Tensor | None) -> dict[str, Tensor] | None:
        return None if vector is None else dict(zip(self._parameters, self._split(vector), strict=True))

    def _gathered(self, named: Mapping[str, Tensor] | None) -> Tensor | None:
        """As one vector (n,); a parameter that is not among them, or of another shape, counts by its value."""
        if named is None:
            return None
        parts = [
            named[name] if name in named and named[name].shape == parameter.shape else parameter.detach()
            for name, parameter in self._parameters.items()
        ]
        return torch.cat([part.to(own).flatten() for part, own in zip(parts, self._parameters.values(), strict=True)])

    def _clipped(self, direction: Tensor, norm: float) -> Tensor:
        threshold = self.config.clip_threshold
        if self.config.clip == "value":
            return direction.clamp(-threshold, threshold)
        if self.config.clip == "norm" and norm > threshold:
            divisor = norm / threshold
            if divisor > torch.finfo(direction.dtype).max:  # it would be infinite
                return (direction.double() / norm * threshold).to(direction.dtype)
            return direction / divisor
        return direction

    def _weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters.values()])

    def _split(self, weights: Tensor) -> list[Tensor]:
        return [part.view(shape) for part, shape in zip(weights.split(self._sizes), self._shapes, strict=True)]

    @torch.no_grad()
    def _write(self, weights: Tensor) -> None:
        for parameter, part in zip(self._parameters.values(), self._split(weights), strict=True):
            parameter.copy_(part)


def _kinds(parameters: Mapping[str, nn.Parameter]) -> list[tuple[Any, ...]]:
    """What must stay for what is known of parameters to fit them."""
    return [(name, id(one), one.shape, one.dtype, one.device) for name, one in parameters.items()]


def _check_trainable(parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise ValueError("controller has no parameters to train: none has requires_grad.")
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"controller has a parameter {name} of {parameter.dtype}; train in float32 or float64, such as by "
                "controller.float(). Half precision loses small steps to rounding."
            )
