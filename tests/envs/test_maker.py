"""A second process makes programs, says why it cannot, and is never left behind. test_program.py has it make one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bptt_envs import maker
from bptt_envs.maker import Maker
from bptt_envs.program import CACHE_VARIABLE, CompilerError, Order

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def order(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "programs"))
    return Order(lambda x: (x + 1.0,), [torch.ones(2)])


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_made_is_not_made_again(order, monkeypatch):
    monkeypatch.setattr(Order, "made", lambda self: True)
    monkeypatch.setattr(subprocess, "Popen", None)
    made = Maker()
    made.make([order])
    assert made.finished()
    made.close()


def test_why_a_program_cannot_be_made_is_said(order, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    made = Maker()
    made.make([order])
    with pytest.raises(CompilerError, match=r"compile=True failed \(.*\); use compile=False"):
        until(made.finished)
    made.close()
    assert not list(order.folder.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_no_process_is_left(how, order, tmp_path, monkeypatch):
    """Neither that of the maker nor one that it has started."""
    monkeypatch.setattr(maker, "__name__", "sleeper")  # what is run in its place: it starts a compiler and waits
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setattr(maker, "HERE", os.pathsep.join([str(maker.HERE), str(tmp_path)]))
    monkeypatch.setenv("SLEEPER", str(tmp_path / "compiler"))
    made = Maker()
    made.make([order])
    until((tmp_path / "compiler").exists)
    until(lambda: (tmp_path / "compiler").read_text().endswith("\n"))
    compiler = int((tmp_path / "compiler").read_text())
    if how == "closed":
        made.close()
    else:  # as when this process is gone
        made._process.stdin.close()
        assert made._process.wait(60) == 0
        made._process.stdout.close()
    until(lambda: gone(compiler))


SLEEPER = """
import os, subprocess
from pathlib import Path
from bptt_envs import maker
from bptt_envs.program import Order

def make(order):
    compiler = subprocess.Popen(["sleep", "600"])
    Path(os.environ["SLEEPER"]).write_text(f"{compiler.pid}\\n")
    compiler.wait()

Order.make = make
maker.main()
"""


def gone(process):
    try:
        os.kill(process, signal.SIG_DFL)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{process}/stat")  # where there is nobody to take notice of its end
    return stat.read_text().split(")")[1].split()[0] == "Z"
