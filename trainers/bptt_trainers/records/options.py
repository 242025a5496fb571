"""Options in one cell of a CSV file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from bptt_trainers.records.plain import plain


def write_options(options: Mapping[str, Any]) -> str:
    """Names and values as "n_poles=2; dynamics='exact'"."""
    return "; ".join(f"{name}={_python(value)!r}" for name, value in options.items())


def read_options(text: str) -> dict[str, Any]:
    """What `write_options` wrote, arrays as lists.

    Raises:
        ValueError: if it is of another form.
    """
    options, begun = {}, ""
    for part in text.split("; ") if text else ():
        begun += part
        name, _, value = begun.partition("=")
        try:
            options[name] = ast.literal_eval(value)
            begun = ""
        except (ValueError, SyntaxError):
            begun += "; "  # it is within a string
    if begun:
        raise ValueError(f"options must be names and values, such as n_poles=2; got {text!r}.")
    return options


def _python(value: Any) -> Any:
    """The value with Python's numbers in place of NumPy's."""
    if isinstance(value, (tuple, list)):
        return type(value)(_python(one) for one in value)
    return plain(value) if isinstance(value, (np.generic, np.ndarray)) else value
