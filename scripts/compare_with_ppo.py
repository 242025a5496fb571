"""Rule C next to PPO on the same poles, judged on the same start states. Made to be copied and changed.

    python scripts/compare_with_ppo.py --steps 500000

Interrupted, or run again with more seeds, it goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.methods import BPTT, METHODS


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    n_poles: int = 1
    """Poles on the cart."""
    steps: int = 1_000_000
    """Simulator steps a run trains on; a million take one to two minutes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method runs once with each."""
    test_states: int = 256
    """Held-out start states."""
    out: Path = Path("runs/c-and-ppo")
    """The folder of the comparison."""


# A method of one's own is a row: here rule C with directions clipped to norm 1. RL("PPO", {...}) is another.
METHODS["C-clipped"] = BPTT("C", {"clip": "norm"})


def main(settings: Settings) -> None:
    """Train everything that is missing, then print the table."""
    config = ComparisonConfig(
        env="DiffMultiPole-v0",
        env_options={"n_poles": settings.n_poles, "max_force": 50.0},  # N; without it only PPO is bounded, to 50 N
        methods=("C", "C-clipped", "PPO", "zero"),
        seeds=settings.seeds,
        steps=settings.steps,
        test_states=settings.test_states,
        out=settings.out,
    )
    comparison = compare(config)
    print(comparison.table)
    best = min(comparison.runs, key=lambda run: run.final_loss)
    print(f"lowest loss at the end: {best.final_loss:.2g}, {best.method} with seed {best.seed}")
    print(f"curves and tables: {comparison.folder}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
