"""Stochastic controllers: a network's actions, and noise of a deviation that is learned, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bptt_envs import checks
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.networks import (
    MLP,
    ConvNet,
    Numbers,
    Range,
    Squash,
    Tanh,
    settings_of_squash,
    squash_of,
)
from bptt_trainers.controllers.recurrent import GRU, LSTM, Recurrent

NETWORKS: dict[str, type[MLP | ConvNet | Recurrent]] = {"mlp": MLP, "conv": ConvNet, "gru": GRU, "lstm": LSTM}
"""What computes an action, by the names that settings have for it."""

Deviation = Literal["constant", "state"]
DEVIATIONS = get_args(Deviation)

REACH = 5.0
"""A deviation stays between exp(-5) and exp(5) times what it was set to."""

ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
"""That of a normal distribution of deviation 1."""


class Gaussian(Controller):
    """A controller with noise: u = mean(o) + deviation e, with e standard normal, drawn by who rolls out.

    The gradient goes through mean and deviation with the noise held, the reparametrised (pathwise) one of Kingma and
    Welling (ICLR 2014). Without noise the action is the mean, by which a controller is judged. `forward` gives the
    entropy of the distribution of the action beside it, for whoever rewards it: exactly that of the normal
    distribution and, where the action is bent by tanh, the logarithm of the slope of that at the action
    (Haarnoja et al., ICML 2018, appendix C). Where the environment clamps actions, it is the entropy before the clamp.

    Args:
        observation_shape: shape of one observation.
        action_shape: shape of one action.
        hidden: that of the network; None: its own default.
        network: what computes the mean, "mlp", "conv", "gru" or "lstm"; one with memory has it here, too.
        deviation: "constant": one deviation for each component of the action, whatever the state; "state": from the
            network, whose last layer is twice as wide.
        initial_deviation: what the deviation is set to, in the unit of the action, a number or one for each component;
            with "state" it is that where the network gives 0.
        squash: as that of `MLP`; it bends the noisy action.
        generator: draws the weights; torch's global one by default.

    Raises:
        ValueError: if a name is unknown, or another argument not what it should be.
    """

    gives_entropy = True

    log_start: Tensor
    squash: Squash | None

    def __init__(
        self,
        observation_shape: Sequence[int],
        action_shape: Sequence[int],
        hidden: Sequence[int] | None = None,
        *,
        network: str = "mlp",
        deviation: Deviation = "constant",
        initial_deviation: Numbers = 0.1,
        squash: Range | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(observation_shape, action_shape)
        self.network_name = checks.one_of("network", network, NETWORKS)
        self.deviation = checks.one_of("deviation", deviation, DEVIATIONS)
        given: Mapping[str, Any] = {} if hidden is None else {"hidden": hidden}
        outputs = self.action_shape if deviation == "constant" else (2, *self.action_shape)
        self.network = NETWORKS[network](self.observation_shape, outputs, generator=generator, **given)
        self.memory_shape = self.network.memory_shape
        self.noise_shape = self.action_shape
        self.initial_deviation = _positive(initial_deviation, self.action_shape)
        self.register_buffer("log_start", self._log_start(), persistent=False)
        self.tanh = Tanh()
        if deviation == "constant":  # as a layer of the number 1, which the fast engine and ensembles take as any layer
            with torch.random.fork_rng(devices=()):
                self.spread = nn.Linear(1, math.prod(self.action_shape), bias=False)
            nn.init.zeros_(self.spread.weight)
        self.register_module("squash", squash_of(squash, self.action_shape))

    @property
    def settings(self) -> dict[str, Any]:
        """What its constructor takes besides the shapes and the generator, as plain data."""
        return {
            "hidden": self.network.settings["hidden"],
            "network": self.network_name,
            "deviation": self.deviation,
            "initial_deviation": self.initial_deviation,
        } | settings_of_squash(self.squash)

    def forward(self, observation: Tensor, *handed: Tensor) -> tuple[Tensor, ...]:
        """Act.

        Args:
            observation: (B, *observation_shape).
            handed: memories (B, *memory_shape), if the network has any, and noise (B, *action_shape).

        Returns:
            Actions (B, *action_shape), the next memories, if there are any, and the entropy of each action, (B,).
        """
        if len(handed) != 1 + bool(self.memory_shape):
            also = ", memories (B, *memory_shape)" if self.memory_shape else ""
            raise TypeError(
                f"a Gaussian of a network {self.network_name} is called with observations{also} and noise "
                f"(B, *action_shape); got {1 + len(handed)} arguments. Zeros give its mean, `predict` acts by it."
            )
        *memory, noise = handed
        mean, log_deviation, *remembered = self.distribution(observation, *memory)
        action, entropy = self.sample(mean, log_deviation, noise)
        return action, *remembered, entropy

    def distribution(self, observation: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        """The distribution that actions are drawn from, before they are bent or bounded.

        Args:
            observation: (B, *observation_shape).
            memory: (B, *memory_shape), if the network has any.

        Returns:
            Its mean and the logarithm of its deviation, (B, *action_shape) each, and the next memories, if any.
        """
        answer = self.network(observation, *memory)
        mean, *remembered = answer if memory else (answer,)
        if self.deviation == "state":
            mean, spread = mean.unbind(1)
        else:
            spread = self.spread(mean.new_ones(mean.shape[0], 1)).view(-1, *self.action_shape)
        return mean, self.log_start + REACH * self.tanh(spread / REACH), *remembered

    def sample(self, mean: Tensor, log_deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions of a distribution for given noise, all (B, *action_shape), and the entropy of each, (B,)."""
        action = mean + log_deviation.exp() * noise
        entropy = ENTROPY + log_deviation
        if self.squash is not None:
            entropy = entropy + self.squash.log_slope(action)
            action = self.squash(action)
        return action, entropy.flatten(1).sum(1)

    def _apply(self, fn: Any, recurse: bool = True) -> Gaussian:
        """Move it, to another dtype with the deviation as it was given."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.log_start = self._log_start(dtype=self.log_start.dtype, device=self.log_start.device)
        return self

    def _log_start(self, **kind: Any) -> Tensor:
        return torch.tensor(self.initial_deviation, **kind).log()


def _positive(deviation: Numbers, action_shape: tuple[int, ...]) -> Any:
    """`deviation` as a number or nested lists of them, else raise ValueError."""
    numbers = checks.real_array(deviation)
    if numbers is None or numbers.shape not in ((), action_shape) or not bool((numbers > 0).all()):
        raise ValueError(
            f"initial_deviation must be a number above 0, or one for each component of an action of shape "
            f"{action_shape}; got {checks.shown(deviation)}."
        )
    if not bool(torch.from_numpy(numbers).isfinite().all()):
        raise ValueError(f"initial_deviation must be finite; got {checks.shown(deviation)}.")
    return numbers.tolist()
