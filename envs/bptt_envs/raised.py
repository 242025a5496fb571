"""Where in a system an error was raised, in words."""

from __future__ import annotations

import os
import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal

from bptt_envs.registration import ENTRIES
from bptt_envs.system import System
from bptt_envs.task import Task

Owner = Literal["bptt", "library", "user"]

METHODS: dict[str, tuple[str, ...]] = {
    "initial_states": ("batch", "generator", "dtype"),
    "step": ("state", "action"),
    "observe": ("state",),
    "state_cost": ("state",),
    "running_cost": ("state", "action", "next_state"),
    "final_cost": ("state",),
    "terminated": ("state",),
    "linearize": ("state", "action"),
    "pullback": ("state", "action"),
    "observe_pullback": ("state",),
}
"""What a class of a system may write, with what it is called with."""

FROZEN = "<"  # begins the file name of code that is in no file: the import system, what torch generates
LIBRARIES = (FROZEN, *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
OURS = (str(Path(__file__).parent) + os.sep,)


def whose(path: str, module: str, ours: tuple[str, ...] = OURS) -> Owner:
    """Whose code a file holds; a system that is registered is its user's wherever it is installed.

    Args:
        path: of the file.
        module: its name.
        ours: how paths of these packages begin.
    """
    if path.startswith(ours):
        return "bptt"
    theirs = {entry.system.partition(":")[0].partition(".")[0] for entry in ENTRIES.values()}
    return "user" if module.partition(".")[0] in theirs or not path.startswith(LIBRARIES) else "library"


def raised(error: BaseException, what: str | None = None) -> str | None:
    """Say which method of a system raised an error, what, where, and what it is called with.

    Args:
        error: with the traceback that it had when it was caught.
        what: whose error it is if it went through no method of a system; None: that is not known.

    Returns:
        Words such as "Mine.step raised ValueError: too few values (mine.py:12). States come as (B, 2), ..."; None where
        neither a method nor `what` says whose it is.
    """
    called = [(one, system) for frame, _ in traceback.walk_tb(error.__traceback__) for one, system in _method(frame)]
    if not called:
        return None if what is None else f"{what} raised {told_briefly(error)}."
    method, system = called[-1]
    words = f"{type(system).__name__}.{method} raised {told_briefly(error)}."
    if method == "initial_states":
        return words
    inner = system.system if isinstance(system, Task) else system
    states, actions = (", ".join(("B", *map(str, shape))) for shape in (inner.state_shape, inner.action_shape))
    return f"{words} States come as ({states}), actions as ({actions}): B samples at once."


def told_briefly(error: BaseException) -> str:
    """The type, the first line of the message, and the line of the code that is not of this package, if any."""
    message = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    frames = [one for one in traceback.walk_tb(error.__traceback__) if _owner(one[0]) != "library"]
    first = next((i for i, (frame, _) in enumerate(frames) if _method(frame)), len(frames) - 1)
    own = [one for one in frames[first:] if _owner(one[0]) == "user"]
    place = f" ({_shown(*own[-1])})" if own else ""
    return f"{type(error).__name__}{f': {message}' if message else ''}{place}"


def checked_by_us(error: BaseException) -> bool:
    """Whether an error is one of arguments in words, which code of this package raised."""
    owners = [_owner(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    last = next((one for one in reversed(owners) if one != "library"), "bptt")
    return isinstance(error, (TypeError, ValueError)) and last == "bptt"


def _owner(frame: FrameType) -> Owner:
    return whose(frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")))


def _method(frame: FrameType) -> list[tuple[str, System]]:
    """The method of a system that a frame runs, and the system; nothing if it runs none."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if not isinstance(first, System):
        return []
    written = (name for name in METHODS if getattr(getattr(type(first), name), "__code__", None) is code)
    name = code.co_name if code.co_name in METHODS else next(written, None)
    return [] if name is None else [(name, first)]


def _shown(frame: FrameType, line: int) -> str:
    path = Path(frame.f_code.co_filename)
    with suppress(OSError, ValueError):  # the working directory is gone, or not above the file
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
