"""Peak memory of a program, measured in a process of its own."""

from __future__ import annotations

import ctypes
import ctypes.util
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bptt_envs.checks import positive_integer
from bptt_trainers.host.processes import end_with_parent, out_of_reach_of_the_terminal

MIB = 2**20
LEAVE = 10.0  # seconds that a process has for its own end, before it is ended

Program = Callable[[], object]

_PROCESS = Path("/proc/self")
_NO_MEMORY = ("can't allocate memory", "RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")


class MemoryMeasurementError(ChildProcessError):
    """The process in which memory was measured did not end well; the message says why."""


class MemoryExceeded(MemoryMeasurementError):
    """The program needs more memory than it was allowed, or than the machine has."""


def peak_memory(target: Callable[..., Program], *, limit: int | None = None, **kwargs: Any) -> int:
    """Bytes by which the peak resident memory of a new process grows while a program runs in it.

    The process calls `target(**kwargs)`, which imports and builds what should not count, runs whatever is set up at
    a first call (a tiny case of the same program will do), and returns the program. From what is resident then, the
    growth is counted while the program runs, once. Numbers of threads are for `target` to set.

    Args:
        target: a function at the top of a module that can be imported; it returns the program.
        limit: bytes of address space that the program may add; None: as many as the machine gives. Address space
            is somewhat more than what is resident.
        kwargs: arguments of `target`, which can be pickled.

    Raises:
        ValueError: if `target` cannot be imported by name, an argument cannot be pickled, or `limit` is out of range.
        MemoryExceeded: if the program fails for want of memory, or its process is killed, as for want of memory.
        MemoryMeasurementError: if anything else fails in the process, whose traceback is in the message, or the
            machine does not tell a process's peak (only Linux does).
    """
    if limit is not None:
        positive_integer("limit", limit)
    if not (_PROCESS / "clear_refs").exists():
        raise MemoryMeasurementError("peak memory is read from /proc, which only Linux has.")
    try:
        pickle.dumps((target, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"target must be a function at the top of a module that can be imported, and its arguments plain data; "
            f"got {target!r} with {kwargs!r}: {error}."
        ) from error
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, target, kwargs, limit), daemon=True)
    with out_of_reach_of_the_terminal():
        process.start()
    sender.close()
    try:
        kind, value = receiver.recv()
        process.join(LEAVE)
    except EOFError:
        process.join()
        raise _death(process.exitcode, target, limit) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if kind == "bytes":
        return int(value)
    if kind == "memory":
        raise MemoryExceeded(f"{_name(target)} needs more memory than {_allowed(limit)}: {value}")
    raise MemoryMeasurementError(f"{_name(target)} failed in its process:\n{value}")


def _measure(sender: Connection, target: Callable[..., Program], kwargs: dict[str, Any], limit: int | None) -> None:
    """What the process does; sends ("bytes", growth), ("memory", message) or ("error", traceback)."""
    end_with_parent()
    (_PROCESS / "oom_score_adj").write_text("1000")  # where memory runs out, this is the process to end
    try:
        program = target(**kwargs)
        _trim()
        (_PROCESS / "clear_refs").write_text("5")  # the peak is now what is resident
        before = _status("VmRSS")
        with _limited(limit):
            program()
        answer: tuple[str, object] = ("bytes", max(0, _status("VmHWM") - before))
    except Exception as error:  # noqa: BLE001  # told to the other process, which raises it
        text = f"{type(error).__name__}: {error}"
        for_memory = isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)
        answer = ("memory", text.splitlines()[0]) if for_memory else ("error", traceback.format_exc())
    sender.send(answer)


@contextmanager
def _limited(limit: int | None) -> Iterator[None]:
    """Within, the address space may grow by `limit` bytes at most."""
    if limit is None:
        yield
        return
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise MemoryMeasurementError(f"/proc/self/status has no {name}.")


def _trim() -> None:
    """Give back what the allocator keeps free, so that the program must ask for it again, and is counted."""
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)


def _death(code: int | None, target: Callable[..., Program], limit: int | None) -> MemoryMeasurementError:
    """The error for a process that ended without a word."""
    if code is None or code >= 0:
        return MemoryMeasurementError(f"the process of {_name(target)} ended with exit code {code} and no result.")
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL or limit is not None:
        return MemoryExceeded(
            f"the process of {_name(target)} was ended by {name}, as happens where there is no more memory than "
            f"{_allowed(limit)}."
        )
    return MemoryMeasurementError(f"the process of {_name(target)} was ended by {name}.")


def _allowed(limit: int | None) -> str:
    return "the machine gives" if limit is None else f"the {limit / MIB:,.0f} MiB allowed"


def _name(target: Callable[..., Program]) -> str:
    return f"{target.__module__}.{target.__qualname__}"
