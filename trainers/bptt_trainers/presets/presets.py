"""Settings of the methods by name: "paper", those that were published or found by hand, and "tuned".

Of an update rule they are settings of `TrainConfig` and what the controller sees of the system (`SEEN`), of PPO and SAC
arguments of their classes in stable-baselines3 and those below.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from bptt_envs import DifferentiableEnv, make_env
from bptt_envs.checks import finite, flag, integer, mapping, nearest, not_negative, one_of, shown, string
from bptt_envs.registration import ENTRIES, build_system, system_class
from bptt_envs.settings import By, Count, NotNegative, Positive, Seed, Share, among, read_value
from bptt_envs.system import OBJECTIVES
from bptt_trainers.controllers.networks import widths
from bptt_trainers.directions.rules import base_of, named_rule
from bptt_trainers.presets.tuned import ANYWHERE, TUNED, Row
from bptt_trainers.training.config import BUILT_IN, TrainConfig
from bptt_trainers.training.run_folder import CONFIGS

Preset = dict[str, Any]

PresetName = Literal["tuned", "paper"]
PRESET_NAMES = get_args(PresetName)

SEEN = ("observation", "observe_time")
"""Options of an environment that say what a controller sees: settings of a method, where the user gives none."""

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


def _entropy_coefficient(name: str, value: Any) -> float | str:
    if not isinstance(value, str):
        return not_negative(name, value)
    if not re.fullmatch(r"auto(_(\d+\.?\d*|\.\d+)(e-?\d+)?)?", value) or not float(value[5:] or 1.0):
        raise ValueError(f"{name} must be a number, 'auto' or one such as 'auto_0.02'; got {shown(value)}.")
    return str(value)


def _target_entropy(name: str, value: Any) -> float | str:
    return one_of(name, value, ("auto",)) if isinstance(value, str) else finite(name, value)


def _gradient_steps(name: str, value: Any) -> int:
    number = integer(name, value, -1)
    if number == 0:
        raise ValueError(f"{name} must be at least 1, or -1 for as many as there were steps; got 0.")
    return number


#: How a setting is read; of any other, values are of the type of the table's.
_KINDS: dict[str, Any] = {
    "num_envs": Count,
    "max_steps": Count,
    "objective": Annotated[str, among(("same", *OBJECTIVES))],
    "hidden": Annotated[tuple[int, ...], By(widths)],
    "activation": Literal["relu", "tanh"],
    "learning_rate": Positive,
    "final_learning_rate": NotNegative,
    "gamma": Share,
    "gae_lambda": Share,
    "n_steps": Count,
    "batch_size": Count,
    "n_epochs": Count,
    "clip_range": Positive,
    "ent_coef": NotNegative,
    "vf_coef": NotNegative,
    "max_grad_norm": Positive,
    "train_freq": Count,
    "gradient_steps": Annotated[int, By(_gradient_steps)],
    "buffer_size": Count,
    "learning_starts": Seed,
    "target_entropy": Annotated[float | str, By(_target_entropy)],
    "tau": Share,
}
_OF_SAC: dict[str, Any] = {"ent_coef": Annotated[float | str, By(_entropy_coefficient)]}


def preset(
    method: str,
    env_id: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    name: PresetName = "tuned",
    options: Mapping[str, Any] | None = None,
) -> Preset:
    """The settings of PPO or SAC on `env_id`: the method's row, the id's own entries, the tuned ones, `overrides`.

    Args:
        method: "PPO" or "SAC".
        env_id: id of the environment.
        overrides: entries that are to differ.
        name: whose settings, "tuned" or "paper".
        options: of the environment, by which the tuned row is chosen.

    Raises:
        ValueError: if the method or an entry is unknown, or a value has a wrong type or range.
    """
    method = one_of("method", method, PRESETS)
    row = PRESETS[method] | ENV_PRESETS.get((method, string("env_id", env_id)), {})
    if _is_refused("observation", row["observation"], env_id, options or {}):
        row["observation"] = defaults_seen(env_id, {})["observation"]
    changes = dict(mapping("overrides", {} if overrides is None else overrides))
    if one_of("preset", name, PRESET_NAMES) == "tuned":
        changes = {**tuned_row(method, env_id, options).settings, **changes}
    kinds = _KINDS | (_OF_SAC if method == "SAC" else {})
    for entry, value in changes.items():
        if entry not in row:
            raise ValueError(f"{method} has no setting {entry!r}.{nearest(entry, row)} Its settings: {', '.join(row)}.")
        row[entry] = read_value(f"{method} {entry}", value, kinds.get(entry, type(row[entry])))
    if "observation" in changes and env_id in ENTRIES and "observation" in defaults_seen(env_id, options or {}):
        check_seen("observation", row["observation"], env_id, options or {})
    if "n_steps" in row:
        _check_batch(method, row)
    return row


def rule_preset(
    method: str, env_id: str, *, name: PresetName = "tuned", options: Mapping[str, Any] | None = None
) -> Preset:
    """What a method that is an update rule changes of `TrainConfig`'s defaults on `env_id`, which are the paper's.

    Args:
        method: "R", "M", "S", "C" or another rule, as `get_method` knows it; the row is that of `tuned_row`.
        env_id: id of the environment.
        name: whose settings, "tuned" or "paper".
        options: of the environment, by which the tuned row is chosen.

    Raises:
        ValueError: if a name is unknown.
    """
    if one_of("preset", name, PRESET_NAMES) == "paper":
        return {}
    row = tuned_row(method, env_id, options).settings
    return {entry: value for entry, value in row.items() if not _is_refused(entry, value, env_id, options or {})}


@dataclass(frozen=True)
class RuleSettings:
    """What an update rule learns with on an environment.

    Attributes:
        training: settings of `TrainConfig` that may differ from its defaults.
        seen: what the controller sees: options of the environment that are not given already.
    """

    training: Preset
    seen: Preset


def rule_settings(
    method: str,
    env_id: str,
    changes: Mapping[str, Any] | None = None,
    *,
    name: PresetName = "tuned",
    options: Mapping[str, Any] | None = None,
    given: Iterable[str] = ("rule",),
    learner: str = TrainConfig.learner,
) -> RuleSettings:
    """The settings of a method that is an update rule on `env_id`: those of `rule_preset`, then `changes`.

    With another optimizer than the built-in one among the changes, what is that one's is left out.

    Args:
        method: as that of `rule_preset`.
        env_id: id of the environment.
        changes: settings of `TrainConfig`, or of what the controller sees (`SEEN`), that are to differ.
        name: whose settings, "tuned" or "paper".
        options: of the environment.
        given: settings of `TrainConfig` that the caller gives, and that are none to change.
        learner: what learns by them, a name of `CONFIGS`: its settings are in the place of `TrainConfig`'s.

    Raises:
        ValueError: if a name is unknown, or a change of what is seen is none that the environment takes.
    """
    options, changes = options or {}, changes or {}
    free = [one.name for one in fields(CONFIGS[learner]) if one.name not in given]
    for entry, value in changes.items():
        if entry in SEEN:
            check_seen(entry, value, env_id, options)
        elif entry not in free:
            raise ValueError(
                f"rule {method} has no setting {entry!r} to override.{nearest(entry, [*free, *SEEN])} "
                f"Its settings: {', '.join([*free, *SEEN])}."
            )
    void = () if changes.get("optimizer", BUILT_IN) == BUILT_IN else CONFIGS[learner].void_with_others
    row = rule_preset(method, env_id, name=name, options=options)
    row = {entry: value for entry, value in row.items() if entry not in void} | dict(changes)
    seen = {entry: row[entry] for entry in defaults_seen(env_id, options) if entry in row}
    return RuleSettings({entry: value for entry, value in row.items() if entry not in SEEN}, seen)


def row_name(
    learner: str, rule: str, combine: str = TrainConfig.combine, estimator: str = TrainConfig.estimator
) -> str:
    """The name among `METHODS` and presets of a learner by a rule, or by an estimator of rule R's direction.

    What turns the modified direction is tuned apart. The decay or window of the rule's feedback comes last.
    """
    base = base_of(rule)
    fade = rule.removeprefix(base)
    turned = "-turned" if combine == "turned" else ""
    if learner == TrainConfig.learner:
        return ESTIMATED.get(estimator, f"{base}{turned}{fade}")
    return f"{learner}{fade}" if base == CONFIGS[learner].rule else f"{learner}-{base}{turned}{fade}"


ESTIMATED = {"likelihood_ratio": "LR", "total_propagation": "TP", "alpha_order": "AoBG"}
"""The names of estimators in the literature: those of their methods."""


def tuned_row(method: str, env_id: str, options: Mapping[str, Any] | None = None) -> Row:
    """The row of `TUNED` for a method on an environment: of those for its id, that which agrees in most options.

    A rule whose feedback decays or is cut has the row of the rule that it is made of, unless it has one of its own.
    Without any for the id, the method's row of `ANYWHERE`; without that, the one of its learner, or of rule C.

    Raises:
        ValueError: if the id is not registered.
    """
    defaults = system_class(env_id).options() | ENTRIES[env_id].defaults
    given = {**defaults, **(options or {})}
    base = base_of(method)
    rows = [row for row in TUNED if row.env_id == env_id]
    return max(
        [row for row in rows if row.method == method] or [row for row in rows if row.method == base],
        key=lambda row: sum(given.get(option) == value for option, value in row.options.items()) - len(row.options),
        default=ANYWHERE.get(base, ANYWHERE.get(base.partition("-")[0], ANYWHERE["C"])),
    )


def from_preset(
    env_id: str,
    rule: str = "C",
    preset: PresetName = "tuned",
    env_options: Mapping[str, Any] | None = None,
    learner: str = TrainConfig.learner,
    **changes: Any,
) -> tuple[DifferentiableEnv, TrainConfig]:
    """An environment and the settings by which a rule learns best there, for `Trainer(env, config=config)`.

    Args:
        env_id: id of the environment.
        rule: the update rule.
        preset: "tuned", found by `bptt tune`, or "paper".
        env_options: options of the environment; what the controller sees is the preset's unless they say it.
        learner: what learns, "BPTT", "SHAC" or "SAPO".
        changes: settings of the learner that are to differ from the preset, which is an estimator's where one is named.

    Raises:
        ValueError: if a name is unknown or a value out of range.
    """
    rule = named_rule("rule", rule).name
    options = dict(mapping("env_options", {} if env_options is None else env_options))
    config_class = CONFIGS[one_of("learner", learner, CONFIGS)]
    method = row_name(learner, rule, estimator=changes.get("estimator", TrainConfig.estimator))
    chosen = rule_settings(method, env_id, changes, name=preset, options=options, learner=learner)
    env = make_env(env_id, **options, **chosen.seen)
    config = config_class(rule=rule, **chosen.training)
    if preset == "tuned" and "epochs" not in changes:
        steps_an_epoch = config.train_states * env.horizon
        epochs = max(1, round(tuned_row(method, env_id, options).steps / steps_an_epoch))
        config = replace(config, epochs=epochs)
    return env, config


def defaults_seen(env_id: str, options: Mapping[str, Any]) -> Preset:
    """What a method may say of what the controller sees, with what holds if none does: all that `options` do not."""
    defaults = {"observe_time": False} | system_class(env_id).options() | ENTRIES[env_id].defaults
    return {name: defaults[name] for name in SEEN if name in defaults and name not in options}


def check_seen(name: str, value: Any, env_id: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless a setting of `SEEN` is an option with a value that the environment takes.

    Nor may `options` say it already, for all methods.
    """
    if name in options:
        raise ValueError(
            f"{name} is {shown(options[name])} for all methods, by the options of {env_id}: leave one out."
        )
    system = system_class(env_id)
    if name in system.options():
        build_system(env_id, {**options, name: value}, env_id)
    elif name == "observe_time":
        flag(name, value)
    else:
        raise ValueError(f"{env_id} has no option {name!r}, so that it is no setting of a method there.")


