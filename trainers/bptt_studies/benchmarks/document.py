"""The tables of the benchmark, as its page shows them."""

from __future__ import annotations

from pathlib import Path

from bptt_studies.benchmarks.config import file_of
from bptt_studies.benchmarks.parts import PARTS
from bptt_studies.benchmarks.targets import judge
from bptt_trainers.records.files import understanding
from bptt_trainers.records.tables import markdown, read_lines

TARGETS = "targets"


def tables(out: Path) -> dict[str, str]:
    """The Markdown of every part that a folder holds, and of the targets.

    Raises:
        RunFolderError: if a file cannot be read, or is damaged.
    """
    shown = {}
    for name, part in PARTS.items():
        path = file_of(out, name, "csv")
        lines = read_lines(path)
        if lines:
            with understanding(path):
                shown[name] = part.markdown(lines)
    with understanding(out):
        return shown | {TARGETS: markdown(judge(out))}
