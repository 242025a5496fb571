"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

WITHIN = ("bptt_envs", "bptt_trainers", "bptt_studies", "torch", "contextlib", "functools")
"""Packages that a call goes through from the user's line to where there is something to warn of."""


def warn(message: str) -> None:
    """Warn at the innermost line that is not of these packages: the user's, who called one of them."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in WITHIN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
