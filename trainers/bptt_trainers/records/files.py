"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class RunFolderError(RuntimeError):
    """A run folder cannot be used or written; the message says why and what still stands."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably: after a crash it holds either its old content or the new one.

    Raises:
        RunFolderError: if it cannot be written (a full disk, no permission, ...); `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}. {_what_stands(path)}") from error


def _what_stands(path: Path) -> str:
    with contextlib.suppress(OSError):
        if path.exists():
            return "What stood there before still stands."
    return "Nothing was written."
