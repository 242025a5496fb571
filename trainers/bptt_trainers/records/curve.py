"""Learning curves: the held-out loss against simulator steps and seconds, and their CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from bptt_trainers.records.files import RunFolderError, read_text
from bptt_trainers.records.tables import csv_text


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation.

    Attributes:
        simulator_steps: steps of the physics taken for training so far.
        seconds: time spent on training so far, evaluations not counted.
        test_loss: mean loss over the held-out start states.
    """

    simulator_steps: int
    seconds: float
    test_loss: float


Curve = Sequence[CurvePoint]
Report = Callable[[CurvePoint], bool]
"""Called at each evaluation of a run; False ends it there."""

COLUMNS = tuple(field.name for field in fields(CurvePoint))


def curve_to_csv(curve: Curve) -> str:
    """The curve as CSV text with a header line."""
    return csv_text(COLUMNS, map(astuple, curve))


def read_curve(path: Path) -> list[CurvePoint]:
    """Read a curve; the file may have more columns, as a run's metrics.csv has.

    Raises:
        RunFolderError: if it cannot be read, lacks a column or holds no evaluation.
    """
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a line of it has not as many cells as there are columns")
        curve = [
            CurvePoint(int(row["simulator_steps"]), float(row["seconds"]), float(row["test_loss"])) for row in rows
        ]
    except KeyError as error:
        raise RunFolderError(f"cannot read {path}: it has no column {error}. {_REMEDY}") from error
    except (FileNotFoundError, ValueError, TypeError, csv.Error) as error:
        raise RunFolderError(f"cannot read {path}: {error}. {_REMEDY}") from error
    if not curve:
        raise RunFolderError(f"{path} holds no evaluation. {_REMEDY}")
    return curve


_REMEDY = "Deleted, it is made anew."
