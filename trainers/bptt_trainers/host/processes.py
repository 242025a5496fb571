"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from bptt_trainers.host.work import TRIES, Workers, died

PR_SET_PDEATHSIG = 1  # of Linux' prctl


@contextmanager
def out_of_reach_of_the_terminal() -> Iterator[None]:
    """Within, a process that is started sees no Ctrl-C and no closed terminal: they are for this one, which ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker  # only where there are signals

    signals = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()  # its start, with the first process, lifts the mask
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes(Workers):
    """Processes of this machine, each of which ends with this one, however that ends.

    Each takes one piece of work at a time; one that dies is replaced, and its work is begun again.

    Args:
        jobs: how many.
    """

    def __init__(self, jobs: int) -> None:
        self.at_once = jobs
        self._threads = ThreadPoolExecutor(jobs)  # each minds a process of its own
        self._mine = threading.local()
        self._all: list[ProcessPoolExecutor] = []
        self._children: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._ended = False

    def submit(self, work: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        """As `Workers.submit`."""
        return self._threads.submit(self._done, work)

    def abandon(self) -> None:
        """End all processes."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """Let the processes end what they have begun, then end them."""
        with self._lock:
            self._ended = True
        for pool in self._all:
            pool.shutdown(wait)
        self._threads.shutdown(wait, cancel_futures=cancel_futures)  # last: a process ends with its thread

    def _done(self, work: Callable[[], Any]) -> Any:
        """What work returns, in a thread that minds a process."""
        for _ in range(TRIES):
            try:
                return self._begun(work).result()
            except (
                BrokenProcessPool,
                SystemExit,
                KeyboardInterrupt,
            ):  # the latter two by the handler of a signal there
                self._mine.pool = None
        raise died(work, "its process was ended from outside")

    def _begun(self, work: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if self._ended:
                raise CancelledError
            pool: ProcessPoolExecutor | None = getattr(self._mine, "pool", None)
            if pool is None:
                pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
                self._mine.pool = pool
                self._all.append(pool)
            before = set(multiprocessing.active_children())  # the caller may have some of its own
            with out_of_reach_of_the_terminal():  # it may start a process
                future = pool.submit(work)
            self._children |= set(multiprocessing.active_children()) - before
            return future


def is_running(process: int) -> bool:
    """Whether there is a process of that number on this machine; always, on Windows, where to ask is to kill."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_with_parent(wait: Callable[[], object] | None = None) -> None:
    """End this process as soon as its parent is gone; if it leads a process group, all of the group.

    To be called first in a process that works for another. The kernel ends it where it can (Linux), a thread anywhere.

    Args:
        wait: returns when the parent is gone; None: of a process of multiprocessing.
    """
    if wait is None:
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        wait = parent.join
    leads = hasattr(os, "getpgrp") and os.getpgrp() == os.getpid()
    if sys.platform == "linux" and not leads:  # the kernel would end the leader and leave the group
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def end() -> None:
        wait()
        if leads:
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
