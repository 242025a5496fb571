"""Tables: rows as a CSV file and back, as Markdown, and numbers for a reader."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bptt_trainers.records.files import RunFolderError, read_text

Cell = str | int | float
Row = dict[str, Cell]
Line = dict[str, str]
"""A row as a CSV file holds it. An empty cell is a number that there is not."""


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns, at least one, as CSV text with a header line."""
    return csv_text(list(rows[0]), (list(row.values()) for row in rows))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, header: bool = True) -> str:
    """Rows of cells as CSV text, with a line of the columns before them unless it is for a file that has one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def read_lines(path: Path) -> list[Line]:
    """The rows of a CSV file; none where there is no file.

    Raises:
        RunFolderError: if it cannot be read.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(read_text(path))))
    except FileNotFoundError:
        return []
    except csv.Error as error:
        raise RunFolderError(f"cannot read {path}: {error}.") from error
    for i, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise RunFolderError(f"cannot read {path}: line {i} has not as many cells as there are columns.")
    return lines


def read_appended(path: Path, columns: Sequence[str]) -> list[Line]:
    """The rows of a CSV file that is written line by line; a last one that a kill cut short is left out.

    Raises:
        FileNotFoundError: if there is none.
        RunFolderError: if it cannot be read or has other columns.
    """
    try:
        header, *rows = csv.reader(read_text(path).rpartition("\n")[0].splitlines())
        if header != list(columns):
            raise ValueError(f"its columns are {header}, not {list(columns)}")
        return [dict(zip(columns, row, strict=True)) for row in rows]
    except (ValueError, csv.Error) as error:
        raise RunFolderError(f"cannot read {path}: {error}.") from error


def matches(line: Mapping[str, Cell], wanted: Mapping[str, Cell]) -> bool:
    """Whether a row has these values in these columns."""
    return all(str(line.get(name)) == str(value) for name, value in wanted.items())


def chosen(lines: Sequence[Line], **wanted: Cell) -> list[Line]:
    """The rows with these values in these columns."""
    return [line for line in lines if matches(line, wanted)]


def markdown(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows as a Markdown table, numbers to the right."""
    body = [[str(cell) for cell in row.values()] for row in rows]
    right = [all(not line[i] or line[i][0].isdigit() or line[i] == "–" for line in body) for i in range(len(rows[0]))]
    return piped([list(rows[0]), ["---:" if flag else "---" for flag in right], *body])


def piped(lines: Sequence[Sequence[object]]) -> str:
    """Lines of cells, the second of which is the rule under the heads, as a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def short(value: float, digits: int = 4) -> float:
    """So many significant digits, for a CSV."""
    return float(f"{value:.{digits}g}")


def number(text: str, digits: int = 3, unit: str = "") -> str:
    """A number of a CSV for a reader: so many significant digits, all before the point; a dash for none."""
    if not text:
        return "–"
    value = float(text)
    return f"{value:,.0f}{unit}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".") + unit


def spread(line: Line, digits: int = 3) -> str:
    """Median (least to largest) of a row that was timed."""
    middle, least, largest = (number(line[name], digits) for name in ("milliseconds", "least", "largest"))
    return f"{middle} ({least} to {largest})"


def percent(text: str) -> str:
    """A share in percent; a dash for none."""
    return f"{100 * float(text):.2g} %" if text else "–"
