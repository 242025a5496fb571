"""`bptt diagnose`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bptt_trainers.analysis.diagnostics import NPZ, Diagnosis, read_diagnostics
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import checking_arguments
from bptt_trainers.commands.output import aligned
from bptt_trainers.training.run_folder import RunFolder


@dataclass(frozen=True)
class Diagnose:
    """Draw how the update rules differed in a training run.

    Norms of R, M and C by layer, the angles between them, and how feedback grows
    backwards through the horizon, under each rule. The run must have been trained
    with --record diagnostics.

    example: bptt diagnose runs/two
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""

    out: Path | None = None
    """The file, ending in .png, .pdf or .svg. None: diagnostics.png in the run folder."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    def run(self) -> None:
        """Draw, and print a few lines."""
        from bptt_trainers.analysis.diagnostics_figure import diagnostics_figure  # with it comes matplotlib
        from bptt_trainers.figures.style import FIGURE_FORMATS, checked_suffix, plain_text, save_figure

        out = self.out or self.run_folder / "diagnostics.png"
        with checking_arguments():
            checked_suffix("--out", out, FIGURE_FORMATS)
        folder = RunFolder(self.run_folder)
        config = folder.read_config()["environment"]
        with checking_arguments():
            system = folder.make_env().system
        diagnoses = read_diagnostics(folder.path / NPZ)
        with checking_arguments():
            save_figure(diagnostics_figure(diagnoses, system, plain_text(f"{config['id']}: {folder.path.name}")), out)
        head = ["epoch", "cosine", "same sign", "|R|/|M|", "feedback R", "feedback M", "growth R", "growth M"]
        middle = diagnoses[len(diagnoses) // 2]
        chosen = {one.epoch: one for one in (diagnoses[0], middle, diagnoses[-1])}
        for line in aligned([head, *map(_row, chosen.values())], left=0):
            print(line)
        print(_NOTE)
        print(f"{out}: {len(diagnoses)} epochs")


def _row(one: Diagnosis) -> list[str]:
    regular, modified, _ = (float((norms**2).sum() ** 0.5) for norms in one.norms)
    open_loop, closed_loop = one.growth[:, 0]
    return [
        str(one.epoch),
        f"{one.cosine[0]:.2f}",
        f"{one.agreement[0]:.0%}",
        f"{regular / modified:.3g}" if modified else "-",
        f"{one.adjoints[0, 0]:.3g}",
        f"{one.adjoints[1, 0]:.3g}",
        _power_of_ten(closed_loop),
        _power_of_ten(open_loop),
    ]


def _power_of_ten(exponent: float) -> str:
    return f"10^{exponent:.1f}" if math.isfinite(exponent) else "-"


_NOTE = """cosine, same sign: of R and M. feedback: |dL/dx_t| at t = 1, as R and as M feed
it back. growth: the most by which all steps together stretch it, in the loop
with the controller (R) and by the physics alone (M)."""
