"""Hooks into training: derive from `Callback` and hand instances to the trainer."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bptt_trainers.metrics import EpochMetrics

if TYPE_CHECKING:
    from bptt_trainers.trainer import Trainer


class Callback:
    """Called by the trainer as it goes. Every method may be overridden; none has to be."""

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
    """A bar over the updates with loss and time left."""

    def __init__(self, title: str = "training") -> None:
        self.title = title
        self._bar: tqdm[Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        epochs, updates = trainer.config.epochs, trainer.updates_per_epoch
        self._bar = tqdm(
            total=epochs * updates,
            initial=trainer.epoch * updates,
            desc=self.title,
            unit="update",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,  # seconds; a log file wants few lines
        )

    def on_update_end(self, trainer: Trainer, loss: float, direction_norm: float) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool | None:
        if self._bar is not None:
            losses = {"train": f"{metrics.train_loss:.3g}", "test": f"{metrics.test_loss:.3g}"}
            self._bar.set_postfix(epoch=metrics.epoch, **losses, refresh=False)
        return None

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()


class TensorBoardLog(Callback):
    """The metrics of each epoch as TensorBoard scalars in the run folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._writer: Any = None

    def on_fit_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always wanted

        self._writer = SummaryWriter(self.folder, purge_step=trainer.epoch + 1 if trainer.epoch else None)
        if trainer.epoch == 0:
            self._write(trainer.history[0])

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool | None:
        self._write(metrics)
        return None

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, metrics: EpochMetrics) -> None:
        values = asdict(metrics)
        epoch = values.pop("epoch")
        for name, value in values.items():
            if not math.isnan(value):
                group = "loss" if name.endswith("_loss") else "train"
                self._writer.add_scalar(f"{group}/{name.removesuffix('_loss')}", value, epoch)
