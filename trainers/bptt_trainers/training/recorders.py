"""What a run records beside its checkpoints and metrics: recorders by name, made for each run that asks for them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Protocol

from bptt_envs import checks
from bptt_trainers.host.user_code import import_module
from bptt_trainers.training.callbacks import Callback


class Recorded(Protocol):
    """What is asked here of a run."""

    @property
    def config(self) -> Any:
        """Its settings, with the names of recorders as `record`."""

    @property
    def folder(self) -> Any:
        """Its books, at `path`; None if it has none."""


RECORDERS = {
    "tensorboard": "bptt_trainers.training.tensorboard:TensorBoardLog",
    "csv": "bptt_trainers.training.updates_csv:UpdatesCSV",
    "pictures": "bptt_trainers.figures.run_pictures:RunPictures",
    "diagnostics": "bptt_trainers.analysis.diagnostics:Diagnostics",
    "wandb": "bptt_trainers.training.wandb:WandbTracker",
    "mlflow": "bptt_trainers.training.mlflow:MLflowTracker",
    "trackio": "bptt_trainers.training.trackio:TrackioTracker",
}
"""MODULE:NAME of what makes each, a callable from a run to a `Callback`; loaded when a run asks for it."""

BY_DEFAULT = ("tensorboard", "pictures")

TRACKERS = ("wandb", "mlflow", "trackio")
"""They hand on what the other recorders have drawn, so they are called after these."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_WANTED = "MODULE:NAME, such as 'my_recorders:Log', of a callable from a run to a Callback"


def register_recorder(name: str, path: str) -> None:
    """Give a recorder of your own a name, for `TrainConfig.record` and --record.

    Args:
        name: a word, such as "log".
        path: MODULE:NAME of a callable from a run to a `Callback`, such as a class; imported when a run asks for it.

    Raises:
        ValueError: if one of the two is of another form, or the name is another recorder's.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name must be a word, such as 'log'; got {checks.shown(name)}.")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"path must be {_WANTED}; got {checks.shown(path)}.")
    if RECORDERS.setdefault(name, path) != path:
        raise ValueError(f"name {name!r} is that of another recorder, {RECORDERS[name]}; choose another one.")


def recorder_names(name: str, value: Any) -> tuple[str, ...]:
    """Return `value` as names of recorders, or their import paths, each once; else raise ValueError."""

    def read(name: str, one: Any) -> str:
        return str(one) if isinstance(one, str) and _PATH.fullmatch(one) else checks.one_of(name, one, RECORDERS)

    names = checks.each(name, value, read, "a list or a tuple of names")
    return checks.each_once(name, names) if names else names


def recorders(run: Recorded) -> list[Callback]:
    """The recorders that the settings of a run name. Without a run folder those by default, which need one, are none.

    Raises:
        ValueError: if one cannot be had, or does not suit the run.
    """
    names = sorted(run.config.record, key=lambda name: name in TRACKERS)
    return [_made(name, run) for name in names if run.folder is not None or name not in BY_DEFAULT]


def folder_of(run: Recorded, name: str) -> Path:
    """The folder of a run, for the recorder of that name, which needs one.

    Raises:
        ValueError: if the run has none.
    """
    if run.folder is None:
        raise ValueError(
            f"record={name!r} writes into a run folder, and this run has none: set out (of PPO and SAC, folder), or "
            "leave it away."
        )
    path: Path = run.folder.path
    return path


def _made(name: str, run: Recorded) -> Callback:
    module, _, attribute = RECORDERS.get(name, name).partition(":")
    if name not in RECORDERS:
        import_module(module)  # in words, and from the working directory too
    make = getattr(importlib.import_module(module), attribute, None)
    if not callable(make):
        raise ValueError(f"record {name!r} must be {_WANTED}; {module} has no such {attribute}.")
    made = make(run)
    if not isinstance(made, Callback):
        raise ValueError(f"record {name!r} must be {_WANTED}; it gives {checks.shown(made)}.")
    return made
