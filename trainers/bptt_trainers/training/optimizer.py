"""From directions to weights: clipping, a step of a size that changes over the run, an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs.checks import shown
from bptt_trainers.training.adam import Adam, for_each
from bptt_trainers.training.config import BUILT_IN, ScheduleName, TrainConfig, left_at_default
from bptt_trainers.training.torch_optimizer import Make, TorchOptimizer, named_optimizer, refusing

Schedule = Callable[[float], float]
"""A schedule of a user's own: from the share of the updates that is done, 0 <= s < 1, to a step size."""

SCHEDULES: dict[ScheduleName, Callable[[int, int], float]] = {
    "cosine": lambda update, updates: (1.0 + math.cos(math.pi * update / updates)) / 2.0,
    "linear": lambda update, updates: 1.0 - update / updates,
}
"""How much of the way from the final learning rate to the first is left in an update of so many. The cosine is that of
Loshchilov and Hutter, ICLR 2017, without restarts."""


class Optimizer:
    """Trains parameters by `config`'s settings of clipping, learning rate, optimizer and averaging.

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
        optimizer: a class of torch's kind, or a callable from parameters to an instance, in place of what the settings
            name.
        schedule: from the share of the updates that is done to the step size, in place of what the settings say.

    Raises:
        TypeError, ValueError: if there is no parameter, or one that cannot be trained, or the optimizer or the schedule
            cannot be used.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        updates: int,
        optimizer: Make | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.config = config
        self.updates = updates
        self._make = optimizer
        self._schedule = schedule
        if schedule is not None:
            _check_schedule(config, schedule)
            for percent in range(101):
                self.learning_rate(percent * (updates - 1) // 100)
        if optimizer is not None:
            _check_own(config, optimizer)
        elif config.optimizer != BUILT_IN:
            self._make = named_optimizer(config.optimizer, config.optimizer_options, config.weight_decay)
        self._bind(parameters)
        self._trained: Tensor | None = None  # (n,), while the parameters hold the average
        self._average: Tensor | None = None  # (n,), once there was a step

    def learning_rate(self, update: int) -> float:
        """The step size of an update, numbered from 0 through the run.

        Raises:
            ValueError: if a schedule of the user's own gives anything but a finite number of at least 0.
        """
        if self._schedule is not None:
            return _checked(self._schedule, update / self.updates)
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

        It is not finite, or after clipping so large that what the optimizer keeps of a parameter, such as a moment of
        Adam, would not be: that parameter would never move again.
        """
        if norm <= self._stepper.harmless:
            return None
        names, parts = list(self._parameters), direction.split(self._sizes)
        bad = [name for name, part in zip(names, parts, strict=True) if not part.isfinite().all()]
        if bad:
            return f"the direction of {', '.join(bad)} is not finite"
        if not math.isfinite(norm):
            return f"the direction has a norm of {norm}"
        large = [names[i] for i in self._stepper.overflowing(self._clipped(direction, norm))]
        return f"the direction of {', '.join(large)} is too large for {self._stepper.name}'s moments" if large else None

    def step(self, update: int, direction: Tensor, norm: float) -> None:
        """Step against a direction, (n,) and of that norm, in an update numbered from 0 through the run."""
        self._stepper.learning_rate = self.learning_rate(update)
        self._stepper.step(self._clipped(direction, norm))
        if self.config.average:
            decay, weights = self.config.average, self._weights()
            shares = [(1.0 - decay) / (1.0 - decay**steps) for steps in self._stepper.steps]
            share = for_each(shares, self._sizes, weights)
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
        state, shapes = self._stepper.state_dict(), dict(zip(self._parameters, self._shapes, strict=True))
        trained, average = self._named(self._trained), self._named(self._average)
        self._bind(parameters)
        same = [name if name in parameters and parameters[name].shape == shapes[name] else None for name in shapes]
        self._take_over(state, same)
        self._trained, self._average = self._gathered(trained), self._gathered(average)

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint beside that of the parameters, for `load_state_dict`."""
        state: dict[str, Any] = {"optimizer": self._stepper.state_dict(), "trained": list(self._parameters)}
        if self.config.average:
            state["trained_weights"] = self._named(self._weights() if self._trained is None else self._trained)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose parameters are there already."""
        self._take_over(state["optimizer"], list(state.get("trained", self._parameters)))  # older ones do not name them
        self._trained = self._average = None
        if self.config.average and any(self._stepper.steps):
            self._trained = self._gathered(state["trained_weights"])
            self._average = self._weights()

    def _bind(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Start with parameters of which nothing is known."""
        _check_trainable(parameters)
        self._parameters = dict(parameters)
        self._kinds = _kinds(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]  # a parameter's own may change
        self._sizes = [shape.numel() for shape in self._shapes]
        config, trained = self.config, list(parameters.values())
        self._stepper: Adam | TorchOptimizer
        if self._make is None:
            self._stepper = Adam(
                trained,
                config.learning_rate,
                config.adam_epsilon,
                config.adam_betas,
                config.amsgrad,
                config.weight_decay,
            )
        else:
            self._stepper = TorchOptimizer(trained, config.learning_rate, self._make)

    def _take_over(self, state: Mapping[str, Any], names: Sequence[str | None]) -> None:
        """Go on from a stepper's state, whose parameter i is now that of `names[i]`, if there is one."""
        there = {name: i for i, name in enumerate(self._parameters)}
        known = {there[name]: one for i, one in state["state"].items() if (name := names[i]) in there}
        self._stepper.load_state_dict({**state, "state": known})

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


def _check_own(config: TrainConfig, optimizer: Any) -> None:
    """Raise an error unless a user's own optimizer is of a kind that can be used, and the settings leave it to it."""
    if not callable(optimizer):
        raise TypeError(
            "optimizer must be a class such as torch.optim.SGD or a callable from parameters to an optimizer, such as "
            f"functools.partial(torch.optim.SGD, momentum=0.9); got {shown(optimizer)}. By name, one of torch.optim "
            "is a setting: TrainConfig(optimizer='SGD')."
        )
    void = ("optimizer", "optimizer_options", "weight_decay", *config.void_with_others)
    left_at_default(config, void, "optimizer= is given")


def _check_schedule(config: TrainConfig, schedule: Any) -> None:
    """The same of a schedule."""
    if not callable(schedule):
        raise TypeError(
            f"schedule must be a function from the share of the updates that is done to a step size; got "
            f"{shown(schedule)}. By its name, one is a setting: TrainConfig(schedule='linear')."
        )
    left_at_default(config, ("learning_rate", "final_learning_rate", "schedule", "warmup"), "schedule= is given")


def _checked(schedule: Schedule, share: float) -> float:
    with refusing(f"schedule cannot give a step size at {share}"):
        rate = schedule(share)
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= float(rate) < math.inf:
        raise ValueError(f"schedule must give a finite step size of at least 0; at {share} it gave {shown(rate)}.")
    return float(rate)
