"""The metrics, figures and checkpoints of a run for Weights & Biases."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from bptt_trainers.records.files import refuse_links
from bptt_trainers.training.trackers import PROJECT, Tracker

FINISH_TIMEOUT = 300.0
"""Seconds at the end for what is not sent yet; what is left then, `wandb sync` sends."""

SIGNS = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
"""Environment variables by which somebody says that runs are sent, or how."""


class WandbTracker(Tracker):
    """Tells Weights & Biases, offline unless a key, a login or a mode of the user's says otherwise.

    Its files are in wandb/ in the run folder. An offline run cannot be asked what it holds: each fit writes one with
    all epochs, of the same id, and `wandb sync` of the last is enough.
    """

    name: ClassVar[str] = "wandb"

    def begin(self, identity: str | None, config: dict[str, Any]) -> tuple[str, bool]:
        """See `Tracker`."""
        refuse_links(self.folder, self.folder / "wandb")
        self._run = self.package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.title,
            id=identity,
            resume=None if identity is None else "allow",
            dir=str(self.folder),
            mode=None if _configured(self.package.setup().settings) else "offline",
            reinit="create_new",  # members of an ensemble have a run each
            settings=self.package.Settings(silent=True, console="off", finish_timeout=FINISH_TIMEOUT),
        )
        self._run.config.update(config, allow_val_change=True)
        return self._run.id, not self._run.settings._offline

    def log(self, epoch: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(values, step=epoch)

    def keep(self, epoch: int, figures: Sequence[Path], checkpoints: Sequence[Path]) -> None:
        """See `Tracker`."""
        self._run.log({path.stem: self.package.Image(str(path)) for path in figures}, step=epoch)
        artifact = self.package.Artifact(f"controller-{self._run.id}", type="model")
        for path in checkpoints:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, finished: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if finished else 1)


def _configured(settings: Any) -> bool:
    """Whether somebody has said where W&B's runs go; `settings` are those of its own files and variables."""
    if any(os.environ.get(name) for name in SIGNS) or settings.mode != "online" or settings.api_key:
        return True
    try:
        logins = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").hosts
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return not logins.keys().isdisjoint({urlsplit(settings.base_url).netloc, "api.wandb.ai"})
