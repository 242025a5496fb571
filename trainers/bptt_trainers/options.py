"""Options in one cell of a CSV file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any


def write_options(options: Mapping[str, Any]) -> str:
    """Names and values as "n_poles=2; dynamics='exact'"."""
    return "; ".join(f"{name}={value!r}" for name, value in options.items())


def read_options(text: str) -> dict[str, Any]:
    """What `write_options` wrote."""
    pairs = (one.partition("=") for one in text.split("; ") if one)
    return {name: ast.literal_eval(value) for name, _, value in pairs}
