"""A kill, a full disk or a broken one at every file operation: a run that is taken up again ends bit for bit alike."""

import contextlib
import errno
import os
import shutil
import warnings
from dataclasses import replace
from itertools import count

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bptt_envs.systems import Integrator
from bptt_trainers import RunFolder, RunFolderError, TrainConfig, Trainer
from bptt_trainers.records import files
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl

LONG = bool(os.environ.get("BPTT_TEST_LONG"))
CONFIG = TrainConfig(
    epochs=3, batch_size=8, train_states=16, test_states=4, hidden=(4,), keep_every=2, record=("tensorboard",), seed=1
)
OPERATIONS = (
    *("open", "write", "fsync", "ftruncate", "replace", "unlink", "makedirs"),
    *("read", "fstat", "lstat", "stat", "listdir", "lseek"),
)
WRITING = ("write", "fsync", "replace", "makedirs", "ftruncate")


class Killed(BaseException):
    """The process is gone: whatever handles this can do nothing to the disk any more."""


class FaultyOS:
    """`os`, whose operation number `at` fails.

    Args:
        at: the number of the operation; None: none fails.
        how: "kill" (before it; a write is cut in half), or an errno: it fails once. "full" is a disk without room
            from there on.
    """

    def __init__(self, at=None, how="kill"):
        self.at, self.how, self.done, self.dead = at, how, 0, False

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in OPERATIONS:
            return real

        def operation(*arguments, **named):
            if self.dead:
                raise Killed
            number, self.done = self.done, self.done + 1
            if self.at is None or number < self.at:
                return real(*arguments, **named)
            if self.how == "kill":
                self.dead = True
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Killed
            if self.how == "full":
                if name in WRITING and name != "ftruncate":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            elif number == self.at:
                raise OSError(self.how, os.strerror(self.how))
            return real(*arguments, **named)

        return operation


def trainer(folder, **changes):
    return Trainer(Integrator(), config=replace(CONFIG, out=folder, **changes))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    trainer(folder).fit()
    return RunFolder(folder)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_as_undisturbed(folder, undisturbed):
    """The same files with the same content but for the seconds, every epoch once, nothing left over."""
    for name in ("last", "best", *undisturbed.kept().values()):
        assert_same(folder.load(name), undisturbed.load(name))
    assert folder.kept() == undisturbed.kept()
    rows, expected = ([{**vars(row), "seconds": 0} for row in f.rewind_metrics(9)] for f in (folder, undisturbed))
    assert str(rows) == str(expected)  # NaN equals NaN in text
    events = EventAccumulator(str(folder.path)).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == [0, 1, 2, 3]
    assert not [path.name for path in folder.path.rglob("*.part")]


def fail(folder, monkeypatch, at, how):
    """Run with a fault; return whether it came, and the trainer."""
    system = FaultyOS(at, how)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr(files, "os", system)
        warnings.simplefilter("ignore")  # TensorBoard without a disk: training goes on
        one = trainer(folder)
        with contextlib.suppress(Killed, RunFolderError):
            one.fit()
    return system.done > at, one


@pytest.mark.parametrize(
    ("how", "stride", "first", "begun"),
    [
        *(("kill", 5, 0, 0), ("kill", 9, 1, 1), ("full", 12, 0, 0), ("full", 12, 6, 1)),
        *((errno.ENOSPC, 12, 1, 0), (errno.EIO, 12, 2, 0), (errno.EIO, 12, 4, 1)),
    ],
)
def test_a_run_ends_bit_for_bit_alike_after_a_fault_at_any_file_operation(
    how, stride, first, begun, tmp_path, undisturbed, monkeypatch
):
    if begun:
        trainer(tmp_path / "begun", epochs=begun).fit()
    for at in count(first, 1 if LONG else stride):
        folder = tmp_path / f"run{at}"
        if begun:
            shutil.copytree(tmp_path / "begun", folder)
        came, same_process = fail(folder, monkeypatch, at, how)
        again = trainer(folder) if how == "kill" or at % 2 else same_process
        again.fit()
        assert_as_undisturbed(RunFolder(folder), undisturbed)
        if not came:
            break
    assert at > 40


@pytest.mark.parametrize(("how", "stride"), [("kill", 7), ("full", 15), (errno.EIO, 17)])
def test_reinforcement_learning_ends_bit_for_bit_alike_after_a_fault_at_any_file_operation(
    how, stride, tmp_path, monkeypatch
):
    few = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": [4]}
    config = RLConfig(
        env="DiffIntegrator-v0", steps=32, evaluations=2, test_states=2, overrides=few, record=("tensorboard",)
    )
    expected = train_rl(config, progress=False)
    for at in count(0, 1 if LONG else stride):
        system, folder = FaultyOS(at, how), tmp_path / f"run{at}"
        with monkeypatch.context() as patch, contextlib.suppress(Killed, RunFolderError):
            patch.setattr(files, "os", system)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorBoard without a disk: training goes on
                train_rl(config, folder, progress=False)
        train_rl(config, folder, progress=False)
        found = load_rl(folder)
        assert [point.test_loss for point in found.curve] == [point.test_loss for point in expected.curve]
        assert_same(dict(found.controller.policy.state_dict()), dict(expected.controller.policy.state_dict()))
        events = {path.name for path in folder.glob("events.*")}
        assert {path.name for path in folder.iterdir()} - events == {"best.pt", "config.json", "last.pt", "metrics.csv"}
        if system.done <= at:
            break
    assert at > 40


@pytest.mark.parametrize("how", ["kill", "full", errno.EIO])
def test_a_folder_is_there_whole_or_not_at_all_after_a_fault_at_any_file_operation(how, tmp_path, monkeypatch):
    content = {"one": b"1" * 100, "two": b"2"}
    for at in count():
        system, folder = FaultyOS(at, how), tmp_path / f"{at}" / "folder"
        with monkeypatch.context() as patch, contextlib.suppress(Killed, RunFolderError):
            patch.setattr(files, "os", system)
            files.write_folder(folder, content)
        assert not folder.exists() or {path.name: path.read_bytes() for path in folder.iterdir()} == content
        if how != "kill" and not folder.exists():  # nothing is left over but by a kill
            assert not folder.parent.exists() or not list(folder.parent.iterdir())
        if not folder.exists():
            files.write_folder(folder, content)
        if system.done <= at:
            break
    assert at > 6
