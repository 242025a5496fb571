"""A bar over runs that other processes train, here or on other machines: read from the metrics in their folders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bptt_trainers.records.files import RunFolderError, modified, read_text
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.training.metrics import COLUMNS

EVERY = 1.0
"""Seconds between two looks at the folders."""


@contextmanager
def watching(title: str, runs: Mapping[Path, int], progress: bool = True) -> Iterator[Callable[[Path], None]]:
    """A bar over the simulator steps of runs; yields what to call with the folder of a run that is finished.

    Args:
        title: what is done.
        runs: the folder of each run, and the simulator steps that it will have taken.
        progress: whether to show the bar, and look.
    """
    done = dict.fromkeys(runs, 0)
    seen = dict.fromkeys(runs, 0)
    lock, ended = threading.Lock(), threading.Event()

    def look() -> None:
        for folder, steps in runs.items():
            path = folder / "metrics.csv"
            time = modified(path)
            if done[folder] < steps and time != seen[folder]:
                seen[folder] = time
                done[folder] = max(done[folder], min(steps, steps_done(path)))

    def show() -> None:
        with lock:
            bar.update(max(0, sum(done.values()) - bar.n))

    def finish(folder: Path) -> None:
        done[folder] = runs[folder]
        show()

    def watch() -> None:
        while not ended.wait(EVERY):
            look()
            show()

    if progress:
        look()  # what earlier runs of the command have left says nothing of the rate
    total, first = sum(runs.values()), sum(done.values())
    bar = progress_bar(title, total, "step", initial=first, unit_scale=True, disable=not progress)
    watcher = threading.Thread(target=watch, daemon=True)
    if progress:
        watcher.start()
    try:
        yield finish
    finally:
        ended.set()
        if progress:
            watcher.join()
        bar.close()


def steps_done(path: Path) -> int:
    """The simulator steps in the last whole line of a metrics.csv, which another process may be writing.

    Without such a line they are 0; what else may be wrong with it is for whoever trains the run to say.
    """
    with suppress(FileNotFoundError, RunFolderError, ValueError, IndexError):
        lines = read_text(path).rpartition("\n")[0].splitlines()
        if len(lines) > 1:
            return int(lines[-1].split(",")[COLUMNS.index("simulator_steps")])
    return 0
