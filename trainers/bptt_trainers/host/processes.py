"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux' prctl

Submit = Callable[..., "Future[Any]"]
"""From a function and its arguments to what will be its answer."""


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


@contextmanager
def pool(jobs: int, begin: Callable[..., None], arguments: tuple[Any, ...] = ()) -> Iterator[Submit]:
    """Processes that work for this one, as a function that submits work; none is left, however this process ends.

    Args:
        jobs: how many processes.
        begin: called first in each, with `arguments`; should call `end_with_parent`.
        arguments: what `begin` is called with.

    Raises:
        ChildProcessError: if one of them was ended from outside.
    """
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), begin, arguments)

    def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with out_of_reach_of_the_terminal():  # it may start a process
            return executor.submit(work, *arguments)

    try:
        yield submit
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a training process was ended from outside, perhaps for want of memory; the same command goes on."
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


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
