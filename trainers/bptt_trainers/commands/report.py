"""`bptt report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bptt_envs.checks import each_once
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import Failed, Misuse, checking_arguments
from bptt_trainers.figures.style import checked_suffix
from bptt_trainers.records.files import RunFolderError, each_place, folders_with, printable, write_atomic


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
            each_once("RUN", tuple(str(folder.resolve()) for folder in self.folders))
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
        from bptt_trainers.pages.page import Chapter, to_html
        from bptt_trainers.pages.run_chapter import run_chapter, side_by_side

        named: dict[str, Path] = {}
        histories: dict[str, Path] = {}
        chapters: list[Chapter] = []
        known = ("config.json", COMPARISON, SWEEP)
        for folder in each_place(one for given in self.folders for one in folders_with(given, *known) or [given]):
            title = str(folder).encode(errors="backslashreplace").decode()
            is_run = not (is_comparison(folder) or is_sweep(folder))
            tell = run_chapter if is_run else comparison_chapter if is_comparison(folder) else sweep_chapter
            try:
                chapters.append(tell(folder, title))
            except RunFolderError as error:
                if folder in self.folders:
                    raise
                print(f"left out: {error}", file=sys.stderr)
                continue
            named[title] = folder
            histories |= {title: folder} if is_run else {}
        if not chapters:
            raise Failed("there is nothing to tell of.")
        chapters = [side_by_side(histories), *chapters] if len(histories) > 1 else chapters
        title = chapters[0].title if len(named) == 1 else f"{len(named)} runs and comparisons"
        write_atomic(out, to_html(title, chapters).encode())
        print(f"{out}: {', '.join(map(printable, named.values()))}")
