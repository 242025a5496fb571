"""The `bptt train` that trains a run anew, from what its folder says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bptt_envs.registration import ENTRIES
from bptt_trainers.presets.presets import from_preset
from bptt_trainers.training.config import ANY_TIME, TrainConfig, marked

APART = (*(name for name in marked(ANY_TIME) if name != "epochs"), "record", "out", "optimizer_options")
"""Settings that change nothing of what is learned, and those that have an option of another form."""


def training_command(config: TrainConfig, env_id: str, options: Mapping[str, Any]) -> str:
    """A line for the shell: the paper's preset and all in which a run differs from it.

    Args:
        config: its settings.
        env_id: the id of its environment.
        options: those of the environment that were given, as plain values.
    """
    words = ["bptt", "train", "--preset", "paper"]
    words += ["--learner", config.learner] if config.learner != TrainConfig.learner else []
    module = ENTRIES[env_id].system.partition(":")[0]
    words += [] if module.startswith("bptt_envs.") else ["--module", module]
    words += ["--env", env_id]
    for name, value in options.items():
        words += ["--env-option", f"{name}={_text(value)}"]
    _, defaults = from_preset(env_id, config.rule, "paper", options, config.learner)
    words += ["--rule", config.rule]
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name not in (*APART, "rule") and value != getattr(defaults, one.name):
            words += _option(one.name, value)
    for name, value in config.optimizer_options.items():
        words += ["--optimizer-option", f"{name}={_text(value)}"]
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]


def _text(value: Any) -> str:
    """A value as `read_any` and the options of an environment are read."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
