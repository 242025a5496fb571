"""A controller in a folder to share: weights as safetensors, what it is as JSON, a card. Nothing in it is code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import DependencyNotInstalled
from torch import Tensor, nn

import bptt_envs
from bptt_envs.checks import shown
from bptt_trainers.controllers.described import described, identified, of_this_package
from bptt_trainers.controllers.model_card import PICTURE, model_card
from bptt_trainers.directions.augmented import memory_shape_of, noise_shape_of
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.records.files import RunFolderError, read_bytes, read_json, understanding, write_folder
from bptt_trainers.records.plain import objects_in

FORMAT = "stable-bptt controller"
VERSION = 1
"""Of the format, which config.json names; a newer one is not read."""

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "config.json", "README.md"


class Stored(NamedTuple):
    """What a folder holds.

    Attributes:
        description: what config.json says.
        weights: tensors by their names in the controller's state_dict.
    """

    description: dict[str, Any]
    weights: dict[str, Tensor]


def save(
    controller: Any,
    folder: Path,
    env: Any = None,
    *,
    about: Mapping[str, Any] | None = None,
    picture: bytes | None = None,
) -> None:
    """Write a controller of this package into a folder of its own, whole or not at all.

    Args:
        controller: what is to be shared.
        folder: the folder, new or empty.
        env: the environment that it is for, made by a registered id; None leaves that unsaid.
        about: what else the JSON file and the card say, see `model_card`.
        picture: a trajectory, PNG, for the card.

    Raises:
        ValueError: if the controller or the environment is none that a file can name, or they do not fit each other.
        RunFolderError: if the folder is not empty, or cannot be written.
        DependencyNotInstalled: if safetensors is missing.
    """
    safetensors = _safetensors()
    if not of_this_package(controller):
        raise ValueError(
            f"controller must be one of this package, such as MLP or GRU, which a file can name; a "
            f"{type(controller).__name__} is code of your own: share that, and its state_dict()."
        )
    tensors = {name: one.detach().cpu().contiguous().clone() for name, one in controller.state_dict().items()}
    data = safetensors.save(tensors, metadata={"format": "pt"})
    description = {
        "format": FORMAT,
        "format_version": VERSION,
        "controller": {
            **described(controller),
            "observation_shape": list(controller.observation_shape),
            "action_shape": list(controller.action_shape),
            "memory_shape": list(memory_shape_of(controller)),
            "noise_shape": list(noise_shape_of(controller)),
        },
        "normalization": _normalization(controller),
        "environment": None if env is None else _environment(env, controller),
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(data).hexdigest()},
        "versions": {module.__name__: module.__version__ for module in (bptt_envs, torch, gym, np)},
        **(about or {}),
    }
    content = {
        WEIGHTS: data,
        CARD: model_card(description, with_picture=picture is not None).encode(),
        DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode(),
    }
    write_folder(folder, content if picture is None else content | {PICTURE: picture})


def load(folder: Path) -> Stored:
    """What `save` wrote. Nothing of it is run or unpickled.

    Raises:
        RunFolderError: if it is no such folder, damaged, changed after it was written, or of a newer version.
        DependencyNotInstalled: if safetensors is missing.
    """
    safetensors = _safetensors()
    description = read_description(folder)
    with understanding(folder / DESCRIPTION):
        expected = description["weights"]["sha256"]
    try:
        data = read_bytes(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise RunFolderError(f"cannot use {folder}: it has no {WEIGHTS}.") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise RunFolderError(f"cannot use {folder / WEIGHTS}: it is not the file that {DESCRIPTION} was written with.")
    try:
        weights = safetensors.load(data)
    except Exception as error:  # it has an error of its own, and raises others
        raise RunFolderError(f"cannot use {folder / WEIGHTS}: it is no safetensors file ({error}).") from error
    return Stored(description, weights)


def read_description(folder: Path) -> dict[str, Any]:
    """What config.json of a folder to share says.

    Raises:
        RunFolderError: if there is none, or it is of another kind or a newer version.
    """
    try:
        description = read_json(folder / DESCRIPTION)
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder} holds no controller to load: it has no {DESCRIPTION}.") from error
    if not is_model(description):
        raise RunFolderError(
            f"{folder} holds no controller to load: its {DESCRIPTION} is not of a {FORMAT}. A run folder is made into "
            "one by bptt share."
        )
    version = description.get("format_version")
    if type(version) is not int or version < 1:
        raise RunFolderError(f"cannot use {folder / DESCRIPTION}: format_version is {shown(version)}, not a number.")
    if version > VERSION:
        raise RunFolderError(
            f"cannot use {folder / DESCRIPTION}: it is of format {version}, of which this version of stable-bptt reads "
            f"up to {VERSION}: update it."
        )
    return dict(description)


def is_model(description: Any) -> bool:
    """Whether the content of a config.json is that of a controller to share."""
    return isinstance(description, dict) and description.get("format") == FORMAT


def upload(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Put a folder that `save` wrote on the Hugging Face hub; return its address there.

    Args:
        folder: the folder.
        repo_id: where to, such as "name/cart-pole"; made if need be.
        private: whether only its owner sees one that is made.
        token: of the hub; None: that of `hf auth login`.

    Raises:
        RunFolderError: if the folder holds no controller.
        DependencyNotInstalled: if huggingface_hub is missing.
        Exception: of the hub's, if it refuses.
    """
    read_description(folder)
    api = _hub().HfApi(token=token)
    made = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A controller of stable-bptt")
    return str(made)


def check_place(name: str, repo_id: str) -> None:
    """Check before any work that the hub takes a name for a model, else raise ValueError.

    Args:
        name: of the argument, for messages.
        repo_id: where a model is to go.

    Raises:
        DependencyNotInstalled: if huggingface_hub is missing.
    """
    try:
        _hub().utils.validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"{name} must be a name on the hub, such as name/cart-pole; got {repo_id!r}.") from error


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise DependencyNotInstalled('the hub needs huggingface_hub; run pip install "stable-bptt[models]".') from error
    return huggingface_hub


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise DependencyNotInstalled(
            'controllers to share need safetensors; run pip install "stable-bptt[models]".'
        ) from error
    return safetensors.torch


def _environment(env: Any, controller: Any) -> dict[str, Any]:
    """The environment as the file names it, else raise ValueError."""
    found, system = identified(env), system_of(env)
    if found["id"] is None:
        raise ValueError(f"env must be made by a registered id, such as by gym.make; got {shown(env)}.")
    if objects := objects_in(found["options"]):
        raise ValueError(f"env must have options that a file can hold; got {', '.join(objects)} among them.")
    for name in ("observation_shape", "action_shape"):
        ours, theirs = getattr(controller, name), getattr(system, name)
        if ours != theirs:
            raise ValueError(f"env must be one that the controller is for: its {name} is {theirs}, not {ours}.")
    return found


def _normalization(controller: nn.Module) -> dict[str, Any] | None:
    """By which tensors observations are shifted and scaled; None where they are not."""
    if getattr(controller, "normalizer", None) is None:
        return None
    return {"mean": "normalizer.mean", "deviation": "normalizer.deviation"}
