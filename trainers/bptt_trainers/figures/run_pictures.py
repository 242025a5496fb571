"""The pictures of a run: its learning curve and some held-out trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bptt_trainers.records.files import RunFolderError, modified
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.recorders import folder_of

if TYPE_CHECKING:
    from bptt_trainers.training.run import Run

EPISODES = 8  # that are drawn


class RunPictures(Callback):
    """Draws learning_curve.png and trajectories.png into the folder of a run at its end."""

    def __init__(self, run: Run) -> None:
        self._folder = folder_of(run, "pictures")
        self._curve, self._trajectories = self._folder / "learning_curve.png", self._folder / "trajectories.png"

    def on_finish(self, trainer: Run) -> None:
        """Draw them, if they are missing or not of the last epoch."""
        last = modified(self._folder / "last.pt")
        if last == 0:
            raise RunFolderError(f"{self._folder} has no last.pt any more: was it moved? Nothing was drawn.")
        if any(modified(path) < last for path in (self._curve, self._trajectories)):
            self._draw(trainer)

    def _draw(self, trainer: Run) -> None:
        from bptt_trainers.figures.style import save_figure  # with it comes matplotlib
        from bptt_trainers.figures.trajectory import learning_curves_figure, trajectory_figure

        curves = learning_curves_figure(
            [row.epoch for row in trainer.history],
            [row.train_loss for row in trainer.history],
            [row.test_loss for row in trainer.history],
        )
        save_figure(curves, self._curve)
        trajectory = trainer.learner.trajectory(trainer.test_states[:EPISODES])
        save_figure(trajectory_figure(trainer.system, trajectory), self._trajectories)
