"""The shell around a command: output that nobody may read, signals that end it, narrow screens."""

from __future__ import annotations

import io
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TextIO

NARROWEST = 40  # columns that help and errors are laid out for at least


class Sink(io.FileIO):
    """A standard stream that takes everything: what cannot be written is lost, and never ends a run.

    Attributes:
        lost: why the first of what was lost could not be written; None: nothing was, or its reader, such as head, has
            seen enough.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """Write, or drop."""
        try:
            while (written := super().write(data)) is None:  # a stream that does not block, and is full
                select.select([], [self], [])
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)
        return written


@contextmanager
def safe_output() -> Iterator[Sink | None]:
    """Within, nothing that is printed raises an error: closed and broken streams, characters that they do not have.

    Yields the standard output; None if it is not that of the process, but one that Python code has put in its place.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would be taken for it
            os.open(os.devnull, os.O_RDWR)
    sinks: dict[str, Sink] = {}
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for descriptor, name in enumerate(before, start=1):
        if before[name] is getattr(sys, f"__{name}__") and not _of_windows(before[name]):
            sinks[name] = Sink(descriptor)
            setattr(sys, name, _text(sinks[name], before[name]))
    try:
        yield sinks.get("stdout")
    finally:
        for name in sinks:
            getattr(sys, name).flush()
            setattr(sys, name, before[name])


def _of_windows(stream: TextIO | None) -> bool:
    """Whether a stream is the console of Windows, which takes characters and not bytes."""
    return sys.platform == "win32" and stream is not None and stream.isatty()


def _text(sink: Sink, like: TextIO | None) -> TextIO:
    """A stream of text into `sink`; characters that its encoding does not have are written as escapes."""
    encoding = "utf-8" if like is None else like.encoding
    lines = sink.isatty() or sink.fileno() == 2
    return io.TextIOWrapper(io.BufferedWriter(sink), encoding, errors="backslashreplace", line_buffering=lines)


class Ended:
    """What ended a command from outside: the signal; that of Ctrl-C as long as there was no other."""

    signal = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """As a shell has it: 130, 143 or 129."""
        return 128 + self.signal


@contextmanager
def ended_in_order() -> Iterator[Ended]:
    """Within, SIGTERM and SIGHUP end a command as Ctrl-C does: by a KeyboardInterrupt, once.

    A signal that is ignored (nohup) or has a handler stays as it is, and so does everything outside the main thread.
    """
    ended = Ended()
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    ours = [number for name in names if (number := getattr(signal, name, None)) is not None]  # Windows has one of them
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        ended.signal = signal.Signals(number)
        for one in ours:
            signal.signal(one, signal.SIG_IGN)  # the same signal twice must not end what tidies up
        raise KeyboardInterrupt

    with ExitStack() as stack:
        for number in ours:
            stack.callback(signal.signal, number, signal.SIG_DFL)
            signal.signal(number, end)
        yield ended


@contextmanager
def wide_enough() -> Iterator[None]:
    """Within, a screen has columns enough for help and errors to be laid out."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(NARROWEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
