"""Adam, over all parameters of a controller as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Adam:
    """Adam (Kingma and Ba, ICLR 2015), also as AMSGrad (Reddi, Kale and Kumar, ICLR 2018) or AdamW.

    The latter is by Loshchilov and Hutter (ICLR 2019). `torch.optim.Adam` and `AdamW` compute the same. They take
    several times as long for the few small parameters of a controller, and their first use in a process a second: it
    imports `torch._dynamo`.

    Args:
        parameters: n numbers in all.
        learning_rate: step size.
        epsilon: added to the root of the second moment.
        betas: decay a step of the first and of the second moment.
        amsgrad: whether to divide by the root of the largest second moment so far.
        weight_decay: share of the weights, times the learning rate, that a step takes away first.

    Attributes:
        learning_rate: of the next step.
        steps: that were made, by parameter. They differ where `load_state_dict` left some parameters out.
        name: for messages.
    """

    name = "Adam"

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        epsilon: float,
        betas: tuple[float, float] = (0.9, 0.999),
        amsgrad: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epsilon = epsilon
        self.betas = betas
        self._parameters = list(parameters)
        self._shapes = [parameter.shape for parameter in self._parameters]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.steps = [0] * len(self._parameters)
        self._mean = torch.zeros_like(torch.cat([parameter.detach().flatten() for parameter in self._parameters]))
        self._square = torch.zeros_like(self._mean)
        self._moments = {"exp_avg": self._mean, "exp_avg_sq": self._square}  # by torch's names
        if amsgrad:
            self._moments["max_exp_avg_sq"] = torch.zeros_like(self._mean)

    @torch.no_grad()
    def step(self, direction: Tensor) -> None:
        """Step against `direction`, (n,), one parameter after the other."""
        self.steps = [steps + 1 for steps in self.steps]
        self._move(self._mean, self._square, direction)
        largest = self._moments.get("max_exp_avg_sq")
        square = self._square if largest is None else torch.maximum(largest, self._square, out=largest)
        # The bias that a start from zero leaves in a moment is 1 - beta^steps
        of_root = self._for_each([math.sqrt(1 - self.betas[1] ** steps) for steps in self.steps])
        rate = self._for_each([-self.learning_rate / (1 - self.betas[0] ** steps) for steps in self.steps])
        root = square.sqrt().div_(of_root).add_(self.epsilon)
        change = (self._mean / root).mul_(rate)
        for parameter, part in zip(self._parameters, change.split(self._sizes), strict=True):
            if self.weight_decay:
                parameter.mul_(1 - self.learning_rate * self.weight_decay)
            parameter.add_(part.view(parameter.shape))

    @torch.no_grad()
    def overflowing(self, direction: Tensor) -> list[int]:
        """Which parameters' moments a step against `direction`, (n,), would leave not finite."""
        mean, square = self._mean.clone(), self._square.clone()
        self._move(mean, square, direction)
        parts = (mean.isfinite() & square.isfinite()).split(self._sizes)
        return [i for i, finite in enumerate(parts) if not finite.all()]

    @property
    def harmless(self) -> float:
        """A norm up to which no direction makes a moment overflow."""
        return math.sqrt(torch.finfo(self._square.dtype).max)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, laid out as that of `torch.optim.Adam`: the moments of each parameter.

        A parameter that took no step yet has none.
        """
        parts = {name: moment.clone().split(self._sizes) for name, moment in self._moments.items()}
        state = {
            i: {
                "step": torch.tensor(float(self.steps[i])),
                **{name: parts[name][i].view(shape) for name in parts},
            }
            for i, shape in enumerate(self._shapes)
            if self.steps[i]
        }
        return {"state": state}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of another one's state; a parameter of which it holds nothing starts from zero."""
        by_parameter = [state["state"].get(i) for i in range(len(self._parameters))]
        self.steps = [0 if one is None else int(one["step"]) for one in by_parameter]
        for name, moment in self._moments.items():
            for one, part, shape in zip(by_parameter, moment.split(self._sizes), self._shapes, strict=True):
                part.view(shape).copy_(torch.zeros_like(part).view(shape) if one is None else one[name])

    def _for_each(self, values: list[float]) -> float | Tensor:
        return for_each(values, self._sizes, self._mean)

    def _move(self, mean: Tensor, square: Tensor, direction: Tensor) -> None:
        """Move the moments, in place, towards a direction and its square."""
        mean.lerp_(direction, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(direction, direction, value=1 - self.betas[1])


def for_each(values: list[float], sizes: list[int], like: Tensor) -> float | Tensor:
    """A value for each part of those sizes, as a factor of vectors (n,): a number where they are all the same."""
    if values.count(values[0]) == len(values):
        return values[0]
    return torch.cat([like.new_full((size,), value) for value, size in zip(values, sizes, strict=True)])
