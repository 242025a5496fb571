"""What holds for every test: no window, one thread, one folder of programs, figures blank unless they are looked at."""

import os

os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"  # pygame's windows open nowhere
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"  # a program runs a few times here: no wait for its calls

import pytest
import torch
from matplotlib.figure import Figure

from bptt_envs.program import CACHE_VARIABLE

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives


DRAW = Figure.draw


@pytest.fixture(scope="session", autouse=True)
def _figures_stay_blank():
    """Figures are made and saved, but not drawn, which would take longer than the short runs that they show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda self, renderer: None)
        yield


@pytest.fixture
def drawn(monkeypatch):
    """What a figure shows is drawn: for tests of figures, and one of each command that leaves some."""
    monkeypatch.setattr(Figure, "draw", DRAW)


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """One folder of compiled programs for a run of tests, all its processes, those of the environments, too."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"


@pytest.fixture(autouse=True)
def _programs_of_the_run(programs, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(programs))
