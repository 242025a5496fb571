"""Train a controller through a system."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import System, check_system
from bptt_envs.checks import instance
from bptt_envs.differentiable import start_states
from bptt_envs.task import StepCost
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.controllers.networks import Squash
from bptt_trainers.directions.memory import refuse_memory
from bptt_trainers.directions.policy_gradient import Choice, adjoint_engine, check_parameters, choose_engine, system_of
from bptt_trainers.directions.rollout import losses, rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, Feedback, get_rule
from bptt_trainers.directions.snapshot import evaluating, left_as_it_was
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.records.files import RunFolderError, modified
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.loss_terms import Regularizer, regularizer_gradient, with_extra_cost
from bptt_trainers.training.metrics import EpochMetrics
from bptt_trainers.training.optimizer import Optimizer, Schedule
from bptt_trainers.training.queries import (
    DirectionQuery,
    LossQuery,
    Query,
    answer_comparisons,
    answer_directions,
    flattened,
)
from bptt_trainers.training.recorders import recorder
from bptt_trainers.training.run_folder import (
    Checkpoint,
    RunFolder,
    Standing,
    as_trained,
    describe,
    epochs_count,
    kept_name,
)
from bptt_trainers.training.start_states import (
    MASKS,
    WEIGHTS,
    Draw,
    StartStates,
    checked_states,
    held_out_states,
    stream_seed,
)
from bptt_trainers.training.torch_optimizer import Make

_NAN = float("nan")


class NonFiniteError(RuntimeError):
    """A loss or a direction was not finite; the message names the epoch, the update and the parameter."""


class Trainer:
    """Trains a controller by one of the update rules.

    With `config.out` set, a run is a folder (see `RunFolder`): `fit` saves after every epoch, a second
    `fit` of the same configuration continues where the first ended, bit for bit.

    Args:
        env: an environment of `bptt_envs`, or its `System`.
        controller: any torch module from observations (B, *observation_shape) to actions
            (B, *action_shape); it is moved to `config.device` and trained in place. None: the one that the
            configuration names.
        config: every setting.
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

    Config.json records what of these is given; another set or another function is another run.

    Raises:
        TypeError, ValueError: if the environment, the controller, the device or one of these cannot be used.
    """

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
    ) -> None:
        config = TrainConfig() if config is None else config
        instance("config", config, TrainConfig, "a TrainConfig")
        if isinstance(train_states, Tensor) and train_states.dim():
            config = replace(config, train_states=len(train_states))
        if isinstance(test_states, Tensor) and test_states.dim():
            config = replace(config, test_states=len(test_states))
        self.config = config
        if controller is not None:
            instance("controller", controller, nn.Module, "a torch.nn.Module; settings are passed as config=")
        instance("callbacks", callbacks, (list, tuple), "a list of Callback objects")
        for callback in callbacks:
            instance("callbacks", callback, Callback, "a list of Callback objects")
        self.device = available_device(config.device)
        self._on_cuda = self.device.type == "cuda"
        self.system: System = system_of(env)
        if controller is None:
            controller = default_controller(
                self.system, stream_seed(WEIGHTS, config.seed), config.hidden, config.controller, squash=config.squash
            )
        elif config.squash and not isinstance(getattr(controller, "squash", None), Squash):
            raise ValueError(
                "squash is for the controllers that TrainConfig names; with one of your own, train "
                "torch.nn.Sequential(controller, Squash(*system.action_range))."
            )
        check_parameters(controller)
        self.controller = controller.to(self.device)
        self.rule = get_rule(config.rule)
        parameter = next(controller.parameters(), None)
        if parameter is None:
            raise ValueError(f"controller {type(controller).__name__} has no parameters to train.")
        self.parameters = {n: p for n, p in controller.named_parameters() if p.requires_grad}
        with computing(parameter):
            updates = config.epochs * self.updates_per_epoch
            self._optimizer = Optimizer(self.parameters, config, updates, optimizer, schedule)
            check_system(self.system, dtype=parameter.dtype, device=parameter.device)
            self._start_states = StartStates(self.system, config, train_states, parameter)
            judged = held_out_states(self.system, config.test_states) if test_states is None else test_states
            self.test_states = checked_states("test_states", judged, self.system).to(parameter)
            self.trained_system = with_extra_cost(self.system, extra_cost, self.train_states)  # its loss is trained on
            self.choice: Choice = choose_engine(
                self.trained_system, controller, self.train_states, config.engine, compile=config.compile
            )
            if regularizer is not None:
                regularizer_gradient(regularizer, self.controller, self.parameters.values())
            self._regularizer = regularizer
            if config.diagnostics:
                adjoint_engine(self.trained_system, controller, self.train_states, "diagnostics")
        self.folder = None if config.out is None else RunFolder(config.out)
        self.callbacks = list(callbacks)
        if self.folder is not None and config.tensorboard:
            self.callbacks.append(recorder("tensorboard", self.folder.path))
        if config.diagnostics:
            self.callbacks.append(recorder("diagnostics", None if self.folder is None else self.folder.path))
        self.history: list[EpochMetrics] = []
        self._last: Checkpoint = {}
        self.best_train_loss = math.inf
        own = {
            "train_states": train_states,
            "test_states": test_states,
            "extra_cost": extra_cost,
            "regularizer": regularizer,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        self._description = describe(env, controller, config, {n: one for n, one in own.items() if one is not None})

    @property
    def train_states(self) -> Tensor:
        """Start states over which the training loss is taken, (config.train_states, *state_shape)."""
        return self._start_states.first

    @train_states.setter
    def train_states(self, states: Tensor) -> None:
        self._start_states.first = states

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.history[-1].epoch if self.history else 0

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one epoch."""
        return math.ceil(self.config.train_states / self.config.batch_size)

    @property
    def lengthens(self) -> bool:
        """Whether a run that has its epochs can go on with more: not if its step sizes follow from their number."""
        return not epochs_count(self._description)

    def fit(self) -> list[EpochMetrics]:
        """Train until `config.epochs` epochs are done, continuing what the run folder holds.

        Returns:
            The metrics of every epoch, epoch 0 (untrained) first.

        After an interruption or an error the controller is that of the last finished epoch, and so is the
        run folder.

        Raises:
            NonFiniteError: if a loss or direction is not finite and `config.on_nonfinite` is "stop".
            RunFolderError: if the run folder holds another configuration or cannot be written.
        """
        with self.session(), closing(self.training()) as training:
            for query in training:
                self.answer(query)
        self.draw_if_new()
        return self.history

    def evaluate(self, states: Tensor) -> float:
        """Mean loss over episodes from `states`, (B, *state_shape), with the controller in eval mode."""
        states = start_states("states", states, self.system)
        with computing(states), evaluating(self.controller):
            return float(losses(self.system, rollout(self.system, self.controller, states)).mean())

    # Training is a generator of queries. Here the run's own engine answers them; an ensemble answers those of many
    # runs at once.

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around `training`: no other process trains into the folder, and the caller's random numbers stay.

        Nor do the caller's surroundings matter within, such as grad mode.

        Raises:
            ValueError: if the controller remembers what it saw, which nothing resets between episodes.
            RunFolderError: if another process trains into the folder.
        """
        with computing(self.train_states):
            refuse_memory(self.system, self.controller, self.test_states[:2])
            lock = nullcontext() if self.folder is None else self.folder.locked()
            with lock, torch.random.fork_rng([self.device] if self._on_cuda else []):
                yield

    def check_folder(self) -> Standing | None:
        """Where this run stands in its folder, None if it has no folder or no finished epoch there; writes nothing.

        Raises:
            RunFolderError: if the folder holds anything but this run, or could not hold it.
        """
        if self.folder is None:
            return None
        standing = self.folder.check(self._description)
        if standing is None and self.history:
            raise RunFolderError(
                f"{self.folder.path} no longer holds the {self.epoch} epochs that this trainer left there; put them "
                "back, or begin anew with another trainer."
            )
        self.folder.packed(self._state(EpochMetrics(0, _NAN, _NAN, _NAN, _NAN, _NAN, 0, 0, 0.0)))
        return standing

    def training(self) -> Generator[Query, None, None]:
        """Train, within a `session`, and yield what is to be computed; each query must be answered.

        At its end, also if it is closed early, the controller is that of the last finished epoch.

        Raises:
            NonFiniteError, RunFolderError: as `fit`.
        """
        self._seed()  # for controllers that draw random numbers
        yield from self._restore_or_start()
        try:
            self._call("on_fit_start")
            while self.epoch < self.config.epochs:
                metrics = yield from self._epoch()
                if not self._finish_epoch(metrics):
                    break
        except BaseException:
            self._load(self._last)
            raise
        finally:
            self._call("on_fit_end")

    def answer(self, query: Query) -> None:
        """Compute what a query of this run's `training` asks for, within a `session`."""
        if isinstance(query, LossQuery):
            query.loss = self.evaluate(query.states)
            return
        begin = time.perf_counter()
        batch_losses, passes = self._passes(query.states, query.rule.passes, look=query.compare)
        answer_directions([query], batch_losses, passes, begin)
        if query.compare:
            if not {REGULAR, MODIFIED} <= passes.keys():
                with left_as_it_was(self.controller):
                    _, passes = self._passes(query.states, (REGULAR, MODIFIED), look=False)
            answer_comparisons([query], passes)

    def _passes(
        self, states: Tensor, wanted: tuple[Feedback, ...], look: bool
    ) -> tuple[Tensor, dict[Feedback, Tensor]]:
        """Losses (1, B), and directions (1, n) of each pass."""
        batch_losses, passes = self.choice.engine(states, wanted, look=look)
        stacks = {feedback: {n: d.unsqueeze(0) for n, d in one.items()} for feedback, one in passes.items()}
        return batch_losses.unsqueeze(0), flattened(stacks, self.parameters)

    def _epoch(self) -> Generator[Query, None, EpochMetrics]:
        direction_norms = []
        skipped, seconds = 0, self.history[-1].seconds
        self._follow()
        with self._optimizer.training():
            epoch_states = self._start_states.of_epoch(self.epoch)
            for update, states in enumerate(epoch_states.split(self.config.batch_size)):
                self._follow()
                number = self.epoch * self.updates_per_epoch + update  # in the run
                query = self._direction_query(states, number, compare=update == 0)
                yield query
                begin = time.perf_counter()
                if update == 0:
                    agreement, angle = query.sign_agreement, query.cosine
                self._regularize(query)
                objection = self._optimizer.objection(query.direction, query.norm)
                if objection is None and math.isfinite(query.loss):
                    self._optimizer.step(number, query.direction, query.norm)
                    direction_norms.append(query.norm)
                else:
                    self._refuse_unless_skipping(update, query, objection)
                    skipped += 1
                seconds += query.seconds + time.perf_counter() - begin
                self._call("on_update_end", query.loss, query.norm)
        epoch = self.epoch + 1
        train_loss = yield from self._loss(self.train_states)
        if not math.isfinite(train_loss) and self.config.on_nonfinite == "stop":
            raise NonFiniteError(
                f"the loss over the training states is {train_loss} after epoch {epoch}.{self._advice()}"
            )
        return EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            test_loss=(yield from self._loss(self.test_states)),
            direction_norm=sum(direction_norms) / len(direction_norms) if direction_norms else _NAN,
            sign_agreement=agreement,
            cosine=angle,
            skipped=skipped,
            simulator_steps=epoch * self.config.train_states * self.system.horizon,
            seconds=seconds,
        )

    def _follow(self) -> None:
        """Train the parameters that require gradients now: a callback may have frozen or replaced a layer."""
        found = {n: p for n, p in self.controller.named_parameters() if p.requires_grad}
        if not found:
            raise ValueError("no parameter of the controller requires a gradient any more.")
        like = next(iter(found.values()))
        if like.dtype is not self.train_states.dtype or like.device != self.train_states.device:
            raise ValueError(
                f"the controller is trained in {self.train_states.dtype} on {self.train_states.device}; its parameters "
                f"are {like.dtype} on {like.device} now. Convert it before it is trained."
            )
        self._optimizer.follow(found)
        self.parameters = found

    def _direction_query(self, states: Tensor, number: int, compare: bool) -> DirectionQuery:
        generator = None
        if self.config.combine == "random":  # made anew, so that a resumed run draws the same
            generator = torch.Generator().manual_seed(stream_seed(MASKS, self.config.seed, number))
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        return DirectionQuery(states, self.rule, self.config.combine, compare, sizes, generator)

    def _regularize(self, query: DirectionQuery) -> None:
        """Add the gradient of the regularizer to the direction of a query."""
        if self._regularizer is not None:
            query.direction = query.direction + regularizer_gradient(
                self._regularizer, self.controller, self.parameters.values()
            )
            query.norm = float(query.direction.double().norm())

    def _loss(self, states: Tensor) -> Generator[Query, None, float]:
        query = LossQuery(states)
        yield query
        return query.loss

    def _refuse_unless_skipping(self, update: int, query: DirectionQuery, objection: str | None) -> None:
        if self.config.on_nonfinite == "skip":
            return
        where = f"in epoch {self.epoch + 1}, update {update + 1} of {self.updates_per_epoch}"
        what = objection or f"the loss is {query.loss}"
        raise NonFiniteError(f"{where}, {what} (loss {query.loss:.6g}).{self._advice()}")

    def _advice(self) -> str:
        kept = (
            "" if self.folder is None else f" {self.folder.path / 'last.pt'} holds the state after epoch {self.epoch}."
        )
        return f'{kept} Clip the direction, lower the learning rate, or set on_nonfinite="skip".'

    def draw_if_new(self) -> None:
        """Draw into the run folder, if there is one that is to have pictures and they are not of the last epoch."""
        if self.folder is not None and self.config.pictures:
            last = modified(self.folder.path / "last.pt")
            if last == 0:
                raise RunFolderError(f"{self.folder.path} has no last.pt any more: was it moved? Nothing was drawn.")
            pictures = recorder("pictures", self.folder.path)
            if pictures.older_than(last):
                pictures.draw(self)

    # Where a run stands: `_last` holds the state after the last finished epoch

    def _restore_or_start(self) -> Generator[Query, None, None]:
        standing = self.check_folder()
        if standing is not None:
            self.history, self._last = standing.rows, standing.last
        if self.history:
            with nullcontext() if self.folder is None else self.folder.understanding("last.pt"):
                self._load(self._last)
        if self.folder is not None:
            self.folder.begin(self._description, standing)
        if not self.history:
            train_loss = yield from self._loss(self.train_states)
            test_loss = yield from self._loss(self.test_states)
            self._finish_epoch(EpochMetrics(0, train_loss, test_loss, _NAN, _NAN, _NAN, 0, 0, 0.0))

    def _state(self, metrics: EpochMetrics) -> Checkpoint:
        """The state after an epoch, as last.pt holds it."""
        return {
            "epoch": metrics.epoch,
            "train_loss": metrics.train_loss,
            "test_loss": metrics.test_loss,
            "controller": copy.deepcopy(self.controller.state_dict()),
            "best_train_loss": self.best_train_loss,
            **self._optimizer.state_dict(),
            **self.random_state(),
            "config": as_trained(self._description),
        }

    def _finish_epoch(self, metrics: EpochMetrics) -> bool:
        """Record and save an epoch; return whether the callbacks want another.

        best.pt, a kept checkpoint, metrics.csv and last.pt are written in this order: a kill between them leaves
        last.pt an epoch behind, and that epoch is computed again.
        """
        better = metrics.train_loss < self.best_train_loss
        if better:
            self.best_train_loss = metrics.train_loss
        last = self._state(metrics)
        if self.folder is not None:
            judged = {name: last[name] for name in ("epoch", "train_loss", "test_loss", "controller")}
            if better:
                self.folder.save("best", judged)
            if self.config.keep_every is not None and metrics.epoch % self.config.keep_every == 0:
                self.folder.save(kept_name(metrics.epoch), judged)
            self.folder.record(metrics, last)
        self._last = last
        self.history.append(metrics)
        if metrics.epoch == 0:
            return True
        answers = [callback.on_epoch_end(self, metrics) for callback in self.callbacks]
        return all(answer is not False for answer in answers)

    def _load(self, state: Checkpoint) -> None:
        self.best_train_loss = state["best_train_loss"]
        self.controller.load_state_dict(state["controller"])
        for name, parameter in self.controller.named_parameters():
            parameter.requires_grad_(name in state.get("trained", self.parameters))
        self._follow()
        self._optimizer.load_state_dict(state)
        self.set_random_state(state)

    def _seed(self) -> None:
        torch.default_generator.manual_seed(self.config.seed)  # torch.manual_seed would reach for every device
        if self._on_cuda:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(self.config.seed)

    def random_state(self) -> dict[str, Tensor]:
        """The state of torch's random numbers, on the CPU and on the device."""
        state = {"rng_state": torch.get_rng_state()}
        return state | ({"cuda_rng_state": torch.cuda.get_rng_state(self.device)} if self._on_cuda else {})

    def set_random_state(self, state: Checkpoint) -> None:
        """Go on with random numbers from `state`."""
        torch.set_rng_state(state["rng_state"])
        if self._on_cuda and "cuda_rng_state" in state:  # not if the run was on the CPU so far
            torch.cuda.set_rng_state(state["cuda_rng_state"], self.device)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)


def available_device(name: str) -> torch.device:
    """The device of that name: "cpu", "cuda" or one such as "cuda:1".

    Raises:
        ValueError: if there is no such device here.
    """
    device = torch.device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ValueError(f"device must be one that torch finds here ({here}); got {name!r}.")
    return device
