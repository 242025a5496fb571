"""`bptt report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bptt_envs.checks import each_once
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import Misuse, checking_arguments
from bptt_trainers.figures.style import checked_suffix
from bptt_trainers.records.files import folders_with, write_atomic


@dataclass(frozen=True)
class Report:
    """Tell of runs and comparisons in one HTML page.

    Losses, updates, episodes, diagnosis and settings of each, as far as it went.
    The page is one file that needs no other and loads nothing: it can be mailed,
    kept or printed. Of a folder that holds several of these, it tells of all.

    example: bptt report runs/two --out two.html
    """

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Folders of runs, of whatever learner, of comparisons and of sweeps."""

    out: Path | None = None
    """The file, ending in .html. None: report.html in the folder; of several, in the current one."""

    module: Module = None
    """Module to import first: one that registers the environment of a run, if that is your own."""

    def run(self) -> None:
        """Write the page."""
        with checking_arguments():
            if not self.folders:
                raise Misuse("name at least one folder of a run or a comparison, such as runs/two.")
            out = self.out or (self.folders[0] if len(self.folders) == 1 else Path()) / "report.html"
            checked_suffix("--out", out, ("html",))

        from bptt_trainers.comparison.compare import COMPARISON
        from bptt_trainers.comparison.sweep import SWEEP
        from bptt_trainers.pages.comparison_chapter import (  # with it comes matplotlib
            comparison_chapter,
            is_comparison,
            is_sweep,
            sweep_chapter,
        )
        from bptt_trainers.pages.page import to_html
        from bptt_trainers.pages.run_chapter import run_chapter, side_by_side

        known = ("config.json", COMPARISON, SWEEP)
        told = [one for folder in self.folders for one in folders_with(folder, *known) or [folder]]
        with checking_arguments():
            each_once("RUN", tuple(str(folder.resolve()) for folder in told))
        named = {str(folder).encode(errors="backslashreplace").decode(): folder for folder in told}
        tell = {
            title: comparison_chapter if is_comparison(folder) else sweep_chapter if is_sweep(folder) else run_chapter
            for title, folder in named.items()
        }
        runs = {title: folder for title, folder in named.items() if tell[title] is run_chapter}
        chapters = [side_by_side(runs)] if len(runs) > 1 else []
        chapters += [tell[title](folder, title) for title, folder in named.items()]
        title = chapters[0].title if len(named) == 1 else f"{len(named)} runs and comparisons"
        write_atomic(out, to_html(title, chapters).encode())
        print(f"{out}: {', '.join(named)}")
