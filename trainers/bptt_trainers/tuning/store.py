"""The trials of a study on disk, shared by processes here and elsewhere."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium.error import DependencyNotInstalled

from bptt_trainers.comparison.methods import settings_of_today
from bptt_trainers.host.processes import is_running
from bptt_trainers.records.claim import Claim, in_words, locked, same
from bptt_trainers.records.files import append, exists, read_bytes, understanding
from bptt_trainers.records.plain import plain
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.score import LIMIT
from bptt_trainers.tuning.space import Range, Search

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

CLAIM = "study.json"
JOURNAL = "trials.journal"

CHANGEABLE = (
    "module",
    "methods",
    "trials",
    "confirm",
    "fix",
    "search",
    "compile",
    "jobs",
    "executor",
    "timeout",
    "out",
)
"""Settings with others of which a study may go on, or that stand in the searches."""

CHECKPOINTS = 8
"""Fractions of the first run's budget after each of which a trial may be pruned."""

FAILED = "error"
"""The attribute of a failed trial: why."""

OF = "of"
"""The attribute of a trial that is run again: its number in the search."""

SHORT = "pruned"
"""The attribute of a trial without its last runs. To optuna it is complete: the median of first runs holds its own."""

WAIT = 60.0  # seconds for another process to let go of the folder
GRACE = 10  # seconds after which the lock of the journal is taken from a process that was killed with it
BEAT = 20.0  # seconds between two signs of life of a process that makes a trial
SILENCE = 180.0  # seconds without one after which it counts as gone; clocks of machines differ
TRIES = 5  # of a trial, after which it has failed
HOST = socket.gethostname()


