"""The settings of a training run: the one source of the command line, of config.json and of the defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from tyro.conf import Suppress
from tyro.constructors import PrimitiveConstructorSpec

from bptt_envs.arguments import KnownArguments
from bptt_envs.checks import finite, mapping, shown
from bptt_envs.settings import By, Count, Decay, NotNegative, Positive, Seed, read
from bptt_trainers.controllers.defaults import ControllerName, DeviationName
from bptt_trainers.controllers.networks import widths
from bptt_trainers.directions.chosen_engine import EngineName
from bptt_trainers.directions.estimators import EstimatorName
from bptt_trainers.directions.rules import Combine, named_rule
from bptt_trainers.directions.switching import Compile
from bptt_trainers.records.plain import plain
from bptt_trainers.training.recorders import BY_DEFAULT, recorder_names
from bptt_trainers.training.torch_optimizer import named_optimizer

Clip = Literal["none", "value", "norm"]
ScheduleName = Literal["cosine", "linear"]
OnNonfinite = Literal["stop", "skip"]
StartStates = Literal["fixed", "shuffled", "fresh"]

BUILT_IN = "adam"
"""The optimizer that is not one of torch.optim."""

OF_BUILT_IN = ("adam_epsilon", "adam_betas", "amsgrad")
"""Settings that are that one's."""


