"""What the tests of the studies share."""

from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from bptt_studies.paper import work
from bptt_trainers.host.work import Workers


class Here(Workers):
    """Does work in this process."""

    def submit(self, work):
        done = Future()
        done.set_result(work())
        return done

    def abandon(self):
        pass


@contextmanager
def opened_here(executor, jobs, folder):
    yield Here()


@pytest.fixture
def in_this_process(monkeypatch):
    """Train runs of the experiments in this process: to start another takes longer. Gives what would start some."""
    before = work.opened
    monkeypatch.setattr(work, "opened", opened_here)
    return before
