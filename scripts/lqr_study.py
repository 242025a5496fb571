"""Descend to linear controllers of DiffLQR-v0 under R, M, S and C, and hold the ends against the known optimum.

    python scripts/lqr_study.py --out docs/lqr

Two minutes on one core. docs/lqr.md says what came of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from bptt_studies.lqr.descents import StudyConfig
from bptt_studies.lqr.study import study


@dataclass(frozen=True)
class Settings(StudyConfig):
    """What to descend, and where to put it."""

    out: Path = Path("runs/lqr")
    """Folder for the tables, the data and the figure."""


def main(settings: Settings) -> None:
    """Run the study and print its tables."""
    torch.set_num_threads(1)  # the matrices are small
    print(study(settings, settings.out, " ".join(["python scripts/lqr_study.py", *sys.argv[1:]])))


if __name__ == "__main__":
    main(tyro.cli(Settings))
