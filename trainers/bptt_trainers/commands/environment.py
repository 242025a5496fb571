"""Environments as the command line names them: `--env ID`, `--env-option NAME=VALUE`."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from bptt_envs import DifferentiableEnv, System
from bptt_envs.checks import one_of
from bptt_envs.registration import system_class


def import_module(name: str) -> str:
    """Import a module for what it registers, and return its name; the working directory is searched too.

    Raises:
        ValueError: if there is no such module.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; one that it imports is not
        raise ValueError(f"there is no module {error.name!r} on the Python path or in {here}.") from error
    return name


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


def split_id(env: str) -> tuple[str | None, str]:
    """Split "my_module:MyEnv-v0" into the module that registers the id, if one is named, and the id."""
    module, colon, env_id = env.rpartition(":")
    return (module if colon else None), env_id


def known_system(env: str) -> type[System]:
    """The system of an id, whose module is imported first if it is named.

    Raises:
        ValueError: if there is no such module or id.
    """
    module, env_id = split_id(env)
    if module is not None:
        import_module(module)
    return system_class(env_id)


def make_environment(env: str, options: dict[str, Any]) -> DifferentiableEnv:
    """Build the environment `env`, "ID" or "module:ID".

    Raises:
        ValueError: if an option is out of range.
    """
    made = gym.make(split_id(env)[1], **options).unwrapped
    assert isinstance(made, DifferentiableEnv)
    return made


def parse_options(env: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read "name=value" texts as the types that the options of `env` have.

    Raises:
        ValueError: if the id, a name or a value is not known; the message says what would be right.
    """
    system = known_system(env)
    types = option_types(system)
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--env-option must be NAME=VALUE, such as horizon=50; got {text!r}.")
        system.check_options({name: value}, owner=split_id(env)[1])
        options[name] = _parse(name, value, types[name])
    return options


def option_types(system: type[System]) -> dict[str, Any]:
    """The type of each option of a system: as annotated, else that of its default, `Any` where that is None."""
    hints = get_type_hints(system.__init__)
    defaults = {name: Any if default is None else type(default) for name, default in system.options().items()}
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


def _read_any(text: str) -> Any:
    """A number, none, true, false, any Python literal; else the text itself."""
    named = {"none": None, "true": True, "false": False}
    try:
        return named[text.lower()] if text.lower() in named else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_READERS: dict[Any, Callable[[str], Any]] = {
    Any: _read_any,
    type(None): _read_none,
    bool: _read_bool,
    int: int,
    float: float,
    str: str,
}
