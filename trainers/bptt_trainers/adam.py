"""Adam, over all parameters of a controller as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adam:
    """Adam (Kingma and Ba, ICLR 2015), or AMSGrad (Reddi, Kale and Kumar, ICLR 2018).

    `torch.optim.Adam` computes the same. It takes several times as long for the few small parameters of a controller,
    and its first use in a process a second: it imports `torch._dynamo`.

    Args:
        parameters: n numbers in all.
        learning_rate: step size.
        epsilon: added to the root of the second moment.
        betas: decay a step of the first and of the second moment.
        amsgrad: whether to divide by the root of the largest second moment so far.

    Attributes:
        learning_rate: of the next step.
        steps: that were made.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        epsilon: float,
        betas: tuple[float, float] = (0.9, 0.999),
        amsgrad: bool = False,
    ) -> None:
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self.betas = betas
        self.steps = 0
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._mean = torch.zeros_like(torch.cat([parameter.detach().flatten() for parameter in self._parameters]))
        self._square = torch.zeros_like(self._mean)
        self._moments = {"exp_avg": self._mean, "exp_avg_sq": self._square}  # by torch's names
        if amsgrad:
            self._moments["max_exp_avg_sq"] = torch.zeros_like(self._mean)

    @torch.no_grad()
    def step(self, direction: Tensor) -> None:
        """Step against `direction`, (n,), one parameter after the other."""
        self.steps += 1
        of_mean, of_square = (1 - beta**self.steps for beta in self.betas)  # the bias that a start from zero leaves
        self._mean.lerp_(direction, 1 - self.betas[0])
        self._square.mul_(self.betas[1]).addcmul_(direction, direction, value=1 - self.betas[1])
        largest = self._moments.get("max_exp_avg_sq")
        square = self._square if largest is None else torch.maximum(largest, self._square, out=largest)
        root = square.sqrt().div_(math.sqrt(of_square)).add_(self.epsilon)
        change = (self._mean / root).mul_(-self.learning_rate / of_mean)
        for parameter, part in zip(self._parameters, change.split(self._sizes), strict=True):
            parameter.add_(part.view(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, laid out as that of `torch.optim.Adam`: the moments of each parameter."""
        step = torch.tensor(float(self.steps))
        parts = {name: moment.clone().split(self._sizes) for name, moment in self._moments.items()}
        state = {
            i: {"step": step, **{name: parts[name][i].view(parameter.shape) for name in parts}}
            for i, parameter in enumerate(self._parameters)
        }
        return {"state": state if self.steps else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a copy of another one's state."""
        by_parameter = [state["state"][i] for i in range(len(state["state"]))]
        self.steps = int(by_parameter[0]["step"]) if by_parameter else 0
        for name, moment in self._moments.items():
            if by_parameter:
                moment.copy_(torch.cat([one[name].flatten() for one in by_parameter]))
            else:
                moment.zero_()
