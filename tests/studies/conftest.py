"""What the tests of the studies share."""

from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from bptt_studies.paper import work


@contextmanager
def workers_here(jobs, todo, progress):
    def submit(unit):
        done = Future()
        done.set_result(work._train(unit))
        return done

    yield submit


@pytest.fixture
def in_this_process(monkeypatch):
    """Train runs of the experiments in this process: to start another takes longer. Gives what would start some."""
    before = work._workers
    monkeypatch.setattr(work, "_workers", workers_here)
    return before
