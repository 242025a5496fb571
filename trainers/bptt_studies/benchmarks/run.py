"""Measure what a folder does not hold yet, cell by cell, and write it as it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bptt_studies.benchmarks.config import BenchmarkConfig, PartName, file_of
from bptt_studies.benchmarks.limit import MEASURED_WITH
from bptt_studies.benchmarks.parts import PARTS, Part
from bptt_studies.benchmarks.worker import measure_apart
from bptt_trainers.host.machine import load_average, machine, versions
from bptt_trainers.host.threads import available_cores
from bptt_trainers.records.claim import Claim, locked, plain_differences
from bptt_trainers.records.files import RunFolderError, exists, remove, understanding, write_atomic
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.records.tables import Line, Row, matches, read_lines, to_csv

LOAD = "load_average"  # of a part's JSON file: no setting, so it may differ from one go to the next


def run(config: BenchmarkConfig, out: Path, *, redo: bool = False) -> dict[PartName, list[Line]]:
    """Measure the parts of `config`: those cells that `out` does not hold yet.

    A part has a CSV file, which is written after every cell, a Markdown table of the same numbers, and a JSON file
    with the settings, the machine and the versions that they are of, and how busy the machine was: its load average
    (processes that ran or waited, over a minute) before and after each go.

    Args:
        config: what to measure.
        out: the folder.
        redo: delete what the folder holds of these parts, and measure anew.

    Returns:
        The lines of the CSV file of each part that could be measured.

    Raises:
        ValueError: if there are not so many cores as threads are asked for.
        RunFolderError: if a file is of other settings or another machine, cannot be read or written, or the folder is
            in use.
        ChildProcessError: if a measurement fails.
    """
    cores = len(available_cores())
    if max(config.threads) > cores:
        raise ValueError(f"threads must be at most the {cores} cores that there are; got {config.threads}.")
    if config.device == "cuda" and not torch.cuda.is_available():
        print("device cuda is left out: torch finds no GPU here.", file=sys.stderr)
        return {}
    parts = {name: PARTS[name] for name in config.parts if config.device == "cpu" or PARTS[name].on_gpu}
    for name in config.parts:
        if name not in parts:
            print(f"part {name} is left out: it is measured on the cpu only.", file=sys.stderr)
    with locked(out):
        if redo:
            for name in parts:
                remove(file_of(out, name, "csv"))
        for name, part in parts.items():
            _claim(config, out, name, part)
        return _measure(config, out, parts)


def _measure(config: BenchmarkConfig, out: Path, parts: Mapping[PartName, Part]) -> dict[PartName, list[Line]]:
    todo: dict[PartName, list[Row]] = {}
    for name, part in parts.items():
        lines = read_lines(file_of(out, name, "csv"))
        todo[name] = [cell for cell in part.cells(config) if not any(matches(line, cell) for line in lines)]
    bar = progress_bar("benchmark", sum(map(len, todo.values())), "cell")
    with bar:
        for name, cells in todo.items():
            before = load_average()
            earlier = _stored(out, name).get(LOAD, [])
            for cell in cells:
                shown = (str(value) for key, value in cell.items() if key != "env" and value != "")
                bar.set_postfix_str(f"{name}: {' '.join(shown)}")
                _add(out, name, measure_apart(name, config, cell), parts[name].cells(config))
                go = {"before": before, "after": load_average()}
                _write(out, name, _stored(out, name) | {LOAD: [*earlier, go]})
                bar.update()
    return {name: read_lines(file_of(out, name, "csv")) for name in parts}


def _add(out: Path, name: PartName, rows: list[Row], order: list[Row]) -> None:
    """Add rows to a part's file, in the order of its cells; what is of other cells comes last."""
    path = file_of(out, name, "csv")
    lines: list[Any] = [*read_lines(path), *rows]
    places = {id(line): next((i for i, cell in enumerate(order) if matches(line, cell)), len(order)) for line in lines}
    write_atomic(path, to_csv(sorted(lines, key=lambda line: places[id(line)])).encode())
    with understanding(path):
        table = PARTS[name].markdown(read_lines(path))
    write_atomic(file_of(out, name, "md"), (table + "\n").encode())


def _claim(config: BenchmarkConfig, out: Path, name: PartName, part: Part) -> None:
    """Note what a part's numbers are of; refuse a file with those of something else."""
    wanted = json.loads(
        json.dumps(
            {setting: getattr(config, setting) for setting in part.settings}
            | {"machine": machine(config.device), "versions": versions(*MEASURED_WITH)}
        )
    )
    loads = []
    if exists(file_of(out, name, "csv")):
        try:
            stored = _stored(out, name)
        except RunFolderError as error:
            raise RunFolderError(f"{error} It says what the CSV file beside it is of.") from error
        loads = stored.pop(LOAD, [])
        different = plain_differences(stored, wanted, here="now")
        if different:
            raise RunFolderError(
                "\n  ".join([f"{file_of(out, name, 'csv')} was measured otherwise:", *different])
                + "\n--redo measures it anew, another --out keeps both."
            )
    _write(out, name, wanted | {LOAD: loads})


def _stored(out: Path, name: PartName) -> dict[str, Any]:
    """What a part's JSON file says."""
    return Claim(file_of(out, name, "json"), "benchmark").read()


def _write(out: Path, name: PartName, noted: Mapping[str, Any]) -> None:
    write_atomic(file_of(out, name, "json"), (json.dumps(noted, indent=2) + "\n").encode())
