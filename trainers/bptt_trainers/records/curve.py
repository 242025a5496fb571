"""Learning curves: the held-out loss against simulator steps and seconds, and their CSV file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.tables import columns_of, csv_text, read_rows, reader_of


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

COLUMNS = columns_of(CurvePoint)


def curve_to_csv(curve: Curve) -> str:
    """The curve as CSV text with a header line."""
    return csv_text(COLUMNS, map(astuple, curve))


def read_curve(path: Path) -> list[CurvePoint]:
    """Read a curve; the file may have more columns, as a run's metrics.csv has.

    Raises:
        RunFolderError: if it cannot be read, lacks a column or holds no evaluation.
    """
    curve = read_rows(path, reader_of(CurvePoint), remedy=_REMEDY)
    if not curve:
        raise RunFolderError(f"{path} holds no evaluation. {_REMEDY}")
    return curve


_REMEDY = "Deleted, it is made anew."
