"""A folder belongs to the settings that were written into it first, and to one process at a time."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bptt_trainers.records.files import (
    RunFolderError,
    exists,
    folders_with,
    held,
    is_leftover,
    list_names,
    printable,
    read_json,
    sweep,
    write_atomic,
)
from bptt_trainers.records.turn import turn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Settings = dict[str, Any]

SHOWN = 8  # folders that an error names

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN)


class Claim:
    """The file that says what a folder belongs to.

    Args:
        path: the file, JSON.
        kind: what the folder holds, for messages: "run".
        differences: from what the file says and what is wanted, as JSON gives both back, to a line for each way in
            which they are different things.
    """

    def __init__(
        self, path: Path, kind: str, differences: Callable[[Settings, Settings], list[str]] | None = None
    ) -> None:
        self.path = path
        self.kind = kind
        self._differences = plain_differences if differences is None else differences

    def read(self) -> Settings:
        """What the file says.

        Raises:
            RunFolderError: if it is not there, cannot be read or does not hold names and values.
        """
        try:
            stored = read_json(self.path)
        except FileNotFoundError:
            folder, name = self.path.parent, self.path.name
            below = [one for one in folders_with(folder, name) if one != folder]
            more = f" and {len(below) - SHOWN} more" if len(below) > SHOWN else ""
            have = f" Those in it that have one: {', '.join(map(printable, below[:SHOWN]))}{more}." if below else ""
            raise RunFolderError(f"{folder} is not a {self.kind} folder: it has no {name}.{have}") from None
        if not isinstance(stored, dict):
            raise RunFolderError(f"cannot read {self.path}: it holds no settings.")
        return stored

    def check(self, wanted: Settings) -> Settings | None:
        """What the file says, if it says the same as `wanted`; None if the folder is free.

        Raises:
            RunFolderError: if the folder is another's, with what differs.
        """
        folder = self.path.parent
        if exists(self.path):
            stored = self.read()
            different = self._differences(stored, json.loads(json.dumps(wanted)))
            if different:
                raise RunFolderError(
                    f"{folder} holds a {self.kind} of another configuration; use another folder or the same settings:"
                    "\n  " + "\n  ".join(different)
                )
            return stored
        if any(not is_leftover(folder / name) for name in _names(folder)):
            raise RunFolderError(f"{folder} holds other files and no {self.kind}; use a new or empty folder.")
        return None

    def take(self, wanted: Settings) -> Settings | None:
        """Write `wanted` into the file, after `check`, whose answer it gives, and clear what a kill left half-written.

        Raises:
            RunFolderError: as `check`, and if the file cannot be written.
        """
        stored = self.check(wanted)
        sweep(self.path.parent)
        if stored is None or stored != json.loads(json.dumps(wanted)):
            write_atomic(self.path, (json.dumps(wanted, indent=2) + "\n").encode())
        return stored


def plain_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], here: str = "asked for") -> list[str]:
    """Every setting that is not the same, a line each; `here` says whence the wanted ones are."""
    return [
        in_words(name, stored.get(name), wanted.get(name), here)
        for name in dict.fromkeys([*stored, *wanted])
        if not same(stored.get(name), wanted.get(name))
    ]


def in_words(name: str, stored: Any, wanted: Any, here: str = "asked for") -> str:
    """One setting that differs, as a line."""
    return f"{name}: {stored!r} in the folder, {wanted!r} {here}"


def same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; NaN equals NaN."""
    return bool(one == other) or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@contextmanager
def locked(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Make the folder if need be, keep other processes from writing into it, and keep to it if it is moved.

    The lock is flock's, on the folder itself: unlike a library's lock file it leaves nothing in the folder, and ends
    with the process. Where the file system has no locks, it is a file beside the folder, as long as this process lives.

    Args:
        folder: the folder.
        wait: seconds to wait for another process that has it; for folders that several processes share.

    Raises:
        RunFolderError: if another process has it, or it cannot be made.
    """
    with held(folder), ExitStack() as stack:
        if fcntl is not None:
            try:
                descriptor = os.open(folder, os.O_RDONLY)
            except OSError as error:
                raise RunFolderError(f"cannot read {folder}: {error.strerror or error}.") from error
            stack.callback(os.close, descriptor)
            try:
                _lock(descriptor, wait)
            except OSError as error:
                if error.errno in _TAKEN:
                    raise RunFolderError(f"{folder} is in use by another process that trains into it.") from error
                if not stack.enter_context(turn(folder, wait)):
                    warnings.warn(
                        f"{folder} lies on a file system without locks ({error.strerror or error}), in a folder that "
                        "cannot be written: see to it that no other process trains into it.",
                        stacklevel=2,
                    )
        yield


def _lock(descriptor: int, wait: float) -> None:
    """Take the lock, waiting for up to `wait` seconds."""
    end = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN or time.monotonic() >= end:
                raise
        time.sleep(0.02)


def _names(folder: Path) -> list[str]:
    try:
        return list_names(folder)
    except RunFolderError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            return []  # it cannot be made, and the error of that says more
        raise
