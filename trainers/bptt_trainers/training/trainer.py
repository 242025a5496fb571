"""Train a controller through a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.checks import instance
from bptt_envs.task import StepCost
from bptt_trainers.directions.policy_gradient import Choice
from bptt_trainers.directions.rules import Rule
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.training.bptt import BPTTLearner
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.loss_terms import Regularizer
from bptt_trainers.training.optimizer import Schedule
from bptt_trainers.training.ranks import ALONE, Ranks
from bptt_trainers.training.run import Run
from bptt_trainers.training.run_folder import RunFolder, describe, epochs_count
from bptt_trainers.training.sapo import SAPOLearner
from bptt_trainers.training.shac import SHACLearner
from bptt_trainers.training.start_states import Draw
from bptt_trainers.training.torch_optimizer import Make

LEARNERS: dict[str, type[BPTTLearner]] = {"BPTT": BPTTLearner, "SHAC": SHACLearner, "SAPO": SAPOLearner}
"""What learns by settings of a class, by the name that it has there."""


class Trainer(Run):
    """Trains a controller by one of the update rules, over whole episodes or, by a `SHACConfig`, in short windows.

    With `config.out` set, a run is a folder (see `RunFolder`): `fit` saves after every epoch, a second
    `fit` of the same configuration continues where the first ended, bit for bit.

    Args:
        env: an environment of `bptt_envs`, or its `System`.
        controller: any torch module from observations (B, *observation_shape) to actions
            (B, *action_shape); it is moved to `config.device` and trained in place. None: the one that the
            configuration names.
        config: every setting; its class says how it is learned.
        callbacks: called as training goes.
        train_states: start states of your own to train on: a set (N, *state_shape), which sets `config.train_states`,
            or a function of a count and a `torch.Generator` that draws as many. None: the system's.
        test_states: start states of your own, (N, *state_shape), to be judged by, which set `config.test_states`. None:
            the held-out states.
        extra_cost: a further term of the loss that is trained on, not of those that are reported: a torch function of
            states (B, *state_shape), bounded actions (B, *action_shape) and next states that gives the cost of a step,
            (B,), to be differentiated.
        regularizer: a further term that depends on the controller alone: a torch function from the controller to a
            number, whose gradient is added to the direction of the rule.
        optimizer: a class of torch's kind, such as torch.optim.SGD or your own, or a callable from parameters to an
            instance, such as functools.partial(torch.optim.SGD, momentum=0.9). None: that which `config` names.
        schedule: from the share of the updates that is done, 0 <= s < 1, to a step size. None: as `config` says.
        ranks: the processes that train this run together, from `join_ranks`: each makes such a trainer, and gets the
            history. The first keeps the books; all call `callbacks`.

    Config.json records what of these is given; another set or another function is another run.

    Raises:
        TypeError, ValueError: if the environment, the controller, the device or one of these cannot be used.
    """

    config: TrainConfig
    learner: BPTTLearner

    def __init__(
        self,
        env: Any,
        controller: nn.Module | None = None,
        config: TrainConfig | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        train_states: Tensor | Draw | None = None,
        test_states: Tensor | None = None,
        extra_cost: StepCost | None = None,
        regularizer: Regularizer | None = None,
        optimizer: Make | None = None,
        schedule: Schedule | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        config = TrainConfig() if config is None else config
        instance("config", config, TrainConfig, "a TrainConfig")
        if isinstance(train_states, Tensor) and train_states.dim():
            config = replace(config, train_states=len(train_states))
        if isinstance(test_states, Tensor) and test_states.dim():
            config = replace(config, test_states=len(test_states))
        if controller is not None:
            instance("controller", controller, nn.Module, "a torch.nn.Module; settings are passed as config=")
        instance("ranks", ranks, Ranks, "what join_ranks gives")
        instance("callbacks", callbacks, (list, tuple), "a list of Callback objects")
        for callback in callbacks:
            instance("callbacks", callback, Callback, "a list of Callback objects")
        own = {
            "train_states": train_states,
            "test_states": test_states,
            "extra_cost": extra_cost,
            "regularizer": regularizer,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        given: dict[str, Any] = {name: one for name, one in own.items() if one is not None}
        learner = LEARNERS[config.learner](system_of(env), controller, config, ranks=ranks, **given)
        folder = None if config.out is None else RunFolder(config.out)
        super().__init__(learner, config, folder, describe(env, learner.controller, config, given), callbacks, ranks)

    # What learns is the learner's

    @property
    def controller(self) -> nn.Module:
        """What is trained."""
        return self.learner.controller

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return self.learner.rule

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the controller, by name."""
        return self.learner.parameters

    @property
    def trained_system(self) -> System:
        """The system with the loss that is trained on."""
        return self.learner.trained_system

    @property
    def choice(self) -> Choice:
        """The engine that computes directions, and why."""
        return self.learner.choice

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.learner.device

    @property
    def train_states(self) -> Tensor:
        """Start states over which the training loss is taken, (config.train_states, *state_shape)."""
        return self.learner.train_states

    @train_states.setter
    def train_states(self, states: Tensor) -> None:
        self.learner.train_states = states

    @property
    def lengthens(self) -> bool:
        """Whether a run that has its epochs can go on with more: not if its step sizes follow from their number."""
        return not epochs_count(self._description)
