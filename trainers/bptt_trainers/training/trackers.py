"""Trackers of experiments, as recorders: what a run tells each of them. None of them stops a run."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gymnasium.error import DependencyNotInstalled

from bptt_trainers.records.files import exists, first_line, list_names, read_json, understanding, write_atomic
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.metrics import EpochMetrics, scalars
from bptt_trainers.training.recorders import folder_of

if TYPE_CHECKING:
    from bptt_trainers.training.run import Run

PROJECT = "stable-bptt"
"""Where a tracker keeps the runs, unless its own settings say otherwise."""

DIGESTS = ("content", "dtypes", "parameters", "parts", "tensors")
"""What config.json has to tell runs apart by, which says nothing to a reader."""

CHECKPOINTS = ("config.json", "metrics.csv", "last.pt", "best.pt")
"""The files of a run folder that make one: with them a controller is evaluated, and trained on."""

_IDENTITY = re.compile(r"[\w.=+-]{1,128}")


class Tracker(Callback):
    """Tells a tracker of experiments of a run: its settings, each epoch's metrics, at its end figures and checkpoints.

    A run that goes on does so in the same run of the tracker: NAME.json in the run folder holds which one that is, and
    the last epoch that it was told. What a tracker raises is a warning, and the fit goes on without it. A fit that was
    stopped before the tracker had begun tells it nothing.

    Attributes:
        name: of the recorder, of the package and of the extra that installs it.
        folder: of the run.
        title: what the run is called.
        package: the imported package.

    Raises:
        ValueError: if the run has no folder.
        DependencyNotInstalled: if the package is not installed.
    """

    name: ClassVar[str]

    def __init__(self, run: Run) -> None:
        self.folder = folder_of(run, self.name)
        self.title = re.sub(r"[^\w.=+-]", "-", "-".join(self.folder.absolute().parts[-2:]).strip("/"))
        self.package = _imported(self.name)
        self._file = self.folder / f"{self.name}.json"
        self._identity = ""
        self._told = -1  # the last epoch that it knows
        self._listens = False  # only from when it has begun

    @abstractmethod
    def begin(self, identity: str | None, config: dict[str, Any]) -> tuple[str, bool]:
        """Begin a run of the tracker, or go on with the one of that identity.

        Args:
            identity: what this method returned before; None for a new run.
            config: the settings of the run, by part.

        Returns:
            By what the tracker's run is found again, and whether it still knows the epochs that it was told.
        """

    @abstractmethod
    def log(self, epoch: int, values: dict[str, float]) -> None:
        """Tell it of an epoch."""

    @abstractmethod
    def keep(self, epoch: int, figures: Sequence[Path], checkpoints: Sequence[Path]) -> None:
        """Hand it files of the run folder, as they are after `epoch`."""

    @abstractmethod
    def end(self, finished: bool) -> None:
        """Let it end its run: it is done, or was interrupted."""

    # Called by the run

    def on_fit_start(self, trainer: Run) -> None:
        self._try(self._begin, trainer)

    def on_epoch_end(self, trainer: Run, metrics: EpochMetrics) -> bool | None:
        if self._listens:
            self._try(self._tell, [metrics])
        return None

    def on_fit_end(self, trainer: Run) -> None:
        if self._listens and trainer.interrupted:
            self._try(self._end, False)

    def on_finish(self, trainer: Run) -> None:
        if self._listens:
            self._try(self._finish)

    def _begin(self, run: Run) -> None:
        identity: str | None = None
        if exists(self._file):
            known = read_json(self._file)
            with understanding(self._file):
                identity, self._told = known["run"], int(known["epoch"])
                if _IDENTITY.fullmatch(identity) is None:  # a folder may be a stranger's
                    raise ValueError(f"run is {identity!r:.40}")
        config = {
            part: {name: one for name, one in of.items() if name not in DIGESTS} if isinstance(of, dict) else of
            for part, of in read_json(self.folder / "config.json").items()
        }
        self._identity, knows = self.begin(identity, config)
        if identity is None or not knows:
            self._told = -1
        self._listens = True
        self._tell([row for row in run.history if row.epoch > self._told])

    def _tell(self, rows: Sequence[EpochMetrics]) -> None:
        for row in rows:
            self.log(row.epoch, scalars(row))
            self._told = row.epoch
        write_atomic(self._file, json.dumps({"run": self._identity, "epoch": self._told}).encode())

    def _finish(self) -> None:
        names = list_names(self.folder)
        figures = [self.folder / name for name in names if name.endswith(".png")]
        self.keep(self._told, figures, [self.folder / name for name in CHECKPOINTS if name in names])
        self._end(True)

    def _end(self, finished: bool) -> None:
        self._listens = False
        self.end(finished)

    def _try(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            what(*arguments)
        except Exception as error:  # noqa: BLE001, of a network, a server, a disk: training goes on
            self._listens = False
            warnings.warn(f"{self.name} is told no more of this fit: {first_line(error)}", stacklevel=2)


def _imported(name: str) -> Any:
    """The package of a tracker.

    Raises:
        DependencyNotInstalled: if there is none, with the command that installs it.
    """
    needs = f"record={name!r} needs the package {name}: pip install 'stable-bptt[{name}]'"
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise DependencyNotInstalled(needs) from error
    if getattr(package, "__file__", None) is None:  # a folder of that name, as trackers leave them
        raise DependencyNotInstalled(needs)
    return package
