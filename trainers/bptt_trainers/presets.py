"""Settings of the reinforcement-learning baselines, as tables: a row for each method, a few for single ids."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from bptt_envs.checks import nearest, one_of, positive, positive_integer
from bptt_envs.system import OBJECTIVES

Preset = dict[str, Any]

# What every method has. The rest of a row are arguments of its class in stable-baselines3.
_COMMON: Preset = {
    "num_envs": 64,  # environments stepped as one batch
    "max_steps": 10_000_000,  # simulator steps that a comparison gives the method at most
    "objective": "same",  # trained on: that which it is judged by ("same"), "final" or "continuous"
    "dense": False,  # the final cost is paid step by step, see RLView
    "observation": "cos_sin",  # this option of the system, where it has it
    "normalize_reward": True,  # divide rewards by the running deviation of the return
    "hidden": (64, 64),  # widths of the hidden layers of policy and value networks
    "activation": "relu",  # "relu" or "tanh"
    "learning_rate": 1e-3,  # at the start of training
    "final_learning_rate": 0.0,  # at its end; linear in between
}

PRESETS: dict[str, Preset] = {
    "PPO": _COMMON
    | {
        "gamma": 1.0,  # the horizon is finite and the time is in the observation
        "gae_lambda": 0.98,
        "n_steps": 100,  # steps of each environment between two updates
        "batch_size": 640,
        "n_epochs": 10,
        "clip_range": 0.2,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
    },
    "SAC": _COMMON
    | {
        "max_steps": 200_000,  # a gradient step takes 6 ms on one CPU core: 2 to 3 minutes
        "dense": True,
        "gamma": 0.98,
        "train_freq": 1,  # steps of each environment between two updates
        "gradient_steps": 8,  # for each 64 simulator steps
        "batch_size": 256,
        "buffer_size": 200_000,
        "learning_starts": 6400,
        "ent_coef": "auto_0.02",  # tuned while learning, from 0.02: rewards are small steps of a sum
        "target_entropy": "auto",
        "tau": 0.005,
    },
}

#: Entries that differ for one id: where every step pays, discounting by a little learns faster.
_STEPS_PAY: Preset = {"gamma": 0.99, "gae_lambda": 0.95, "activation": "tanh"}
ENV_PRESETS: dict[tuple[str, str], Preset] = {
    ("PPO", "DiffQuantumControl-v0"): _STEPS_PAY | {"n_steps": 128, "batch_size": 1024},
    ("PPO", "DiffGuidance-v0"): _STEPS_PAY | {"n_steps": 60, "batch_size": 640},
}

_NUMBERS = (int, float)
_ALSO = {"ent_coef": _NUMBERS, "target_entropy": _NUMBERS}  # types besides that of the table's value


def preset(method: str, env_id: str, overrides: Mapping[str, Any] | None = None) -> Preset:
    """The settings of `method` on `env_id`: its row, the id's own entries, then `overrides`.

    Raises:
        ValueError: if the method or an entry is unknown, or a value has a wrong type or range.
    """
    row = PRESETS[one_of("method", method, PRESETS)] | ENV_PRESETS.get((method, env_id), {})
    for name, value in (overrides or {}).items():
        if name not in row:
            raise ValueError(f"{method} has no setting {name!r}.{nearest(name, row)} Its settings: {', '.join(row)}.")
        row[name] = _checked(f"{method} {name}", value, row[name], _ALSO.get(name, ()))
    _check_ranges(method, row)
    return row


def parse_overrides(texts: Iterable[str]) -> dict[str, Preset]:
    """Read overrides as a command line gives them, "PPO.num_envs=32", into {"PPO": {"num_envs": 32}}.

    Raises:
        ValueError: if a text has another form.
    """
    overrides: dict[str, Preset] = {}
    for text in texts:
        target, equals, value = text.partition("=")
        method, dot, name = target.partition(".")
        if not (method and dot and name and equals and value):
            raise ValueError(f"an override must be METHOD.NAME=VALUE, such as PPO.num_envs=32; got {text!r}.")
        overrides.setdefault(method, {})[name] = _literal(value)
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _checked(name: str, value: Any, default: Any, also: tuple[type, ...]) -> Any:
    """`value` if it has the type of `default` or one of `also`; an int serves as a float, a list as a tuple."""
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    kind = type(default)
    allowed = {kind, *also} | ({int} if kind is float else set())
    if type(value) not in allowed:
        names = " or ".join(sorted(one.__name__ for one in allowed))
        raise ValueError(f"{name} must be of type {names}, such as {default!r}; got {value!r}.")
    return float(value) if kind is float else value


def _check_ranges(method: str, row: Preset) -> None:
    for name in ("num_envs", "max_steps", "batch_size"):
        positive_integer(f"{method} {name}", row[name])
    for width in row["hidden"]:
        positive_integer(f"{method} hidden", width)
    positive(f"{method} learning_rate", row["learning_rate"])
    one_of(f"{method} objective", row["objective"], ("same", *OBJECTIVES))
    one_of(f"{method} activation", row["activation"], ("relu", "tanh"))
    if not 0.0 <= row["gamma"] <= 1.0:
        raise ValueError(f"{method} gamma must be between 0 and 1; got {row['gamma']!r}.")
    if "n_steps" in row:
        samples = row["num_envs"] * positive_integer(f"{method} n_steps", row["n_steps"])
        if samples % row["batch_size"]:
            raise ValueError(
                f"{method} batch_size must divide num_envs * n_steps, here {row['num_envs']} * {row['n_steps']} = "
                f"{samples}; got {row['batch_size']}."
            )
