"""What the project set out to reach, held against what was measured: nothing is judged by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bptt_studies.benchmarks import cold_start, stepping
from bptt_studies.benchmarks.config import PART_NAMES, file_of
from bptt_studies.benchmarks.slopes import FORMS
from bptt_trainers.records.tables import Line, Row, chosen, number, read_lines

Measured = Mapping[str, Sequence[Line]]
"""The lines of each part's CSV file."""

UPDATES_ENV = "DiffCartPole-v0"


class Found(NamedTuple):
    """A number that was measured, and where: with which threads, batch size and the like."""

    value: float
    where: str


class Target(NamedTuple):
    """One target.

    Attributes:
        what: what is measured, in words.
        bound: what it is held against.
        found: the number at every place that counts; the worst decides.
        at_least: whether more is better.
        unit: of the bound and of what is found.
    """

    what: str
    bound: float
    found: Callable[[Measured], Iterator[Found]]
    at_least: bool = False
    unit: str = ""


def c_over_r(measured: Measured, peer: str) -> Iterator[Found]:
    """Time of rule C over that of R."""
    for line in chosen(measured["updates"], env=UPDATES_ENV, peer=peer, rule="C"):
        for other in _beside(line, measured["updates"], peer=peer, rule="R"):
            yield Found(_over(line, other), _where(line))


def c_beside(measured: Measured, peer: str, other: str, batch: int, *, faster: bool = False) -> Iterator[Found]:
    """Time of C by a peer over that by another; `faster`: the inverse, how many times as fast it is."""
    for line in chosen(measured["updates"], env=UPDATES_ENV, peer=peer, rule="C", batch=batch):
        for theirs in _beside(line, measured["updates"], peer=other, rule="C"):
            yield Found(_over(theirs, line) if faster else _over(line, theirs), _where(line))


def together(measured: Measured, engine: str) -> Iterator[Found]:
    """Time of an update of eight members over that of one."""
    lines = chosen(measured["ensembles"], engine=engine)
    for line in chosen(lines, members=8):
        for alone in chosen(lines, members=1, threads=line["threads"]):
            yield Found(_over(line, alone), _where(line))


def quantum(measured: Measured, peer: str) -> Iterator[Found]:
    """Milliseconds of C on 32 points, batch 8, two threads."""
    for line in chosen(measured["quantum"], options="n_points=32", batch=8, threads=2, peer=peer, rule="C"):
        yield Found(float(line["milliseconds"]), _where(line))


def slopes(measured: Measured) -> Iterator[Found]:
    """Time by the form of a controller's slopes that is taken over that by the better one."""
    lines = measured["slopes"]
    names = ("threads", "rule", "states", "batch", "actions")
    for line in chosen(lines, taken="yes"):
        forms = [one for one in chosen(lines, **{name: line[name] for name in names}) if one["way"] in FORMS]
        where = ", ".join(f"{name} {line[name]}" for name in names)
        yield Found(max(_over(line, one) for one in forms), where)


def memory(measured: Measured) -> Iterator[Found]:
    """MiB of an update by the adjoint engine at horizon 10,000."""
    for line in chosen(measured["memory"], engine="adjoint", horizon=10_000):
        yield Found(float(line["peak_mib"]), _where(line))


def first_update(measured: Measured, mode: str) -> Iterator[Found]:
    """Seconds from the imports to the first update, with the default settings."""
    for line in chosen(measured["cold-start"], mode=mode):
        yield Found(float(line["milliseconds"]) / 1e3, _where(line))


def steps(measured: Measured, stepper: str) -> Iterator[Found]:
    """Steps a second of 1024 environments by `stepper` over those of Gymnasium's."""
    for line in chosen(measured["stepping"], stepper=stepper, envs=1024):
        for theirs in _beside(line, measured["stepping"], stepper=stepping.NUMPY):
            yield Found(float(line["steps_per_second"]) / float(theirs["steps_per_second"]), _where(line))


