"""Jobs of Slurm, by submitit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymnasium.error import DependencyNotInstalled

from bptt_trainers.host.work import TRIES, Workers, died

SETTINGS: dict[str, tuple[type, str]] = {
    "partition": (str, "slurm_partition"),
    "account": (str, "slurm_account"),
    "qos": (str, "slurm_qos"),
    "constraint": (str, "slurm_constraint"),
    "timeout_min": (int, "timeout_min"),
    "mem_gb": (int, "mem_gb"),
    "cpus_per_task": (int, "cpus_per_task"),
    "gpus_per_node": (int, "gpus_per_node"),
    "at_once": (int, "slurm_array_parallelism"),
}
"""What may be said of jobs: the type of its value, and submitit's name for it."""

CLUSTERS = {"slurm": "slurm", "submitit-local": "local"}
"""Submitit's name of a cluster by that of the executor; its local one is for trying things out."""

DEFAULTS = {"timeout_min": 60, "cpus_per_task": 1}

TIMEOUTS = 100
"""How often a job that has used up its time goes on."""

EVERY = 1.0  # seconds between two looks at the jobs; Slurm itself is asked less often, by submitit

WAIT = 10.0  # seconds until what the queue has refused is handed in again, then twice of it, and so on


class SlurmJobs(Workers):
    """Jobs of Slurm: what is submitted within a second is one array of them.

    A job that has used up its time, or is preempted, is put into the queue again with the same work, which goes on from
    what it kept; one that dies is submitted again, as is what the queue refuses. What it refuses for good is an error
    only when there is no other job left, so that nothing is lost of those that it has taken.

    Args:
        cluster: a name of `CLUSTERS`.
        settings: of each job, by the names of `SETTINGS`.
        folder: for the logs and answers of the jobs; all machines must see it.

    Raises:
        DependencyNotInstalled: if submitit is not there.
        OSError: if there is no Slurm here.
    """

    def __init__(self, cluster: str, settings: Mapping[str, Any], folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise DependencyNotInstalled("jobs of Slurm need submitit: pip install 'stable-bptt[slurm]'") from error
        name = CLUSTERS[cluster]
        try:
            self._executor = submitit.AutoExecutor(folder, name, **{f"{name}_max_num_timeout": TIMEOUTS})
        except RuntimeError as error:
            raise OSError(f"there is no Slurm here ({error}).") from error
        given = {SETTINGS[setting][1]: value for setting, value in {**DEFAULTS, **settings}.items()}
        self._executor.update_parameters(name="bptt", **given)
        self._new: list[_Piece] = []
        self._under_way: list[_Piece] = []
        self._refused: dict[_Piece, OSError] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._minder = threading.Thread(target=self._mind, daemon=True)
        self._minder.start()

    def submit(self, work: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        """As `Workers.submit`."""
        piece = _Piece(work)
        piece.answer.set_running_or_notify_cancel()
        with self._lock:
            self._new.append(piece)
        return piece.answer

    def abandon(self) -> None:
        """Take all jobs out of the queue, those that run, too."""
        self._end()
        for piece in self._under_way:
            piece.job.cancel(check=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Mind the jobs no more."""
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._minder.join()

    def _mind(self) -> None:
        """Submit what is new, and hand on the answers of jobs that are done, until there is an end."""
        while not self._ended.wait(EVERY):
            with self._lock:
                due = [piece for piece in self._new if piece.due <= time.monotonic()]
                self._new = [piece for piece in self._new if piece not in due]
            again = self._begin(due)
            for piece in [*self._under_way]:
                try:
                    ended = piece.job.done()
                    answered = ended and self._answered(piece)
                except Exception as error:  # noqa: BLE001, such as of an answer that cannot be unpickled here
                    piece.answer.set_exception(ChildProcessError(f"{piece.work}: its answer cannot be read: {error}"))
                    ended = answered = True
                if ended:
                    self._under_way.remove(piece)
                    again += [] if answered else [piece]
            with self._lock:
                self._new += again
                alone = not (self._new or self._under_way)
            if alone:
                for piece, refusal in self._refused.items():
                    piece.answer.set_exception(refusal)
                self._refused.clear()

    def _begin(self, pieces: Sequence[_Piece]) -> list[_Piece]:
        """Submit pieces of work as one array; those that are to be submitted again, as the queue refuses them."""
        if not pieces:
            return []
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_Resumed(piece.work)) for piece in pieces]
        except Exception as error:  # noqa: BLE001, such as of a partition that there is not, or of a limit
            for piece in pieces:
                piece.refusals += 1
                piece.due = time.monotonic() + WAIT * piece.refusals
                if piece.refusals == TRIES:
                    self._refused[piece] = OSError(f"{piece.work}: Slurm refused it {TRIES} times: {error}")
            return [piece for piece in pieces if piece not in self._refused]
        for piece, job in zip(pieces, jobs, strict=True):
            piece.job, piece.tries = job, piece.tries + 1
        self._under_way += pieces
        return []

    def _answered(self, piece: _Piece) -> bool:
        """Whether there is an answer, which is handed on, of a job that is done; else it is to be tried again."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            value, error = piece.job.result()
        except UncompletedJobError:
            if piece.tries < TRIES:
                return False
            error = died(piece.work, "its job ended without an answer")
        except FailedJobError as failed:
            error = ChildProcessError(f"{piece.work}: its job failed: {failed}")
        if isinstance(error, UncompletedJobError):  # raised within the job, as it is not to go on
            error = ChildProcessError(f"{piece.work}: {error} The same command goes on from what is kept.")
        if error is None:
            piece.answer.set_result(value)
        else:
            piece.answer.set_exception(error)
        return True


@dataclass(eq=False)
class _Piece:
    """Work, the job that does it, its answer, how often it was begun and refused, and when it is due."""

    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)
    job: Any = None
    tries: int = 0
    refusals: int = 0
    due: float = 0.0


class _Resumed:
    """Work as a job has it: put into the queue again it is called again; errors are answers, and keep their type."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    def __call__(self) -> tuple[Any, Exception | None]:
        try:
            return self._work(), None
        except Exception as error:  # noqa: BLE001, it is raised where the work was handed out
            return None, error

    def checkpoint(self) -> Any:
        """The submission with which the job goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
