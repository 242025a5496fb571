"""`bptt contact`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from tyro.conf import OmitArgPrefixes

from bptt_studies.contact.config import ContactConfig
from bptt_studies.contact.run import GRADIENTS, RUNS, study, system_of
from bptt_studies.contact.tables import loss_rows, report, verdict_rows
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.records.files import write_atomic

FILES = {
    "tables.md": "losses, verdicts and gradients, for readers",
    "contact.png": "the same over the stiffness",
    "contact.pdf": "the same for print",
    RUNS: "a line a run",
    GRADIENTS: "a line a controller and horizon",
}


@dataclass(frozen=True)
class Contact:
    """Study R, M, S and C over the stiffness of contacts: 10 minutes on a core.

    The loss after the same budget, with a verdict, and what R and M are before
    and after: their norms, their noise over start states, the angle between
    them, how feedback is spread over the steps. Leaves tables (CSV, Markdown) and
    a figure. Run again, it does only the stiffnesses that are missing.

    example: bptt contact --task hopper --out runs/contact
    """

    contact: OmitArgPrefixes[ContactConfig]

    def run(self) -> None:
        """Train, measure, write tables, draw."""
        out = self.contact.out
        with checking_arguments():  # before any of them trains
            for stiffness, horizon in product(self.contact.stiffnesses, self.contact.horizons):
                system_of(self.contact, stiffness, horizon)
        try:
            runs, measured = study(self.contact)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what is finished is kept") from None
        write_atomic(out / "tables.md", report(runs, measured, self.contact).encode())

        from bptt_studies.contact.figure import contact_figure  # with it comes matplotlib
        from bptt_trainers.figures.style import save_figure

        save_figure(contact_figure(runs, measured, self.contact), out / "contact.png", vector=True)
        for rows in (loss_rows(runs), verdict_rows(runs)):
            cells = [[str(cell) for cell in row.values()] for row in rows]
            print("\n".join(aligned([list(rows[0]), *cells], left=1)), end="\n\n")
        print(file_list(out, FILES))
