"""Constructors that say what may be meant by an argument that they do not have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any, TypeVar

from bptt_envs.checks import nearest

Self = TypeVar("Self", bound="KnownArguments")


class KnownArguments:
    """A class that refuses an argument by a name that its constructor does not have with the name that is near to it.

    Raises:
        TypeError: as Python does, in words.
    """

    def __new__(cls: type[Self], *_: Any, **given: Any) -> Self:
        """Make one, if the names of its arguments are known."""
        kind: Any = cls
        known = _names(kind) if given else None
        for name in given:
            if known is not None and name not in known:
                raise TypeError(f"{cls.__name__} has no argument {name!r}.{cls.meant_by(name, known)}")
        return super().__new__(cls)

    @classmethod
    def meant_by(cls, name: str, known: Collection[str]) -> str:
        """Return a sentence, after a space, on what may be meant by a name that is none of those known, or nothing."""
        return nearest(name, known) or f" Its arguments: {', '.join(known)}."


@functools.lru_cache(maxsize=256)
def _names(kind: Any) -> tuple[str, ...] | None:
    """The names of a constructor's arguments; None where it takes any."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return tuple(one.name for one in parameters if one.kind is not one.VAR_POSITIONAL)
