"""The example programs run, on a tiny budget."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPTS / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train():
    said = run("train.py", "--epochs", "1", "--out", "run")
    assert "held-out loss: 1.9650 untrained" in said
    assert {"config.json", "last.pt", "trajectories.png"} <= {path.name for path in Path("run").iterdir()}


def test_compare_with_ppo():
    said = run("compare_with_ppo.py", "--steps", "6400", "--seeds", "0", "--test-states", "8", "--out", "both")
    assert "| C-clipped | 1 |" in said
    assert "lowest loss at the end: " in said
    assert {"methods.md", "curves.png"} <= {path.name for path in Path("both").iterdir()}


def test_lqr_study():
    said = run("lqr_study.py", "--starts", "2", "--steps", "3", "--out", "lqr")
    assert "| continuous | time-varying | M | 2.6168, 3.4534 | 1.804795 |" in said
    assert {path.name for path in Path("lqr").iterdir()} == {
        "tables.md",
        "runs.csv",
        "curves.csv",
        "counterexamples.csv",
        "lqr.png",
        "lqr.pdf",
    }


def test_by_hand():
    said = run("by_hand.py", "--updates", "2", "--batch", "2").splitlines()
    assert said == ["update 0: held-out loss 1.9726"]


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert not end.value.code
    assert "usage:" in capsys.readouterr().out
