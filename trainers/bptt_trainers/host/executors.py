"""Who works: processes of this machine, the workers of a Dask cluster or jobs of Slurm, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from bptt_envs.checks import positive_integer, shown
from bptt_envs.settings import By
from bptt_trainers.host.dask_workers import DaskWorkers
from bptt_trainers.host.processes import Processes
from bptt_trainers.host.slurm_jobs import CLUSTERS, SETTINGS, SlurmJobs
from bptt_trainers.host.work import Workers

LOCAL = "local"


def executor_name(name: str, value: Any) -> str:
    """The name of an executor, else raise ValueError.

    Args:
        name: of the argument, for messages.
        value: what the argument is.
    """
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        if kind in CLUSTERS:
            _job_settings(name, rest)
        if kind in CLUSTERS or value == LOCAL or (kind == "dask" and rest):
            return str.__str__(value)
    raise ValueError(
        f"{name} must be local, dask:ADDRESS (such as dask:tcp://10.0.0.1:8786) or slurm, if need be with settings "
        f"of its jobs (such as slurm:partition=cpu,timeout_min=120); got {shown(value)}."
    )


ExecutorName = Annotated[str, By(executor_name)]


@contextmanager
def opened(executor: str, jobs: int, folder: Path) -> Iterator[Workers]:
    """The workers of an executor; within, they take a `Job`. After an error or Ctrl-C they are abandoned.

    Args:
        executor: its name.
        jobs: processes, if they are of this machine.
        folder: where jobs of Slurm may keep what belongs to them, in jobs/.

    Raises:
        DependencyNotInstalled: if the library of the executor is not there; with the extra that brings it.
        OSError: if there is no such cluster.
    """
    kind, _, rest = executor.partition(":")
    workers: Workers
    if kind == LOCAL:
        workers = Processes(jobs)
    elif kind == "dask":
        workers = DaskWorkers(rest)
    else:
        workers = SlurmJobs(kind, _job_settings("executor", rest), folder.absolute() / "jobs")
    try:
        yield workers
    except BaseException:
        workers.abandon()
        raise
    finally:
        workers.shutdown()


def _job_settings(name: str, text: str) -> dict[str, Any]:
    """What "partition=cpu,timeout_min=120" says of the jobs of Slurm."""
    settings: dict[str, Any] = {}
    for one in text.split(",") if text else ():
        key, equals, value = one.partition("=")
        if key not in SETTINGS or not (equals and value):
            raise ValueError(
                f"{name}: settings of jobs must be among {', '.join(SETTINGS)}, as NAME=VALUE; got {one!r}."
            )
        kind, _ = SETTINGS[key]
        whole = kind is int and value.isdecimal()
        settings[key] = positive_integer(f"{name}: {key}", int(value) if whole else value) if kind is int else value
    return settings
