"""The metrics, figures and checkpoints of a run for trackio."""

from __future__ import annotations

import contextlib
import contextvars
import io
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from bptt_trainers.training.trackers import PROJECT, Tracker


class TrackioTracker(Tracker):
    """Tells trackio, whose files are where TRACKIO_DIR says; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a server."""

    name: ClassVar[str] = "trackio"

    def begin(self, identity: str | None, config: dict[str, Any]) -> tuple[str, bool]:
        """See `Tracker`. It finds runs again by their names, so these are of one run each."""
        name = f"{self.title[-80:]}-{secrets.token_hex(4)}" if identity is None else identity
        resume = "never" if identity is None else "must"
        with _silence():  # in a context of its own, as it would end the run of another member there
            self._run = contextvars.Context().run(
                self.package.init, project=PROJECT, name=name, resume=resume, config=config, embed=False
            )
        return name, True

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(values, step=epoch)

    def keep(self, epoch: int, figures: Sequence[Path], checkpoints: Sequence[Path]) -> None:
        """See `Tracker`."""
        self._run.log({path.stem: self.package.Image(path) for path in figures}, step=epoch)
        artifact = self.package.Artifact(f"controller-{self._run.id}", type="model")
        for path in checkpoints:
            artifact.add_file(path)
        self._run.log_artifact(artifact)

    def end(self, finished: bool) -> None:
        """See `Tracker`."""
        with _silence():
            self._run.finish()


def _silence() -> contextlib.AbstractContextManager[object]:
    """Keeps what trackio prints off the screen, where a progress bar is."""
    return contextlib.redirect_stdout(io.StringIO())
