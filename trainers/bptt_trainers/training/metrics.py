"""What a run reports of each epoch, and its CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bptt_trainers.records.curve import Curve, CurvePoint
from bptt_trainers.records.tables import Line, cells_of, columns_of, csv_text, read_rows


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
        own: numbers of the learner's own by name, means over the updates, such as the critic_loss of SHAC.
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
    own: Mapping[str, float] = field(default_factory=dict)


COLUMNS = columns_of(EpochMetrics)[:-1]


def to_csv(rows: Sequence[EpochMetrics], own: Sequence[str] = (), *, header: bool = True) -> str:
    """The rows as CSV text, with columns of the learner's own numbers of these names after the others."""
    cells = (
        [*(getattr(row, name) for name in COLUMNS), *(row.own.get(name, math.nan) for name in own)] for row in rows
    )
    return csv_text((*COLUMNS, *own), cells, header=header)


def read_csv(path: Path) -> list[EpochMetrics]:
    """Read metrics.csv; a last line that a kill cut short is left out.

    Raises:
        RunFolderError: if it cannot be read or has other columns.
    """
    cells = cells_of(EpochMetrics, COLUMNS)

    def read(line: Line) -> EpochMetrics:
        own = {name: float(value) for name, value in line.items() if name not in COLUMNS}
        return EpochMetrics(**cells(line), own=own)

    return read_rows(path, read, columns=COLUMNS, further=True, cut_short=True)


def scalars(row: EpochMetrics) -> dict[str, float]:
    """The numbers of an epoch that are any, by the tags that TensorBoard and trackers know them by."""
    values = {name: getattr(row, name) for name in COLUMNS if name != "epoch"} | dict(row.own)
    return {
        f"{'loss' if name.endswith('_loss') else 'train'}/{name.removesuffix('_loss')}": value
        for name, value in values.items()
        if not math.isnan(value)
    }


def learning_curve(history: Sequence[EpochMetrics]) -> Curve:
    """The learning curve of a run."""
    return [CurvePoint(row.simulator_steps, row.seconds, row.test_loss) for row in history]
