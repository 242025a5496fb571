"""What a run reports of each epoch, and its CSV file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from bptt_trainers.records.curve import Curve, CurvePoint
from bptt_trainers.records.tables import columns_of, csv_text, read_rows, reader_of


@dataclass(frozen=True)
class EpochMetrics:
    """One line of metrics.csv; epoch 0 is the untrained controller, its direction columns are NaN.

    Attributes:
        epoch: epochs finished.
        train_loss: loss over all training states at the end of the epoch.
        test_loss: loss over all held-out states at the end of the epoch.
        direction_norm: mean over the updates of the direction's norm before clipping.
        sign_agreement: share of parameter components in which R and M have the same sign.
        cosine: cosine of the angle between R and M. This and `sign_agreement` are measured, under every
            rule, at the first update of the epoch.
        skipped: updates that were skipped because a loss or direction was not finite.
        simulator_steps: steps of the physics taken for training so far.
        seconds: time spent on updates so far, evaluation and files not counted; of a member of an ensemble, its
            share.
    """

    epoch: int
    train_loss: float
    test_loss: float
    direction_norm: float
    sign_agreement: float
    cosine: float
    skipped: int
    simulator_steps: int
    seconds: float


COLUMNS = columns_of(EpochMetrics)


def to_csv(rows: Sequence[EpochMetrics], header: bool = True) -> str:
    """The rows as CSV text."""
    return csv_text(COLUMNS, map(astuple, rows), header=header)


def read_csv(path: Path) -> list[EpochMetrics]:
    """Read metrics.csv; a last line that a kill cut short is left out.

    Raises:
        RunFolderError: if it cannot be read or has other columns.
    """
    return read_rows(path, reader_of(EpochMetrics), columns=COLUMNS, cut_short=True)


def scalars(row: EpochMetrics) -> dict[str, float]:
    """The numbers of an epoch that are any, by the tags that TensorBoard and trackers know them by."""
    values = {name: value for name, value in asdict(row).items() if name != "epoch" and not math.isnan(value)}
    return {
        f"{'loss' if name.endswith('_loss') else 'train'}/{name.removesuffix('_loss')}": value
        for name, value in values.items()
    }


def learning_curve(history: Sequence[EpochMetrics]) -> Curve:
    """The learning curve of a run."""
    return [CurvePoint(row.simulator_steps, row.seconds, row.test_loss) for row in history]
