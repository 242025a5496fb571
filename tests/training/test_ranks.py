"""Processes that train one run together do what one process does. Torchrun starts two of them here, by gloo."""

import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_ranks import ALIKE, COMMAND, TINY, mlp, pole, seen, trained

from bptt_trainers import RunFolder, Trainer, join_ranks
from bptt_trainers.cli import main
from bptt_trainers.training.metrics import read_csv
from bptt_trainers.training.ranks import VARIABLES, Ranks

SCRIPT = Path(__file__).parents[1] / "two_ranks.py"


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of results of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def found(together, rank=0):
    return torch.load(together[0] / f"found{rank}.pt")


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_as_one_does(together, name):
    numbers, weights = seen(trained(name))
    torch.testing.assert_close(found(together)[name][0], numbers, rtol=1e-9, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(found(together)[name][1], weights, rtol=1e-9, atol=1e-12)


def test_an_update_that_is_not_finite_in_one_process_is_skipped_or_stops_all(together):
    skipped = found(together)["skipped"][0][-1]
    assert skipped == 1
    for rank in (0, 1):
        assert found(together, rank)["stopped"].startswith("NonFiniteError: in epoch 1, update 1 of 3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "buffers",
            "a Sequential cannot be trained by several processes as by one: its episodes change the buffers 0.",
        ),
        (
            "random numbers",
            "it draws random numbers of its own; one with a noise_shape is handed them. Train it in one",
        ),
        ("hooks", "hooks of its parameters would see shares of a direction. Train it in one process."),
    ],
)
def test_what_would_differ_from_one_process_is_refused_in_words_by_all(together, name, message):
    for rank in (0, 1):
        assert message in found(together, rank)[name]


def test_all_end_where_a_callback_of_one_ends_the_run(together):
    assert [found(together, rank)["ended by one"] for rank in (0, 1)] == [2, 2]  # epochs 0 and 1


def test_all_begin_with_the_weights_of_the_first(together):
    first, second = (found(together, rank)["other weights"] for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, seen(trained_from_zero())[1], rtol=1e-9, atol=1e-12)


def test_the_first_alone_keeps_a_folder_and_all_go_on_from_it(together, tmp_path):
    folder, found_losses = together[0] / "run0", [found(together, rank)["resumed"] for rank in (0, 1)]
    assert not (together[0] / "run1").exists()
    assert {path.name for path in folder.iterdir()} >= {"config.json", "metrics.csv", "last.pt", "updates.csv"}
    assert len((folder / "updates.csv").read_text().splitlines()) == 1 + 2 * 3
    assert found_losses[0] == found_losses[1] == [row.train_loss for row in read_csv(folder / "metrics.csv")]
    assert found_losses[0][:2] == found(together)["folder"]
    alone = trained_from_zero()
    assert found_losses[0] == pytest.approx([row.train_loss for row in alone.history], rel=1e-9)


def test_a_run_of_several_goes_on_alone(together, tmp_path):
    shutil.copytree(together[0] / "run0", tmp_path / "run")
    system = pole()
    goes_on = Trainer(system, mlp(system), replace(TINY, out=tmp_path / "run", epochs=3))
    alone = Trainer(system, mlp(system), replace(TINY, epochs=3))
    assert [row.train_loss for row in goes_on.fit()] == pytest.approx([row.train_loss for row in alone.fit()], rel=1e-9)


def test_processes_of_other_settings_are_refused_and_the_others_end_in_words(together):
    first, second = ((together[0] / f"last{rank}.txt").read_text() for rank in (0, 1))
    assert second.startswith("ValueError: all processes must train the same run; this one's settings are others")
    assert first.startswith(
        "LostRankError: a process that trains this run, too, has ended or cannot be reached (Runtime"
    )


# The command


def test_the_command_trains_one_run_by_all_processes_and_the_first_tells_of_it(together, tmp_path):
    folder, out, err = together
    assert main([*COMMAND.split(), "--out", str(tmp_path / "alone")]) == 0
    one, two = (read_csv(path / "metrics.csv") for path in (tmp_path / "alone", folder / "command"))
    assert [row.test_loss for row in two] == pytest.approx([row.test_loss for row in one], rel=1e-5)
    assert RunFolder(folder / "command").train_config() == replace(
        RunFolder(tmp_path / "alone").train_config(), out=folder / "command"
    )
    assert out.count("starting, 2 epochs") == out.count("loss over the 7 held-out states") == 1
    assert err.count("training:   0%") == 1


def test_what_is_for_one_process_is_refused_in_words(together):
    for rank in (0, 1):
        assert found(together, rank)["codes"] == [0, 2, 2, 2, 2]
    for message in (
        "--seeds is for one process: torchrun trains one run.",
        "a run of SHAC is trained by one process, not by 2.",
        "each of the 2 processes needs a start state of every batch and of test_states (7); the smallest batch has 1",
        "compare is for one process, and torchrun has started 2 processes of it",
    ):
        assert message in together[2]


@pytest.fixture
def second_of_two(monkeypatch):
    """What torchrun would have told this process, if it were the second of two."""
    for name, value in zip(VARIABLES, ("1", "2", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)


def test_a_run_of_reinforcement_learning_is_for_one_process(second_of_two, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"method": "PPO"}')
    assert main(["resume", str(tmp_path)]) == 2
    assert "a run of reinforcement learning is trained by one process, not by 2." in capsys.readouterr().err


def test_a_device_that_not_every_process_has_is_refused(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=rf"a GPU of its own \(torch finds 1 here\); got '{device}' for process 1"):
            join_ranks(device)


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bptt", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("bptt_trainers", run_name="__main__")
    assert capsys.readouterr().out.startswith("bptt ")


def test_shares_are_whole_and_differ_by_one_sample_at_most():
    for batch, count in ((7, 3), (8, 2), (2, 3)):
        shares = [range(batch)[Ranks(rank, count).share(batch)] for rank in range(count)]
        assert [i for share in shares for i in share] == list(range(batch))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def trained_from_zero():
    trainer = Trainer(pole(), mlp(pole()), TINY)
    trainer.fit()
    return trainer
