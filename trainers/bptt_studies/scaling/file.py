"""The CSV file of the scaling measurements: a line a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.tables import columns_of, read_rows, reader_of, to_csv


@dataclass(frozen=True)
class Measurement:
    """One point of an axis, with everything that it depends on.

    Attributes:
        axis: name of the axis.
        value: what is written at the point.
        size: the number by which it is drawn and fitted.
        env: id of the environment.
        options: its options, as the command line takes them.
        batch: start states an update.
        horizon: steps of an episode.
        hidden: widths of the controller's hidden layers.
        rule: update rule.
        engine: how directions are computed.
        threads: threads of torch.
        device: device of torch.
        repeats: updates that were timed.
        milliseconds: the median time of an update, NaN if it took too much memory.
        least: the shortest.
        largest: the longest.
        peak_mib: MiB by which an update raised what is resident (on a GPU: allocated); infinite if it was too much.
        untrained_loss: held-out loss of the controller as it starts.
        loss_after: held-out loss after the updates.
        updates: how many these are.
        skipped: of them, those skipped as their loss or direction was not finite.
        test_states: held-out start states.
        versions: of the package, torch and Python.
    """

    axis: str
    value: str
    size: int
    env: str
    options: str
    batch: int
    horizon: int
    hidden: str
    rule: str
    engine: str
    threads: int
    device: str
    repeats: int
    milliseconds: float
    least: float
    largest: float
    peak_mib: float
    untrained_loss: float
    loss_after: float
    updates: int
    skipped: int
    test_states: int
    versions: str

    def differences(self, wanted: dict[str, Any]) -> list[str]:
        """Where this is a measurement of something else than `wanted`, a line for each column."""
        return [
            f"{name}: {getattr(self, name)!r} in the file, {value!r} asked for"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]


COLUMNS = columns_of(Measurement)


def read_measurements(path: Path) -> list[Measurement]:
    """What a file holds; nothing if there is none.

    Raises:
        RunFolderError: if it cannot be read or has other columns.
    """
    return read_rows(path, reader_of(Measurement), columns=COLUMNS, missing_ok=True)


def write_measurements(path: Path, measurements: Sequence[Measurement]) -> None:
    """Replace the file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    write_atomic(path, to_csv([asdict(one) for one in measurements]).encode())
