"""The learner of short windows with soft values (SAPO): that of SHAC, and entropy with a weight that is learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bptt_trainers.directions.augmented import AugmentedSystem
from bptt_trainers.training.adam import Adam
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.critic import LEAST_UNIT
from bptt_trainers.training.sapo_config import SAPOConfig
from bptt_trainers.training.shac import SHACLearner

LARGEST = 30.0
"""Of the logarithm of the temperature, either way: with room for float32 to hold squares of what it weighs."""

LEAST_DEVIATION = 0.01
"""Of costs to go, as a share of their mean, in what a temperature is a share of: they may all be the same."""


class SAPOLearner(SHACLearner):
    """Trains a stochastic controller in short windows, rewarded for the entropy of its actions.

    Soft analytic policy optimisation of Xing, Luk and Oh (ICLR 2025, arXiv 2412.12089): beside what a step costs it
    counts -alpha H(u_k), in the loss of a window as in the critic's targets. Of several critics the actor follows the
    mean, and targets take the one that expects most to be paid; they have no slow copy. The weight alpha follows the
    gradient of log(alpha) (H - wanted), H the mean entropy of a window's actions (Haarnoja et al., arXiv 1812.05905).

    Args: as those of `Trainer`.
    """

    config: SAPOConfig

    OWN = (*SHACLearner.OWN, "temperature", "entropy")

    _soft = True

    @property
    def _critics(self) -> int:  # type: ignore[override]
        return self.config.critics

    def _make_critic(self) -> None:
        super()._make_critic()
        config = self.config
        self._log_temperature = nn.Parameter(self.train_states.new_tensor(math.log(config.temperature)))
        self._temperature_optimizer = Adam(
            [self._log_temperature], config.temperature_learning_rate, config.adam_epsilon, config.adam_betas
        )
        self._set_temperature()

    @property
    def wanted_entropy(self) -> float:
        """What the mean entropy of an action should be, in the unit of the actions."""
        low, high = self.system.action_range
        return self.system.action_size * self.config.target_entropy + float(((high - low) / 2).log().sum())

    def _set_temperature(self) -> None:
        """Let windows count entropy by its weight as it is, within bounds."""
        with torch.no_grad():
            self._log_temperature.clamp_(-LARGEST, LARGEST)
        self._end.temperature = math.exp(float(self._log_temperature.detach()))

    @torch.no_grad()
    def _set_out(self) -> None:
        """Also let the temperature count in the unit of the costs, for a step."""
        super()._set_out()
        unit = max(float(self.critic.unit), LEAST_DEVIATION * abs(float(self.critic.middle)))
        unit = unit if unit > LEAST_UNIT else 1.0  # nothing has cost anything yet
        self._log_temperature.add_(math.log(unit / self.system.horizon))
        self._set_temperature()

    @torch.no_grad()
    def _go_on(self, number: int) -> dict[str, float]:
        """Learn from the windows, and what their entropy is worth from then on."""
        own = super()._go_on(number) | {"temperature": self._end.temperature}
        system, trajectory = self.choice.engine.system, self._trajectory
        assert isinstance(system, AugmentedSystem)
        going_on = ~self.window.episode_over(system.inner(trajectory.states[:-1]))
        entropies: Tensor = system.entropies(trajectory.actions)[going_on]
        if len(entropies) and bool(entropies.isfinite().all()):
            own["entropy"] = float(entropies.mean())
            self._temperature_optimizer.step((entropies.mean() - self.wanted_entropy).view(1))
            self._set_temperature()
        return own

    def state_dict(self) -> Checkpoint:
        """That of SHAC, with the weight of the entropy and its optimizer."""
        state = super().state_dict()
        state["learner"] |= {
            "log_temperature": self._log_temperature.detach().clone(),
            "temperature_optimizer": self._temperature_optimizer.state_dict(),
        }
        return state

    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        with torch.no_grad():
            self._log_temperature.copy_(state["learner"]["log_temperature"])
        self._temperature_optimizer.load_state_dict(state["learner"]["temperature_optimizer"])
        self._set_temperature()
