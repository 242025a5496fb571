"""The tuned settings: a table of the rows that `bptt tune` found, by method and task.

Each row is the best of its study in results/, on validation states; `docs/tuning.md` has the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """What a study found for one method on one task.

    Attributes:
        method: a row of `METHODS`.
        env_id: id of the environment.
        options: of the environment, those that make the task; a task with others takes the row that is nearest.
        steps: simulator steps of a run for which the settings were found.
        settings: what differs from the paper's settings.
        study: whose best trial it is: results/tuning-STUDY.csv holds all of them.
    """

    method: str
    env_id: str
    options: Mapping[str, Any]
    steps: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    study: str = ""


_SENSIBLE: Mapping[str, Any] = {
    "observation": "cos_sin",
    "start_states": "fresh",
    "train_states": 64,
    "learning_rate": 5e-3,
    "final_learning_rate": 0.0,
    "clip": "norm",
}

ANYWHERE: Mapping[str, Row] = {
    **{rule: Row(rule, "", {}, 1_000_000, _SENSIBLE) for rule in "RMSC"},
    **{method: Row(method, "", {}, 1_000_000) for method in ("PPO", "SAC")},
}
"""For ids without a row: what is sensible on all tasks that were studied."""

TUNED: tuple[Row, ...] = (
    Row(
        "R",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "hidden": (64, 64),
            "squash": False,
            "batch_size": 4,
            "observe_time": True,
            "adam_betas": (0.9, 0.95),
            "learning_rate": 0.0841,
            "final_learning_rate": 0.0,
            "clip": "norm",
            "clip_threshold": 0.337,
            "start_states": "fresh",
            "train_states": 64,
            "observation": "cos_sin",
        },
        "cart-pole-1",
    ),
    Row(
        "M",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "hidden": (64, 64),
            "squash": False,
            "observe_time": True,
            "learning_rate": 0.0289,
            "final_learning_rate": 0.0,
            "batch_size": 4,
            "clip": "norm",
            "clip_threshold": 0.224,
            "adam_betas": (0.9, 0.95),
            "start_states": "fresh",
            "train_states": 64,
            "observation": "cos_sin",
        },
        "cart-pole-1",
    ),
    Row(
        "S",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "hidden": (64, 64),
            "squash": False,
            "batch_size": 4,
            "observe_time": True,
            "adam_betas": (0.9, 0.95),
            "learning_rate": 0.0191,
            "final_learning_rate": 0.0,
            "clip": "none",
            "start_states": "fresh",
            "train_states": 64,
            "observation": "cos_sin",
        },
        "cart-pole-1",
    ),
    Row(
        "C",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "hidden": (64, 64),
            "squash": False,
            "batch_size": 4,
            "observe_time": True,
            "adam_betas": (0.9, 0.95),
            "learning_rate": 0.067,
            "final_learning_rate": 0.0,
            "clip": "none",
            "start_states": "fresh",
            "train_states": 64,
            "observation": "cos_sin",
        },
        "cart-pole-1",
    ),
    Row(
        "C-turned",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "hidden": (64, 64),
            "squash": False,
            "observe_time": True,
            "learning_rate": 0.0662,
            "final_learning_rate": 0.0,
            "batch_size": 4,
            "clip": "norm",
            "clip_threshold": 0.745,
            "adam_betas": (0.9, 0.99),
            "start_states": "fresh",
            "train_states": 64,
            "observation": "cos_sin",
        },
        "cart-pole-1",
    ),
    Row(
        "PPO",
        "DiffCartPole-v0",
        {},
        320000,
        {
            "learning_rate": 0.000112,
            "num_envs": 64,
            "n_steps": 25,
            "batch_size": 100,
            "n_epochs": 5,
            "clip_range": 0.3,
            "gae_lambda": 1.0,
            "gamma": 0.98,
            "ent_coef": 0.0,
            "hidden": (100, 100),
            "activation": "relu",
            "dense": True,
        },
        "cart-pole-1",
    ),
    Row(
        "R",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "hidden": (64, 64),
            "squash": False,
            "train_states": 128,
            "learning_rate": 0.0115,
            "final_learning_rate": 0.0,
            "batch_size": 8,
            "clip": "norm",
            "clip_threshold": 0.113,
            "adam_betas": (0.9, 0.95),
            "start_states": "fresh",
            "observe_time": True,
            "observation": "cos_sin",
        },
        "cart-pole-2",
    ),
    Row(
        "M",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "hidden": (64, 64),
            "squash": False,
            "train_states": 128,
            "learning_rate": 0.0104,
            "final_learning_rate": 0.0,
            "batch_size": 8,
            "clip": "none",
            "adam_betas": (0.9, 0.95),
            "start_states": "fresh",
            "observe_time": True,
            "observation": "cos_sin",
        },
        "cart-pole-2",
    ),
    Row(
        "S",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "hidden": (64, 64),
            "squash": False,
            "train_states": 128,
            "learning_rate": 0.0856,
            "final_learning_rate": 0.0,
            "batch_size": 8,
            "clip": "norm",
            "clip_threshold": 2.59,
            "adam_betas": (0.9, 0.99),
            "start_states": "fresh",
            "observe_time": False,
            "observation": "cos_sin",
        },
        "cart-pole-2",
    ),
    Row(
        "C",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "hidden": (64, 64),
            "squash": False,
            "train_states": 128,
            "learning_rate": 0.0125,
            "final_learning_rate": 0.0,
            "batch_size": 8,
            "clip": "none",
            "adam_betas": (0.9, 0.95),
            "start_states": "fresh",
            "observe_time": True,
            "observation": "cos_sin",
        },
        "cart-pole-2",
    ),
    Row(
        "C-turned",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "hidden": (64, 64),
            "squash": False,
            "train_states": 128,
            "learning_rate": 0.0115,
            "final_learning_rate": 0.0,
            "batch_size": 8,
            "clip": "norm",
            "clip_threshold": 0.113,
            "adam_betas": (0.9, 0.95),
            "start_states": "fresh",
            "observe_time": True,
            "observation": "cos_sin",
        },
        "cart-pole-2",
    ),
    Row(
        "PPO",
        "DiffMultiPole-v0",
        {"n_poles": 2, "dynamics": "paper"},
        640000,
        {
            "learning_rate": 0.001,
            "num_envs": 64,
            "n_steps": 100,
            "batch_size": 640,
            "n_epochs": 10,
            "clip_range": 0.2,
            "gae_lambda": 0.98,
            "gamma": 1.0,
            "ent_coef": 0.0,
            "hidden": (64, 64),
            "activation": "relu",
            "dense": False,
        },
        "cart-pole-2",
    ),
)
"""Those of the studies."""
