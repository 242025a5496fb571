"""Rows of the LQR study as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bptt_trainers.records.tables import Row, piped

NOUGHT = 1e-6  # what is below is not told apart in tables


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    return piped([list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)])


def short(number: Any) -> float:
    """Six digits, for a CSV."""
    return float(f"{float(number):.6g}")


def spread(values: np.ndarray, unit: str) -> str:
    """Median (least to largest)."""
    middle, least, largest = (_digits(value) for value in (np.median(values), values.min(), values.max()))
    return f"{middle}{unit}" if least == largest else f"{middle}{unit} ({least} to {largest})"


def share(flags: np.ndarray) -> str:
    """How many of all."""
    return f"{int(flags.sum())}/{flags.size}"


def _digits(value: float) -> str:
    """Three digits; all before the point of a large number, none of one that is as good as 0."""
    if value < NOUGHT:
        return f"<{NOUGHT:g}"
    return f"{value:.0f}" if 1e2 <= value < 1e5 else f"{value:.3g}"
