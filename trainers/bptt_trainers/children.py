"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
