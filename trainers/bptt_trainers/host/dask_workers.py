"""The workers of a Dask cluster, here or on other machines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from gymnasium.error import DependencyNotInstalled

from bptt_trainers.host.work import Workers, died

PATIENCE = 30  # seconds for the scheduler to answer


class DaskWorkers(Workers):
    """The workers of a Dask cluster that is there already.

    The scheduler gives the work of a worker that dies to another one. What is under way cannot be ended: a worker that
    is abandoned ends the piece of work that it has begun.

    Args:
        address: of the scheduler, such as tcp://10.0.0.1:8786, or the file that it wrote, such as scheduler.json.

    Raises:
        DependencyNotInstalled: if distributed is not there.
        ConnectionError: if no scheduler answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise DependencyNotInstalled("Dask's workers need distributed: pip install 'stable-bptt[dask]'") from error
        where = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
        if "scheduler_file" in where and not Path(address).exists():  # which Dask would wait for
            raise ConnectionError(f"there is no file {address} of a Dask scheduler.")
        try:
            self._client = Client(**where, timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no Dask scheduler answers at {address} ({error}).") from error
        self.address = address
        self._executor = self._client.get_executor(pure=False)
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        self.at_once = max(1, len(workers))
        if any(one["nthreads"] > 1 for one in workers):
            warnings.warn(
                f"workers of {address} have several threads, and do one run at a time all the same: start them with "
                "--nthreads 1, as many as there are cores.",
                stacklevel=3,
            )

    def submit(self, work: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        """As `Workers.submit`."""
        from distributed import KilledWorker

        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()

        def hand_on(done: Future[Any]) -> None:
            try:
                answer.set_result(done.result())
            except KilledWorker:
                answer.set_exception(died(work, "its worker died"))
            except CancelledError:
                answer.set_exception(ChildProcessError(f"{work}: the Dask cluster at {self.address} is gone."))
            except Exception as error:  # noqa: BLE001, it is for whoever waits for the answer
                answer.set_exception(error)

        self._executor.submit(work).add_done_callback(hand_on)
        return answer

    def abandon(self) -> None:
        """Take back what is not begun."""
        self._executor.shutdown(wait=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Leave the cluster, which stays."""
        self._executor.shutdown(wait=False)
        self._client.close()
