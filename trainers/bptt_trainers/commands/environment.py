"""Environments as the command line names them: `--env ID`, `--env-option NAME=VALUE`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from bptt_envs import DifferentiableEnv, System, make_env
from bptt_envs.checks import one_of
from bptt_envs.registration import system_class
from bptt_envs.system import FUNCTIONS
from bptt_trainers.host.user_code import import_module, imported_id, split_id

Module = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="MODULE",
        instance_from_str=lambda texts: import_module(texts[0]),
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""An option that imports a module as soon as it is read: before the fields below it are checked."""

EnvOptions = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")]
"""An option that may be given several times, for `parse_options`."""


def known_system(env: str) -> type[System]:
    """The system of an id, whose module is imported first if it is named.

    Raises:
        ValueError: if there is no such module or id.
    """
    return system_class(imported_id(env))


def make_environment(env: str, options: dict[str, Any]) -> DifferentiableEnv:
    """Build the environment `env`, "ID" or "module:ID".

    Raises:
        ValueError: if an option is out of range.
    """
    return make_env(split_id(env)[1], **options)


def parse_options(env: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read "name=value" texts as the types that the options of `env` have.

    Raises:
        ValueError: if the id, a name or a value is not known; the message says what would be right.
    """
    system = known_system(env)
    types = option_types(system)
    options: dict[str, Any] = {}
    for name, value in named_texts("--env-option", texts, "horizon=50"):
        system.check_options({name: value}, owner=split_id(env)[1])
        if name in FUNCTIONS and name not in system.options():
            raise ValueError(f"--env-option {name}: it is a function, which is given in Python only; got {value!r}.")
        options[name] = _parse(name, value, types[name])
    return options


def named_texts(option: str, texts: Sequence[str], example: str) -> Iterator[tuple[str, str]]:
    """Split the "name=value" texts of an option.

    Raises:
        ValueError: if a text has another form.
    """
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} must be NAME=VALUE, such as {example}; got {text!r}.")
        yield name, value


def option_types(system: type[System]) -> dict[str, Any]:
    """The type of each option of a system's environment: as annotated, else its default's, `Any` where that is None."""
    hints = get_type_hints(system.__init__)
    defaults = {name: Any if default is None else type(default) for name, default in system.env_options().items()}
    return {name: hints.get(name, kind) for name, kind in defaults.items()}


def describe_type(kind: Any) -> str:
    """A type in words: "int", "float or none", "a or b" for the strings that a Literal allows."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if len(_members(kind)) > 1:
        return " or ".join(describe_type(member) for member in _members(kind))
    names: dict[Any, str] = {type(None): "none", Any: "any"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _parse(name: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for, as one of the types that `kind` allows."""
    for member in sorted(_members(kind), key=lambda member: member is not type(None)):  # "none" is also a str
        reader = str if get_origin(member) is Literal else _READERS.get(member, ast.literal_eval)
        try:
            return reader(text)
        except (ValueError, SyntaxError):
            continue
    raise ValueError(f"--env-option {name} must be of type {describe_type(kind)}; got {text!r}.")


def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a union allows, or the type itself."""
    return get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,)


def _read_none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[one_of("value", text.lower(), ("true", "false"))]


def read_any(text: str) -> Any:
    """A number, none, true, false, any Python literal; else the text itself."""
    named = {"none": None, "true": True, "false": False}
    try:
        return named[text.lower()] if text.lower() in named else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_READERS: dict[Any, Callable[[str], Any]] = {
    Any: read_any,
    type(None): _read_none,
    bool: _read_bool,
    int: int,
    float: float,
    str: str,
}
