"""A study: trials of every method, as many processes as are wanted, and what comes of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

import torch

from bptt_envs.checks import instance
from bptt_trainers.host.processes import end_with_parent, out_of_reach_of_the_terminal, pool
from bptt_trainers.host.threads import threads
from bptt_trainers.host.user_code import import_module, raised_by_user, told
from bptt_trainers.presets.presets import Preset
from bptt_trainers.records.curve import CurvePoint, Report
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.outcome import Best, Study, as_row, write
from bptt_trainers.tuning.score import LIMIT, area, best_possible, final, mean_score, score, so_far
from bptt_trainers.tuning.store import CHECKPOINTS, FAILED, OF, SHORT, Store, Work, beating, state_of
from bptt_trainers.tuning.trials import CONFIRMING, FIRST_CONFIRMING_SEED, FIRST_SEED, RefusedError, learn

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Best", "Study", "tune"]

PATIENCE = 2.0  # seconds between two looks for work while others make the last trials


def tune(config: TuneConfig, progress: bool = True) -> Study:
    """Make the trials that the study's folder lacks, and say what is best.

    Each method gets as many trials, each with as many simulator steps and the same tuning seeds, judged on the same
    validation states. The folder holds every trial (trials.journal), the table of them (study.csv) and the best rows
    (preset.json); the last two are made anew in every call. Several processes may work on one folder; what is finished
    is not computed again.

    Args:
        config: every setting.
        progress: whether to show a bar and a line for each trial.

    Raises:
        DependencyNotInstalled: if optuna is not there.
        RunFolderError: if the folder holds another study, or cannot be written.
        ChildProcessError: if a process of several was ended from outside.
    """
    instance("config", config, TuneConfig, "a TuneConfig")
    store = Store(config)
    end = None if config.timeout is None else time.time() + 60 * config.timeout
    with _shown(store, progress) as show:
        if config.jobs == 1:
            with threads(1):
                _work(store, end, show)
        else:
            _work_in_processes(config, end, show)
    return write(store)


@dataclass(frozen=True)
class Note:
    """What is said of a finished trial."""

    line: str
    done: int  # trials of all methods


Show = Callable[[Note], None]


def _work(store: Store, end: float | None, show: Show) -> None:
    """Make trials until there are all, or it is time to end."""
    while end is None or time.time() < end:
        work = store.take()
        if work is None:
            if not store.waiting():
                return
            time.sleep(PATIENCE)
            continue
        with beating(work.trial):
            made = _make(store, work) if work.study == work.method else _make_again(store, work)
        if store.finish(work, *made):
            write(store)
            show(_note(store, work))


def _make(store: Store, work: Work) -> tuple[float | None, dict[str, Any]]:
    """Run a trial; its score, None if its first run is cut short, and what else is kept of it."""
    config, search, trial = store.config, store.searches[work.method], work.trial
    first = "first" in trial.user_attrs
    settings = search.first() if first else search.settings(trial.params)
    kept: dict[str, Any] = {"settings": search.named(settings), "finals": [], "areas": [], "seconds": 0.0}
    best = None if first else store.best(work.method)  # the first trial is for comparing, and is not pruned
    begin = time.perf_counter()
    try:
        for number in range(config.seeds):
            report = _Reports(trial, config.steps, looks=number == 0, prunes=not first)
            _run(config, work.method, settings, FIRST_SEED + number, report, kept)
            if report.pruned:
                return None, kept
            possible = best_possible(kept["finals"], kept["areas"], config.seeds)
            if number + 1 < config.seeds and best is not None and possible >= (best.value or 0.0):
                kept[SHORT] = True
                break
    except RefusedError as error:
        kept[FAILED] = str(error)
        return LIMIT, kept
    finally:
        kept["seconds"] = time.perf_counter() - begin
    return score(kept["finals"], kept["areas"]), kept


def _make_again(store: Store, work: Work) -> tuple[float, dict[str, Any]]:
    """Run one of the best trials with further seeds; the mean score of these runs, and what else is kept."""
    config, search = store.config, store.searches[work.method]
    before = store.trials(work.method)[work.trial.user_attrs[OF]]
    settings = search.first() | as_row(before.user_attrs["settings"])
    kept: dict[str, Any] = {"finals": [], "areas": [], "seconds": 0.0}
    begin = time.perf_counter()
    try:
        for number in range(CONFIRMING):
            _run(config, work.method, settings, FIRST_CONFIRMING_SEED + number, lambda point: True, kept)
    except RefusedError as error:
        kept[FAILED] = str(error)
        return LIMIT, kept
    finally:
        kept["seconds"] = time.perf_counter() - begin
    return mean_score(kept["finals"], kept["areas"]), kept


def _run(
    config: TuneConfig, method: str, settings: Preset, seed: int, report: Report, kept: dict[str, list[float]]
) -> None:
    """Make one run, and keep where it ended and the area under its curve."""
    curve = learn(method, config.budget, settings, seed, report, compile=config.compile)
    if not getattr(report, "pruned", False):
        kept["finals"].append(final(curve))
        kept["areas"].append(area(curve, config.steps))


class _Reports:
    """Tells the study at each checkpoint how the first run of a trial stands, and whether it goes on.

    Args:
        trial: the trial.
        steps: the budget of a run.
        looks: whether it is the first run; the study looks at no other.
        prunes: whether the trial may be pruned.
    """

    def __init__(self, trial: Trial, steps: int, looks: bool, prunes: bool) -> None:
        self.pruned = False
        self._trial = trial
        self._steps = steps
        self._looks = looks
        self._prunes = prunes
        self._curve: list[CurvePoint] = []
        self._passed = 0

    def __call__(self, point: CurvePoint) -> bool:
        self._curve.append(point)
        reached = min(CHECKPOINTS * point.simulator_steps // self._steps, CHECKPOINTS - 1)
        if not self._looks or reached <= self._passed:
            return True
        for number in range(self._passed + 1, reached + 1):
            self._trial.report(so_far(self._curve, number * self._steps / CHECKPOINTS), number)
        self._passed = reached
        self.pruned = self._prunes and self._trial.should_prune()
        return not self.pruned


def _note(store: Store, work: Work) -> Note:
    method, number = work.method, work.trial.number
    trial, best = store.trials(work.study)[number], store.best(method)
    state = state_of(trial)
    what = {"failed": f"failed: {trial.user_attrs.get(FAILED)}", "complete": f"score {trial.value or 0.0:.3f}"}
    best_words = "none yet" if best is None else f"{best.value:.3f} (trial {best.number})"
    seconds = trial.user_attrs.get("seconds", 0.0)
    name = f"{method} trial {number}" if work.study == method else f"{method} trial {trial.user_attrs[OF]} again"
    line = f"{name}: {what.get(state, state)}, {seconds:.1f} s; best {best_words}"
    return Note(line, _done(store))


def _done(store: Store) -> int:
    """Trials that are made, of all methods, and of those that are run again."""
    return sum(len(store.done(one)) + len(store.confirmed(one)) for one in store.config.methods)


@contextmanager
def _shown(store: Store, progress: bool) -> Iterator[Show]:
    """A bar over the trials of all methods, and a line for each that is finished here."""
    config = store.config
    bar = progress_bar(
        "trials",
        (config.trials + config.confirm) * len(config.methods),
        "trial",
        initial=_done(store),
        disable=not progress,
    )

    def show(note: Note) -> None:
        if progress:
            bar.write(note.line, file=sys.stderr)
        bar.update(max(0, note.done - bar.n))

    try:
        yield show
    finally:
        bar.close()


# Several processes


def _work_in_processes(config: TuneConfig, end: float | None, show: Show) -> None:
    with out_of_reach_of_the_terminal():  # it starts a process, too
        notes: Queue[Any] = get_context("spawn").Queue()

    def watch() -> None:
        for note in iter(notes.get, None):
            show(note)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with pool(config.jobs, _begin, (notes, config.module)) as submit:
            for done in as_completed([submit(_work_of_child, config, end) for _ in range(config.jobs)]):
                done.result()
    finally:
        notes.cancel_join_thread()  # a process that was ended as it wrote may have left the queue locked for good
        notes.put(None)
        watcher.join(timeout=2.0)


_notes: Queue[Note] | None = None  # of a child: where it reports to


def _begin(notes: Queue[Note], module: str | None) -> None:
    global _notes
    _notes = notes
    end_with_parent()
    torch.set_num_threads(1)
    if module is not None:
        import_module(module)


def _work_of_child(config: TuneConfig, end: float | None) -> None:
    assert _notes is not None
    try:
        _work(Store(config), end, _notes.put)
    except Exception as error:
        if raised_by_user(error):  # told here, as its traceback does not reach the parent
            raise ChildProcessError(told(error)) from None
        raise
