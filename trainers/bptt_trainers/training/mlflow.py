"""The metrics, figures and checkpoints of a run for MLflow."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from filelock import FileLock
from tqdm import tqdm

from bptt_trainers.records.files import first_line
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
        with _opening(self.package):
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


@contextmanager
def _opening(package: Any) -> Iterator[None]:
    """Within, MLflow's file of SQLite is there, whole, and no other process of ours opens it; a server needs none.

    Raises:
        RuntimeError: if the file cannot be used, as those that were left half made by MLflow alone.
    """
    kind, _, path = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db").partition(":///")
    if kind != "sqlite":
        yield
        return
    with FileLock(f"{path}.lock"):
        try:
            if not Path(path).exists() or not Path(path).stat().st_size:
                _make(path, package)
            yield
        except package.MlflowException:  # says itself what to do
            raise
        except Exception as error:
            raise RuntimeError(
                f"{path} cannot be used ({first_line(error)}). If MLflow was stopped while it made it, delete it."
            ) from error


def _make(path: str, package: Any) -> None:
    """Make MLflow's file of SQLite, in one transaction, unless another process has begun one meanwhile.

    MLflow itself takes many and some seconds, and cannot use what an interruption leaves: so it makes one elsewhere.
    """
    tqdm.write(f"MLflow makes {path}, once; that takes some seconds", file=sys.stderr)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        elsewhere = Path(folder) / "mlflow.db"
        package.MlflowClient(tracking_uri=f"sqlite:///{elsewhere}")
        with (
            closing(sqlite3.connect(elsewhere)) as made,
            closing(sqlite3.connect(path, timeout=60.0, isolation_level=None)) as here,
        ):
            here.execute("BEGIN IMMEDIATE")
            if not here.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in made.iterdump():
                    if statement not in ("BEGIN TRANSACTION;", "COMMIT;"):
                        here.execute(statement)
            here.execute("COMMIT")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in parts, each by the names of its parts and its own: training.rule."""
    found: dict[str, Any] = {}
    for name, one in config.items():
        found |= _flat(one, f"{prefix}{name}.") if isinstance(one, Mapping) else {f"{prefix}{name}": one}
    return found
