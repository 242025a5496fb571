"""The one layer between the package and the disk: whole files, appended files, plain files only.

A folder may come from a stranger, and a disk may fill or a process be killed at any operation. So a file is replaced
whole or not at all, nothing is written through a link, and what is read is a plain file of a bounded size.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bptt_trainers.host.user_code import raised_by_user

TEXT_LIMIT = 2**28  # bytes, of settings and tables
DATA_LIMIT = 2**32  # bytes, of checkpoints and arrays

_CHUNK = 2**20
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO without a writer would wait for one
_LEFTOVER = re.compile(r"\..+(\.[0-9a-f]{16}|\.(json|csv|pt|npz|png)(\.\w+)?)\.part")  # now, and in earlier versions

DEPTH = 3  # levels of folders that are looked into for runs: a folder of comparisons, one of them, its runs, a run

_held: dict[Path, tuple[int, int]] = {}  # absolute folder -> device and inode


class RunFolderError(RuntimeError):
    """A run folder cannot be used or written; the message says why and what still stands."""


@contextlib.contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Turn into words what using the content of a damaged file, or of one of another version, raises."""
    try:
        yield
    except RunFolderError:
        raise
    except _NOT_UNDERSTOOD as error:
        if raised_by_user(error):  # it is his, and says more as it is
            raise
        raise RunFolderError(
            f"cannot use {path}: it is damaged or of another version ({first_line(error)})."
        ) from error


_NOT_UNDERSTOOD = (
    *(KeyError, TypeError, AttributeError, ValueError, IndexError, StopIteration),
    *(RuntimeError, ArithmeticError, MemoryError, AssertionError),
)


def first_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else repr(error)}"


# Reading


def read_bytes(path: Path, limit: int = DATA_LIMIT) -> bytes:
    """The content of a plain file; a link to one is followed.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        FileNotFoundError: if there is none.
        RunFolderError: if it is no plain file, too large, or cannot be read.
    """
    with _in_words(f"cannot read {path}: "):
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RunFolderError(f"cannot read {path}: it is {_kind(status.st_mode)}, not a plain file.")
            data = bytearray()
            while status.st_size <= limit and len(data) <= limit and (part := os.read(descriptor, _CHUNK)):
                data += part
        finally:
            os.close(descriptor)
    if max(status.st_size, len(data)) > limit:
        raise RunFolderError(f"cannot read {path}: it is larger than the {limit:,} bytes that such a file may have.")
    return bytes(data)


def read_text(path: Path) -> str:
    """The content of a plain text file in UTF-8.

    Raises:
        FileNotFoundError, RunFolderError: as `read_bytes`, and if it is no text.
    """
    data = read_bytes(path, TEXT_LIMIT)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RunFolderError(f"cannot read {path}: {error}.") from error


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        FileNotFoundError, RunFolderError: as `read_text`, and if it is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets
        raise RunFolderError(f"cannot read {path}: {error}.") from error


def exists(path: Path) -> bool:
    """Whether there is anything of that name, be it a link to nowhere."""
    return os.path.lexists(path)


def modified(path: Path) -> int:
    """When a file was written last, in ns since 1970; 0 if there is none."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0


# Writing


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably: after a crash it holds either its old content or the new one.

    Where `path` is a link it is replaced, and what it points to stays. A missing folder is made.

    Raises:
        RunFolderError: if it cannot be written (a full disk, no permission, ...); `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        make_folder(path.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105, by a name of `os`, as every operation here
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}. {_what_stands(path)}") from error


def write_folder(path: Path, content: Mapping[str, bytes]) -> None:
    """Make a folder of these files, by name, durably: after a crash it is there with all of them, or is not.

    Raises:
        RunFolderError: if there is one that is not empty, or it cannot be written.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100
    if list_names(path):
        raise RunFolderError(f"{path} is there and not empty: name another folder, or delete it. Nothing was written.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        make_folder(temporary)
        for name, data in content.items():
            descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        with contextlib.suppress(OSError):
            for name in os.listdir(temporary):  # noqa: PTH208
                os.unlink(temporary / name)  # noqa: PTH108
            os.rmdir(temporary)  # noqa: PTH106
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}. Nothing was written.") from error


def append(path: Path, data: bytes, at: int) -> int:
    """Add `data` to a file of `at` bytes, durably; what it holds beyond, as a failed call leaves it, is dropped.

    Returns:
        The size of the file now.

    Raises:
        RunFolderError: if it cannot be written, or is not the file that was left there; its first `at` bytes stand.
    """
    with _in_words(f"cannot write {path}: ", " Its earlier lines still stand."):
        _check_place(path.parent)
        descriptor = os.open(path, os.O_WRONLY | _NO_LINK | _NO_WAIT)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size < at:
                raise RunFolderError(f"cannot write {path}: something else has changed it since it was begun.")
            os.ftruncate(descriptor, at)
            os.lseek(descriptor, at, os.SEEK_SET)
            try:
                _write_all(descriptor, data)
            except OSError:
                os.ftruncate(descriptor, at)
                raise
        finally:
            os.close(descriptor)
    return at + len(data)


