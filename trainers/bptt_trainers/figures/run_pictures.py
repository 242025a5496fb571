"""The pictures of a run: its learning curve and some held-out trajectories."""

from __future__ import annotations

from pathlib import Path

from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.snapshot import evaluating
from bptt_trainers.figures.style import save_figure
from bptt_trainers.figures.trajectory import learning_curves_figure, trajectory_figure
from bptt_trainers.records.files import modified
from bptt_trainers.training.trainer import Trainer

EPISODES = 8  # that are drawn


class RunPictures:
    """Draws learning_curve.png and trajectories.png into the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self._curve, self._trajectories = folder / "learning_curve.png", folder / "trajectories.png"

    def older_than(self, time: float) -> bool:
        """Whether one of them is older than this time, in seconds since the epoch, or missing."""
        return any(modified(path) < time for path in (self._curve, self._trajectories))

    def draw(self, trainer: Trainer) -> None:
        """Draw them anew."""
        curves = learning_curves_figure(
            [row.epoch for row in trainer.history],
            [row.train_loss for row in trainer.history],
            [row.test_loss for row in trainer.history],
        )
        save_figure(curves, self._curve)
        with evaluating(trainer.controller):
            trajectory = rollout(trainer.system, trainer.controller, trainer.test_states[:EPISODES])
        save_figure(trajectory_figure(trainer.system, trajectory), self._trajectories)
