"""A piece of work as whoever takes it gets it, here or on another machine, and what every kind of worker does alike."""

from __future__ import annotations

import os
import socket
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from bptt_envs.raised import LIBRARIES
from bptt_envs.registration import ENTRIES
from bptt_trainers.host.threads import threads
from bptt_trainers.host.user_code import (
    raised_by_signal,
    raised_by_user,
    take_over_ids,
    take_over_modules,
    told,
    users_modules,
)

TRIES = 3
"""How often work is begun whose worker dies, after which it has failed."""

_one_at_a_time = threading.Lock()  # of a process: a run draws torch's random numbers and sets its threads


class Job:
    """A function and its arguments, to be called in another process as it would be here.

    It takes along the working directory, the Python path and the environment's registration, whose module is imported
    before the arguments are unpacked; relative paths and code of the user's so mean there what they mean here, also in
    a process that worked before for other code, or for an earlier state of it. Calls in one process are made one after
    the other, whatever its threads.

    Args:
        name: what is done, for messages.
        function: what to call.
        arguments: with what.
        env: the id of an environment that they name, if any.
        count: threads of torch.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *arguments: Any, env: str | None = None, count: int = 1
    ) -> None:
        self.name = name
        self._call = cloudpickle.dumps((function, arguments))
        self._count = count
        self._ids = {} if env is None else {env: ENTRIES[env]}
        self._modules = users_modules()
        self._place = Path.cwd()
        self._path = [os.path.abspath(one) for one in sys.path]  # noqa: PTH100, "" is the working directory

    def __str__(self) -> str:
        return self.name

    def __call__(self) -> Any:
        """Do it.

        Raises:
            ChildProcessError: if code of the user's raises anything, whose lines it tells, as a traceback does not
                travel, or anything exits, but for the handler of a signal; or if the working directory is not there.
            Exception: what else the function raises.
        """
        with _one_at_a_time, threads(self._count):
            before = Path.cwd()
            try:
                os.chdir(self._place)
            except OSError as error:
                raise ChildProcessError(
                    f"{self.name}: {socket.gethostname()} has no folder {self._place} ({error.strerror}): workers must "
                    "share the file system of whoever hands out the work."
                ) from error
            try:
                theirs = [one for one in self._path if not one.startswith(LIBRARIES)]
                sys.path[:] = dict.fromkeys([*theirs, *sys.path, *self._path])
                take_over_modules(self._modules)
                take_over_ids(self._ids)
                function, arguments = cloudpickle.loads(self._call)
                return function(*arguments)
            except BaseException as error:
                exits = isinstance(error, (SystemExit, KeyboardInterrupt)) and not raised_by_signal(error)
                if exits or raised_by_user(error):
                    raise ChildProcessError(f"{self.name}: {told(error)}") from None
                raise
            finally:
                with suppress(OSError):
                    os.chdir(before)


class Workers(Executor):
    """An executor of `Job` that tries again what a worker that dies leaves unfinished.

    Attributes:
        at_once: how many pieces of work are done at once, as far as is known.
    """

    at_once: int = 1

    @abstractmethod
    def submit(self, work: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        """Have work done; its future raises what it raises, ChildProcessError if its workers die again and again."""

    @abstractmethod
    def abandon(self) -> None:
        """Have no further work done, and end what is under way if that is possible."""


def died(work: object, what: str) -> ChildProcessError:
    """The error of work whose workers died as often as it is tried."""
    return ChildProcessError(
        f"{work}: {what} {TRIES} times, perhaps for want of memory; the same command goes on from what is kept."
    )
