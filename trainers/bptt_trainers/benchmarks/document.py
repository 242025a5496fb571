"""The tables of the benchmark, as its page shows them."""

from __future__ import annotations

from pathlib import Path

from bptt_trainers.benchmarks.config import file_of
from bptt_trainers.benchmarks.parts import PARTS
from bptt_trainers.benchmarks.table import markdown, read_lines
from bptt_trainers.benchmarks.targets import judge

TARGETS = "targets"


def tables(out: Path) -> dict[str, str]:
    """The Markdown of every part that a folder holds, and of the targets."""
    found = {name: read_lines(file_of(out, name, "csv")) for name in PARTS}
    shown = {name: PARTS[name].markdown(lines) for name, lines in found.items() if lines}
    return shown | {TARGETS: markdown(judge(out))}
