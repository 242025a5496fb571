"""What holds for every test: no window, no display, one thread, one folder of compiled programs."""

import os

os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = "dummy"  # pygame's windows open nowhere
os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"  # a program runs a few times here: no wait for its calls

import pytest
import torch

from bptt_envs.program import CACHE_VARIABLE

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """One folder of compiled programs for a run of tests, all its processes, those of the environments, too."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"


@pytest.fixture(autouse=True)
def _programs_of_the_run(programs, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(programs))
