"""Whose turn it is in a folder on a file system without locks: a file beside it, which whoever has it keeps young."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bptt_trainers.host.processes import is_running
from bptt_trainers.records.files import RunFolderError, create, modified, move, read_bytes, remove, renew

BEAT = 20.0
"""Seconds between two signs of life of whoever has a turn."""

SILENCE = 180.0
"""Seconds without one after which it counts as gone; clocks of machines differ."""

PAUSE = 0.1  # seconds between two looks


@contextmanager
def turn(folder: Path, wait: float) -> Iterator[bool]:
    """Keep the turn within; yields False if there is none to be had, as no file can be made beside the folder.

    A file is made that was not there, which one process alone can do on every file system. It names its process, by
    which another one on the same machine sees whether it is gone; elsewhere it does so by its silence.

    Args:
        folder: whose turn it is.
        wait: seconds to wait for another process that has it.

    Raises:
        RunFolderError: if another process has it.
    """
    place = Path(os.path.abspath(folder))  # noqa: PTH100, a link stays one
    path = place.with_name(f".{place.name}.lock")
    mine = json.dumps([socket.gethostname(), os.getpid(), secrets.token_hex(8)]).encode()
    end = time.monotonic() + wait
    possible = True
    try:
        while not create(path, mine):
            if _left_behind(path):
                _clear(path)
            elif time.monotonic() >= end:
                raise RunFolderError(
                    f"{folder} is in use by another process that trains into it, which holds {path}; if that process "
                    f"is gone, it is free {SILENCE:g} s after."
                )
            else:
                time.sleep(PAUSE)
    except OSError:
        possible = False
    if not possible:
        yield False
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                renew(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        if _content(path) == mine:  # else another one took it, as this one was silent
            remove(path)


def _left_behind(path: Path) -> bool:
    """Whether the process that made a file of a turn is gone."""
    try:
        host, process, _ = json.loads(_content(path))
    except ValueError:  # it is being made, or was taken away meanwhile
        host, process = None, 0
    if host == socket.gethostname() and not is_running(process):
        return True
    made = modified(path)
    return made > 0 and time.time() - made / 1e9 > SILENCE


def _clear(path: Path) -> None:
    """Take away a file that was left behind; if another process was first and has made its own, that stays."""
    judged, aside = _content(path), path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        move(path, aside)
        moved = _content(aside)
        if moved != judged:
            create(path, moved)
        remove(aside)


def _content(path: Path) -> bytes:
    """What a file holds; nothing if it is not there."""
    with suppress(FileNotFoundError, RunFolderError):
        return read_bytes(path)
    return b""
