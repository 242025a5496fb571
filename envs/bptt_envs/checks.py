"""Checks of arguments: every error names the argument, the value it got and what would be right."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'choice'?`` for the choice nearest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of the strings `choices`, else raise ValueError."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.{hint}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")
    return value


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an int of at least 1, else raise ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}.")
    return number


def positive(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0, else raise ValueError."""
    number = _as_float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0; got {value!r}.")
    return number


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0, else raise ValueError."""
    number = _as_float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0; got {value!r}.")
    return number


def finite(name: str, value: Any) -> float:
    """Return `value` as a finite float, else raise ValueError."""
    number = _as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {value!r}.")
    return number


def finite_pair(name: str, value: Any) -> tuple[float, float]:
    """Return `value` as two finite floats, else raise ValueError."""
    numbers = [_as_float(number) for number in value] if isinstance(value, (tuple, list)) else []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be a pair of finite numbers, such as (0.0, 0.0); got {value!r}.")
    return numbers[0], numbers[1]


def _as_float(value: Any) -> float:
    """Return `value` as a float, NaN if it is not a number."""
    try:
        return math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        return math.nan
