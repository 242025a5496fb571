"""What a run records beside its checkpoints and metrics, by name: loaded when a run asks for it."""

from __future__ import annotations

import importlib
from typing import Any

RECORDERS = {
    "tensorboard": "bptt_trainers.training.tensorboard:TensorBoardLog",
    "diagnostics": "bptt_trainers.analysis.diagnostics:Diagnostics",
    "pictures": "bptt_trainers.figures.run_pictures:RunPictures",
}
"""Where each is; it is made with the run's folder."""


def recorder(name: str, folder: Any) -> Any:
    """The recorder of that name for a run in `folder`, a path or None."""
    module, _, class_name = RECORDERS[name].partition(":")
    return getattr(importlib.import_module(module), class_name)(folder)
