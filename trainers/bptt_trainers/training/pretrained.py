"""Controllers that were shared, and the environments that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bptt_envs import DifferentiableEnv, make_env
from bptt_envs.checks import path, shape
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.model_folder import DESCRIPTION, load, read_description
from bptt_trainers.controllers.rebuilt import KNOWN, rebuilt, take_weights
from bptt_trainers.records.files import RunFolderError, understanding
from bptt_trainers.training.run_folder import described_env


def load_pretrained(folder: str | Path) -> Controller:
    """The controller that `Controller.save_pretrained` or `bptt share` wrote, on the CPU.

    It acts bit for bit as the one that was saved. Nothing in the folder is run or unpickled, so a stranger's is safe
    to load.

    Args:
        folder: the folder; of a model on the Hugging Face hub, what `huggingface_hub.snapshot_download` gives.

    Raises:
        RunFolderError: if it holds no controller of this package, is damaged, or of a newer version.
        DependencyNotInstalled: if safetensors is missing.
    """
    folder = path("folder", folder)
    description, weights = load(folder)
    with understanding(folder / DESCRIPTION):
        stored = description["controller"]
        if stored["type"] not in KNOWN:
            raise RunFolderError(
                f"cannot use {folder / DESCRIPTION}: its controller is of type {stored['type']!r:.60}, none of "
                f"{', '.join(KNOWN)}."
            )
        shapes = (shape(name, stored[name]) for name in ("observation_shape", "action_shape"))
        controller = rebuilt(stored, *shapes)
        take_weights(controller, weights)
    return controller


def pretrained_env(folder: str | Path, **options: Any) -> DifferentiableEnv:
    """The environment that a controller which was shared is for.

    Args:
        folder: the folder.
        options: in the place of those that it was saved with.

    Raises:
        RunFolderError: if it names none, or one that is not registered here.
        ValueError: if an option is unknown or out of range.
    """
    folder = path("folder", folder)
    stored = read_description(folder).get("environment")
    if stored is None:
        raise RunFolderError(f"{folder} does not say which environment its controller is for.")
    with understanding(folder / DESCRIPTION):
        env = described_env(stored, f"{folder} is for")
    return make_env(stored["id"], **{**stored["options"], **options}) if options else env
