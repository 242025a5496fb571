"""Who works: processes of this machine or the workers of a Dask cluster, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from bptt_envs.checks import shown
from bptt_envs.settings import By
from bptt_trainers.host.processes import Processes
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
        if value == LOCAL or (kind == "dask" and rest):
            return str.__str__(value)
    raise ValueError(
        f"{name} must be local or dask:ADDRESS, such as dask:tcp://10.0.0.1:8786 or dask:scheduler.json; got "
        f"{shown(value)}."
    )


ExecutorName = Annotated[str, By(executor_name)]


@contextmanager
def opened(executor: str, jobs: int) -> Iterator[Workers]:
    """The workers of an executor; within, they take `Job`. After an error or Ctrl-C they are abandoned.

    Args:
        executor: its name.
        jobs: processes, if they are of this machine.

    Raises:
        DependencyNotInstalled: if the library of the executor is not there; with the extra that brings it.
        OSError: if there is no such cluster.
    """
    kind, _, address = executor.partition(":")
    workers: Workers
    if kind == "dask":
        from bptt_trainers.host.dask_workers import DaskWorkers  # an extra

        workers = DaskWorkers(address)
    else:
        workers = Processes(jobs)
    try:
        yield workers
    except BaseException:
        workers.abandon()
        raise
    finally:
        workers.shutdown()
