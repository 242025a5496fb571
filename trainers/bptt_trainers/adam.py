"""Adam, over all parameters of a controller as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)


class Adam:
    """Adam (Kingma and Ba, ICLR 2015).

    `torch.optim.Adam` computes the same. It takes several times as long for the few small parameters of a controller,
    and its first use in a process a second: it imports `torch._dynamo`.

    Args:
        parameters: n numbers in all.
        learning_rate: step size.
        epsilon: added to the root of the second moment.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, epsilon: float) -> None:
        self.learning_rate = learning_rate
        self.epsilon = epsilon
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._steps = 0
        self._mean = torch.zeros_like(torch.cat([parameter.detach().flatten() for parameter in self._parameters]))
        self._square = torch.zeros_like(self._mean)

    @torch.no_grad()
    def step(self, direction: Tensor) -> None:
        """Step against `direction`, (n,), one parameter after the other."""
        self._steps += 1
        of_mean, of_square = (1 - beta**self._steps for beta in BETAS)  # the bias that a start from zero leaves
        self._mean.lerp_(direction, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(direction, direction, value=1 - BETAS[1])
        root = self._square.sqrt().div_(math.sqrt(of_square)).add_(self.epsilon)
        change = (self._mean / root).mul_(-self.learning_rate / of_mean)
        for parameter, part in zip(self._parameters, change.split(self._sizes), strict=True):
            parameter.add_(part.view(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes, laid out as that of `torch.optim.Adam`: the moments of each parameter."""
        step = torch.tensor(float(self._steps))
        moments = [moment.clone().split(self._sizes) for moment in (self._mean, self._square)]
        state = {
            i: {"step": step, "exp_avg": mean.view(parameter.shape), "exp_avg_sq": square.view(parameter.shape)}
            for i, (parameter, mean, square) in enumerate(zip(self._parameters, *moments, strict=True))
        }
        return {"state": state if self._steps else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a copy of another one's state."""
        by_parameter = [state["state"][i] for i in range(len(state["state"]))]
        self._steps = int(by_parameter[0]["step"]) if by_parameter else 0
        for name, moment in (("exp_avg", self._mean), ("exp_avg_sq", self._square)):
            if by_parameter:
                moment.copy_(torch.cat([one[name].flatten() for one in by_parameter]))
            else:
                moment.zero_()
