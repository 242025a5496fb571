"""The page of the benchmark: its tables are those of the CSV files, word for word."""

from __future__ import annotations

import re
from pathlib import Path

from bptt_trainers.benchmarks.config import file_of
from bptt_trainers.benchmarks.parts import PARTS
from bptt_trainers.benchmarks.table import markdown, read_lines
from bptt_trainers.benchmarks.targets import judge
from bptt_trainers.files import RunFolderError, write_atomic

TARGETS = "targets"
PLACE = re.compile(r"<!-- (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.S)


def tables(out: Path) -> dict[str, str]:
    """The Markdown of every part that a folder holds, and of the targets."""
    found = {name: read_lines(file_of(out, name, "csv")) for name in PARTS}
    shown = {name: PARTS[name].markdown(lines) for name, lines in found.items() if lines}
    return shown | {TARGETS: markdown(judge(out))}


def filled(text: str, out: Path) -> str:
    """A page with the tables of a folder between its marks, `<!-- NAME -->` and `<!-- end -->`.

    The place of a part that the folder does not hold stays as it is.
    """
    found = tables(out)

    def table(place: re.Match[str]) -> str:
        name = place["name"]
        return f"<!-- {name} -->\n\n{found[name]}\n\n<!-- end -->" if name in found else place[0]

    return PLACE.sub(table, text)


def read_page(page: Path) -> str:
    """The text of a page.

    Raises:
        RunFolderError: if it cannot be read, or has no place for a table.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {page}: {error}.") from error
    if not PLACE.search(text):
        raise RunFolderError(f"{page} has no place for a table: <!-- updates -->, a line, <!-- end -->.")
    return text


def fill(page: Path, out: Path) -> None:
    """Bring the tables of a page up to date with a folder.

    Raises:
        RunFolderError: as `read_page`, and if the page cannot be written.
    """
    write_atomic(page, filled(read_page(page), out).encode())