def device_name(name: str, value: Any) -> str:
    """Return `value` as the name of a device, there or not; else raise ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", value):
        raise ValueError(f"{name} must be 'cpu', 'cuda' or one such as 'cuda:1'; got {shown(value)}.")
    return str(value)


def _hidden(name: str, value: Any) -> tuple[int, ...] | None:
    return None if value is None else widths(name, value, "a tuple of widths, such as (100, 100), or None")


def _optimizer(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"{name} must be {BUILT_IN!r} or the name of a class of torch.optim, such as 'SGD'; a class itself goes to "
            f"Trainer(env, optimizer=...); got {shown(value)}."
        )
    return str(value)


def _options(name: str, value: Any) -> dict[str, Any]:
    return {key: _option(f"{name}[{key!r}]", one) for key, one in mapping(name, value).items()}


def _option(name: str, value: Any) -> Any:
    """A plain value, or a tuple of them: what JSON gives back, but for lists."""
    if isinstance(value, (list, tuple)):
        return tuple(_option(name, one) for one in value)
    value = plain(value)
    if isinstance(value, float):
        return finite(name, value)
    if not isinstance(value, (bool, int, str, type(None))):
        raise ValueError(f"{name} must be a number, text, True, False, None or a tuple of these; got {shown(value)}.")
    return value


def _compile_option(words: list[str]) -> bool | Literal["auto"] | None:
    """What comes after --compile: nothing stands for True."""
    values: dict[tuple[str, ...], bool | Literal["auto"] | None] = {
        (): True,
        ("True",): True,
        ("False",): False,
        ("auto",): "auto",
        ("None",): None,
    }
    if tuple(words) not in values:
        raise ValueError(f"--compile takes nothing, True, False or auto; got {' '.join(words)}")
    return values[tuple(words)]


COMPILE_OPTION: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[True|False|auto]",
    instance_from_str=_compile_option,
    is_instance=lambda value: value in (True, False, "auto", None),
    str_from_instance=lambda value: [str(value)],
)


class Mark:
    """Marks the annotation of a setting, Annotated[kind, mark], with what holds of it."""


ANY_TIME = Mark()
"""It does not change what has been computed so far: a run may be continued with another value."""

TOGETHER = Mark()
"""The members of an ensemble, which are computed together, do not differ in it."""


def marked(mark: Mark) -> tuple[str, ...]:
    """The settings of `TrainConfig` that have a mark, in order."""
    kinds = get_type_hints(TrainConfig, include_extras=True)
    return tuple(one.name for one in fields(TrainConfig) if mark in getattr(kinds[one.name], "__metadata__", ()))


Device = Annotated[str, By(device_name)]
RuleName = Annotated[str, By(lambda name, value: named_rule(name, value).name)]
Record = Annotated[tuple[str, ...], By(recorder_names)]
Hidden = Annotated[tuple[int, ...] | None, By(_hidden)]


@dataclass(frozen=True)
class TrainConfig(KnownArguments):
    """Settings of one run. The defaults are those of arXiv 2405.02041.

    Numbers of NumPy become Python's, lists tuples, a str for a path a Path.

    Raises:
        ValueError: if a setting is of another type or out of range; the message names it.
    """

    learner: ClassVar[str] = "BPTT"
    """The name of what learns by such settings."""

    void_with_others: ClassVar[tuple[str, ...]] = OF_BUILT_IN
    """Settings that have no effect where another optimizer than the built-in one steps."""

    rule: RuleName = "C"
    """Update rule: R (regular), M (modified), S (stopped) or C (combined); with feedback that decays or is cut every so
    many steps, one such as "R decay 0.9", "C every 16"."""

    combine: Combine = "modified"
    """The component that rule C keeps where the signs of R and M agree: M's (modified) or R's (regular). Or M's at as
    many random places (random), or M's everywhere, with the sign of R (turned)."""

    clip: Clip = "none"
    """Clipping of the direction: none, by value (each component) or by global norm."""

    clip_threshold: Positive = 1.0
    """To where clipping goes: components to [-threshold, threshold], or the norm to at most the threshold."""

    epochs: Annotated[Count, ANY_TIME] = 1000
    """Passes over the training states, or over as many fresh ones."""

    batch_size: Count = 8
    """Start states an update."""

    start_states: StartStates = "fixed"
    """Which start states an epoch visits: a set drawn from the seed in its order (fixed) or in a new one (shuffled), or
    new ones (fresh)."""

    train_states: Count = 256
    """Start states of an epoch, drawn from the seed. The training loss is that over the first so many."""

    test_states: Count = 256
    """Held-out start states, the same for every seed and method. They choose nothing."""

    optimizer: Annotated[str, By(_optimizer)] = BUILT_IN
    """What steps: adam, the built-in one, or a class of torch.optim by its name, such as SGD or RMSprop."""

    optimizer_options: Annotated[Mapping[str, Any], By(_options), Suppress] = field(default_factory=dict, hash=False)
    """Further arguments of that class, such as {"momentum": 0.9}."""

    learning_rate: Positive = 1e-3
    """Step size."""

    final_learning_rate: NotNegative | None = None
    """To where the step size falls over all updates of epochs, 0 for none left. None: constant."""

    schedule: ScheduleName = "cosine"
    """How it falls: along half a cosine, or linearly."""

    warmup: Decay = 0.0
    """Share of all updates of epochs over which the step size rises linearly to what it is without; 0 for none."""

    adam_epsilon: Positive = 1e-7
    """Epsilon of adam."""

    adam_betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay an update of adam's means of the direction and of its square."""

    amsgrad: bool = False
    """Let adam divide by the largest mean square so far in place of the latest: AMSGrad."""

    weight_decay: NotNegative = 0.0
    """Of adam: share of the weights, times the step size, that an update takes away beside its step, as AdamW does. Of
    one of torch.optim: its own."""

    average: Decay = 0.0
    """Decay an update of a moving average of the weights, which is judged and kept in their place; 0 for none."""

    controller: Annotated[ControllerName, TOGETHER] = "default"
    """The controller, unless one is given: the paper's for the environment (default), mlp, conv, gru or lstm."""

    hidden: Annotated[Hidden, TOGETHER] = None
    """Widths of its hidden layers. None: the paper's, 100 100 for mlp and 60 60 channels for conv; one cell of 32."""

    squash: Annotated[bool, TOGETHER] = False
    """Bend its actions by tanh within their bounds, in place of the clamp, which has no slope beyond them."""

    deviation: Annotated[DeviationName, TOGETHER] = "none"
    """Noise in its actions while it learns, of a deviation that is learned, too: none, the same in every state
    (constant) or the network's (state). It is judged by the mean, without noise."""

    initial_deviation: Annotated[Positive, TOGETHER] = 0.1
    """The deviation at the start, as a share of half the range of the actions."""

    entropy: Annotated[NotNegative, TOGETHER] = 0.0
    """Weight of the entropy of its actions, whose mean over the steps is subtracted from the loss; 0 for none."""

    estimator: Annotated[EstimatorName, TOGETHER] = "pathwise"
    """How rule R's gradient is estimated with noise in the actions: through the noise (pathwise), from the costs alone
    (likelihood_ratio), by both, weighed anew at each step (total_propagation) or once (alpha_order)."""

    bias_bound: Annotated[Positive | None, TOGETHER] = None
    """Of alpha_order: how far the pathwise share may lead from the gradient, in the unit of its norm. None: as far as
    the variances say."""

    seed: Seed = 0
    """Seeds the controller's weights and the training states."""

    engine: Annotated[EngineName, TOGETHER] = "auto"
    """How directions are computed: autograd (the definition), adjoint (fast) or auto (chooses)."""

    compile: Annotated[Compile, COMPILE_OPTION, ANY_TIME, TOGETHER] = False
    """Compile the loops of the adjoint engine: needs a C++ compiler and keeps the code on disk; a GPU needs none. auto:
    train uncompiled until a second process has compiled them, and by them from the next epoch on."""

    device: Annotated[Device, ANY_TIME, TOGETHER] = "cpu"
    """Where to compute: cpu, cuda or, of several GPUs, one such as cuda:1."""

    on_nonfinite: Annotated[OnNonfinite, ANY_TIME] = "stop"
    """At a non-finite loss or direction: stop the run, or skip the update and count it."""

    keep_every: Annotated[Count | None, ANY_TIME] = None
    """Keep the untrained controller and that after every so many epochs in checkpoints/; None keeps none."""

    record: Annotated[Record, ANY_TIME] = BY_DEFAULT
    """What to keep in the run folder beside metrics and checkpoints: tensorboard (events), csv (a line an update),
    pictures (learning curve and trajectories, at the end), diagnostics (after each epoch, how the rules differ and how
    feedback grows backwards); trackers of experiments, each an extra (wandb, mlflow, trackio); or MODULE:NAME of a
    recorder of your own."""

    out: Annotated[Path | None, ANY_TIME] = None
    """The run folder. None: in Python, everything stays in memory; bptt train makes one in runs/ and names it."""

    def __post_init__(self) -> None:
        read(self)
        if self.optimizer != BUILT_IN:
            named_optimizer(self.optimizer, self.optimizer_options, self.weight_decay)
            left_at_default(
                self, self.void_with_others, f"optimizer {self.optimizer!r} has optimizer_options of its own"
            )
        elif self.optimizer_options:
            raise ValueError(
                f"optimizer_options are those of a class of torch.optim; {BUILT_IN}, the built-in one, has "
                f"{', '.join(OF_BUILT_IN)}; got {self.optimizer_options}."
            )
        if self.final_learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be at most learning_rate ({self.learning_rate}); "
                f"got {self.final_learning_rate}."
            )
        if self.deviation == "none":
            left_at_default(self, ("initial_deviation",), "deviation is 'none'")
        if self.estimator != "alpha_order":
            left_at_default(self, ("bias_bound",), f"estimator is {self.estimator!r}")
        if self.estimator != "pathwise":
            self._check_estimator()
        if self.batch_size > self.train_states:
            raise ValueError(f"batch_size must be at most train_states ({self.train_states}); got {self.batch_size}.")

    @property
    def of_controller(self) -> dict[str, Any]:
        """What `default_controller` is handed beside the system and a seed."""
        return {
            "hidden": self.hidden,
            "kind": self.controller,
            "squash": self.squash,
            "deviation": self.deviation,
            "initial_deviation": self.initial_deviation,
        }

    def _check_estimator(self) -> None:
        """Raise ValueError if a setting does not go with an estimator that compares episodes by their costs."""
        estimator = f"estimator {self.estimator!r}"
        if self.deviation == "none":
            raise ValueError(f"{estimator} needs noise in the actions: set deviation to 'constant' or 'state'.")
        if self.rule != "R":
            raise ValueError(f"{estimator} estimates the gradient: rule must be 'R'; got {self.rule!r}.")
        if self.compile:
            raise ValueError(f"{estimator} is not compiled: leave compile at False.")
        smallest = self.train_states % self.batch_size or self.batch_size
        if smallest < 2:
            raise ValueError(
                f"{estimator} compares the episodes of a batch, each of which needs at least 2: batch_size must be at "
                f"least 2 and leave none of train_states ({self.train_states}) alone; got {self.batch_size}."
            )


def left_at_default(config: TrainConfig, names: Iterable[str], why: str) -> None:
    """Raise ValueError if one of the settings of these names, which has no effect then, is not its default."""
    for one in fields(config):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if one.name in names and getattr(config, one.name) != default:
            raise ValueError(
                f"{one.name} has no effect where {why}: leave it at {default!r}; got {getattr(config, one.name)!r}."
            )
