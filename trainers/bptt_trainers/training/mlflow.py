"""The metrics, figures and checkpoints of a run for MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from bptt_trainers.training.trackers import PROJECT, Tracker

LONGEST = 6000  # characters of a parameter
MOST = 100  # parameters at once


class MLflowTracker(Tracker):
    """Tells MLflow: the server that MLFLOW_TRACKING_URI names, else the file mlflow.db in the working directory.

    Parameters are the settings with which the run began, as MLflow lets none be changed; config.json, among the files,
    has those of today.
    """

    name: ClassVar[str] = "mlflow"

    def begin(self, identity: str | None, config: dict[str, Any]) -> tuple[str, bool]:
        """See `Tracker`."""
        with _alone():
            self._client = self.package.MlflowClient()
            self._id = self._new() if identity is None else identity
            self._client.update_run(self._id, status="RUNNING")
        known = self._client.get_run(self._id).data.params
        new = {name: str(value)[:LONGEST] for name, value in _flat(config).items() if name not in known}
        params = [self.package.entities.Param(name, value) for name, value in new.items()]
        for i in range(0, len(params), MOST):
            self._client.log_batch(self._id, params=params[i : i + MOST])
        return self._id, True

    def _new(self) -> str:
        """The id of a new run."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if self._client.get_experiment_by_name(experiment) is None:
            with suppress(self.package.MlflowException):  # another process has just made it
                self._client.create_experiment(experiment)
        found = self._client.get_experiment_by_name(experiment)
        return str(self._client.create_run(found.experiment_id, run_name=self.title).info.run_id)

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        now = time.time_ns() // 10**6
        metrics = [self.package.entities.Metric(tag, value, now, epoch) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def keep(self, epoch: int, figures: Sequence[Path], checkpoints: Sequence[Path]) -> None:
        """See `Tracker`."""
        for place, paths in (("figures", figures), ("controller", checkpoints)):
            for path in paths:
                self._client.log_artifact(self._id, str(path), place)

    def end(self, finished: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _alone() -> AbstractContextManager[object]:
    """Within, no other process of ours makes the file of SQLite, which two at once would spoil; a server needs none."""
    kind, _, path = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db").partition(":///")
    return FileLock(f"{path}.lock") if kind == "sqlite" else nullcontext()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in parts, each by the names of its parts and its own: training.rule."""
    found: dict[str, Any] = {}
    for name, one in config.items():
        found |= _flat(one, f"{prefix}{name}.") if isinstance(one, Mapping) else {f"{prefix}{name}": one}
    return found
