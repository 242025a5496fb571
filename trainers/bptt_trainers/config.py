"""The settings of a training run: the one source of the command line, of config.json and of the defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bptt_envs.checks import not_negative, one_of, positive, positive_integer
from bptt_trainers.default_controllers import CONTROLLER_NAMES, ControllerName
from bptt_trainers.directions.chosen_engine import EngineName
from bptt_trainers.gradient import ENGINES
from bptt_trainers.rules import COMBINE, RULES, Combine

Clip = Literal["none", "value", "norm"]
OnNonfinite = Literal["stop", "skip"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. The defaults are those of arXiv 2405.02041.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    rule: str = "C"
    """Update rule: R (regular), M (modified), S (stopped) or C (combined)."""

    combine: Combine = "modified"
    """The component that rule C keeps where the signs of R and M agree: M's (modified) or R's (regular). Or M's at as
    many random places (random), or M's everywhere, with the sign of R (turned)."""

    clip: Clip = "none"
    """Clipping of the direction: none, by value (each component to [-1, 1]) or by global norm (to 1)."""

    epochs: int = 1000
    """Passes over the training states."""

    batch_size: int = 8
    """Start states an update."""

    train_states: int = 256
    """Start states for training, drawn from the seed, visited in a fixed order."""

    test_states: int = 256
    """Held-out start states, the same for every seed and method. They choose nothing."""

    learning_rate: float = 1e-3
    """Step size of Adam."""

    final_learning_rate: float | None = None
    """To where the step size falls along half a cosine over all updates of epochs, 0 for none left. None: constant."""

    adam_epsilon: float = 1e-7
    """Epsilon of Adam."""

    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay an update of Adam's means of the direction and of its square."""

    amsgrad: bool = False
    """Divide by the largest mean square so far in place of the latest: AMSGrad."""

    average: float = 0.0
    """Decay an update of a moving average of the weights, which is judged and kept in their place; 0 for none."""

    controller: ControllerName = "default"
    """The controller, unless one is given: the paper's for the environment (default), mlp or conv."""

    hidden: tuple[int, ...] | None = None
    """Widths of its hidden layers. None: the paper's, 100 100 for an MLP and 60 60 channels for conv."""

    seed: int = 0
    """Seeds the controller's weights and the training states."""

    engine: EngineName = "auto"
    """How directions are computed: autograd (the definition), adjoint (fast) or auto (chooses)."""

    compile: bool = False
    """Compile the loops of the adjoint engine: needs a C++ compiler; compiled code is kept on disk."""

    device: str = "cpu"
    """Where to compute: cpu, cuda or, of several GPUs, one such as cuda:1."""

    on_nonfinite: OnNonfinite = "stop"
    """At a non-finite loss or direction: stop the run, or skip the update and count it."""

    keep_every: int | None = None
    """Keep the untrained controller and that after every so many epochs in checkpoints/; None keeps none."""

    diagnostics: bool = False
    """Measure after each epoch how the rules differ and how feedback grows backwards: diagnostics.csv and .npz."""

    tensorboard: bool = True
    """Whether to write TensorBoard events into the run folder."""

    pictures: bool = True
    """Whether to draw the learning curve and some trajectories into the run folder at the end."""

    out: Path | None = None
    """The run folder. None: in Python, everything stays in memory; bptt train makes one in runs/ and names it."""

    def __post_init__(self) -> None:
        one_of("rule", self.rule, RULES)
        one_of("combine", self.combine, COMBINE)
        one_of("clip", self.clip, ("none", "value", "norm"))
        one_of("engine", self.engine, ENGINES)
        if not isinstance(self.device, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be 'cpu', 'cuda' or one such as 'cuda:1'; got {self.device!r}.")
        one_of("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        for name in ("epochs", "batch_size", "train_states", "test_states"):
            positive_integer(name, getattr(self, name))
        if self.keep_every is not None:
            positive_integer("keep_every", self.keep_every)
        for name in ("learning_rate", "adam_epsilon"):
            positive(name, getattr(self, name))
        if self.final_learning_rate is not None:
            not_negative("final_learning_rate", self.final_learning_rate)
            if self.final_learning_rate > self.learning_rate:
                raise ValueError(
                    f"final_learning_rate must be at most learning_rate ({self.learning_rate}); "
                    f"got {self.final_learning_rate}."
                )
        if not isinstance(self.adam_betas, tuple) or len(self.adam_betas) != 2:
            raise ValueError(f"adam_betas must be a tuple of two, such as (0.9, 0.999); got {self.adam_betas!r}.")
        for beta in self.adam_betas:
            _decay("adam_betas", beta)
        _decay("average", self.average)
        one_of("controller", self.controller, CONTROLLER_NAMES)
        if self.hidden is not None and not isinstance(self.hidden, tuple):
            raise ValueError(f"hidden must be a tuple of widths, such as (100, 100), or None; got {self.hidden!r}.")
        for width in self.hidden or ():
            positive_integer("hidden", width)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0; got {self.seed!r}.")
        if self.batch_size > self.train_states:
            raise ValueError(f"batch_size must be at most train_states ({self.train_states}); got {self.batch_size}.")


def _decay(name: str, value: float) -> None:
    if not_negative(name, value) >= 1.0:
        raise ValueError(f"{name} must be a number of at least 0 and below 1; got {value!r}.")
