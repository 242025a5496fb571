"""The chapter of a comparison: its table, its curves, an episode of each method, its settings."""

from __future__ import annotations

from pathlib import Path

from bptt_trainers.analysis.trained import trained
from bptt_trainers.comparison.compare import COMPARISON
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.runs import FINISHED, member_folder
from bptt_trainers.comparison.summary import READING, method_rows, run_rows, summarize, worded
from bptt_trainers.pages.page import Chapter, Picture, Section
from bptt_trainers.pages.run_chapter import episodes_section, settings_rows
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.records.claim import Claim
from bptt_trainers.records.curve import Curve, read_curve
from bptt_trainers.records.files import RunFolderError, exists, understanding


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
        methods, seeds, bounds = list(stored["methods"]), list(stored["seeds"]), [float(x) for x in stored["losses"]]
        env_id, options, settings = str(stored["env"]), dict(stored["env_options"]), dict(stored["settings"])
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
    facts = {"methods": f"{len(methods)}", "seeds": f"{len(seeds)}", "simulator steps a run": f"{stored['steps']:,}"}
    facts |= {"runs still missing": f"{missing}"} if missing else {}
    asked = "".join(f", {name}={value}" for name, value in options.items())
    return Chapter(title, f"A comparison on {env_id}{asked}.", facts, sections)


def _episodes(folder: Path, method: str) -> list[Section]:
    """Episodes of one run; nothing of what leaves no controller."""
    if not exists(folder / "config.json"):
        return []
    shown = episodes_section(trained(folder, "last"))
    return [Section(f"Episodes: {method}, the run that ends lowest", picture=shown.picture, rows=shown.rows)]
