"""Tables of the contact study, with the verdicts on what is said of contacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from bptt_studies.contact.config import ContactConfig
from bptt_studies.contact.gradients import Gradients
from bptt_studies.contact.run import OVER_HORIZONS, START, Measured, Run
from bptt_studies.paper.statistics import LEVEL, improvement, spread, verdicts
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.records.tables import Row, markdown

QUESTIONS = (("C", "R"), ("M", "R"), ("S", "C"), ("S", START))
"""Does the one end lower than the other; "start": than controllers that nothing has trained?"""


def losses_at(runs: Sequence[Run], stiffness: float, side: str) -> list[float]:
    """Held-out losses of a rule at a stiffness, or of "start", (seeds,)."""
    rule = "R" if side == START else side  # the seeds start alike under every rule
    there = [run for run in runs if (run.stiffness, run.rule) == (stiffness, rule)]
    return [run.untrained if side == START else run.loss for run in there]


def stiffnesses_of(rows: Sequence[Run] | Sequence[Measured]) -> list[float]:
    """Those of the rows, the softest first."""
    return sorted({row.stiffness for row in rows})


def loss_rows(runs: Sequence[Run]) -> list[Row]:
    """A row for each stiffness: median and quartiles of the losses before training and after, by rule."""
    rows: list[Row] = []
    for stiffness in stiffnesses_of(runs):
        row: Row = {"stiffness [N/m]": f"{stiffness:g}"}
        for side in (START, *PAPER_RULES):
            found = spread(losses_at(runs, stiffness, side))
            row[side] = f"{found.median:.3f} ({found.lower:.3f} to {found.upper:.3f})"
        rows.append(row)
    return rows


def verdict_rows(runs: Sequence[Run]) -> list[Row]:
    """A row for each stiffness and question: all of them are one family of tests."""
    asked = [(stiffness, *question) for stiffness in stiffnesses_of(runs) for question in QUESTIONS]
    compared = [
        improvement(*(losses_at(runs, stiffness, side) for side in (one, other))) for stiffness, one, other in asked
    ]
    return [
        {
            "stiffness [N/m]": f"{stiffness:g}",
            "does": f"{one} end below {'its start' if other == START else other}?",
            "probability": f"{found.probability:.2f}",
            "p": f"{found.p:.2g}",
            "verdict": verdict,
        }
        for (stiffness, one, other), found, verdict in zip(asked, compared, verdicts(compared), strict=True)
    ]


def gradient_rows(measured: Sequence[Measured], controllers: Sequence[str], horizons: Sequence[int]) -> list[Row]:
    """A row for each controller, horizon and stiffness: medians over the seeds, a dash where that is no number.

    Args:
        measured: all that was measured.
        controllers: by what they were trained.
        horizons: those of the rows.
    """
    rows: list[Row] = []
    for trained in controllers:
        for horizon in horizons:
            for stiffness in stiffnesses_of(measured):
                there = [one for one in measured if (one.trained, one.horizon) == (trained, horizon)]
                there = [one for one in there if one.stiffness == stiffness]
                row: Row = {"controller": trained, "horizon": horizon, "stiffness [N/m]": f"{stiffness:g}"}
                for name in (field.name for field in fields(Gradients)):
                    median = np.median([getattr(one, name) for one in there])
                    row[name] = "–" if np.isnan(median) else f"{median:.3g}"
                rows.append(row)
    return rows


def report(runs: Sequence[Run], measured: Sequence[Measured], config: ContactConfig) -> str:
    """All tables as Markdown."""
    tables = {
        "Held-out losses: median (quartiles) over the seeds": loss_rows(runs),
        f"Verdicts: exact test, corrected by Holm's method, level {LEVEL:g}": verdict_rows(runs),
        "Gradients over the whole horizon: medians over the seeds": gradient_rows(
            measured, (START, *PAPER_RULES), config.horizons[-1:]
        ),
        "Gradients over parts of it": gradient_rows(measured, OVER_HORIZONS, config.horizons[:-1]),
    }
    text = "\n\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items() if rows)
    return f"# Contacts, {config.task}: {config.seeds} seeds a side\n\n{text}\n"