def need_optuna() -> None:
    """Raise DependencyNotInstalled if optuna is not there; it is an extra, and slow to import.

    Raises:
        DependencyNotInstalled: with the command that installs it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise DependencyNotInstalled("the search needs optuna: pip install 'stable-bptt[tune]'") from error


class Store:
    """The folder of a study: whose it is, and its trials.

    Every change of who makes which trial is made while the process has the folder to itself, so that several make
    exactly the trials that are asked for. A process shows every 20 s that it lives; what one leaves unfinished that is
    gone, on this machine by its number, elsewhere by its silence, is begun anew with the same settings; a trial whose
    processes go again and again has failed.

    Args:
        config: every setting.

    Raises:
        DependencyNotInstalled: if optuna is not there.
        RunFolderError: if the folder is of another study, or cannot be written.
    """

    def __init__(self, config: TuneConfig) -> None:
        need_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        from optuna.study import StudyDirection

        self.config = config
        with locked(config.out, WAIT):
            self.searches = _claim(config)
            path = config.out / JOURNAL
            lock = JournalFileOpenLock(str(path), grace_period=GRACE)
            if exists(path):
                lock.acquire()  # whoever appends has it
                try:
                    _drop_torn_line(path)
                finally:
                    lock.release()
            with understanding(path):
                self._storage = JournalStorage(JournalFileBackend(str(path), lock))
                there = {one.study_name for one in self._storage.get_all_studies()}
            with _quiet():
                for method in config.methods:
                    if method not in there:
                        self._storage.create_new_study([StudyDirection.MINIMIZE], method)

    def take(self) -> Work | None:
        """Begin a trial of the method that has the fewest, else run one of the best again; None if there is none."""
        with locked(self.config.out, WAIT):
            counts = {}
            for method in self.config.methods:
                self._bury(method)
                counts[method] = sum(one.state.name in ("COMPLETE", "PRUNED", "RUNNING") for one in self.trials(method))
            method = min(counts, key=lambda one: counts[one])
            if counts[method] < self.config.trials:
                return Work(method, method, self._ask(method))
            ready = [method for method in self.config.methods if self.config.confirm and not self._running(method)]
            for method in ready:
                trial = self._ask_again(method)
                if trial is not None:
                    return Work(method, again(method), trial)
        return None

    def waiting(self) -> bool:
        """Whether trials are under way elsewhere after which there may be some to run again."""
        return self.config.confirm > 0 and any(map(self._running, self.config.methods))

    def finish(self, work: Work, value: float | None, attributes: Mapping[str, Any]) -> bool:
        """End a trial with a score, None if its first run was cut short; False if another process has it meanwhile."""
        from optuna.trial import TrialState

        with locked(self.config.out, WAIT):
            if self.trials(work.study)[work.trial.number].state is not TrialState.RUNNING:
                return False
            for name, one in attributes.items():
                work.trial.set_user_attr(name, plain(one))
            self._study(work.study).tell(work.trial, value, state=TrialState.PRUNED if value is None else None)
        return True

    def trials(self, study: str) -> list[FrozenTrial]:
        """All trials of a method, or of those `again`, by number."""
        return self._study(study).get_trials(deepcopy=False)

    def done(self, study: str) -> list[FrozenTrial]:
        """Those that are complete, pruned or failed."""
        return [one for one in self.trials(study) if one.state.name in ("COMPLETE", "PRUNED")]

    def confirmed(self, method: str) -> dict[int, FrozenTrial]:
        """The trials of a method that were run again, by their number in the search."""
        return {one.user_attrs[OF]: one for one in self.done(again(method))} if self._has(again(method)) else {}

    def best(self, method: str) -> FrozenTrial | None:
        """The complete trial with the least score, or the least when run again; None if there is none."""
        confirmed = self.confirmed(method)
        if len(confirmed) >= len(self._leading(method)) > 0:
            return self.trials(method)[min(confirmed, key=lambda number: confirmed[number].value or 0.0)]
        return next(iter(self._complete(method)), None)

    def _leading(self, method: str) -> list[FrozenTrial]:
        """Those of a method that are to be run again, the best first."""
        return self._complete(method)[: self.config.confirm]

    def _complete(self, method: str) -> list[FrozenTrial]:
        """The complete trials, the best first."""
        complete = [one for one in self.done(method) if state_of(one) == "complete"]
        return sorted(complete, key=lambda one: one.value or 0.0)

    def _running(self, method: str) -> bool:
        return any(one.state.name == "RUNNING" for one in self.trials(method))

    def _has(self, study: str) -> bool:
        return study in {one.study_name for one in self._storage.get_all_studies()}

    def _ask_again(self, method: str) -> Trial | None:
        """Begin to run one of the best trials again; None if all of them are or were."""
        from optuna.study import StudyDirection

        name = again(method)
        with _quiet():
            if not self._has(name):
                self._storage.create_new_study([StudyDirection.MINIMIZE], name)
        self._bury(name)
        study = self._study(name)
        there = {one.user_attrs[OF] for one in self.trials(name) if one.state.name != "FAIL"}
        for one in self._leading(method):
            if one.number not in there:
                study.enqueue_trial({}, user_attrs={OF: one.number})
        if not any(one.state.name == "WAITING" for one in self.trials(name)):
            return None
        return self._owned(study.ask({}))

    def _ask(self, method: str) -> Trial:
        search, count = self.searches[method], len(self.trials(method))
        study = self._study(method, seed=count)
        if count == 0:
            study.enqueue_trial(search.parameters(), user_attrs={"first": True})
        return self._owned(study.ask(_distributions(search)))

    def _owned(self, trial: Trial) -> Trial:
        """A trial, as one that this process makes."""
        trial.set_user_attr("beat", time.time())
        trial.set_user_attr("owner", {"host": HOST, "process": os.getpid()})
        return trial

    def _bury(self, method: str) -> None:
        """Put back what processes left unfinished that are gone."""
        from optuna.trial import TrialState

        study = self._study(method)
        for trial in self.trials(method):
            if trial.state is not TrialState.RUNNING or _lives(trial.user_attrs):
                continue
            tries = trial.user_attrs.get("tries", 1)
            if tries == TRIES:
                words = f"{TRIES} processes that made it were ended; for want of memory?"
                self._storage.set_trial_user_attr(trial._trial_id, FAILED, words)
                study.tell(trial.number, LIMIT)
                continue
            what = {name: trial.user_attrs[name] for name in ("first", OF) if name in trial.user_attrs}
            study.enqueue_trial(trial.params, user_attrs={**what, "tries": tries + 1})
            study.tell(trial.number, state=TrialState.FAIL)

    def _study(self, method: str, seed: int = 0) -> Study:
        """The study of a method; `seed` is that of the next draw."""
        import optuna

        parts = np.random.SeedSequence([self.config.seed, seed]).generate_state(1)
        return optuna.load_study(
            storage=self._storage,
            study_name=method,
            sampler=optuna.samplers.TPESampler(seed=int(parts[0]), multivariate=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        )


class Work(NamedTuple):
    """A trial that is begun: of which method, in which of its studies."""

    method: str
    study: str
    trial: Trial


def again(method: str) -> str:
    """The study of those trials of a method that are run again."""
    return f"{method} again"


def state_of(trial: FrozenTrial) -> str:
    """How a trial ended: complete, pruned or failed."""
    if FAILED in trial.user_attrs:
        return "failed"
    return "pruned" if SHORT in trial.user_attrs or trial.state.name == "PRUNED" else "complete"


@contextmanager
def beating(trial: Trial) -> Iterator[None]:
    """Within, the process shows that it lives, and makes this trial."""
    from optuna.exceptions import UpdateFinishedTrialError

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            try:
                trial.set_user_attr("beat", time.time())
            except UpdateFinishedTrialError:  # given to another process, as this one was silent
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _lives(attributes: Mapping[str, Any]) -> bool:
    """Whether the process that makes a trial is there."""
    owner = attributes.get("owner")
    if owner is None or time.time() - attributes["beat"] > SILENCE:  # without an owner: killed as it began
        return False
    if owner["host"] != HOST:
        return True
    return owner["process"] != os.getpid() and is_running(owner["process"])  # this one asks for another


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, entry in search.free.items():
        if not isinstance(entry, Range):
            found[name] = CategoricalDistribution([repr(value) for value in entry.values])
        elif entry.whole:
            found[name] = IntDistribution(int(entry.low), int(entry.high), log=entry.log)
        else:
            found[name] = FloatDistribution(float(entry.low), float(entry.high), log=entry.log)
    return found


def _claim(config: TuneConfig) -> dict[str, Search]:
    """Claim the folder, or check that it is of the same study; the searches, from the rows that it was begun with."""
    claim = Claim(config.out / CLAIM, "study", _differences)
    stored: dict[str, Any] = claim.read() if exists(claim.path) else {}
    with understanding(claim.path):
        searches = config.searches(
            {method: settings_of_today(method, row) for method, row in stored.get("rows", {}).items()}
        )
        wanted = plain({one.name: getattr(config, one.name) for one in fields(config) if one.name not in CHANGEABLE})
        wanted["searches"] = {method: str(search) for method, search in searches.items()}
        wanted["rows"] = {method: plain(search.row) for method, search in searches.items()}
        claim.check(wanted)
        for name in ("searches", "rows"):  # methods left out now may come back
            wanted[name] = {**stored.get(name, {}), **wanted[name]}
    claim.take(wanted)
    return searches


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    with understanding(Path(CLAIM)):
        before_of = dict(stored["searches"])
        pairs = [(name, stored.get(name), value) for name, value in wanted.items() if name not in ("searches", "rows")]
        pairs += [(f"search of {m}", before_of.get(m, now), now) for m, now in wanted["searches"].items()]
    return [in_words(name, old, new) for name, old, new in pairs if not same(old, new)]


def _drop_torn_line(path: Path) -> None:
    """Drop the end of a line that a kill or a full disk cut short: what is appended to it could not be read."""
    whole, newline, torn = read_bytes(path).rpartition(b"\n")
    if torn:
        append(path, b"", at=len(whole + newline))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep optuna from saying on stderr that there is a study."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
