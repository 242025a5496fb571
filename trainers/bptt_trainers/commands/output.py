"""What commands print: tables, lists of files."""

from __future__ import annotations

from pathlib import Path


def aligned(rows: list[list[str]], left: int = 3) -> list[str]:
    """Lines of a table: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def file_list(out: Path, files: dict[str, str]) -> str:
    """The files in `out` with what they are."""
    return "\n".join(aligned([[f"{out / name}", meaning] for name, meaning in files.items()], left=2))
