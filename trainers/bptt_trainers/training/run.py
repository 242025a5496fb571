"""A run: a learner, epoch after epoch, and the books about it."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from bptt_envs import System
from bptt_envs.differentiable import start_states
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.training.books import Books, Checkpoint, Config, Standing, kept_name
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.learner import Learner, Update
from bptt_trainers.training.metrics import EpochMetrics
from bptt_trainers.training.queries import LossQuery, Query
from bptt_trainers.training.ranks import ALONE, Ranks
from bptt_trainers.training.recorders import recorders

_NAN = float("nan")


class NonFiniteError(RuntimeError):
    """A loss or a direction was not finite; the message names the epoch, the update and the parameter."""


class RunConfig(Protocol):
    """What a run reads of its settings."""

    @property
    def epochs(self) -> int:
        """Epochs in all."""

    @property
    def on_nonfinite(self) -> str:
        """At an update that cannot be made: "stop" the run, or "skip" and count it."""

    @property
    def keep_every(self) -> int | None:
        """Keep what acts after every so many epochs; None keeps none."""

    @property
    def record(self) -> tuple[str, ...]:
        """Names of recorders."""


class Run:
    """Lets a learner learn, judges it after each epoch, calls callbacks and keeps the books.

    With a folder, `fit` saves after every epoch, and a second `fit` of the same configuration continues where the first
    ended.

    Args:
        learner: what learns.
        config: the settings of the run.
        folder: where the books are kept; None keeps everything in memory.
        description: what config.json is to say; a folder that says something else is refused.
        callbacks: called as the run goes, before the recorders that `config` names.
        ranks: the processes that train it together, each of which has such a run; the first has folder and recorders.

    Attributes:
        history: the metrics of every epoch, epoch 0 (untrained) first.
        seconds: spent on updates so far.
        best_train_loss: of all epochs so far.
        interrupted: whether the last training ended by Ctrl-C or an error.

    Raises:
        TypeError, ValueError: if a callback or a recorder cannot be used.
    """

    def __init__(
        self,
        learner: Learner,
        config: RunConfig,
        folder: Books | None,
        description: Config,
        callbacks: Sequence[Callback] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.learner = learner
        self.config = config
        self.folder = folder if ranks.first else None
        self.ranks = ranks
        self.history: list[EpochMetrics] = []
        self.seconds = 0.0
        self.best_train_loss = math.inf
        self.interrupted = False
        self._description = description
        self._last: Checkpoint = {}
        self.callbacks = [*callbacks, *(recorders(self) if ranks.first else ())]

    @property
    def system(self) -> System:
        """The physics."""
        return self.learner.system

    @property
    def test_states(self) -> Tensor:
        """Held-out start states, (config.test_states, *state_shape)."""
        return self.learner.test_states

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.history[-1].epoch if self.history else 0

    @property
    def updates_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self.learner.updates_per_epoch

    def fit(self) -> list[EpochMetrics]:
        """Train until `config.epochs` epochs are done, continuing what the run folder holds.

        Returns:
            The metrics of every epoch, epoch 0 (untrained) first.

        After an interruption or an error the learner is that of the last finished epoch, and so is the run folder.

        Raises:
            NonFiniteError: if a loss or direction is not finite and `config.on_nonfinite` is "stop".
            RunFolderError: if the run folder holds another configuration or cannot be written.
        """
        with self.session(), closing(self.training()) as training:
            for query in training:
                self.answer(query)
        return self.history

    def evaluate(self, states: Tensor) -> float:
        """Mean loss over episodes from `states`, (B, *state_shape), as it is judged after an epoch."""
        states = start_states("states", states, self.system)
        return self.learner.evaluate(states)

    # Training is a generator of queries. Here the learner itself answers them; an ensemble answers those of many
    # runs at once.

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around `training`: no other process trains into the folder, and the caller's random numbers stay.

        Nor do the caller's surroundings matter within, such as grad mode.

        Raises:
            ValueError: if the learner cannot be trained so.
            RunFolderError: if another process trains into the folder.
        """
        with self.learner.session(), nullcontext() if self.folder is None else self.folder.locked():
            yield

    def check_folder(self) -> Standing | None:
        """Where this run stands in its folder, None if it has no folder or no finished epoch there; writes nothing.

        Raises:
            RunFolderError: if the folder holds anything but this run, or could not hold it.
        """
        if self.folder is None:
            return None
        standing = self.folder.check(self._description)
        if standing is not None and standing.last["epoch"] > self.config.epochs:
            raise RunFolderError(
                f"{self.folder.path} has {standing.last['epoch']} epochs already; epochs={self.config.epochs} asks for "
                "fewer."
            )
        if standing is None and self.history:
            raise RunFolderError(
                f"{self.folder.path} no longer holds the {self.epoch} epochs that this trainer left there; put them "
                "back, or begin anew with another trainer."
            )
        self.folder.packed(self._state(EpochMetrics(0, _NAN, _NAN, _NAN, _NAN, _NAN, 0, 0, 0.0)))
        return standing

    def training(self) -> Generator[Query, None, None]:
        """Train, within a `session`, and yield what is to be computed; each query must be answered.

        At its end, also if it is closed early, the learner is that of the last finished epoch.

        Raises:
            NonFiniteError, RunFolderError: as `fit`.
        """
        self.learner.begin()
        self.interrupted = False
        yield from self._restore_or_start()
        try:
            self._call("on_fit_start")
            while self.epoch < self.config.epochs:
                metrics = yield from self._epoch()
                if not self._finish_epoch(metrics):
                    break
        except BaseException:
            self.interrupted = True
            self._load(self._last)
            raise
        finally:
            self._call("on_fit_end")
        self._call("on_finish")

    def answer(self, query: Query) -> None:
        """Compute what a query of this run's `training` asks for, within a `session`."""
        if isinstance(query, LossQuery):
            query.loss = self.ranks.mean(query.states, self.evaluate)
        else:
            self.learner.answer(query)

    def random_state(self) -> Checkpoint:
        """The state of the learner's random numbers."""
        return self.learner.random_state()

    def set_random_state(self, state: Checkpoint) -> None:
        """Go on with random numbers from `state`."""
        self.learner.set_random_state(state)

    def _epoch(self) -> Generator[Query, None, EpochMetrics]:
        updates: list[Update] = []
        before = self.history[-1]
        self.seconds = before.seconds
        with self.learner.epoch(self.epoch):
            for i in range(self.updates_per_epoch):
                update = yield from self.learner.update(self.epoch * self.updates_per_epoch + i)
                self._refuse_unless_skipping(i, update)
                updates.append(update)
                self.seconds += update.seconds
                self._call("on_update_end", update.loss, update.direction_norm)
        epoch = self.epoch + 1
        train_loss = yield from self._loss(self.learner.train_states)
        if not math.isfinite(train_loss) and self.config.on_nonfinite == "stop":
            raise NonFiniteError(
                f"the loss over the training states is {train_loss} after epoch {epoch}.{self._advice()}"
            )
        norms = [update.direction_norm for update in updates if update.objection is None]
        own = {name: [update.own[name] for update in updates if name in update.own] for name in self.learner.OWN}
        return EpochMetrics(
            epoch=epoch,
            train_loss=train_loss,
            test_loss=(yield from self._loss(self.test_states)),
            direction_norm=_mean(norms),
            sign_agreement=updates[0].sign_agreement,
            cosine=updates[0].cosine,
            skipped=len(updates) - len(norms),
            simulator_steps=before.simulator_steps + sum(update.simulator_steps for update in updates),
            seconds=self.seconds,
            own={name: _mean(values) for name, values in own.items()},
        )

    def _loss(self, states: Tensor) -> Generator[Query, None, float]:
        query = LossQuery(states)
        yield query
        return query.loss

    def _refuse_unless_skipping(self, i: int, update: Update) -> None:
        if update.objection is None or self.config.on_nonfinite == "skip":
            return
        where = f"in epoch {self.epoch + 1}, update {i + 1} of {self.updates_per_epoch}"
        raise NonFiniteError(f"{where}, {update.objection} (loss {update.loss:.6g}).{self._advice()}")

    def _advice(self) -> str:
        kept = (
            "" if self.folder is None else f" {self.folder.path / 'last.pt'} holds the state after epoch {self.epoch}."
        )
        return f'{kept} Clip the direction, lower the learning rate, or set on_nonfinite="skip".'

    # Where a run stands: `_last` holds the state after the last finished epoch

    def _restore_or_start(self) -> Generator[Query, None, None]:
        standing = self._agreed(self.check_folder())
        if standing is not None:
            self.history, self._last = standing.rows, standing.last
        if self.history:
            with nullcontext() if self.folder is None else self.folder.understanding("last.pt"):
                self._load(self._last)
        if self.folder is not None:
            self.folder.begin(self._description, standing)
        if not self.history:
            train_loss = yield from self._loss(self.learner.train_states)
            test_loss = yield from self._loss(self.test_states)
            own = dict.fromkeys(self.learner.OWN, _NAN)
            self._finish_epoch(EpochMetrics(0, train_loss, test_loss, _NAN, _NAN, _NAN, 0, 0, 0.0, own))

    def _agreed(self, standing: Standing | None) -> Standing | None:
        """Where the run stands for all processes that train it: where the first has found it."""
        if self.ranks.count == 1:
            return standing
        if self.ranks.told(self._description) != self._description:
            raise ValueError("all processes must train the same run; this one's settings are others than the first's.")
        self.learner.load_state_dict(self.ranks.told(self.learner.state_dict()))
        return self.ranks.told(standing)

    def _state(self, metrics: EpochMetrics) -> Checkpoint:
        """The state after an epoch, as last.pt holds it."""
        return {
            "epoch": metrics.epoch,
            "train_loss": metrics.train_loss,
            "test_loss": metrics.test_loss,
            "best_train_loss": self.best_train_loss,
            **self.learner.state_dict(),
            **self.random_state(),
            **({} if self.folder is None else {"config": self.folder.as_trained(self._description)}),
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
        return self.ranks.all(all(answer is not False for answer in answers))

    def _load(self, state: Checkpoint) -> None:
        self.best_train_loss = state["best_train_loss"]
        self.learner.load_state_dict(state)
        self.set_random_state(state)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)


def _mean(values: Sequence[float]) -> float:
    """The mean, NaN of none."""
    return sum(values) / len(values) if values else _NAN
