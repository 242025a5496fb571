"""The chapter of a run: where it ended, its curves, what its controller does, its diagnosis, its settings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bptt_trainers.analysis.diagnostics import NPZ, read_diagnostics
from bptt_trainers.analysis.diagnostics_figure import diagnostics_figure
from bptt_trainers.analysis.metrics_figure import updates_figure
from bptt_trainers.analysis.trained import Trained, trained
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.controllers.model_folder import CARD, is_model
from bptt_trainers.directions.rollout import losses
from bptt_trainers.figures.style import plain_text
from bptt_trainers.figures.trajectory import learning_curves_figure, trajectory_figure
from bptt_trainers.pages.page import Chapter, Picture, Section
from bptt_trainers.presets.presets import SEEN
from bptt_trainers.records.files import RunFolderError, exists, understanding
from bptt_trainers.records.tables import Cell
from bptt_trainers.training.books import Books, Config
from bptt_trainers.training.metrics import EpochMetrics, learning_curve, read_csv
from bptt_trainers.training.run_folder import epochs_count

EPISODES = 8  # that are drawn
SHARES = (0.1, 0.01, 0.001)  # losses for which the page says how many episodes are below them


def run_chapter(folder: Path, title: str) -> Chapter:
    """Tell of a run what its folder holds, as far as it went.

    Args:
        folder: of any learner.
        title: what to call it.

    Raises:
        RunFolderError: if it is no run folder, has no finished epoch, or cannot be read.
    """
    config = _config(folder)
    history = history_of(folder)
    found = trained(folder, "best")
    sections = [_losses(history), *_updates(history), episodes_section(found), *_diagnosis(folder, found)]
    commands = _commands(folder, config, history[-1])
    sections += [*_settings(config), Section("Go on from here", command=commands, folded=True)]
    lead = f"{found.method} on {_environment(folder)}, judged by the {found.system.objective} loss"
    return Chapter(title, f"{lead} over {found.test_states} held-out start states.", facts_of(history), sections)


def side_by_side(folders: Mapping[str, Path]) -> Chapter:
    """Tell of several runs together: a line each, and their curves if they had the same task, whatever they saw of it.

    Args:
        folders: of the runs, by what to call them.

    Raises:
        RunFolderError: as `run_chapter`.
    """
    histories = {title: history_of(folder) for title, folder in folders.items()}
    places = {title: _environment(folder) for title, folder in folders.items()}
    rows: list[dict[str, Cell]] = [
        {"run": title, "environment": places[title], **facts_of(history)} for title, history in histories.items()
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    sections = [Section("Runs", rows=[{name: row.get(name, "–") for name in columns} for row in rows])]
    if len({_environment(folder, apart=SEEN) for folder in folders.values()}) == 1:
        curves = {(plain_text(title), 0): learning_curve(history) for title, history in histories.items()}
        caption = "The held-out loss of each run."
        sections.append(Section("Held-out loss", picture=Picture(curves_figure(curves), caption)))
    return Chapter("Side by side", f"{len(folders)} runs.", sections=sections)


def _environment(folder: Path, apart: Collection[str] = ()) -> str:
    """The id of a run's environment with the options that it was given; the system's name, if it has no id.

    Args:
        folder: of the run.
        apart: options that are left out.
    """
    config = _config(folder)
    with understanding(folder / "config.json"):
        known = config.get("environment", {"id": config.get("env"), "options": config.get("env_options", {})})
        asked = "".join(f", {name}={value}" for name, value in known["options"].items() if name not in apart)
        return f"{known['id'] or known['system']}{asked}"


def _config(folder: Path) -> Config:
    """What config.json of a run says, of whatever learner."""
    config = Books(folder).read_config()
    if is_model(config):
        raise RunFolderError(f"{folder} holds a model to share, not a run: {CARD} in it tells of it.")
    return config


def history_of(folder: Path) -> list[EpochMetrics]:
    """The evaluations of a run, the one before training among them.

    Raises:
        RunFolderError: if there are none yet.
    """
    path = folder / "metrics.csv"
    history = read_csv(path) if exists(path) else []
    if not history:
        raise RunFolderError(f"{folder} has no finished epoch yet: nothing can be told of it.")
    return history


def facts_of(history: Sequence[EpochMetrics]) -> dict[str, str]:
    """Where a run ended, in a few numbers by name."""
    first, last = history[0], history[-1]
    judged = [row for row in history if math.isfinite(row.train_loss)]
    best = min(judged, key=lambda row: row.train_loss) if judged else None
    facts = {"held-out loss at the end": f"{last.test_loss:.3g}"}
    if best is not None:
        facts["at the best epoch"] = f"{best.test_loss:.3g} (epoch {best.epoch})"
    facts |= {"untrained": f"{first.test_loss:.3g}", "epochs": f"{last.epoch:,}"}
    facts |= {"simulator steps": f"{last.simulator_steps:,}", "seconds of training": f"{last.seconds:,.1f}"}
    skipped = sum(row.skipped for row in history)
    return facts | ({"updates skipped": f"{skipped:,}"} if skipped else {})


def episodes_section(found: Trained) -> Section:
    """What a controller does from held-out start states, and how its loss is spread over all of them."""
    loss = losses(found.system, found.episodes()).detach()
    figure = trajectory_figure(found.system, found.episodes(min(EPISODES, found.test_states)))
    caption = f"{min(EPISODES, found.test_states)} held-out episodes under the checkpoint of epoch {found.epoch}."
    return Section("Episodes", picture=Picture(figure, caption), rows=[_spread(loss)])


def _spread(loss: Tensor) -> dict[str, Cell]:
    row: dict[str, Cell] = {"episodes": len(loss)}
    row |= {"mean loss": f"{loss.mean():.3g}", "median": f"{loss.median():.3g}", "largest": f"{loss.max():.3g}"}
    return row | {f"below {bound:g}": f"{(loss < bound).float().mean():.0%}" for bound in SHARES}


def _losses(history: Sequence[EpochMetrics]) -> Section:
    columns = ([row.epoch for row in history], [row.train_loss for row in history], [row.test_loss for row in history])
    caption = "Loss over the epochs; the dot is the best on the training states."
    return Section("Loss", picture=Picture(learning_curves_figure(*columns), caption))


def _updates(history: Sequence[EpochMetrics]) -> list[Section]:
    """Nothing of what has no directions, as reinforcement learning."""
    if not any(math.isfinite(row.direction_norm) for row in history):
        return []
    caption = (
        "Left: the norm of the direction before clipping, the mean over an epoch. Right: the update rules R and M at "
        "the first update of each epoch."
    )
    return [Section("Updates", picture=Picture(updates_figure(history), caption))]


def _diagnosis(folder: Path, found: Trained) -> list[Section]:
    """Nothing, if the run kept none."""
    path = folder / NPZ
    if not exists(path):
        return []
    caption = "How the update rules differ, and how feedback grows on its way back through the episode."
    return [Section("Diagnosis", picture=Picture(diagnostics_figure(read_diagnostics(path), found.system), caption))]


def _settings(config: Config) -> list[Section]:
    parts = ("environment", "controller", "training", "versions")
    apart = {name: config[name] for name in parts if isinstance(config.get(name), Mapping)}
    rest = {name: value for name, value in config.items() if name not in apart and value != {}}
    shown = ({"run": rest} if rest else {}) | apart
    return [Section(f"Settings: {name}", rows=settings_rows(part), folded=True) for name, part in shown.items()]


def settings_rows(settings: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """A row for each setting; those in parts by their path."""
    rows: list[dict[str, Cell]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += [{"setting": f"{name}.{row['setting']}", "value": row["value"]} for row in settings_rows(value)]
        else:
            rows.append({"setting": name, "value": "none" if value is None else str(value)})
    return rows


def _commands(folder: Path, config: Config, last: EpochMetrics) -> str:
    """Words for a terminal, a command a line; `bptt resume` where it does something."""
    run = shlex.quote(str(folder).encode(errors="backslashreplace").decode())
    with understanding(folder / "config.json"):
        if "training" in config:
            epochs = int(config["training"]["epochs"])
            more = "" if last.epoch < epochs else None if epochs_count(config) else f" --epochs {2 * epochs}"
        else:  # of reinforcement learning
            more = "" if last.simulator_steps < config["steps"] else None
    commands = ["evaluate", "render", *([] if more is None else ["resume"])]
    return "\n".join(f"bptt {command} {run}{more if command == 'resume' else ''}" for command in commands)
