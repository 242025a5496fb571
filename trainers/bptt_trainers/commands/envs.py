"""`bptt envs`."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from bptt_envs import System
from bptt_envs.registration import ENTRIES
from bptt_envs.system import ENV_OPTIONS
from bptt_trainers.commands.environment import (
    Module,
    describe_type,
    known_system,
    make_environment,
    option_types,
)
from bptt_trainers.commands.exits import checking_arguments
from bptt_trainers.host.user_code import split_id

WIDTH = 80


@dataclass(frozen=True)
class Envs:
    """List the environments; with an ID, say what one is: its spaces and options.

    example: bptt envs DiffMultiPole-v0
    """

    module: Module = None
    """Module to import first: one that registers environments of your own."""

    env: Annotated[Positional[str | None], arg(metavar="[ID]")] = None
    """Environment id, or MODULE:ID to import first the module that registers it."""

    verbose: bool = False
    """Show the spaces and options of every id."""

    def run(self) -> None:
        """Print."""
        if self.env is not None:
            with checking_arguments():
                text = details(self.env)
            print(text)
        elif self.verbose:
            print("\n\n".join(details(env_id) for env_id in ENTRIES))
        else:
            width = max(map(len, ENTRIES))
            for env_id, entry in ENTRIES.items():
                print(f"{env_id:{width}}  {entry.summary}")
            print("\nbptt envs ID shows the spaces and options of one, bptt envs --verbose those of all.")


def details(env: str) -> str:
    """All that there is to know of one environment, from its table, its docstrings and itself."""
    system_class, env_id = known_system(env), split_id(env)[1]
    entry = ENTRIES[env_id]
    made = make_environment(env, {})
    system = made.system
    lines = [f"{env_id}: {entry.summary}", "", *description(system_class)]
    bound = "in" if system.has_bounds else "unbounded; RL learners are told"
    low, high = (float(end.flatten()[0]) for end in system.action_range)
    facts = {
        "observation": f"{system.observation_shape}",
        "state": f"{system.state_shape}: {', '.join(system.state_labels)}",
        "action": f"{system.action_shape}: {', '.join(system.action_labels)}, {bound} [{low:g}, {high:g}]",
        "episode": f"{system.horizon} steps of {system.dt:g} s",
    }
    for name, fact in facts.items():
        lines += textwrap.wrap(f"{name:<13}{fact}", WIDTH, subsequent_indent=" " * 13)
    lines += ["", "options (--env-option NAME=VALUE; in Python, arguments of gym.make):"]
    types = option_types(system_class)
    meanings = {name: meaning for name, (_, meaning) in ENV_OPTIONS.items()} | option_docs(system_class)
    for name, default in (system_class.env_options() | entry.defaults).items():
        lines.append(f"  {name}: {describe_type(types[name])}, default {'none' if default is None else default}")
        meaning = meanings.get(name, "(not documented)")
        lines += textwrap.wrap(meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def option_docs(system: type[System]) -> dict[str, str]:
    """What each option means, by name: the "Args" of the class and, for what it does not say, of its bases."""
    docs: dict[str, str] = {}
    for base in system.__mro__:
        docs = _args(inspect.cleandoc(base.__doc__ or "")) | docs
    return docs


def description(system: type[System]) -> list[str]:
    """What the docstrings of the class and its bases, up to one that says "State:", say before "Args:", wrapped.

    A line that begins with a word and a colon, such as 'State:' or 'Loss "final":', stays the begin of a line.
    """
    lines: list[str] = []
    for base in system.__mro__[: system.__mro__.index(System)]:
        text = re.split(r"^(?:Args|Raises|Attributes):$", inspect.cleandoc(base.__doc__ or ""), flags=re.MULTILINE)[0]
        for block in filter(None, map(str.strip, text.split("\n\n"))):
            for part in re.split(r"\n(?=[A-Z]\w*(?: \"\w+\")?:)", block):
                lines += textwrap.wrap(" ".join(part.split()), WIDTH)
            lines.append("")
        if re.search(r"^State:", text, flags=re.MULTILINE):
            break
    return lines


def _args(docstring: str) -> dict[str, str]:
    """The section "Args:" of a docstring in Google's style, by argument."""
    _, found, after = docstring.partition("\nArgs:\n")
    section = re.split(r"^\S", after, maxsplit=1, flags=re.MULTILINE)[0] if found else ""
    items = re.split(r"^ {4}(\w+)(?: \([^)]*\))?:", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(items[1::2], items[2::2], strict=True)}
