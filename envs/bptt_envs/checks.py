"""Checks of arguments: every error names the argument, the value it got and what would be right.

What is returned is plain: numbers of NumPy become Python's, lists become tuples, so that a setting can be compared,
written as JSON and read back. Nothing is guessed: text is no number, True is none, and neither is an array.
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

#: Seeds and counts are below it: torch and NumPy hold them in 64 bits.
TOO_LARGE = 2**63
#: Entries of a range that is taken in the place of a tuple.
MOST_OF_RANGE = 2**20
#: Steps of an integrator within a step of a system: more would seem to hang.
MOST_SUBSTEPS = 10_000
#: The largest float32, and the smallest of full precision: systems and controllers calculate in it.
LARGEST = float(torch.finfo(torch.float32).max)
SMALLEST = float(torch.finfo(torch.float32).tiny)

_SHORT = reprlib.Repr()
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxarray = 20
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 40


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut short where that is long."""
    try:
        words = _SHORT.repr(value)
    except Exception:  # noqa: BLE001, a repr is anyone's code, and integers of many digits have none
        return f"a value of type {type(value).__name__}"
    return words if len(words) <= 500 else f"{words[:500]}..."


ALSO_CALLED = {
    **dict.fromkeys(("lr", "step_size"), "learning_rate"),
    **dict.fromkeys(("net_arch", "hidden_sizes", "hidden_layers", "layers"), "hidden"),
    **dict.fromkeys(("timesteps", "total_timesteps"), "steps"),
    **dict.fromkeys(("iterations", "n_epochs"), "epochs"),
    **dict.fromkeys(("n_envs", "envs"), "num_envs"),
    "activation_fn": "activation",
    "max_grad_norm": "clip_threshold",
}
"""What stable-baselines3, torch and others call a setting of ours."""


def nearest(word: object, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'choice'?`` for the choice nearest to `word`, or nothing.

    Upper and lower case count as the same, and what other libraries call a choice is near to it. Of several choices in
    one word, with commas, it says so.
    """
    if not isinstance(word, str) or len(word) > 100:  # such as a whole file
        return ""
    folded = {choice.casefold(): choice for choice in reversed(list(choices))}
    words = [part.strip().casefold() for part in word.split(",")]
    if len(words) > 1 and all(part in folded for part in words):
        return f" These are several in one: {', '.join(repr(folded[part]) for part in words)}."
    plain = word.casefold()
    called = ALSO_CALLED.get(plain, plain)
    matches = difflib.get_close_matches(called if called in folded else plain, folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[matches[0]]!r}?" if matches else ""


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return that of the strings `choices` which `value` is, else raise ValueError."""
    choices = tuple(choices)
    if isinstance(value, str):
        for choice in choices:
            if choice == value:
                return choice
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}.{nearest(value, choices)}"
    )


def string(name: str, value: Any) -> str:
    """Return `value` as a str of at least one character, else raise ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be text; got {shown(value)}.")
    return str.__str__(value)


def path(name: str, value: Any) -> Path:
    """Return `value`, a str or a path, as a Path, else raise ValueError."""
    try:
        found = os.fspath(value)
    except Exception:  # noqa: BLE001, a value that makes itself a path is anyone's code
        found = None
    if not isinstance(found, str) or not found or "\0" in found:
        raise ValueError(f"{name} must be a path, such as 'runs/one'; got {shown(value)}.")
    return Path(str.__str__(found))


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False; got {shown(value)}.")
    return bool(value)


def integer(name: str, value: Any, least: int, below: int = TOO_LARGE) -> int:
    """Return `value` as an int of at least `least` and less than `below`, else raise ValueError."""
    number = _as_int(value)
    if number is not None and number >= below:
        raise ValueError(f"{name} must be an integer from {least} to {_power(below)} - 1; got {shown(value)}.")
    if number is None or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {shown(value)}.")
    return number


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an int of at least 1, else raise ValueError."""
    return integer(name, value, 1)


def seed(name: str, value: Any) -> int:
    """Return `value` as an int of at least 0 that every generator of random numbers takes, else raise ValueError."""
    return integer(name, value, 0)


def positive(name: str, value: Any) -> float:
    """Return `value` as a finite float above 0, else raise ValueError."""
    number = as_float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be a finite number above 0; got {shown(value)}.")
    return _in_float32(name, number)


