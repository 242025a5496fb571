"""`bptt fields`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import OmitArgPrefixes, Positional, arg

from bptt_trainers.analysis.fields import SHOWN_RULES, Table
from bptt_trainers.analysis.run_fields import CHECKPOINTS, POINTS, FieldsConfig, RunFields
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.training.run_folder import RunFolder

ANIMATION = "fields.gif"
FILES = {
    ANIMATION: "the fields over training",
    "epoch_*.png": "those of each checkpoint",
    "epoch_*.pdf": "the same for print",
    POINTS: "a line a point of the grids",
    CHECKPOINTS: "a line a checkpoint: at its own parameters",
}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Draw the fields of R, M and C around a run's checkpoints.

    A plane in parameter space is laid through each checkpoint: the loss and the
    directions of the three rules on a grid of points, how long they are, how much
    of them is rotation, and where C is zero. Leaves a picture a checkpoint, an
    animation and the numbers (CSV). Needs a run trained with --keep-every; run
    again, it computes only what is missing.

    example: bptt fields runs/two --directions path --size 21
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    settings: OmitArgPrefixes[FieldsConfig]

    out: Path | None = None
    """Folder for everything. None: fields/DIRECTIONS in the run folder."""

    def run(self) -> None:
        """Compute what is missing, and draw."""
        folder = RunFolder(self.run_folder)
        out = self.out or folder.path / "fields" / self.settings.directions
        with checking_arguments():
            fields = RunFields(folder, self.settings)
        try:
            points, checkpoints = fields.compute(out)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the checkpoints that are finished are kept") from None
        draw(fields, points, checkpoints, out)
        rows = [_row(epoch, checkpoints[epoch], points[epoch]) for epoch in points]
        print("\n".join([*aligned([_HEAD, *rows], left=0), _NOTE, "", file_list(out, FILES)]))


def draw(fields: RunFields, points: dict[int, Table], checkpoints: dict[int, Table], out: Path) -> None:
    """A picture of each checkpoint, and the animation of them; one scale of colors for all."""
    from bptt_trainers.analysis.fields_figure import (  # with it: matplotlib
        fields_figure,
        path_overlay,
        save_frames,
        scales_of,
    )
    from bptt_trainers.figures.style import save_figure

    scales = scales_of(points.values())
    figures = []
    for epoch, table in points.items():
        piece = fields.slices[epoch]
        title = f"{fields.name}: around the checkpoint of epoch {epoch}, loss {checkpoints[epoch]['loss'][0]:.3g}"
        overlay = path_overlay(piece.path, piece.here)
        figures.append(fields_figure(table, piece.plane.labels, title, scales, overlay))
        save_figure(figures[-1], out / f"epoch_{epoch:06d}.png", vector=True)
    save_frames(figures, out / ANIMATION)


_HEAD = ["epoch", "loss", *(f"|{rule}|" for rule in SHOWN_RULES), "C=0", "rot M", "rot C"]
_HEAD += [f"med {rule}" for rule in SHOWN_RULES]
_NOTE = """At the checkpoints: the loss; |R|, |M|, |C|, norms in the full space; C=0, the
share of components that are 0 in C; rot, the rotation in the plane, from -1
to 1. In the square: med, the median of the rotation's absolute value."""


def _row(epoch: int, here: Table, square: Table) -> list[str]:
    cells = [str(epoch), f"{here['loss'][0]:.3g}", *(f"{here[f'{rule}_norm'][0]:.3g}" for rule in SHOWN_RULES)]
    cells += [f"{here['C_zero'][0]:.0%}", *(f"{here[f'{rule}_rotation'][0]:+.2f}" for rule in ("M", "C"))]
    rotations = {rule: np.abs(square[f"{rule}_rotation"]) for rule in SHOWN_RULES}
    return cells + [
        f"{np.median(r[np.isfinite(r)]) if np.isfinite(r).any() else np.nan:.3f}" for r in rotations.values()
    ]
