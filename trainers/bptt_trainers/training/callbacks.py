"""Hooks into training: derive from `Callback` and hand instances to the trainer."""

from __future__ import annotations

from statistics import median
from typing import Any

from tqdm import tqdm

from bptt_trainers.records.curve import Report
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.training.metrics import EpochMetrics, learning_curve


class Callback:
    """Called by a run as it goes. Every method may be overridden; none has to be.

    `trainer` is the run: a `Trainer`, or another `Run`.

    A callback may change the controller: its attributes, buffers, modes, what of it is trained. The engine and the
    optimizer follow. Of that, a checkpoint holds the values of buffers and the names that were trained in its epoch; a
    schedule that goes on in a resumed run sets the rest in `on_fit_start`, from `trainer.epoch`.
    """

    def on_fit_start(self, trainer: Any) -> None:
        """Before the first update; `trainer.history` holds what was done before, if anything."""

    def on_update_end(self, trainer: Any, loss: float, direction_norm: float) -> None:
        """After each update, or its skipping; `loss` is that of its batch."""

    def on_epoch_end(self, trainer: Any, metrics: EpochMetrics) -> bool | None:
        """After each epoch, when its checkpoint is saved. Return False to end training here."""
        return None

    def on_fit_end(self, trainer: Any) -> None:
        """At the end, also after Ctrl-C or an error."""

    def on_finish(self, trainer: Any) -> None:
        """After `on_fit_end`, if nothing went wrong: the folder is as training leaves it."""


class ProgressBar(Callback):
    """A bar over the updates with loss and time left; one bar for all members of an ensemble, with median losses."""

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self._bar: tqdm[Any] | None = None
        self._left: dict[Any, int] = {}  # updates that those who train have ahead of them
        self._metrics: dict[Any, EpochMetrics] = {}

    def on_fit_start(self, trainer: Any) -> None:
        total, done = (epochs * trainer.updates_per_epoch for epochs in (trainer.config.epochs, trainer.epoch))
        if total == done:
            return
        self._left[trainer] = total - done
        if self._bar is None:
            self._bar = progress_bar(self.title, total, "update", initial=done)
        else:
            self._bar.total += total
            for count in ("n", "initial", "last_print_n"):  # what was done before says nothing of the rate
                setattr(self._bar, count, getattr(self._bar, count) + done)

    def on_update_end(self, trainer: Any, loss: float, direction_norm: float) -> None:
        if self._bar is not None:
            self._left[trainer] -= 1
            self._bar.update()

    def on_epoch_end(self, trainer: Any, metrics: EpochMetrics) -> bool | None:
        if self._bar is not None:
            self._metrics[trainer] = metrics
            rows = self._metrics.values()
            self._bar.set_postfix(
                epoch=min(row.epoch for row in rows),
                train=f"{median(row.train_loss for row in rows):.3g}",
                test=f"{median(row.test_loss for row in rows):.3g}",
                refresh=False,
            )
        return None

    def on_fit_end(self, trainer: Any) -> None:
        left = self._left.pop(trainer, 0)
        self._metrics.pop(trainer, None)
        if self._bar is not None and self._left:
            self._bar.total -= left  # the others go on without it
        elif self._bar is not None:
            self._bar.close()
            self._bar = None


class Reporting(Callback):
    """Hands each evaluation on, and ends the run if the answer is False, but for that of the untrained controller."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_fit_start(self, trainer: Any) -> None:
        """Report the untrained controller."""
        self._report(learning_curve(trainer.history)[-1])

    def on_epoch_end(self, trainer: Any, metrics: EpochMetrics) -> bool | None:
        """Report an epoch."""
        return self._report(learning_curve([metrics])[0])
