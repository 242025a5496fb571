"""The chapters of a comparison, its table, its curves, an episode of each method, its settings; and of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bptt_envs.checks import integer, positive
from bptt_trainers.analysis.trained import trained
from bptt_trainers.comparison.compare import COMPARISON, TOLD
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.methods import METHODS, RL, method_name
from bptt_trainers.comparison.runs import FINISHED, member_folder
from bptt_trainers.comparison.summary import method_rows, reading, run_rows, summarize, worded
from bptt_trainers.comparison.sweep import CELLS, SWEEP, worded_cells
from bptt_trainers.comparison.sweep import READING as CELLS_READING
from bptt_trainers.pages.page import Chapter, Picture, Section
from bptt_trainers.pages.run_chapter import episodes_section, settings_rows
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.records.claim import Claim, Settings, same
from bptt_trainers.records.curve import Curve, read_curve
from bptt_trainers.records.files import RunFolderError, exists, understanding
from bptt_trainers.records.tables import read_lines

SEES_TIME = {"observe_time": "always"}  # of reinforcement learning, which has no setting of it


def is_comparison(folder: Path) -> bool:
    """Whether a folder is of a comparison."""
    return exists(folder / COMPARISON)


def comparison_chapter(folder: Path, title: str) -> Chapter:
    """Tell of a comparison what its folder holds, as far as it went.

    Args:
        folder: of `bptt compare`.
        title: what to call it.

    Raises:
        RunFolderError: if it is no comparison, has no finished run, or cannot be read.
    """
    stored = Claim(folder / COMPARISON, "comparison").read()
    with understanding(folder / COMPARISON):
        methods = [method_name("methods", one) for one in stored["methods"]]
        seeds = [integer("seeds", one, 0) for one in stored["seeds"]]
        bounds = [positive("losses", one) for one in stored["losses"]]
        env_id, options, settings = str(stored["env"]), dict(stored["env_options"]), _apart(stored["settings"])
        steps = integer("steps", stored["steps"], 1)
        judged, notes = _told(stored)
    places = {(method, seed): member_folder(folder, method, seed) for method in methods for seed in seeds}
    curves: dict[tuple[str, int], Curve] = {
        run: read_curve(place / FINISHED) for run, place in places.items() if exists(place / FINISHED)
    }
    if not curves:
        raise RunFolderError(f"{folder} has no finished run yet: nothing can be told of it.")
    runs = [summarize(method, seed, curve, bounds) for (method, seed), curve in curves.items()]
    caption = "The median over the runs of a method, and the range from the best to the worst."
    rows = method_rows(runs, PLANNERS)
    sections = [
        Section("Methods", rows=worded(rows, bounds), note=" ".join((reading(rows), *notes))),
        Section("Held-out loss", picture=Picture(curves_figure(curves), caption)),
    ]
    for method in methods:
        finals = {run.seed: run.final_loss for run in runs if run.method == method}
        if finals:
            sections += _episodes(places[method, min(finals, key=lambda seed: finals[seed])], method)
    sections.append(Section("Every run", rows=run_rows(runs), folded=True))
    sections.append(_settings(stored, settings))
    missing = len(places) - len(curves)
    facts = {"methods": f"{len(methods)}", "seeds": f"{len(seeds)}", "simulator steps asked for": f"{steps:,}"}
    facts |= {"runs still missing": f"{missing}"} if missing else {}
    asked = "".join(f", {name}={value}" for name, value in options.items())
    return Chapter(title, f"A comparison on {env_id}{asked}{judged}.", facts, sections)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is of a sweep."""
    return exists(folder / SWEEP)


def sweep_chapter(folder: Path, title: str) -> Chapter:
    """Tell of a sweep its table and its settings.

    Args:
        folder: of `bptt sweep`.
        title: what to call it.

    Raises:
        RunFolderError: if it is no sweep, has no table yet, or cannot be read.
    """
    stored = Claim(folder / SWEEP, "sweep").read()
    lines = read_lines(folder / CELLS)
    if not lines:
        raise RunFolderError(f"{folder} has no {CELLS} yet: nothing can be told of it.")
    with understanding(folder / CELLS):
        rows = worded_cells(lines)
    with understanding(folder / SWEEP):
        judged, notes = _told(stored)
        settings = _apart(stored.get("settings", {}))
    note = " ".join((CELLS_READING, *notes))
    sections = [Section("Cells", rows=rows, note=note), _settings(stored, settings)]
    return Chapter(title, f"A sweep on {stored.get('env')}{judged}.", {"cells": f"{len(rows)}"}, sections)


def _told(stored: Settings) -> tuple[str, list[str]]:
    """By what is judged, in words, and the notes beside the table; folders of earlier versions say neither."""
    objective, notes = (stored.get(name) for name in TOLD)
    return f", judged by the {objective} loss" if objective else "", [str(note) for note in notes or ()]


def _settings(stored: Settings, settings: Settings) -> Section:
    shown = {name: value for name, value in stored.items() if name not in TOLD} | {"settings": settings}
    return Section("Settings", rows=settings_rows(shown), folded=True)


def _apart(settings: Mapping[str, Settings]) -> Settings:
    """The settings of cells, those that all cells of a method share by its name, once; the others by the cell's."""
    cells: dict[str, list[str]] = {}
    for label in settings:
        cells.setdefault(label.partition(", ")[0], []).append(label)
    found: dict[str, dict[str, Any]] = {}
    for method, labels in cells.items():
        first, *others = (settings[label] for label in labels)
        shared = {name: one for name, one in first.items() if all(same(one, of.get(name)) for of in others)}
        found[method] = shared | (SEES_TIME if isinstance(METHODS.get(method), RL) else {})
        for label in labels:
            own = {name: one for name, one in settings[label].items() if name not in shared}
            found |= {label: own} if own else {}
    return found


def _episodes(folder: Path, method: str) -> list[Section]:
    """Episodes of one run; nothing of what leaves no controller."""
    if not exists(folder / "config.json"):
        return []
    shown = episodes_section(trained(folder, "last"))
    return [Section(f"Episodes: {method}, the run that ends lowest", picture=shown.picture, rows=shown.rows)]
