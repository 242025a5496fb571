"""What may be meant by a command line that cannot be read."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from tyro.conf import Positional, Suppress, UseAppendAction

from bptt_envs.checks import nearest


@contextmanager
def explained(command: type, arguments: Sequence[str]) -> Iterator[None]:
    """Say what may be meant below what is said of arguments that cannot be read, when that ends the process."""
    try:
        yield
    except SystemExit as error:
        for sentence in hints(command, arguments) if error.code else ():
            print(sentence, file=sys.stderr)
        raise


def hints(command: type, arguments: Sequence[str]) -> list[str]:
    """Sentences on what is likely to be wrong with the arguments of a command; none where nothing stands out.

    Args:
        command: the dataclass whose fields are the options.
        arguments: the words after its name.
    """
    kinds = dict(known_options(command))
    flags = {f"--no-{name[2:]}" for name in kinds} | {"-h", "--help"}
    found = []
    for word, values in _given(arguments):
        option = "--" + word.partition("=")[0][2:].replace("_", "-")
        if option not in kinds:
            if option not in flags:
                name = nearest(_name(option), [*map(_name, kinds), *(f"no_{_name(one)}" for one in kinds)])
                found += [f"{option} is no option.{_dashed(name)}"] if name else []
        elif UseAppendAction in getattr(kinds[option], "__metadata__", ()):
            if len(values) > 1 and "=" in values[1]:
                found.append(f"{option} takes one value and may be repeated: {_each(option, values)}.")
        elif _holds_several(kinds[option]) and len(values) == 1 and re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+,?", values[0]):
            found.append(f"Values have spaces between them: {option} {' '.join(filter(None, values[0].split(',')))}.")
    return found


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the words that follow it up to the next."""
    places = [i for i, word in enumerate(arguments) if word.startswith("--") and len(word) > len("--")]
    for place, after in zip(places, [*places[1:], len(arguments)], strict=True):
        yield arguments[place], list(arguments[place + 1 : after])


def known_options(command: Any) -> Iterator[tuple[str, Any]]:
    """The options of a command, with their types; those of the settings that it holds among them."""
    for name, kind in get_type_hints(command, include_extras=True).items():
        marks = getattr(kind, "__metadata__", ())
        inner = get_args(kind)[0] if marks else kind
        if Positional in marks or Suppress in marks or get_origin(kind) is ClassVar:
            continue
        if dataclasses.is_dataclass(inner):
            yield from known_options(inner)
        else:
            yield f"--{name.replace('_', '-')}", kind


def _name(option: str) -> str:
    return option[2:].replace("-", "_")


def _holds_several(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(_holds_several(part) for part in get_args(kind))


def _each(option: str, values: Sequence[str]) -> str:
    return " ".join(f"{option} {value}" for value in values if "=" in value)


def _dashed(question: str) -> str:
    return re.sub(r"'(\w+)'", lambda name: f"'--{name[1].replace('_', '-')}'", question)
