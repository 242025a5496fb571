"""The metrics of a run for TensorBoard."""

from __future__ import annotations

import io
import os
import socket
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bptt_trainers.records.files import RunFolderError, append, list_names, remove, write_atomic
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.metrics import EpochMetrics, scalars
from bptt_trainers.training.recorders import folder_of

if TYPE_CHECKING:
    from bptt_trainers.training.run import Run


class TensorBoardLog(Callback):
    """The metrics of each epoch as TensorBoard scalars in the run folder.

    Each fit writes an event file with every epoch that the run has, in place of the one of an earlier fit: so the
    events hold what metrics.csv holds, whatever was killed in between. A file that cannot be written is a warning, and
    training goes on without it.
    """

    SUFFIX: ClassVar[str] = ".stable-bptt"  # of its files; other event files in the folder are left alone

    def __init__(self, run: Run) -> None:
        self.folder = folder_of(run, "tensorboard")
        self._path: Path | None = None  # None: it writes nothing
        self._size = 0

    def on_fit_start(self, trainer: Run) -> None:
        earlier = [name for name in list_names(self.folder) if name.endswith(self.SUFFIX)]
        now, host, process = time.time_ns(), socket.gethostname(), os.getpid()
        name = f"events.out.tfevents.{now // 10**9:010d}.{host}.{process}.{now}{self.SUFFIX}"
        self._path, self._size = self.folder / name, 0
        self._write([event for row in trainer.history for event in self._events(row)], first=True)
        for old in earlier if self._path is not None else ():
            remove(self.folder / old)

    def on_epoch_end(self, trainer: Run, metrics: EpochMetrics) -> bool | None:
        self._write(self._events(metrics))
        return None

    def _events(self, metrics: EpochMetrics) -> list[Any]:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import, and not always wanted
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(metrics).items()]
        return [Event(wall_time=time.time(), step=metrics.epoch, summary=Summary(value=values))]

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
