"""Tables: rows as a CSV file and back, as Markdown, and numbers for a reader."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from bptt_trainers.records.files import RunFolderError, read_text

Cell = str | int | float
Row = dict[str, Cell]
Line = dict[str, str]
"""A row as a CSV file holds it. An empty cell is a number that there is not."""

T = TypeVar("T")

_READERS = {"int": int, "float": float, "str": str}


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
    """The rows of a CSV file of any columns; none where there is no file.

    Raises:
        RunFolderError: if it cannot be read.
    """
    return read_rows(path, dict, missing_ok=True)


def read_rows(
    path: Path,
    make: Callable[[Line], T],
    *,
    columns: Sequence[str] | None = None,
    further: bool = False,
    missing_ok: bool = False,
    cut_short: bool = False,
    remedy: str = "",
) -> list[T]:
    """The rows of a CSV file, as what is made of each.

    Args:
        path: the file.
        make: from a line to a row, such as `reader_of` a dataclass; ValueError says that the line is none.
        columns: all that the file must have, in this order. None: any.
        further: whether it may have others after these.
        missing_ok: take no file for one without rows.
        cut_short: leave out a last line that does not end, as a kill may leave it.
        remedy: a sentence on what to do about a file that cannot be read.

    Raises:
        RunFolderError: if it cannot be read, has other columns, or a line is not what it should be.
    """
    try:
        text = read_text(path)
        reader = csv.DictReader(io.StringIO(text.rpartition("\n")[0] if cut_short else text, newline=""))
        found = list(reader.fieldnames or ())
        if columns is not None and found[: len(columns) if further else None] != list(columns):
            raise ValueError(f"its columns are {', '.join(found) or 'none'}, not {', '.join(columns)}")
        rows = []
        for line in reader:
            if None in line or None in line.values():
                raise ValueError(f"line {reader.line_num} has not as many cells as there are columns")
            try:
                rows.append(make(line))
            except KeyError as error:
                raise ValueError(f"it has no column {error}") from error
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
        return rows
    except FileNotFoundError as error:
        if missing_ok:
            return []
        raise RunFolderError(f"cannot read {path}: {error}. {remedy}".rstrip()) from error
    except (ValueError, csv.Error) as error:
        raise RunFolderError(f"cannot read {path}: {error}. {remedy}".rstrip()) from error


def columns_of(kind: type) -> tuple[str, ...]:
    """The columns of a table of a dataclass: its fields."""
    return tuple(field.name for field in fields(kind))


def cells_of(kind: Any, columns: Sequence[str]) -> Callable[[Line], dict[str, Any]]:
    """From a line to its cells in those columns, each read as the field of a dataclass: numbers and texts."""
    types = {field.name: str(field.type) for field in fields(kind)}
    readers = {name: _READERS[types[name]] for name in columns}
    return lambda line: {name: read(line[name]) for name, read in readers.items()}


def reader_of(kind: Callable[..., T]) -> Callable[[Line], T]:
    """From a line to a dataclass whose fields are numbers and texts; columns of other names do not matter."""
    cells = cells_of(kind, [field.name for field in fields(kind)])  # type: ignore[arg-type]
    return lambda line: kind(**cells(line))


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
