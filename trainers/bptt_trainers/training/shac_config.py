"""The settings of a run by short windows with a critic (SHAC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from bptt_envs.settings import By, Count, Decay, NotNegative, Positive, Share
from bptt_trainers.controllers.networks import widths
from bptt_trainers.training.config import (
    Clip,
    RuleName,
    ScheduleName,
    StartStates,
    TrainConfig,
    left_at_default,
)


@dataclass(frozen=True)
class SHACConfig(TrainConfig):
    """Settings of one run of the short-horizon actor-critic. The defaults are those of arXiv 2204.07137.

    The step size falls linearly, and that of the critic with it. The critic steps by Adam whatever the `optimizer` of
    the actor, so that `adam_epsilon` and `adam_betas` go with any. An epoch has as many steps as one of `TrainConfig`:
    train_states times the horizon. An update has batch_size times the steps of a window.

    Raises:
        ValueError: if a setting is of another type or out of range; the message names it.
    """

    learner: ClassVar[str] = "SHAC"

    void_with_others: ClassVar[tuple[str, ...]] = ("amsgrad",)  # the critic steps by the others

    rule: RuleName = "R"
    """Update rule within a window: R (regular), M (modified), S (stopped), C (combined)."""

    clip: Clip = "norm"
    """Clipping of the direction: none, by value (each component) or by global norm."""

    batch_size: Count = 64
    """Episodes that go on side by side."""

    start_states: StartStates = "fresh"
    """Where an episode begins: at a new start state (fresh), or at any of a set drawn from the seed (shuffled)."""

    learning_rate: Positive = 2e-3
    """Step size."""

    final_learning_rate: NotNegative | None = 0.0
    """To where the step size falls over all updates of epochs, 0 for none left. None: constant."""

    schedule: ScheduleName = "linear"
    """How it falls: along half a cosine, or linearly."""

    adam_betas: tuple[Decay, Decay] = (0.7, 0.95)
    """Decay an update of adam's means of the direction and of its square, of actor and critic; the critic's with any
    optimizer."""

    window: Count = 32
    """Steps of a window, at most: the horizon is divided into as few equal windows as that allows."""

    discount: Share = 1.0
    """What a cost counts one step later, gamma. With 1, windows and critic stand for the loss as it is judged."""

    td_lambda: Share = 0.95
    """How far the critic's targets reach: 0 for one step, 1 for the whole window."""

    normalize: bool = True
    """Show the controller its observations by their running mean and deviation; the critic sees them so, too."""

    critic_hidden: Annotated[tuple[int, ...], By(widths)] = (64, 64)
    """Widths of the critic's hidden layers."""

    critic_learning_rate: Positive = 2e-3
    """Step size of the critic."""

    critic_iterations: Count = 16
    """Passes over the states of a window in which the critic is fitted, an update."""

    critic_minibatches: Count = 4
    """Steps of the critic in each of them."""

    critic_clip: Positive = 1.0
    """To where the norm of the critic's gradient is clipped."""

    target_rate: Share = 0.8
    """Share of the way to the critic that its slow copy goes in an update, by which values and targets are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        left_at_default(self, ("estimator", "bias_bound"), "a critic takes the place of what is to come")
        left_at_default(self, ("entropy",), "windows have a critic (SAPO is SHAC with entropy, by its temperature)")
        if self.target_rate == 0.0:
            raise ValueError(
                "target_rate must be above 0, as nothing of what the critic learns reached the controller; got 0.0."
            )
        if self.start_states == "fixed":
            raise ValueError(
                "start_states must be 'fresh' or 'shuffled': episodes begin where others end, in no order that could "
                "be fixed; got 'fixed'."
            )
        if self.controller in ("gru", "lstm"):
            raise ValueError(
                f"controller must be one without memory, as the critic sees none; got {self.controller!r}."
            )

    @property
    def of_critic(self) -> TrainConfig:
        """The settings by which the critic steps: its step size falls as that of the controller."""
        final = self.final_learning_rate
        return TrainConfig(
            learning_rate=self.critic_learning_rate,
            final_learning_rate=None if final is None else self.critic_learning_rate * (final / self.learning_rate),
            schedule=self.schedule,
            warmup=self.warmup,
            adam_epsilon=self.adam_epsilon,
            adam_betas=self.adam_betas,
            clip="norm",
            clip_threshold=self.critic_clip,
        )

    @property
    def of_controller(self) -> dict[str, Any]:
        """What `default_controller` is handed beside the system and a seed."""
        return super().of_controller | {"normalize": self.normalize}
