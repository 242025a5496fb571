"""A study: trials of every method, as many processes as are wanted, and what comes of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from typing import TYPE_CHECKING, Any

from bptt_envs.checks import instance
from bptt_trainers.host.executors import LOCAL, opened
from bptt_trainers.host.threads import threads
from bptt_trainers.host.work import Job
from bptt_trainers.presets.presets import Preset
from bptt_trainers.records.curve import CurvePoint, Report
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.outcome import Best, Study, as_row, write
from bptt_trainers.tuning.score import LIMIT, area, best_possible, final, mean_score, score, so_far
from bptt_trainers.tuning.store import CHECKPOINTS, FAILED, OF, SHORT, Store, Work, again, beating, state_of
from bptt_trainers.tuning.trials import CONFIRMING, FIRST_CONFIRMING_SEED, FIRST_SEED, RefusedError, learn

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

__all__ = ["Best", "Study", "tune"]

PATIENCE = 2.0  # seconds between two looks at what others make


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
        ChildProcessError: if a process of several was ended from outside again and again.
    """
    instance("config", config, TuneConfig, "a TuneConfig")
    store = Store(config)
    end = None if config.timeout is None else time.time() + 60 * config.timeout
    with closing(_Teller(store, progress)) as teller:
        if config.executor == LOCAL and config.jobs == 1:
            with threads(1):
                _work(store, end, teller.tell)
        else:
            _have_made(config, end, teller.look)
    return write(store)


class _Teller:
    """Shows a bar over the trials of all methods and a line for each that is finished, and keeps the table of them.

    Args:
        store: the trials.
        progress: whether to show anything.
    """

    def __init__(self, store: Store, progress: bool) -> None:
        self._store = store
        self._progress = progress
        self._told = {(study, one.number) for _, study, one in self._finished()}
        config = store.config
        total = (config.trials + config.confirm) * len(config.methods)
        self._bar = progress_bar("trials", total, "trial", initial=len(self._told), disable=not progress)

    def look(self) -> None:
        """Tell of what was finished since the last look, by whomever."""
        for method, study, trial in self._finished():
            if (study, trial.number) not in self._told:
                self._tell(method, study, trial)

    def tell(self, work: Work) -> None:
        """Tell of a trial that was finished here."""
        self._tell(work.method, work.study, self._store.trials(work.study)[work.trial.number])

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _tell(self, method: str, study: str, trial: FrozenTrial) -> None:
        write(self._store)
        self._told.add((study, trial.number))
        if self._progress:
            self._bar.write(_line(method, trial, self._store.best(method), again=study != method), file=sys.stderr)
        done = sum(1 for _ in self._finished())
        self._bar.update(max(0, done - self._bar.n))

    def _finished(self) -> Iterator[tuple[str, str, FrozenTrial]]:
        """The trials that are made, of all methods, and those that are run again: with method and study."""
        for method in self._store.config.methods:
            yield from ((method, method, one) for one in self._store.done(method))
            yield from ((method, again(method), one) for one in self._store.confirmed(method).values())


Finished = Callable[[Work], None]
"""Called when a trial of this process is finished."""


def _work(store: Store, end: float | None, finished: Finished) -> None:
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
            finished(work)


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


def _line(method: str, trial: FrozenTrial, best: FrozenTrial | None, again: bool) -> str:
    """What is said of a finished trial."""
    state = state_of(trial)
    what = {"failed": f"failed: {trial.user_attrs.get(FAILED)}", "complete": f"score {trial.value or 0.0:.3f}"}
    best_words = "none yet" if best is None else f"{best.value:.3f} (trial {best.number})"
    seconds = trial.user_attrs.get("seconds", 0.0)
    name = f"{method} trial {trial.user_attrs[OF]} again" if again else f"{method} trial {trial.number}"
    return f"{name}: {what.get(state, state)}, {seconds:.1f} s; best {best_words}"


# Several processes


def _have_made(config: TuneConfig, end: float | None, look: Callable[[], None]) -> None:
    """Have trials made by as many workers as are wanted, and look at what they make."""
    with opened(config.executor, config.jobs, config.out) as workers:
        names = [f"worker {i + 1} of {config.jobs}" for i in range(config.jobs)]
        under_way = {workers.submit(Job(name, _make_trials, config, end, env=config.env)) for name in names}
        while under_way:
            done, under_way = wait(under_way, PATIENCE, FIRST_COMPLETED)
            look()
            for one in done:
                one.result()


def _make_trials(config: TuneConfig, end: float | None) -> None:
    """What a worker does; whoever has sent it tells of it, from the trials."""
    _work(Store(config), end, lambda work: None)