def create(path: Path, data: bytes) -> bool:
    """Make a file that was not there; False if it is. Of several processes that try, one makes it.

    Raises:
        OSError: if it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    except FileExistsError:
        return False
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)
    return True


def renew(path: Path) -> None:
    """Let a file be as if it were written now.

    Raises:
        OSError: if that cannot be done, as there is none.
    """
    os.utime(path)


def move(path: Path, to: Path) -> None:
    """Give a file another name in its folder.

    Raises:
        OSError: if there is none, or it cannot be moved.
    """
    os.rename(path, to)  # noqa: PTH104, by a name of `os`, as every operation here


def remove(path: Path) -> None:
    """Delete a file, if there is one; of a link, the link.

    Raises:
        RunFolderError: if it cannot be deleted.
    """
    with _in_words(f"cannot delete {path}: "), contextlib.suppress(FileNotFoundError):
        _check_place(path.parent)
        os.unlink(path)  # noqa: PTH108


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if need be; one that is `held` is not made again.

    Raises:
        OSError: if it cannot be made.
        RunFolderError: if it lies in a held folder that was moved, or behind a link there.
    """
    _check_place(path)
    if not os.path.isdir(path):  # noqa: PTH112
        os.makedirs(path, exist_ok=True)  # noqa: PTH103


def sweep(folder: Path) -> None:
    """Delete what writes that a kill cut short left in a folder.

    Raises:
        RunFolderError: if that cannot be done.
    """
    for name in list_names(folder):
        if is_leftover(folder / name):
            remove(folder / name)


def list_names(folder: Path) -> list[str]:
    """The names in a folder, in order; none if there is no such folder.

    Raises:
        RunFolderError: if it cannot be read.
    """
    with _in_words(f"cannot read {folder}: "):
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208
        except FileNotFoundError:
            return []


def printable(path: Path) -> str:
    """A path as a terminal may show it: a stranger's names may hold what moves the cursor."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(path))


def folders_with(folder: Path, *names: str) -> list[Path]:
    """A folder itself, if it holds something of one of these names; else those in it that do, `DEPTH` levels down.

    Each once, be there links to it; in the order of their paths, with numbers by size: seed2 before seed10. What cannot
    be read has none.
    """

    def found(place: Path, depth: int) -> Iterator[Path]:
        if any(exists(place / name) for name in names):
            yield place
        elif depth:
            with contextlib.suppress(OSError):
                for entry in sorted(place.iterdir(), key=_by_numbers):
                    if _is_folder(entry):
                        yield from found(entry, depth - 1)

    return each_place(found(folder, DEPTH))


def each_place(paths: Iterable[Path]) -> list[Path]:
    """Of paths that lead to the same place the first."""
    places: dict[str, Path] = {}
    for path in paths:
        places.setdefault(os.path.realpath(path), path)
    return list(places.values())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link into what may not be looked into
        return False


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def is_leftover(path: Path) -> bool:
    """Whether a write that a kill cut short left this, or somebody planted it in that place."""
    if not _LEFTOVER.fullmatch(path.name):
        return False
    with _in_words(f"cannot read {path}: "):
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:  # it was finished or deleted meanwhile
            return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


# Folders that are being trained into


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Make a folder if need be, and keep to it: if it is moved, what would be written into it is an error.

    Raises:
        RunFolderError: if it cannot be made.
    """
    with _in_words(f"cannot write {path}: ", " Nothing was written."):
        make_folder(path)
        status = os.stat(path)  # noqa: PTH116
    key = Path(os.path.abspath(path))  # noqa: PTH100, the path as it is spelt: links in it may be the user's
    before = _held.get(key)
    _held[key] = (status.st_dev, status.st_ino)
    try:
        yield
    finally:
        if before is None:
            _held.pop(key, None)
        else:
            _held[key] = before


def _check_place(folder: Path) -> None:
    """Raise RunFolderError if `folder` lies in a held one that is not where it was, or behind a link in it."""
    inner = Path(os.path.abspath(folder))  # noqa: PTH100
    for root in (inner, *inner.parents) if _held else ():
        if root not in _held:
            continue
        try:
            status = os.stat(root)  # noqa: PTH116
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != _held[root]:
            raise RunFolderError(f"{root} was moved or replaced while it was being written to; nothing is written now.")
        refuse_links(root, inner)


def refuse_links(root: Path, inner: Path) -> None:
    """Raise RunFolderError if a link lies on the way from the folder `root` to `inner` in it.

    In a stranger's folder it may lead anywhere.
    """
    outer, inner = (Path(os.path.abspath(path)) for path in (root, inner))  # noqa: PTH100
    if outer in inner.parents:
        for step in (inner, *inner.parents):
            if step == outer:
                return
            if os.path.islink(step):  # noqa: PTH114
                raise RunFolderError(f"{step} is a link to another place; nothing is written through it.")


@contextlib.contextmanager
def _in_words(before: str, after: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if before.startswith("cannot read"):
            raise
        raise RunFolderError(f"{before}No such file or directory.{after}") from None
    except OSError as error:
        raise RunFolderError(f"{before}{error.strerror or error}.{after}") from error


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _what_stands(path: Path) -> str:
    with contextlib.suppress(OSError):
        if exists(path):
            return "What stood there before still stands."
    return "Nothing was written."
