"""The books of a run: which run it is, a line an epoch, and checkpoints, in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bptt_envs import checks
from bptt_trainers.records.checkpoints import packed, unpacked
from bptt_trainers.records.claim import Claim, locked, plain_differences, same
from bptt_trainers.records.files import (
    RunFolderError,
    append,
    exists,
    list_names,
    read_bytes,
    read_text,
    remove,
    sweep,
    understanding,
    write_atomic,
)
from bptt_trainers.training.metrics import EpochMetrics, read_csv, to_csv

KEPT = "checkpoints"  # the folder in a run folder of those that are kept along training

Config = dict[str, Any]
Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where a run stands: the state after its last finished epoch, and a row for each epoch to there."""

    last: Checkpoint
    rows: list[EpochMetrics]


def kept_name(epoch: int) -> str:
    """The name of the checkpoint that is kept after `epoch`."""
    return f"{KEPT}/epoch_{epoch:06d}"


class Books:
    """Reads and writes the files of a run.

    config.json, metrics.csv (a line an epoch), last.pt and best.pt (best on the training states), and in
    checkpoints/ those that were kept along training. Every file is written whole or not at all, metrics.csv line by
    line; checkpoints hold tensors and plain values only and are loaded with `weights_only=True`. Nothing of a folder
    runs code, and nothing is written through a link in it.

    Args:
        path: the folder; made when first written to.
        differences: from what config.json says and what is wanted to a line for each way in which they are different
            runs. By default every setting counts.
    """

    def __init__(self, path: Path, differences: Callable[[Config, Config], list[str]] = plain_differences) -> None:
        self.path = checks.path("path", path)
        self.metrics_path = self.path / "metrics.csv"
        self.config_path = self.path / "config.json"
        self._differences = differences
        self._claim = Claim(self.config_path, "run", differences)
        self._size = 0  # bytes of metrics.csv that are of finished epochs
        self._own: tuple[str, ...] = ()  # its columns of the learner's own numbers: those that it was begun with
        self._loadable: frozenset[str] = frozenset()  # kinds of values that were seen to come back

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return exists(self.config_path)

    def read_config(self) -> Config:
        """The stored configuration.

        Raises:
            RunFolderError: if there is none or it cannot be read.
        """
        return self._claim.read()

    def as_trained(self, config: Config) -> str:
        """What last.pt says of the settings that it was trained with, in JSON."""
        return json.dumps(config)

    def check(self, config: Config) -> Standing | None:
        """Where the run of `config` stands in the folder; None if it has no finished epoch yet. Writes nothing.

        Raises:
            RunFolderError: if the folder holds anything else, or its files do not belong together.
        """
        last = self.load("last") if self.exists() else None
        if self._claim.check(self._as_begun(config, last)) is None:
            return None
        rows = self._read_rows()
        if last is None:
            best = self.load("best")
            later = max([rows[-1].epoch if rows else 0, 0 if best is None else best["epoch"]])
            if later > 0:
                raise RunFolderError(
                    f"{self.path} has no last.pt, but its other files are of {later} epochs: put last.pt back from a "
                    "copy, or train into another folder."
                )
            return None
        epoch = last["epoch"]
        with self.understanding("last.pt"):
            different = (
                self._differences(json.loads(last["config"]), config) if "config" in last else []
            )  # else it is older
        if different:
            raise RunFolderError(
                f"{self.path / 'last.pt'} is of a run of other settings than config.json beside it; put the one that "
                "was changed back from a copy:\n  " + "\n  ".join(different)
            )
        self._check_rows(rows, last)
        self._check_best(last)
        return Standing(last, rows[: epoch + 1])

    def begin(self, config: Config, standing: Standing | None) -> None:
        """Claim the folder for a run of `config`, or take up the run that `check` found there.

        Raises:
            RunFolderError: if it holds a run of another configuration, or cannot be written.
        """
        self._claim.take(self._as_begun(config, None if standing is None else standing.last))
        sweep(self.path / KEPT)
        if standing is None:
            remove(self.metrics_path)  # begun and killed before its first checkpoint
            self._size = 0
        else:
            self.rewind_metrics(standing.last["epoch"])

    def _as_begun(self, config: Config, last: Checkpoint | None) -> Config:
        """`config` as config.json is to say it, without what training has changed since."""
        return config

    def _read_rows(self) -> list[EpochMetrics]:
        """The rows of metrics.csv; none if there is no whole line in it."""
        try:
            started = "\n" in read_text(self.metrics_path)
        except FileNotFoundError:
            return []
        return read_csv(self.metrics_path) if started else []

    def _check_rows(self, rows: Sequence[EpochMetrics], last: Checkpoint) -> None:
        """Raise RunFolderError unless there is a row for each epoch, and at most one that a kill wrote ahead."""
        epoch, epochs = last["epoch"], [row.epoch for row in rows]
        books = f"{self.metrics_path} and last.pt do not belong together: last.pt is of epoch {epoch}, metrics.csv "
        advice = ". Put the one that was changed back from a copy, or train into another folder."
        if epochs != list(range(len(epochs))):
            wrong = next(i for i, one in enumerate(epochs) if one != i)
            raise RunFolderError(f"{books}has epoch {epochs[wrong]} where epoch {wrong} should be{advice}")
        if not epoch <= len(epochs) - 1 <= epoch + 1:
            raise RunFolderError(f"{books}{f'ends with epoch {epochs[-1]}' if epochs else 'has no epoch'}{advice}")
        for name in ("train_loss", "test_loss"):
            if not same(getattr(rows[epoch], name), last[name]):
                raise RunFolderError(
                    f"{books}says {name} {getattr(rows[epoch], name)!r} of that epoch, last.pt {last[name]!r}{advice}"
                )

    def _check_best(self, last: Checkpoint) -> None:
        """Raise RunFolderError unless best.pt is there, and is the best that last.pt knows."""
        advice = "put it back from a copy, or train into another folder."
        try:
            best = self.load("best")
        except RunFolderError as error:
            raise RunFolderError(f"{error} The run cannot go on without it: {advice}") from error
        with self.understanding("last.pt"):
            wanted = float(last["best_train_loss"]) < float("inf")
        if best is None and wanted:
            raise RunFolderError(f"{self.path} has no best.pt, which belongs to its last.pt: {advice}")
        if best is not None and best["epoch"] > last["epoch"] + 1:
            raise RunFolderError(
                f"{self.path / 'best.pt'} is of epoch {best['epoch']}, last.pt of {last['epoch']}: {advice}"
            )
        # One of a later epoch was written by a run that was killed before its last.pt
        if best is not None and best["epoch"] <= last["epoch"] and best["train_loss"] != last["best_train_loss"]:
            raise RunFolderError(
                f"{self.path / 'best.pt'} has the training loss {best['train_loss']}, the best that last.pt knows is "
                f"{last['best_train_loss']}: {advice}"
            )

    def record(self, row: EpochMetrics, state: Checkpoint) -> None:
        """Add a finished epoch: its line in metrics.csv, then last.pt. If either fails, neither counts.

        Raises:
            RunFolderError: if one cannot be written; the earlier epochs stand.
        """
        if self._size == 0:
            self._own = tuple(row.own)
            data = to_csv([row], self._own).encode()
            write_atomic(self.metrics_path, data)
            size = len(data)
        else:
            size = append(self.metrics_path, to_csv([row], self._own, header=False).encode(), at=self._size)
        self.save("last", state)
        self._size = size

    def rewind_metrics(self, epoch: int) -> list[EpochMetrics]:
        """Drop the lines after `epoch`, which a killed run had written ahead of its checkpoint."""
        rows = [row for row in read_csv(self.metrics_path) if row.epoch <= epoch]
        self._own = tuple(rows[0].own) if rows else ()
        data = to_csv(rows, self._own).encode()
        write_atomic(self.metrics_path, data)  # also where nothing is dropped: a file of our own, whatever was linked
        self._size = len(data)
        return rows

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Save a checkpoint as "last", "best" or one of `kept`, see `kept_name`.

        Raises:
            RunFolderError: if it cannot be written, or `load` would refuse it.
        """
        write_atomic(self.path / f"{name}.pt", self.packed(checkpoint))

    def packed(self, checkpoint: Checkpoint) -> bytes:
        """The bytes of a checkpoint. They are loaded once wherever it holds a kind of value that was not tried yet.

        Raises:
            RunFolderError: if `load` would refuse it; the message names the entry.
        """
        data, self._loadable = packed(checkpoint, str(self.path), self._loadable)
        return data

    def kept(self) -> dict[int, str]:
        """The checkpoints that were kept along training, by epoch: names for `load` and `load_controller`."""
        found = {}
        for name in list_names(self.path / KEPT):
            number = name.removeprefix("epoch_").removesuffix(".pt")
            if name == f"epoch_{number}.pt" and number.isascii() and number.isdecimal() and len(number) < 20:
                found[int(number)] = f"{KEPT}/epoch_{number}"
        return dict(sorted(found.items()))

    def load(self, name: str) -> Checkpoint | None:
        """Load the checkpoint "last", "best" or one of `kept`; None if there is none.

        Raises:
            RunFolderError: if it cannot be read, or holds anything but tensors and plain values.
        """
        path = self.path / f"{name}.pt"
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return None
        try:
            checkpoint: Checkpoint = unpacked(data)
        except Exception as error:  # torch raises many kinds for a damaged or a hostile file
            raise RunFolderError(f"cannot read {path}: it is damaged, or no checkpoint of this program.") from error
        with self.understanding(f"{name}.pt"):
            _check_checkpoint(checkpoint)
        return checkpoint

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training into the folder, and the folder where it is.

        Raises:
            RunFolderError: if another one does, or the folder cannot be made.
        """
        return locked(self.path)

    def understanding(self, name: str) -> AbstractContextManager[None]:
        """Turn into words what a damaged file, or one of another version, raises; an error of user's code stays one."""
        return understanding(self.path / name)


def _check_checkpoint(checkpoint: Any) -> None:
    """Raise an error if a checkpoint lacks what all have, or has it in another form."""
    epoch, weights = checkpoint["epoch"], checkpoint["controller"]
    if type(epoch) is not int or not 0 <= epoch < 2**63:
        raise ValueError(f"its epoch is {epoch!r:.40}")
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError("it holds no weights by name")
    for name in ("train_loss", "test_loss"):
        if type(checkpoint[name]) is not float:
            raise ValueError(f"its {name} is {checkpoint[name]!r:.40}")
