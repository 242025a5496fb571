"""What a run folder holds, whatever learned it, as `bptt evaluate` and `bptt render` take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bptt_envs import System
from bptt_envs.checks import integer, positive_integer, string
from bptt_trainers.controllers.model_folder import DESCRIPTION, is_model, read_description
from bptt_trainers.controllers.rebuilt import check_size
from bptt_trainers.directions.rollout import Trajectory, rollout
from bptt_trainers.presets.presets import row_name
from bptt_trainers.records.files import understanding
from bptt_trainers.training.books import Books
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.pretrained import load_pretrained, pretrained_env
from bptt_trainers.training.run_folder import LARGEST, RunFolder
from bptt_trainers.training.start_states import held_out_states


@dataclass(frozen=True)
class Trained:
    """A trained controller.

    Attributes:
        method: how it was trained, such as "C", "SHAC-M" or "PPO".
        system: the physics by whose loss it is judged.
        epoch: after which it was kept.
        test_states: held-out start states by which it was judged while it learned.
        trajectory: from start states, (B, *state_shape), to what it does there.
    """

    method: str
    system: System
    epoch: int
    test_states: int
    trajectory: Callable[[Tensor], Trajectory]

    def episodes(self, count: int | None = None) -> Trajectory:
        """Episodes from the first `count` held-out start states; None: from as many as judged it."""
        wanted = count or self.test_states
        return self.trajectory(held_out_states(self.system, max(wanted, self.test_states))[:wanted])


def trained(folder: Path, which: str, **options: Any) -> Trained:
    """The controller of a run folder.

    Args:
        folder: of the trainer, of reinforcement learning, or a controller to share.
        which: "best" or "last", the checkpoint.
        options: of the environment, in the place of those it was trained with.

    Raises:
        RunFolderError: if there is no such run or checkpoint, or it cannot be used.
        ValueError: if the environment does not take an option, or a model to share is asked for another checkpoint.
    """
    said = Books(folder, lambda *_: []).read_config()
    if is_model(said):
        return _shared(folder, which, options)
    if "method" in said:
        return _by_reinforcement(folder, which, options)
    run = RunFolder(folder)
    config = run.train_config()
    system = run.make_env(**options).system
    controller, checkpoint = run.load_controller(system, which)
    like = next(controller.parameters())
    return Trained(
        row_name(config.learner, config.rule, config.combine, config.estimator),
        system,
        checkpoint["epoch"],
        config.test_states,
        lambda states: rollout(system, controller, states.to(like)),
    )


def _shared(folder: Path, which: str, options: dict[str, Any]) -> Trained:
    """What `bptt share` or `save_pretrained` wrote."""
    if which != "best":
        raise ValueError(f"{folder} holds one controller, to share: leave out --which {which}.")
    controller = load_pretrained(folder)
    system = pretrained_env(folder, **options).system
    with understanding(folder / DESCRIPTION):
        said = read_description(folder)
        training, states = said.get("training", {}), said.get("losses", {}).get("held_out", {}).get("states")
        epoch, method = integer("epoch", training.get("epoch", 0), 0), string("method", training.get("method", "?"))
        count = TrainConfig.test_states if states is None else positive_integer("states", states)
        check_size("states", count, LARGEST["test_states"])
    like = next(controller.parameters())
    return Trained(method, system, epoch, count, lambda states: rollout(system, controller, states.to(like)))


def by_reinforcement(folder: Path) -> bool:
    """Whether a folder is of a run of reinforcement learning.

    Raises:
        RunFolderError: if it has no config.json that can be read.
    """
    return "method" in Books(folder, lambda *_: []).read_config()


def _by_reinforcement(folder: Path, which: str, options: dict[str, Any]) -> Trained:
    from bptt_trainers.rl.sb3 import load_rl  # slow to import, and not always needed

    run = load_rl(folder, "best" if which == "best" else "last")
    system = replace(run.config, env_options={**run.config.env_options, **options}).judged_system()
    return Trained(
        run.config.method,
        system,
        run.epoch,
        run.config.test_states,
        lambda states: run.controller.rollout(system, states),
    )
