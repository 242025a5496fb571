"""The updates of a run as a CSV file: a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bptt_trainers.records.files import append, understanding, write_atomic
from bptt_trainers.records.tables import csv_text, read_rows
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.recorders import folder_of

if TYPE_CHECKING:
    from bptt_trainers.training.run import Run

FILE = "updates.csv"
COLUMNS = ("update", "epoch", "loss", "direction_norm", "seconds")


class UpdatesCSV(Callback):
    """Keeps updates.csv in the run folder.

    Its columns: number of the update in the run, from 1 on; its epoch; loss of its batch; norm of the direction before
    clipping; seconds spent on updates so far. The lines of an epoch are written before its checkpoint: what a kill left
    ahead of that is dropped when the run goes on.
    """

    def __init__(self, run: Run) -> None:
        self._path = folder_of(run, "csv") / FILE
        self._size = 0  # bytes of the file
        self._rows: list[tuple[int, int, float, float, float]] = []  # of the epoch in progress

    def on_fit_start(self, trainer: Run) -> None:
        """Begin the file, or take it up after the last finished epoch."""
        lines = read_rows(self._path, dict, columns=COLUMNS, missing_ok=True, cut_short=True)
        with understanding(self._path):
            kept = [list(line.values()) for line in lines if int(line["epoch"]) <= trainer.epoch]
        data = csv_text(COLUMNS, kept).encode()
        write_atomic(self._path, data)
        self._size, self._rows = len(data), []

    def on_update_end(self, trainer: Run, loss: float, direction_norm: float) -> None:
        """Note the update; after the last one of an epoch, write."""
        number = trainer.epoch * trainer.updates_per_epoch + len(self._rows) + 1
        self._rows.append((number, trainer.epoch + 1, loss, direction_norm, trainer.seconds))
        if len(self._rows) == trainer.updates_per_epoch:
            self._size = append(self._path, csv_text(COLUMNS, self._rows, header=False).encode(), at=self._size)
            self._rows = []
