"""Pages of the documentation whose tables are those of files, word for word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bptt_trainers.records.files import RunFolderError, read_text, write_atomic

PLACE = re.compile(r"<!-- (?P<name>[\w.-]+) -->\n.*?<!-- end -->", re.S)


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A page with tables, Markdown by name, between its marks, `<!-- NAME -->` and `<!-- end -->`.

    The place of a table that there is not stays as it is.
    """

    def table(place: re.Match[str]) -> str:
        name = place["name"]
        return f"<!-- {name} -->\n\n{tables[name].strip()}\n\n<!-- end -->" if name in tables else place[0]

    return PLACE.sub(table, text)


def read_page(page: Path) -> str:
    """The text of a page.

    Raises:
        RunFolderError: if it cannot be read, or has no place for a table.
    """
    try:
        text = read_text(page)
    except FileNotFoundError as error:
        raise RunFolderError(f"cannot read {page}: {error}.") from error
    if not PLACE.search(text):
        raise RunFolderError(f"{page} has no place for a table: <!-- NAME -->, a line, <!-- end -->.")
    return text


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Bring the tables of a page up to date.

    Raises:
        RunFolderError: as `read_page`, and if the page cannot be written.
    """
    write_atomic(page, filled(read_page(page), tables).encode())
