"""The one reader of settings: the fields of a dataclass, by their annotations.

    @dataclass(frozen=True)
    class Settings:
        epochs: Count = 1000
        clip: Literal["none", "norm"] = "none"
        hidden: tuple[Count, ...] | None = None

        def __post_init__(self) -> None:
            read(self)

After `read` every field holds a plain value of its type; a value of another type, or out of range, is refused in words.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from bptt_envs import checks


class By:
    """Marks an annotation, Annotated[kind, By(check)], with the check that reads its values.

    Args:
        check: from a name and a value to the plain value; raises ValueError.
    """

    def __init__(self, check: Callable[[str, Any], Any]) -> None:
        self.check = check


Count = Annotated[int, By(checks.positive_integer)]
Seed = Annotated[int, By(checks.seed)]
Positive = Annotated[float, By(checks.positive)]
NotNegative = Annotated[float, By(checks.not_negative)]
Decay = Annotated[float, By(checks.decay)]
Share = Annotated[float, By(checks.share)]


def at_least(least: int) -> By:
    """Integers from `least` on."""
    return By(lambda name, value: checks.integer(name, value, least))


def among(choices: Iterable[str]) -> By:
    """One of strings that are not known to the type checker, such as the names of a table."""
    return By(lambda name, value: checks.one_of(name, value, choices))


def read(settings: Any) -> None:
    """Turn the fields of a dataclass, frozen or not, into plain values of their annotated types.

    Raises:
        ValueError: naming the first field that holds something else.
    """
    kinds = get_type_hints(type(settings), include_extras=True)
    for one in fields(settings):
        object.__setattr__(settings, one.name, read_value(one.name, getattr(settings, one.name), kinds[one.name]))


def read_value(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as a plain value of the annotation `kind`, else raise ValueError.

    Kinds: bool, int, float, str, Path, Literal of strings, tuple, Mapping from str, Optional, and any of them within
    Annotated, where a `By` says how it is read.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        by = next((one for one in arguments[1:] if isinstance(one, By)), None)
        return read_value(name, value, arguments[0]) if by is None else by.check(name, value)
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not type(None))
        return None if value is None else read_value(name, value, inner)
    if origin is Literal:
        return checks.one_of(name, value, arguments)
    if origin is tuple:
        return _read_tuple(name, value, arguments)
    if origin is Mapping or kind is Mapping:
        by_name = checks.mapping(name, value)
        return {key: read_value(f"{name}[{key!r}]", one, arguments[1]) for key, one in by_name.items()}
    return _PLAIN[kind](name, value)


_PLAIN: dict[Any, Callable[[str, Any], Any]] = {
    bool: checks.flag,
    int: lambda name, value: checks.integer(name, value, -checks.TOO_LARGE),
    float: checks.finite,
    str: checks.string,
    Path: checks.path,
    Any: lambda name, value: value,
}


def _read_tuple(name: str, value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if arguments[1:] == (...,):
        return checks.each(name, value, lambda _, one: read_value(name, one, arguments[0]), "a list or a tuple")
    items = checks.each(name, value, lambda _, one: one, f"{len(arguments)} values, such as a tuple")
    if len(items) != len(arguments):
        raise ValueError(f"{name} must be {len(arguments)} values; got {checks.shown(value)}.")
    return tuple(read_value(name, one, kind) for one, kind in zip(items, arguments, strict=True))
