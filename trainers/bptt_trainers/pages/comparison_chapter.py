"""The chapters of a comparison, its table, its curves, an episode of each method, its settings; and of a sweep."""

from __future__ import annotations

from pathlib import Path

from bptt_envs.checks import integer, positive
from bptt_trainers.analysis.trained import trained
from bptt_trainers.comparison.compare import COMPARISON
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.methods import method_name
from bptt_trainers.comparison.runs import FINISHED, member_folder
from bptt_trainers.comparison.summary import READING, method_rows, run_rows, summarize, worded
from bptt_trainers.comparison.sweep import CELLS, SWEEP
from bptt_trainers.pages.page import Chapter, Picture, Section
from bptt_trainers.pages.run_chapter import episodes_section, settings_rows
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.records.claim import Claim
from bptt_trainers.records.curve import Curve, read_curve
from bptt_trainers.records.files import RunFolderError, exists, understanding
from bptt_trainers.records.tables import Row, read_lines


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
        env_id, options, settings = str(stored["env"]), dict(stored["env_options"]), dict(stored["settings"])
        steps = integer("steps", stored["steps"], 1)
    places = {(method, seed): member_folder(folder, method, seed) for method in methods for seed in seeds}
    curves: dict[tuple[str, int], Curve] = {
        run: read_curve(place / FINISHED) for run, place in places.items() if exists(place / FINISHED)
    }
    if not curves:
        raise RunFolderError(f"{folder} has no finished run yet: nothing can be told of it.")
    runs = [summarize(method, seed, curve, bounds) for (method, seed), curve in curves.items()]
    caption = "The median over the runs of a method, and the range from the best to the worst."
    sections = [
        Section("Methods", rows=worded(method_rows(runs, PLANNERS), bounds), note=READING),
        Section("Held-out loss", picture=Picture(curves_figure(curves), caption)),
    ]
    for method in methods:
        finals = {run.seed: run.final_loss for run in runs if run.method == method}
        if finals:
            sections += _episodes(places[method, min(finals, key=lambda seed: finals[seed])], method)
    sections.append(Section("Every run", rows=run_rows(runs), folded=True))
    shown = {name: value for name, value in stored.items() if name != "settings"} | {"settings": settings}
    sections.append(Section("Settings", rows=settings_rows(shown), folded=True))
    missing = len(places) - len(curves)
    facts = {"methods": f"{len(methods)}", "seeds": f"{len(seeds)}", "simulator steps a run": f"{steps:,}"}
    facts |= {"runs still missing": f"{missing}"} if missing else {}
    asked = "".join(f", {name}={value}" for name, value in options.items())
    return Chapter(title, f"A comparison on {env_id}{asked}.", facts, sections)


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
    rows: list[Row] = [{name: _short(cell) for name, cell in line.items()} for line in lines]
    note = "Losses are means over the held-out start states: the median over the runs, low and high their quartiles."
    sections = [Section("Cells", rows=rows, note=note), Section("Settings", rows=settings_rows(stored), folded=True)]
    return Chapter(title, f"A sweep on {stored.get('env')}.", {"cells": f"{len(rows)}"}, sections)


def _short(cell: str) -> str:
    """A cell of a CSV for a reader: numbers that are no integers in three digits."""
    try:
        return cell if cell.isdigit() else f"{float(cell):.3g}"
    except ValueError:
        return cell


def _episodes(folder: Path, method: str) -> list[Section]:
    """Episodes of one run; nothing of what leaves no controller."""
    if not exists(folder / "config.json"):
        return []
    shown = episodes_section(trained(folder, "last"))
    return [Section(f"Episodes: {method}, the run that ends lowest", picture=shown.picture, rows=shown.rows)]
