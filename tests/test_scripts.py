"""The example programs run, on a tiny budget."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script as a program of this process; return what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.usefixtures("drawn")
def test_train(run):
    said = run("train.py", "--epochs", "1", "--out", "run")
    assert "held-out loss: 1.9650 untrained" in said
    assert {"config.json", "last.pt", "trajectories.png"} <= {path.name for path in Path("run").iterdir()}


@pytest.mark.usefixtures("drawn")
def test_compare_with_ppo(run):
    said = run("compare_with_ppo.py", "--steps", "6400", "--seeds", "0", "--test-states", "8", "--out", "both")
    assert "| C-clipped | 1 |" in said
    assert "lowest loss at the end: " in said
    assert {"methods.md", "curves.png"} <= {path.name for path in Path("both").iterdir()}


def test_lqr_study(run):
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


def test_by_hand(run):
    said = run("by_hand.py", "--updates", "2", "--batch", "2").splitlines()
    assert said == ["update 0: held-out loss 1.9726"]


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_every_script_says_what_it_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    assert not end.value.code
    assert "usage:" in capsys.readouterr().out