def not_negative(name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0, else raise ValueError."""
    number = as_float(value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0; got {shown(value)}.")
    return _in_float32(name, number)


def finite(name: str, value: Any) -> float:
    """Return `value` as a finite float, else raise ValueError."""
    number = as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {shown(value)}.")
    return _in_float32(name, number)


def share(name: str, value: Any) -> float:
    """Return `value` as a float from 0 to 1, else raise ValueError."""
    number = as_float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be a number from 0 to 1; got {shown(value)}.")
    return number


def decay(name: str, value: Any) -> float:
    """Return `value` as a float of at least 0 and below 1, else raise ValueError."""
    number = as_float(value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be a number of at least 0 and below 1; got {shown(value)}.")
    return number


def finite_pair(name: str, value: Any) -> tuple[float, float]:
    """Return `value` as two finite floats, else raise ValueError."""
    items = _items(value) or ()
    numbers = [as_float(number) for number in items]
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be a pair of finite numbers, such as (0.0, 0.0); got {shown(value)}.")
    return _in_float32(name, numbers[0]), _in_float32(name, numbers[1])


def each(name: str, value: Any, read: Callable[[str, Any], T], wanted: str) -> tuple[T, ...]:
    """Return the entries of a list, a tuple, a range or an array of one dimension, each as `read` returns it.

    Raises:
        ValueError: if `value` is none of these, in words that say what is `wanted`; and as `read` does.
    """
    items = _items(value)
    if items is None:
        raise ValueError(f"{name} must be {wanted}; got {shown(value)}.")
    return tuple(read(name, one) for one in items)


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Return `value` as a shape, a tuple of integers of at least 1, else raise ValueError."""
    sizes = each(name, value, positive_integer, "a shape, such as (4,)")
    in_memory(f"numbers of {name}", math.prod(sizes), 256)  # a layer's weights for each
    return sizes


def each_once(name: str, values: tuple[T, ...]) -> tuple[T, ...]:
    """Return `values` if there is one at least and none twice, else raise ValueError."""
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be at least one, each once; got {shown(values)}.")
    return values


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return `value` as a dict from names to anything, else raise ValueError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a dict from names to values; got {shown(value)}.")
    return {string(name, key): one for key, one in value.items()}


def instance(name: str, value: Any, expected: type | tuple[type, ...], wanted: str) -> None:
    """Raise TypeError, which says what is `wanted`, unless `value` is an instance of `expected`."""
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {wanted}; got {shown(value)}.")


def generator(name: str, value: Any) -> torch.Generator | None:
    """Return `value` if it is a torch.Generator or None, else raise ValueError."""
    if value is not None and not isinstance(value, torch.Generator):
        raise ValueError(
            f"{name} must be a torch.Generator, such as torch.Generator().manual_seed(0); got {shown(value)}."
        )
    return value


def as_float(value: Any) -> float:
    """Return `value` as a float, NaN if it is not a number and infinite if it is too large."""
    if isinstance(value, np.floating):
        return float(str(value))  # 0.001 for float32(0.001), whose float64 is 0.0010000000474974513
    number = _as_int(value)
    if number is None:
        return float(value) if isinstance(value, float) else math.nan
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def as_array(value: Any) -> np.ndarray | None:
    """`value` in the form of an array, None if it has no such form."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return None
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.double() if value.is_floating_point() else value).numpy()
        return np.asarray(value)
    except Exception:  # noqa: BLE001, a value that makes itself an array is anyone's code
        return None


def real_array(value: Any) -> np.ndarray | None:
    """`value` as an array of integers or floats, None if it is anything else: text, truth, complex numbers, objects."""
    array = as_array(value)
    return array if array is not None and array.dtype.kind in "iuf" else None


def in_memory(name: str, count: int, numbers: int) -> int:
    """Return `count` if so many times `numbers` float32 numbers are less than the machine's memory.

    Raises:
        ValueError: otherwise, naming what would fit.
    """
    most = _memory() // (4 * max(1, numbers))
    if count > most:
        raise ValueError(f"{name} must be at most {most}, for what it takes to fit into memory; got {shown(count)}.")
    return count


def substeps(given: Any, needed: float, by: str) -> int:
    """Return how many steps an integrator takes within a step of a system.

    Args:
        given: the option; None: as many as are `needed`.
        needed: at least, by the other options.
        by: which these are, with their values.

    Raises:
        ValueError: if these are too many, or `given` is no positive integer.
    """
    if given is not None:
        needed = positive_integer("substeps", given)
    if not needed <= MOST_SUBSTEPS:
        asked = shown(given) if given is not None else f"None, and {by} need {needed:.3g}"
        raise ValueError(f"substeps must be at most {MOST_SUBSTEPS}; got {asked}.")
    return max(1, math.ceil(needed))


def _memory() -> int:
    """Bytes of this machine; a terabyte where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40


def _power(number: int) -> str:
    exponent = number.bit_length() - 1
    return f"2**{exponent}" if number == 2**exponent else str(number)


def _items(value: Any) -> tuple[Any, ...] | None:
    """The entries of a list, a tuple, a range or an array of one dimension, else None."""
    if isinstance(value, np.ndarray):
        return tuple(value) if value.ndim == 1 else None
    if isinstance(value, range):
        return tuple(value) if not value[MOST_OF_RANGE:] else None
    return tuple(value) if isinstance(value, (list, tuple)) else None


def _as_int(value: Any) -> int | None:
    """Return `value` as an int, None if it is no integer."""
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):
        return None
    return int(value)


def _in_float32(name: str, number: float) -> float:
    """Return `number` if float32 can hold it, else raise ValueError."""
    if number != 0.0 and not SMALLEST <= abs(number) <= LARGEST:
        raise ValueError(
            f"{name} must be of a size that float32 can hold, {SMALLEST:.1e} to {LARGEST:.1e}; got {number!r}."
        )
    return number
