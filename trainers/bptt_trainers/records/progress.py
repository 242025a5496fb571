"""The progress bar of whatever takes long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

ON_A_TERMINAL, IN_A_LOG = 0.1, 10.0  # seconds between two states that are shown: a log file wants few lines


def progress_bar(title: str, total: int, unit: str, **given: Any) -> tqdm[Any]:
    """A bar on the standard error.

    Args:
        title: what is done.
        total: units of all of it.
        unit: what is counted.
        given: further arguments of tqdm.
    """
    interval = ON_A_TERMINAL if sys.stderr.isatty() else IN_A_LOG
    return tqdm(desc=title, total=total, unit=unit, dynamic_ncols=True, mininterval=interval, **given)
