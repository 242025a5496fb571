"""`bptt estimators`."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import OmitArgPrefixes

from bptt_studies.estimators.config import EstimatorsConfig
from bptt_studies.estimators.run import ROWS, study, system_of
from bptt_studies.estimators.tables import COLUMNS, report, value_rows
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.records.files import write_atomic

FILES = {
    "tables.md": "noise, bias and cosine, for readers",
    "estimators.png": "the same over what is varied",
    "estimators.pdf": "the same for print",
    ROWS: "a line an estimator and value",
}


@dataclass(frozen=True)
class Estimators:
    """Measure variance and bias of estimators of a gradient: minutes on a core.

    Those of R, M and S, of likelihood ratio, total propagation and alpha-order, at
    a stochastic controller before it is trained: over the horizon on chaotic
    systems or over the stiffness of contacts. Leaves tables (CSV, Markdown) and a
    figure. Run again, it does only the values that are missing.

    example: bptt estimators --task upright-hopper --out runs/estimators
    """

    estimators: OmitArgPrefixes[EstimatorsConfig]

    def run(self) -> None:
        """Measure, write tables, draw."""
        config = self.estimators
        with checking_arguments():  # before any is measured
            for value in config.points:
                system_of(config, value)
        try:
            rows = study(config)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what is finished is kept") from None
        write_atomic(config.out / "tables.md", report(rows, config).encode())

        from bptt_studies.estimators.figure import estimators_figure  # with it comes matplotlib
        from bptt_trainers.figures.style import save_figure

        save_figure(estimators_figure(rows, config), config.out / "estimators.png", vector=True)
        for what, title in COLUMNS.items():
            table = value_rows(rows, config, what)
            print(title)
            print(
                "\n".join(aligned([list(table[0]), *[[str(one) for one in row.values()] for row in table]], left=1)),
                end="\n\n",
            )
        print(file_list(config.out, FILES))
