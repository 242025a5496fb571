"""Code of the user's own: how a module of it is imported, and whether an error arose in it."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from gymnasium.envs.registration import registry

from bptt_envs import raised
from bptt_envs.contract import MethodError
from bptt_envs.raised import FROZEN, Owner, whose
from bptt_envs.registration import ENTRIES, Entry, register

TRAINERS = Path(__file__).parents[1]
OURS = (*raised.OURS, *(str(package) + os.sep for package in (TRAINERS, TRAINERS.parent / "bptt_studies")))


class UserModuleError(Exception):
    """A module of the user's cannot be imported; the cause is what it raised."""


def import_module(name: str) -> str:
    """Import a module for what it registers, and return its name; the working directory is searched too.

    Raises:
        ValueError: if `name` is no name of a module, or there is none of that name.
        UserModuleError: if the module raises anything; that is the cause.
    """
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        raise ValueError(f"a module must be named as import does, such as my_envs or my_package.envs; got {name!r}.")
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise ValueError(f"module {name!r} cannot be looked for: the working directory is gone.") from error
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module {error.name!r} on the Python path or in {here}.") from error
        raise UserModuleError(f"module {name!r} imports one that is not there.") from error
    except (Exception, SystemExit) as error:
        raise UserModuleError(f"module {name!r} cannot be imported.") from error
    return name


def split_id(env: str) -> tuple[str | None, str]:
    """Split "my_module:MyEnv-v0" into the module that registers the id, if one is named, and the id."""
    module, colon, env_id = env.rpartition(":")
    return (module if colon else None), env_id


def imported_id(env: str) -> str:
    """The id of "ID" or "MODULE:ID", after the module, if one is named, is imported.

    Raises:
        ValueError, UserModuleError: as `import_module`.
    """
    module, env_id = split_id(env)
    if module is not None:
        import_module(module)
    return env_id


def take_over_ids(entries: Mapping[str, Entry]) -> None:
    """Know the ids that another process does: import the modules of their systems, and register what is missing."""
    for env_id, entry in entries.items():
        importlib.import_module(entry.system.partition(":")[0])  # which may register it itself
        if env_id not in ENTRIES:
            register(env_id, entry.system, entry.summary, reward_threshold=entry.threshold, **entry.defaults)


def users_modules() -> dict[str, str]:
    """A digest of the file of each module of the user's that is imported here, by name."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and name != "__main__" and whose(path, name, OURS) == "user":
            with suppress(OSError):
                found[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found


_taken: dict[str, str] = {}  # of the work before, in a process that works for others: what `users_modules` gave there


def take_over_modules(digests: Mapping[str, str]) -> None:
    """Forget the modules that were imported for other work, and their ids, if they are not those of this work.

    Args:
        digests: what `users_modules` gave where the work comes from.
    """
    if any(digests.get(name, digest) != digest for name, digest in _taken.items()):
        for name in _taken:
            sys.modules.pop(name, None)
        for env_id in [one for one, entry in ENTRIES.items() if entry.system.partition(":")[0] in _taken]:
            del ENTRIES[env_id]
            registry.pop(env_id, None)
        _taken.clear()
    importlib.invalidate_caches()  # of folders in which there are new files
    _taken.update(digests)


def raised_by_signal(error: BaseException) -> bool:
    """Whether the handler of a signal raised an error, in whatever code that was being run."""
    handlers = {getattr(signal.getsignal(one), "__code__", None) for one in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def raised_by_user(error: BaseException) -> bool:
    """Whether an error arose in code of the user's, or in a library that it called, and not in a check of ours."""
    if isinstance(error, UserModuleError):
        return True
    if isinstance(error, MethodError) and error.__cause__ is not None:
        return raised_by_user(error.__cause__)
    if raised_by_signal(error):
        return False
    owners = (_owner(frame) for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))
    return next((owner for owner in owners if owner != "library"), "library") == "user"


def told(error: BaseException) -> str:
    """What was raised in code of the user's, in words: the lines from there on, its type and its message."""
    about = isinstance(error, (UserModuleError, MethodError))
    cause = error.__cause__ if about and error.__cause__ is not None else error
    shown = traceback.TracebackException.from_exception(cause, compact=True)
    owners = [_owner(frame) for frame, _ in traceback.walk_tb(cause.__traceback__)]
    after = shown.stack[owners.index("user") if "user" in owners else 0 :]
    shown.stack = traceback.StackSummary.from_list([line for line in after if not line.filename.startswith(FROZEN)])
    what = "an error in code that is not of bptt:" if cause is error else str(error)
    return f"{what}\n{''.join(shown.format()).rstrip()}"


def _owner(frame: FrameType) -> Owner:
    """Whose code a frame runs."""
    return whose(frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")), OURS)
