"""What a check finds, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bptt_envs import System

Level = Literal["ok", "note", "warning", "error"]

MOST_NAMED = 4  # components that are named one by one

_SHOWN: dict[Level, str] = {"ok": "OK", "note": "note", "warning": "WARNING", "error": "ERROR"}


@dataclass(frozen=True)
class Finding:
    """A line of a report.

    Attributes:
        level: "ok"; "note", which is as it may be; "warning", which may spoil training; "error", which does.
        words: what was looked at and what was seen; of an error also what would be right.
    """

    level: Level
    words: str


def report(findings: Sequence[Finding], width: int = 80) -> str:
    """The findings as text, each with its level before it, and how many are bad."""
    margin = max(map(len, _SHOWN.values())) + 2
    lines = []
    for one in findings:
        first = _SHOWN[one.level].ljust(margin)
        lines += textwrap.wrap(one.words, width, initial_indent=first, subsequent_indent=" " * margin)
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many errors and warnings there are, in words."""
    levels = [one.level for one in findings]
    counts = [_counted(levels.count(level), level) for level in ("error", "warning") if level in levels]
    return f"{' and '.join(counts)}." if counts else "Nothing is wrong."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def component(system: System, argument: str, place: int | None) -> str:
    """A component in words, by its label if it has one."""
    if place is None:
        return f"a random mixture of {argument}"
    labels = {"action": system.action_labels, "observation": ()}.get(argument, system.state_labels)
    named = f" ({labels[place]})" if place < len(labels) else ""
    return f"component {place}{named} of {argument}"


def components(system: System, argument: str, places: Sequence[int]) -> str:
    """Components in words, the first few of many."""
    named = [component(system, argument, i) for i in places[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else "")