def _is_refused(name: str, value: Any, env_id: str, options: Mapping[str, Any]) -> bool:
    """Whether a setting of `SEEN` is an option of a user's own system that does not take what this package's take."""
    if env_id not in ENTRIES or name not in defaults_seen(env_id, options):
        return False
    try:
        check_seen(name, value, env_id, options)
    except ValueError:
        return True
    return False


def parse_overrides(texts: Iterable[str]) -> dict[str, Preset]:
    """Read overrides as a command line gives them, "PPO.num_envs=32", into {"PPO": {"num_envs": 32}}.

    Raises:
        ValueError: if a text has another form.
    """
    overrides: dict[str, Preset] = {}
    for text in texts:
        target, equals, value = text.partition("=")
        method, dot, name = target.rpartition(".")  # of "R decay 0.9", too
        if not (method and dot and name and equals and value):
            raise ValueError(f"an override must be METHOD.NAME=VALUE, such as PPO.num_envs=32; got {text!r}.")
        overrides.setdefault(method, {})[name] = _literal(value)
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _check_batch(method: str, row: Preset) -> None:
    samples = row["num_envs"] * row["n_steps"]
    if samples % row["batch_size"] or row["batch_size"] < 2:
        raise ValueError(
            f"{method} batch_size must divide num_envs * n_steps, here {row['num_envs']} * {row['n_steps']} = "
            f"{samples}, and be at least 2; got {row['batch_size']}."
        )
