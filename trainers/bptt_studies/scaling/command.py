"""`bptt scale`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import OmitArgPrefixes

from bptt_studies.scaling.config import ScalingConfig
from bptt_studies.scaling.run import CSV, scale
from bptt_studies.scaling.tables import by_axis, report, slope_cells
from bptt_trainers.commands.exits import Interrupted
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.records.files import write_atomic

TABLES = "tables.md"


@dataclass(frozen=True)
class Scale:
    """Measure updates as the task grows: about 10 minutes on 2 cores.

    Time, peak memory, and the held-out loss after some updates, over the number
    of poles, grid points, agents, steps, start states and hidden units, one at a
    time, all else as in the paper. Leaves a table (CSV, Markdown) and a figure for
    each axis. Run again, it measures only what is missing.

    example: bptt scale --axes batch horizon --out runs/scaling
    """

    scaling: OmitArgPrefixes[ScalingConfig]

    def run(self) -> None:
        """Measure, write tables, draw."""
        out = self.scaling.out
        try:
            measurements = scale(self.scaling)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the points that are finished are kept") from None
        write_atomic(out / TABLES, report(measurements).encode())

        from bptt_studies.scaling.figure import scaling_figure  # with it comes matplotlib
        from bptt_trainers.figures.style import save_figure

        rows = by_axis(measurements)
        for name, points in rows.items():
            save_figure(scaling_figure(points), out / f"{name}.png", vector=True)
        files = {TABLES: "slopes, limits and tables, for readers", CSV: "a line a point"}
        for name in rows:
            files |= {f"{name}.png": f"time, memory and loss over {name}", f"{name}.pdf": "the same for print"}
        print("\n".join(aligned(slope_cells(measurements), left=2)), end="\n\n")
        print(file_list(out, files))
