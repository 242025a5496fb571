"""Reinforcement learning on the same environments, by stable-baselines3: train, judge, save, load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import stable_baselines3
import torch
from torch import Tensor

import bptt_envs
from bptt_envs import checks
from bptt_envs.differentiable import start_states
from bptt_trainers.records.checkpoints import unpacked
from bptt_trainers.records.claim import in_words, same
from bptt_trainers.records.curve import Curve, Report, read_curve
from bptt_trainers.records.files import RunFolderError, exists, read_bytes
from bptt_trainers.records.plain import objects_in, plain
from bptt_trainers.rl.config import RLConfig
from bptt_trainers.rl.controller import RLController
from bptt_trainers.rl.learner import SB3Learner, controller_of
from bptt_trainers.training.books import Books, Checkpoint, Config, Standing
from bptt_trainers.training.callbacks import Callback, ProgressBar, Reporting
from bptt_trainers.training.metrics import learning_curve
from bptt_trainers.training.run import Run

__all__ = ["RLConfig", "RLController", "RLRun", "load_rl", "train_rl"]


@dataclass(frozen=True)
class RLRun:
    """A run, as far as it went.

    Attributes:
        config: its settings.
        controller: that of the last evaluation, or of the best.
        curve: every evaluation.
        epoch: the evaluation that the controller is of; 0 is untrained.
    """

    config: RLConfig
    controller: RLController
    curve: Curve
    epoch: int


def train_rl(
    config: RLConfig,
    folder: Path | None = None,
    progress: bool = True,
    *,
    callbacks: Sequence[Callback] = (),
    judged_states: Tensor | None = None,
    report: Report | None = None,
) -> RLRun:
    """Train a controller by reinforcement learning.

    With a folder, it is a run folder as that of `Trainer`: config.json, metrics.csv, last.pt, best.pt and what
    `config.record` names, written after each evaluation. A finished run is loaded, not computed again; an interrupted
    one goes on from its last evaluation.

    Args:
        config: every setting.
        folder: where the run is kept; None keeps it in memory.
        progress: whether to show a bar.
        callbacks: called as training goes; an epoch ends with each evaluation, and is one update.
        judged_states: start states, (B, *state_shape), by which it is judged in place of the held-out ones.
        report: called at each evaluation; returns False to end training there.

    Raises:
        ValueError: if a folder is given with `judged_states` or `report`: it holds whole runs on the held-out states.
        RunFolderError: if the folder holds a run of another configuration, is in use, or cannot be written.
    """
    checks.instance("config", config, RLConfig, "a RLConfig")
    folder = None if folder is None else checks.path("folder", folder)
    if folder is not None and not (judged_states is None and report is None):
        raise ValueError(
            f"folder must be None with judged_states or report, as a folder holds a whole run judged on the held-out "
            f"states; got {folder}."
        )
    if judged_states is not None:
        judged_states = start_states("judged_states", judged_states, config.judged_system())
    books = None if folder is None else _books(folder)
    described = _describe(config)
    if books is not None:
        standing = books.check(described)
        if _is_done(books, config, standing):
            return _loaded(books, config, standing)
    bar = [ProgressBar(f"{config.method} seed {config.seed}")] if progress else []
    reporting = [] if report is None else [Reporting(report)]
    run = Run(SB3Learner(config, judged_states), config, books, described, [*callbacks, *bar, *reporting])
    curve = learning_curve(run.fit())
    return RLRun(config, run.learner.policy, curve, run.epoch)


def load_rl(folder: Path, which: Literal["last", "best"] = "last") -> RLRun:
    """Load a run; nothing in its folder can run code.

    Args:
        folder: where it is kept.
        which: whether its controller is that of the last evaluation or the best on the training states.

    Raises:
        RunFolderError: if there is no run, or it cannot be read.
    """
    checks.one_of("which", which, ("last", "best"))
    books = _books(checks.path("folder", folder))
    with books.understanding("config.json"):
        stored = books.read_config()
        objects = objects_in(stored["env_options"])
        if objects:
            raise RunFolderError(
                f"{folder} was trained with {', '.join(objects)} among the options of its environment, which no file "
                "holds; call train_rl with the same configuration."
            )
        stored = _of_today(stored)
        config = RLConfig(**{name: stored[name] for name in _SETTINGS})
        if not same(plain(config.settings()), stored["settings"]):  # the presets have changed since
            config = replace(config, overrides=stored["settings"])
        standing = books.check(stored)
    run = _loaded(books, config, standing)
    if which == "last":
        return run
    best = books.load("best")
    if best is None:
        raise RunFolderError(f"{books.path} has no best.pt.")
    with books.understanding("best.pt"):
        return replace(run, controller=controller_of(config, best["controller"]), epoch=best["epoch"])


def _books(folder: Path) -> Books:
    return Books(folder, _differences)


def _is_done(books: Books, config: RLConfig, standing: Standing | None) -> bool:
    """Whether a folder holds the whole run of `config`; an earlier version wrote curve.csv, and that last."""
    if standing is None:
        return exists(books.path / "policy.pt") and exists(books.path / "curve.csv")
    return bool(standing.last["epoch"] == config.epochs)


def _loaded(books: Books, config: RLConfig, standing: Standing | None) -> RLRun:
    """The run of `config` as its last evaluation left it in a folder."""
    if standing is None:
        name, (curve, controller) = "policy.pt", _of_earlier_version(books)
    else:
        name, curve, controller = "last.pt", learning_curve(standing.rows), standing.last["controller"]
    with books.understanding(name):
        return RLRun(config, controller_of(config, controller), curve, len(curve) - 1)


def _of_earlier_version(books: Books) -> tuple[Curve, Checkpoint]:
    """The curve and the controller of a finished run of an earlier version."""
    path = books.path / "policy.pt"
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise RunFolderError(f"{books.path} holds no run that can be loaded: it has no last.pt.") from error
    try:
        return read_curve(books.path / "curve.csv"), unpacked(data)
    except RunFolderError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged or a hostile file
        raise RunFolderError(f"cannot read {path}: it is damaged, or no policy of this program.") from error


# config.json: the settings as given, then what they amount to

_SETTINGS = tuple(one.name for one in fields(RLConfig) if one.name != "record")


def _describe(config: RLConfig) -> Config:
    versions = {module.__name__: module.__version__ for module in (bptt_envs, stable_baselines3, torch)}
    settings = {name: getattr(config, name) for name in (*_SETTINGS, "record")}
    described: Config = plain(settings | {"settings": config.settings(), "versions": versions})
    return described


def _of_today(stored: Config) -> Config:
    """What config.json says; an earlier version, which knew one preset, has under "preset" what it amounts to."""
    return stored if "settings" in stored else stored | {"preset": "paper", "settings": stored["preset"]}


def _differences(stored: Config, wanted: Config) -> list[str]:
    """What differs between two configurations in a way that makes them different runs, a line each."""
    stored, wanted = _of_today(stored), _of_today(wanted)
    named = [name for name in _SETTINGS if name not in ("preset", "overrides")]  # which amount to the settings
    pairs = [(name, stored.get(name), wanted[name]) for name in named]
    before, now = stored["settings"], wanted["settings"]
    pairs += [(name, before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])]
    return [in_words(name, old, new) for name, old, new in pairs if not same(old, new)]