ADJOINT, COMPILED = "adjoint", "adjoint-compiled"

TARGETS = (
    Target("C / R, adjoint engine", 1.25, partial(c_over_r, peer=ADJOINT)),
    Target("C / R, adjoint engine, compiled", 1.25, partial(c_over_r, peer=COMPILED)),
    *(
        Target(
            f"C, times as fast as autograd, batch {batch}{words}",
            bound,
            partial(c_beside, peer=peer, other="autograd", batch=batch, faster=True),
            at_least=True,
        )
        for peer, words in ((ADJOINT, ""), (COMPILED, ", compiled"))
        for batch, bound in ((8, 6.0), (1024, 2.0))
    ),
    *(
        Target(
            f"C, time over JAX's, batch {batch}{words}", bound, partial(c_beside, peer=peer, other="jax", batch=batch)
        )
        for peer, words, bounds in (
            (COMPILED, ", compiled", {8: 1.0, 64: 1.0, 256: 1.0, 1024: 1.0}),
            (ADJOINT, "", {8: 3.5, 1024: 1.3}),
        )
        for batch, bound in bounds.items()
    ),
    Target("eight members together, batch 8, time over one", 2.0, partial(together, engine=ADJOINT)),
    Target("eight members together, batch 8, compiled, time over one", 2.5, partial(together, engine=COMPILED)),
    Target("quantum C, 32 points, batch 8", 35.0, partial(quantum, peer=ADJOINT), unit=" ms"),
    Target("quantum C, 32 points, batch 8, compiled", 11.0, partial(quantum, peer=COMPILED), unit=" ms"),
    Target("peak memory of C, batch 256, horizon 10,000", 1536.0, memory, unit=" MiB"),
    *(
        Target(
            f"from the imports to the first update, default settings{words}",
            bound,
            partial(first_update, mode=mode),
            unit=" s",
        )
        for mode, words, bound in (
            (cold_start.EAGER, "", 3.0),
            (cold_start.FIRST, ", compiled, first time", 15.0),
            (cold_start.AGAIN, ", compiled, again", 1.5),
        )
    ),
    Target("slopes of the controller, the form taken over the better one", 1.3, slopes),
    *(
        Target(
            f"steps a second of 1,024 environments over Gymnasium's{words}",
            bound,
            partial(steps, stepper=stepper),
            at_least=True,
        )
        for stepper, words, bound in ((stepping.OURS, "", 1.0), (stepping.COMPILED, ", compiled", 1.7))
    ),
)


def judge(out: Path) -> list[Row]:
    """A row for each target: what was measured where it is worst, and whether that is enough."""
    measured: Measured = {part: read_lines(file_of(out, part, "csv")) for part in PART_NAMES}
    rows: list[Row] = []
    for target in TARGETS:
        row: Row = {"what": target.what}
        row |= {"target": f"at {'least' if target.at_least else 'most'} {number(str(target.bound))}{target.unit}"}
        found = list(target.found(measured))
        if not found:
            rows.append(row | {"measured, where it is worst": "not measured", "met": "–"})
            continue
        worst = (min if target.at_least else max)(found)
        met = worst.value >= target.bound if target.at_least else worst.value <= target.bound
        row |= {"measured, where it is worst": f"{number(str(worst.value))}{target.unit} ({worst.where})"}
        rows.append(row | {"met": "yes" if met else "no"})
    return rows


def _beside(line: Line, lines: Sequence[Line], **wanted: str) -> list[Line]:
    """The rows that were measured together with `line`."""
    same = {name: line[name] for name in ("env", "options", "device", "threads", "batch", "envs") if name in line}
    return chosen(lines, **same, **wanted)


def _over(line: Line, other: Line) -> float:
    return float(line["milliseconds"]) / float(other["milliseconds"])


def _where(line: Line) -> str:
    return ", ".join(f"{name} {line[name]}" for name in ("threads", "batch") if name in line)
