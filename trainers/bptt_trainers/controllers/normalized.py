"""Controllers that see observations by their running mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import checks
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.gaussian import NETWORKS, Gaussian
from bptt_trainers.directions.perceptron import Parts, parts_of

KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*NETWORKS.values(), Gaussian)}
"""What may act behind a normaliser."""

SMALLEST = 1e-5  # added to a variance, so that what never changes is not divided by 0


class Normalizer(nn.Module):
    """Shifts and scales numbers by the mean and the deviation of all that `gather` was shown; at first by 0 and 1.

    Both are parameters that are not trained, not buffers: their values change with every update, and engines that keep
    programs of a controller need not look at it anew.

    Args:
        shape: of one sample.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(*shape), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(*shape), requires_grad=False)
        self.count = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (B, *shape) -> the same, shifted and scaled."""
        return (samples - self.mean) / self.deviation

    @torch.no_grad()
    def gather(self, samples: Tensor) -> None:
        """Take samples, (M, *shape) with M >= 1, into mean and deviation (Chan, Golub and LeVeque, 1979)."""
        before, more = float(self.count), len(samples)
        share = more / (before + more)
        variance, mean = torch.var_mean(samples.to(self.mean), dim=0, correction=0)
        if before:
            apart = mean - self.mean
            variance = (1 - share) * (self.deviation.square() - SMALLEST) + share * (variance + (1 - share) * apart**2)
            mean = self.mean + share * apart
        self.mean.copy_(mean)
        self.deviation.copy_((variance + SMALLEST).sqrt())
        self.count.fill_(before + more)


class Normalized(Controller):
    """A controller of this package behind a `Normalizer`, which whoever trains it shows what it has observed.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.
        hidden: that of the controller; None: its own default.
        kind: the controller's class, by its name.
        generator: draws the weights; torch's global one by default.
        settings: what else the controller's constructor takes.

    Raises:
        ValueError: if the class is unknown, or an argument not what it should be.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] | None = None,
        *,
        kind: str = "MLP",
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        self.kind = checks.one_of("kind", kind, KINDS)
        given = settings if hidden is None else {"hidden": hidden, **settings}
        self.normalizer = Normalizer(self.observation_shape)
        self.controller = KINDS[kind](self.observation_shape, self.action_shape, generator=generator, **given)
        self.memory_shape = self.controller.memory_shape
        self.noise_shape = self.controller.noise_shape
        self.gives_entropy = self.controller.gives_entropy

    @property
    def squash(self) -> nn.Module | None:
        """What bends its actions, if anything does."""
        bends: nn.Module | None = self.controller.squash
        return bends

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        own: dict[str, Any] = self.controller.settings
        return {"kind": self.kind} | own

    def perceptron(self) -> Parts | None:
        """What `forward` does, see `Parts`; None where the controller is no perceptron."""
        parts = parts_of(self.controller)
        return None if parts is None else parts._replace(before=self.normalizer)

    def forward(self, observation: Tensor, *handed: Tensor) -> Any:
        """What the controller gives for normalised observations (B, *observation_shape) and what else it is handed."""
        return self.controller(self.normalizer(observation), *handed)


def acting_part(controller: nn.Module) -> nn.Module:
    """The controller behind a normaliser, or the controller itself."""
    return controller.controller if isinstance(controller, Normalized) else controller
