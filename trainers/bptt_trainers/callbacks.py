"""Hooks into training: derive from `Callback` and hand instances to the trainer."""

from __future__ import annotations

import io
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from bptt_trainers.metrics import EpochMetrics
from bptt_trainers.records.files import RunFolderError, append, list_names, remove, write_atomic

if TYPE_CHECKING:
    from bptt_trainers.trainer import Trainer


class Callback:
    """Called by the trainer as it goes. Every method may be overridden; none has to be.

    A callback may change the controller: its attributes, buffers, modes, what of it is trained. The engine and the
    optimizer follow. Of that, a checkpoint holds the values of buffers and the names that were trained in its epoch; a
    schedule that goes on in a resumed run sets the rest in `on_fit_start`, from `trainer.epoch`.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first update; `trainer.history` holds what was done before, if anything."""

    def on_update_end(self, trainer: Trainer, loss: float, direction_norm: float) -> None:
        """After each update, or its skipping; `loss` is that of its batch."""

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool | None:
        """After each epoch, when its checkpoint is saved. Return False to end training here."""
        return None

    def on_fit_end(self, trainer: Trainer) -> None:
        """At the end, also after Ctrl-C or an error."""


class ProgressBar(Callback):
    """A bar over the updates with loss and time left; one bar for all members of an ensemble, with median losses."""

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self._bar: tqdm[Any] | None = None
        self._left: dict[Trainer, int] = {}  # updates that those who train have ahead of them
        self._metrics: dict[Trainer, EpochMetrics] = {}

    def on_fit_start(self, trainer: Trainer) -> None:
        total, done = (epochs * trainer.updates_per_epoch for epochs in (trainer.config.epochs, trainer.epoch))
        if total == done:
            return
        self._left[trainer] = total - done
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self.title,
                unit="update",
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,  # seconds; a log file wants few lines
            )
        else:
            self._bar.total += total
            for count in ("n", "initial", "last_print_n"):  # what was done before says nothing of the rate
                setattr(self._bar, count, getattr(self._bar, count) + done)

    def on_update_end(self, trainer: Trainer, loss: float, direction_norm: float) -> None:
        if self._bar is not None:
            self._left[trainer] -= 1
            self._bar.update()

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool | None:
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

    def on_fit_end(self, trainer: Trainer) -> None:
        left = self._left.pop(trainer, 0)
        self._metrics.pop(trainer, None)
        if self._bar is not None and self._left:
            self._bar.total -= left  # the others go on without it
        elif self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoardLog(Callback):
    """The metrics of each epoch as TensorBoard scalars in the run folder.

    Each fit writes an event file with every epoch that the run has, in place of the one of an earlier fit: so the
    events hold what metrics.csv holds, whatever was killed in between. A file that cannot be written is a warning, and
    training goes on without it.
    """

    SUFFIX: ClassVar[str] = ".stable-bptt"  # of its files; other event files in the folder are left alone

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._path: Path | None = None  # None: it writes nothing
        self._size = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        earlier = [name for name in list_names(Path(self.folder)) if name.endswith(self.SUFFIX)]
        now, host, process = time.time_ns(), socket.gethostname(), os.getpid()
        name = f"events.out.tfevents.{now // 10**9:010d}.{host}.{process}.{now}{self.SUFFIX}"
        self._path, self._size = Path(self.folder) / name, 0
        self._write([event for row in trainer.history for event in self._events(row)], first=True)
        for old in earlier if self._path is not None else ():
            remove(Path(self.folder) / old)

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool | None:
        self._write(self._events(metrics))
        return None

    def _events(self, metrics: EpochMetrics) -> list[Any]:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import, and not always wanted
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = asdict(metrics)
        epoch = values.pop("epoch")
        scalars = []
        for name, value in values.items():
            if not math.isnan(value):
                tag = f"{'loss' if name.endswith('_loss') else 'train'}/{name.removesuffix('_loss')}"
                scalars.append(Summary.Value(tag=tag, simple_value=value))
        return [Event(wall_time=time.time(), step=epoch, summary=Summary(value=scalars))]

    def _write(self, events: Sequence[Any], first: bool = False) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._path is None:
            return
        if first:  # all that other files say of epochs from 0 on does not count
            start = Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START))
            events = [Event(wall_time=time.time(), file_version="brain.Event:2"), start, *events]
        data = io.BytesIO()
        writer = RecordWriter(data)
        for event in events:
            writer.write(event.SerializeToString())
        try:
            if first:
                write_atomic(self._path, data.getvalue())
                self._size = len(data.getvalue())
            else:
                self._size = append(self._path, data.getvalue(), at=self._size)
        except RunFolderError as error:
            self._path = None
            warnings.warn(f"TensorBoard gets no more events of this fit: {error}", stacklevel=2)
