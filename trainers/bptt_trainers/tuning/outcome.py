"""What comes of a study: a line for each trial, the best row of each method, the command that trains with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bptt_envs.checks import string
from bptt_trainers.comparison.methods import BPTT, get_method, method_name
from bptt_trainers.host.user_code import split_id
from bptt_trainers.presets.presets import Preset
from bptt_trainers.records.claim import Claim, locked
from bptt_trainers.records.files import understanding, write_atomic
from bptt_trainers.records.options import write_options
from bptt_trainers.records.plain import plain
from bptt_trainers.records.tables import to_csv
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.store import FAILED, WAIT, Store, state_of
from bptt_trainers.tuning.trials import FIRST_SEED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TABLE = "study.csv"
ROWS = "preset.json"


@dataclass(frozen=True)
class Best:
    """The best trial of a method, or of those that were run again, if some were, the best of them.

    Attributes:
        method: the method.
        trial: its number.
        score: the mean of the two below.
        final: the median over the tuning seeds of log10 of the loss at the end.
        area: the median of the mean of log10 of the loss over the budget.
        confirmed: the mean score of the further runs; None: there were none.
        row: its settings, those that were searched or pinned.
        command: the command that trains with them.
    """

    method: str
    trial: int
    score: float
    final: float
    area: float
    confirmed: float | None
    row: Preset
    command: str


@dataclass(frozen=True)
class Study:
    """A study as it stands.

    Attributes:
        folder: holds study.csv, preset.json and the trials.
        best: the best trial of each method that has one.
        trials: a line of study.csv each.
    """

    folder: Path
    best: Mapping[str, Best]
    trials: tuple[Mapping[str, Any], ...]


def write(store: Store) -> Study:
    """Write the table and the best rows of a study, from its trials."""
    config = store.config
    with locked(config.out, WAIT):
        study = study_of(store)
        if study.trials:
            write_atomic(config.out / TABLE, to_csv(study.trials).encode())
            rows = {
                one.method: {"score": one.score, "trial": one.trial, "row": plain(one.row)}
                for one in study.best.values()
            }
            book = {"env": config.env, "env_options": plain(config.env_options), "steps": config.steps, "rows": rows}
            write_atomic(config.out / ROWS, (json.dumps(book, indent=2) + "\n").encode())
    return study


def best_rows(folder: Path, env: str) -> dict[str, Preset]:
    """The best row of each method that a study has found one of, as `ComparisonConfig(preset="paper")` overrides it.

    Args:
        folder: of the study.
        env: id of the environment that they are for, or MODULE:ID.

    Raises:
        RunFolderError: if the folder is of no study, or its preset.json cannot be read or is of settings that there are
            none of.
        ValueError: if the study is of another environment.
    """
    stored = Claim(folder / ROWS, "tuning").read()
    with understanding(folder / ROWS):
        studied = string("env", stored["env"])
        rows = {method_name("method", name): as_row(dict(one["row"])) for name, one in stored["rows"].items()}
    if split_id(studied)[1] != split_id(env)[1]:
        raise ValueError(f"{folder} is a study of {studied}; got {env}, for which its rows were not tuned.")
    return rows


def studied(folder: Path) -> str:
    """What the rows of a study were tuned for, in words.

    Raises:
        RunFolderError: as `best_rows`.
    """
    stored = Claim(folder / ROWS, "tuning").read()
    with understanding(folder / ROWS):
        options = "".join(f", {name}={value}" for name, value in dict(stored["env_options"]).items())
        return f"{stored['env']}{options}, {int(stored['steps']):,} simulator steps a run"


def study_of(store: Store) -> Study:
    """A study, from its trials."""
    trials, best = [], {}
    for method in store.config.methods:
        confirmed = store.confirmed(method)
        trials += [_line(store.config, method, one, confirmed.get(one.number)) for one in store.done(method)]
        found = store.best(method)
        if found is not None:
            row = _row(found)
            attributes = found.user_attrs
            best[method] = Best(
                method=method,
                trial=found.number,
                score=found.value or 0.0,
                final=median(attributes["finals"]),
                area=median(attributes["areas"]),
                confirmed=confirmed[found.number].value if found.number in confirmed else None,
                row=row,
                command=command(store.config, method, row),
            )
    return Study(store.config.out, best, tuple(trials))


def command(config: TuneConfig, method: str, row: Preset) -> str:
    """The command that trains `method` with the settings of a row."""
    trained = get_method(method)
    words = ["bptt", "train" if isinstance(trained, BPTT) else "compare"]
    words += ["--module", config.module] if config.module is not None else []
    options = dict(config.env_options)
    words += ["--env", config.env, "--preset", "paper"]  # all that differs from it is in the row
    if isinstance(trained, BPTT):
        settings = trained.config(config.budget, row)
        own = {one.name for one in fields(settings)}
        learner = trained.LEARNER
        words += [] if learner == TrainConfig.learner else ["--learner", learner]
        given = ("rule", "epochs", "on_nonfinite", *trained.changes, *(name for name in row if name in own))
        for name in dict.fromkeys(given):
            words += _flag(name, getattr(settings, name))
        options |= {name: value for name, value in row.items() if name not in own}
    else:
        words += ["--methods", method, "--steps", str(config.steps)]
        words += [word for name, value in row.items() for word in ("--override", f"{method}.{name}={value}")]
    words += [word for name, value in options.items() for word in ("--env-option", f"{name}={value}")]
    return shlex.join(words)


def comparing(config: TuneConfig, methods: Sequence[str]) -> str:
    """The command that compares methods, each with its best row, on the held-out states."""
    words = ["bptt", "compare", "--tuning", str(config.out)]
    words += ["--module", config.module] if config.module is not None else []
    words += ["--env", config.env, "--methods", *methods, "--steps", str(config.steps)]
    words += [word for name, value in config.env_options.items() for word in ("--env-option", f"{name}={value}")]
    return shlex.join(words)


def preset_line(config: TuneConfig, best: Best) -> str:
    """The row of a method as it stands in the table of tuned settings."""
    return f"Row({best.method!r}, {config.env!r}, {dict(config.env_options)!r}, {config.steps}, {best.row!r}),"


def _line(config: TuneConfig, method: str, trial: FrozenTrial, confirmed: FrozenTrial | None) -> dict[str, Any]:
    """A line of the table, with what came of running the trial again; a number that there is not is an empty cell."""
    attributes = trial.user_attrs
    finals, areas = attributes.get("finals", []), attributes.get("areas", [])
    state = state_of(trial)
    whole = state == "complete"
    line = {
        "method": method,
        "trial": trial.number,
        "state": state,
        "settings": write_options(_row(trial)),
        "score": trial.value if whole else "",
        "final": median(finals) if whole else "",
        "area": median(areas) if whole else "",
        "confirmed": "" if confirmed is None else confirmed.value,
        "seconds": f"{attributes.get('seconds', 0.0):.3f}",
    }
    for number in range(config.seeds):
        for name, values in (("final", finals), ("area", areas)):
            line[f"{name}_{FIRST_SEED + number}"] = values[number] if number < len(values) else ""
    again = {} if confirmed is None else confirmed.user_attrs
    for name in ("finals", "areas"):
        line[f"confirming_{name}"] = " ".join(f"{value:.3f}" for value in again.get(name, []))
    return line | {"error": attributes.get(FAILED, "")}


def _row(trial: FrozenTrial) -> Preset:
    """The settings of a trial that a row names."""
    row = as_row(trial.user_attrs.get("settings", {}))
    if row.get("clip") == "none":
        row.pop("clip_threshold", None)
    return row


def as_row(stored: Mapping[str, Any]) -> Preset:
    """Settings as the journal gives them back, with tuples for the lists of JSON."""
    return {name: _as_tuple(value) for name, value in stored.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(one) for one in value) if isinstance(value, list) else value


def _flag(name: str, value: Any) -> list[str]:
    """A setting as an option of the command line."""
    option = name.replace("_", "-")
    if isinstance(value, Mapping):  # optimizer_options, one by one
        return [word for key, one in value.items() for word in (f"--{option.removesuffix('s')}", f"{key}={one}")]
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
