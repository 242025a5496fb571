"""What an experiment left: a CSV file with a line for each finished member, and one with their learning curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bptt_trainers.records.files import RunFolderError, write_atomic
from bptt_trainers.records.tables import Line, cells_of, columns_of, read_rows, reader_of, to_csv

DIGITS = 5  # significant, of what is measured


@dataclass(frozen=True)
class Member:
    """What identifies one run: everything its numbers depend on but versions and rounding.

    Attributes:
        experiment: name of the experiment.
        env_id: id of the environment.
        options: its options, as `write_options` writes them.
        method: label of the variant in the experiment, unlike that of all others.
        rule: update rule, or the algorithm of reinforcement learning.
        clip: clipping; empty for reinforcement learning.
        learning_rate: at the start of training.
        settings: what else differs from the defaults, as `write_options` writes it.
        seed: its seed.
        epochs: passes over the training states; 0 for reinforcement learning.
        steps: simulator steps it was to train on.
        train_states: start states for training; 0 for reinforcement learning.
        test_states: held-out start states.
    """

    experiment: str
    env_id: str
    options: str
    method: str
    rule: str
    clip: str
    learning_rate: float
    settings: str
    seed: int
    epochs: int
    steps: int
    train_states: int
    test_states: int

    @property
    def name(self) -> str:
        """Its name in the file of the curves, unlike that of all others of its experiment."""
        return f"{self.method} seed {self.seed}"


@dataclass(frozen=True)
class Point:
    """One evaluation of a member.

    Attributes:
        epoch: epochs finished; for reinforcement learning, the number of the evaluation.
        simulator_steps: steps of the physics taken for training so far.
        seconds: spent on training so far, evaluations not counted; of members trained together, the share of one.
        train_loss: over all training states; NaN for reinforcement learning.
        test_loss: over the held-out states.
        direction_norm: mean over the epoch's updates of the direction's norm before clipping; NaN if there are none.
        sign_agreement: share of components in which R and M have the same sign, at the epoch's first update.
        cosine: of the angle between R and M there.
        skipped: updates of the epoch that were skipped because a loss or direction was not finite.
    """

    epoch: int
    simulator_steps: int
    seconds: float
    train_loss: float
    test_loss: float
    direction_norm: float
    sign_agreement: float
    cosine: float
    skipped: int


@dataclass(frozen=True)
class Result:
    """A finished member in numbers; losses are over the held-out states unless they say otherwise.

    Attributes:
        member: what was run.
        untrained_loss: before the first update.
        final_loss: at the end.
        best_loss: where the loss over the training states is lowest; NaN for reinforcement learning, which has none.
        mean_loss: geometric mean over the curve after the untrained point: the area under it, the loss on a log scale.
        final_train_loss: over the training states, at the end.
        best_train_loss: over the training states, the lowest.
        skipped: updates that were skipped because a loss or direction was not finite.
        seconds: spent on training.
        together: members that were trained as one ensemble, so that `seconds` is a share; 1: alone.
        versions: of the package, torch and others that count.
    """

    member: Member
    untrained_loss: float
    final_loss: float
    best_loss: float
    mean_loss: float
    final_train_loss: float
    best_train_loss: float
    skipped: int
    seconds: float
    together: int
    versions: str


def result_of(member: Member, curve: Sequence[Point], together: int, versions: str) -> Result:
    """Put a curve in numbers, those that its file keeps; a loss that is not a number counts as infinite."""
    losses = [short(_finite_or_inf(point.test_loss)) for point in curve]
    train_losses = [short(_finite_or_inf(point.train_loss)) for point in curve]
    best = min(range(len(curve)), key=train_losses.__getitem__)
    trains = math.isfinite(train_losses[best])
    logs = [math.log(max(loss, SMALLEST)) if loss < math.inf else math.inf for loss in losses[1:]]
    return Result(
        member=member,
        untrained_loss=losses[0],
        final_loss=losses[-1],
        best_loss=losses[best] if trains else math.nan,
        mean_loss=short(math.exp(sum(logs) / len(logs))),
        final_train_loss=train_losses[-1] if trains else math.nan,
        best_train_loss=train_losses[best] if trains else math.nan,
        skipped=sum(point.skipped for point in curve),
        seconds=curve[-1].seconds,
        together=together,
        versions=versions,
    )


SMALLEST = 1e-12  # a loss below it counts as that where logarithms are taken


def short(value: float) -> float:
    """As many digits as the files keep."""
    return float(f"{value:.{DIGITS}g}")


def _finite_or_inf(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


# The files: NAME.csv, a line a member; NAME.curves.csv, a line an evaluation


def results_path(folder: Path, experiment: str) -> Path:
    """The file with a line for each finished member of an experiment."""
    return folder / f"{experiment}.csv"


def curves_path(folder: Path, experiment: str) -> Path:
    """The file with the curves beside it."""
    return folder / f"{experiment}.curves.csv"


def read_books(folder: Path, experiment: str) -> tuple[dict[Member, Result], dict[str, list[Point]]]:
    """Both files of an experiment, which must agree: `read_results`, and the curve of each member by `Member.name`.

    A curve without a line counts for nothing: its line was deleted, or the program was killed between the two files.

    Raises:
        RunFolderError: if a file cannot be read, or a line has no curve or one of other numbers.
    """
    results, curves = read_results(folder, experiment), read_curves(folder, experiment)
    for member, result in results.items():
        different = _differences(result, curves.get(member.name, []))
        if different:
            raise RunFolderError(
                f"{results_path(folder, experiment)} and {curves_path(folder, experiment).name} disagree about "
                f"{member.name!r}: {different}. Delete its line to have it trained anew."
            )
    return results, {member.name: curves[member.name] for member in results}


def _differences(result: Result, curve: Sequence[Point]) -> str:
    """Where a line says something else than its curve, in words; nothing if they agree."""
    member = result.member
    if len(curve) < 2:
        return f"its curve has {len(curve)} points"
    if member.epochs and curve[-1].epoch != member.epochs:
        return f"it has {member.epochs} epochs, and its curve ends after {curve[-1].epoch}"
    again = result_of(member, curve, result.together, result.versions)
    pairs = ((name, value, getattr(again, name)) for name, value in vars(result).items() if isinstance(value, float))
    return ", ".join(
        f"{name} is {value:g}, and {expected:g} by its curve"
        for name, value, expected in pairs
        if not (math.isclose(value, expected, rel_tol=1e-4) or (math.isnan(value) and math.isnan(expected)))
    )


def read_results(folder: Path, experiment: str) -> dict[Member, Result]:
    """The finished members of an experiment; none where there is no file.

    Raises:
        RunFolderError: if the file cannot be read, has other columns or a member twice.
    """
    path = results_path(folder, experiment)
    member, result = reader_of(Member), cells_of(Result, _columns(Result))
    rows = _read(path, RESULT_COLUMNS, lambda line: Result(member=member(line), **result(line)))
    names = [row.member.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise RunFolderError(f"{path} has {name!r} in {names.count(name)} lines; leave one.")
    return {row.member: row for row in rows}


def read_curves(folder: Path, experiment: str) -> dict[str, list[Point]]:
    """The curve of each member, by `Member.name`; none where there is no file.

    Raises:
        RunFolderError: if the file cannot be read or has other columns.
    """
    curves: dict[str, list[Point]] = {}
    path, point_of = curves_path(folder, experiment), reader_of(Point)
    for name, point in _read(path, CURVE_COLUMNS, lambda line: (line["member"], point_of(line))):
        curves.setdefault(name, []).append(point)
    return curves


def write(folder: Path, results: Sequence[Result], curves: Mapping[str, Sequence[Point]]) -> None:
    """Replace both files of an experiment; the curves first, so that no result is without one.

    Args:
        folder: where the files are.
        results: of one experiment, at least one, in the order of the file.
        curves: of each of them, by `Member.name`.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    experiment = results[0].member.experiment
    points = [{"member": one.member.name} | asdict(point) for one in results for point in curves[one.member.name]]
    write_atomic(curves_path(folder, experiment), to_csv([_shortened(row) for row in points]).encode())
    rows = [asdict(one) for one in results]
    rows = [row.pop("member") | row for row in rows]
    write_atomic(results_path(folder, experiment), to_csv([_shortened(row) for row in rows]).encode())


def _columns(kind: type) -> tuple[str, ...]:
    return tuple(name for name in columns_of(kind) if name != "member")


RESULT_COLUMNS = (*_columns(Member), *_columns(Result))
CURVE_COLUMNS = ("member", *_columns(Point))
_T = TypeVar("_T")


def _shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: short(value) if isinstance(value, float) and name != "learning_rate" else value
        for name, value in row.items()
    }


def _read(path: Path, columns: Sequence[str], make: Callable[[Line], _T]) -> list[_T]:
    remedy = "A line that is mended or deleted has its run taken up again."
    return read_rows(path, make, columns=columns, missing_ok=True, remedy=remedy)
