"""`bptt toys`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bptt_studies.toys.toys import (
    KEEP_EVERY,
    LEARNING_RATES,
    ROTATION_RATES,
    ROTATION_STEPS,
    SHOWN,
    START,
    STARTS,
    STEPS,
    STRENGTHS,
    Descent,
    Row,
    adam_rows,
    descents,
    drawn_starts,
    integrator_sample,
    magnitude_rows,
    minima_rows,
    rotation_rows,
    rotation_sample,
    square_grid,
    toy_fields,
    zero_loss_points,
)
from bptt_trainers.analysis.fields import SHOWN_RULES, Table
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.records.tables import to_csv

FILES = {
    "integrator-fields.png": "R, M and C over theta",
    "integrator-fields.pdf": "the same for print",
    "integrator-fields.csv": "the same in numbers",
    "integrator-magnitudes.csv": "how many decades their lengths span",
    "integrator-minima.csv": "what they do beside the global minima",
    "integrator-adam.png": "Adam on each of them, from a grid of starts",
    "integrator-adam.pdf": "the same for print",
    "integrator-adam.csv": "how many starts end in a global minimum",
    "integrator-ends.csv": "a line a start: the loss at the end",
    "integrator-paths.csv": "the paths in the figure",
    "rotation.png": "a paraboloid's gradient with a rotation added",
    "rotation.pdf": "the same for print",
    "rotation.csv": "Adam on it: when below 1e-3, and for good",
    "rotation-paths.csv": "the paths in the figure",
}


@dataclass(frozen=True)
class Toys:
    """Draw the fields of R, M and C of the paper's two toy examples: under a minute.

    An integrator of 4 steps with a controller of two parameters, and a paraboloid
    to whose gradient a rotation is added. Leaves figures and their numbers (CSV).

    example: bptt toys --out runs/toys
    """

    out: Path = Path("runs/toys")
    """Folder for everything."""

    def run(self) -> None:
        """Compute, draw, and print the tables."""
        with progress_bar("toys", 2 + len(STRENGTHS), "part") as bar:
            fields = toy_fields(integrator_sample())
            bar.update()
            adam = descents(integrator_sample(), square_grid(STARTS), LEARNING_RATES, STEPS, KEEP_EVERY)
            bar.update()
            start = torch.tensor([START], dtype=torch.float64)
            rotation: dict[tuple[float, float], dict[str, Descent]] = {}
            for strength in STRENGTHS:
                found = descents(rotation_sample(strength), start, ROTATION_RATES, ROTATION_STEPS)
                rotation |= {(strength, rate): by_rule for rate, by_rule in found.items()}
                bar.update()
        tables: dict[str, Sequence[Row]] = {
            "integrator-magnitudes.csv": magnitude_rows(fields),
            "integrator-minima.csv": minima_rows(zero_loss_points()),
            "integrator-adam.csv": [row for rate, found in adam.items() for row in adam_rows(rate, found)],
            "rotation.csv": [row for setting, found in rotation.items() for row in rotation_rows(*setting, found)],
        }
        data = {
            "integrator-fields.csv": _field_rows(fields),
            "integrator-ends.csv": [row for rate, found in adam.items() for row in _end_rows(rate, found)],
            "integrator-paths.csv": _path_rows(adam[LEARNING_RATES[0]], drawn_starts()),
            "rotation-paths.csv": [row for setting in SHOWN for row in _rotation_rows(setting, rotation[setting])],
        }
        for name, rows in (tables | data).items():
            write_atomic(self.out / name, to_csv([_rounded(row) for row in rows]).encode())
        self._draw(fields, adam, {setting: rotation[setting] for setting in SHOWN})
        for name, rows in tables.items():
            cells = [[str(cell) for cell in _rounded(row, 3).values()] for row in rows]
            print("\n".join([f"{FILES[name]}:", *aligned([list(rows[0]), *cells], left=1), ""]))
        print(file_list(self.out, FILES))

    def _draw(
        self,
        fields: Table,
        adam: Mapping[float, Mapping[str, Descent]],
        rotation: Mapping[tuple[float, float], Mapping[str, Descent]],
    ) -> None:
        from bptt_studies.toys.figure import adam_figure, integrator_figure, rotation_figure
        from bptt_trainers.figures.style import save_figure  # with it comes matplotlib

        save_figure(integrator_figure(fields), self.out / "integrator-fields.png", vector=True)
        save_figure(adam_figure(fields, adam), self.out / "integrator-adam.png", vector=True)
        save_figure(rotation_figure(rotation), self.out / "rotation.png", vector=True)


def _field_rows(table: Table) -> list[Row]:
    """What the figure shows of each point."""
    names = {"theta_1": "a", "theta_2": "b", "loss": "loss"}
    for rule in SHOWN_RULES:
        names |= {f"{rule}_1": f"{rule}_a", f"{rule}_2": f"{rule}_b", f"{rule}_rotation": f"{rule}_rotation"}
    columns = (table[column].tolist() for column in names.values())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _end_rows(learning_rate: float, found: Mapping[str, Descent]) -> list[Row]:
    """The loss at the end, for each start."""
    starts = next(iter(found.values())).paths[0].tolist()
    ends = {f"{rule}_loss": descent.losses[-1].tolist() for rule, descent in found.items()}
    return [
        {"learning_rate": learning_rate, "theta_1": start[0], "theta_2": start[1]}
        | {name: losses[i] for name, losses in ends.items()}
        for i, start in enumerate(starts)
    ]


def _path_rows(found: Mapping[str, Descent], starts: Iterable[int] = (0,)) -> list[Row]:
    """Where each rule was after the steps that were kept, for some of the starts."""
    steps = next(iter(found.values())).steps.tolist()
    return [
        {"start": int(start), "step": step}
        | {f"{rule}_{j + 1}": float(descent.paths[i, start, j]) for rule, descent in found.items() for j in (0, 1)}
        for start in starts
        for i, step in enumerate(steps)
    ]


def _rotation_rows(setting: tuple[float, float], found: Mapping[str, Descent]) -> list[Row]:
    strength: Row = {"strength": setting[0], "learning_rate": setting[1]}
    return [strength | row for row in _path_rows(found)]


def _rounded(row: Row, digits: int = 5) -> Row:
    return {name: f"{value:.{digits}g}" if isinstance(value, float) else value for name, value in row.items()}
