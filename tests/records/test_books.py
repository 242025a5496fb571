"""What a run's folder says must belong together; a refused command leaves it as it was."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import bptt_envs
from bptt_envs.systems import Integrator
from bptt_trainers import MLP, Callback, RunFolder, RunFolderError, TrainConfig, Trainer
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.records import files, turn
from bptt_trainers.records.claim import locked
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.options import read_options, write_options
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl

TINY = TrainConfig(epochs=3, batch_size=4, train_states=8, test_states=4, hidden=(4,), record=())
SMALL_PPO = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1}


def trainer(out, controller=None, callbacks=(), system=None, **changes):
    return Trainer(system or Integrator(), controller, replace(TINY, out=out, **changes), callbacks)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    trainer(tmp_path / "run").fit()
    return tmp_path / "run"


def assert_refused(run, match, **changes):
    """Training on in the folder is refused, and changes nothing there."""
    before = contents(run)
    with pytest.raises(RunFolderError, match=match):
        trainer(run, **({"epochs": 5} | changes)).fit()
    assert contents(run) == before


# Books that disagree


def edit_metrics(run, change):
    header, *lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join([header, *change(lines)]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "last.pt is of epoch 3, metrics.csv ends with epoch 2"),
        (lambda lines: [], "last.pt is of epoch 3, metrics.csv has no epoch"),
        (lambda lines: [lines[0], lines[2], lines[3]], "has epoch 2 where epoch 1 should be"),
        (lambda lines: [*lines, lines[-1]], "has epoch 3 where epoch 4 should be"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "has epoch 2 where epoch 1 should be"),
        (lambda lines: [*lines, *(f"{i}{lines[-1][1:]}" for i in (4, 5))], "ends with epoch 5"),
        (lambda lines: [*lines[:-1], lines[-1].replace(",", ",1", 1)], "says train_loss 1"),
        (lambda lines: [*lines[:-1], "3,x\n"], "cannot read .*metrics.csv"),
        (lambda lines: [*lines[:-1], "\0\n"], "cannot read .*metrics.csv"),
    ],
)
def test_metrics_that_do_not_belong_to_the_checkpoint_are_an_error(run, change, said):
    edit_metrics(run, change)
    assert_refused(run, said)


def test_metrics_that_a_kill_left_a_line_ahead_are_rewound(run):
    whole = (run / "metrics.csv").read_bytes()
    edit_metrics(run, lambda lines: [*lines, f"4{lines[-1][1:]}", "5,0."])
    trainer(run).fit()
    assert (run / "metrics.csv").read_bytes() == whole


@pytest.mark.parametrize("also", [[], ["metrics.csv"]])
def test_a_missing_last_checkpoint_is_an_error_where_epochs_were_done(run, also):
    for name in ("last.pt", *also):
        (run / name).unlink()
    assert_refused(run, "has no last.pt, but its other files are of [123] epochs: put last.pt back from a copy")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_a_damaged_best_checkpoint_is_an_error(run, damage):
    damage(run / "best.pt")
    assert_refused(run, "best.pt.*(put it back from a copy)")


def test_the_best_checkpoint_of_another_run_is_an_error(run, tmp_path):
    trainer(tmp_path / "other", seed=1).fit()
    (run / "best.pt").write_bytes((tmp_path / "other" / "best.pt").read_bytes())
    assert_refused(run, r"best.pt has the training loss [\d.e-]+, the best that last.pt knows is")


def test_a_config_that_was_edited_is_an_error(run):
    config = json.loads((run / "config.json").read_text())
    config["training"]["seed"] = 7
    (run / "config.json").write_text(json.dumps(config))
    assert_refused(run, r"last.pt is of a run of other settings(.|\n)*training.seed: 0 in the folder, 7 asked", seed=7)


# A refused command changes nothing


def test_fewer_epochs_than_are_done_are_refused_and_the_run_goes_on(run):
    assert_refused(run, "has 3 epochs already; epochs=2 asks for fewer", epochs=2)
    assert trainer(run, epochs=4).fit()[-1].epoch == 4


class Extra(nn.Linear):
    """A controller with extra state."""

    extra = None

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


class Anything:
    pass


@pytest.mark.parametrize("extra", [np.zeros(2), np.float64(1.0), Anything(), lambda: 0, {"deep": [Anything()]}])
def test_state_that_could_not_be_loaded_again_is_refused_before_training(tmp_path, extra):
    controller = Extra(1, 1)
    controller.extra = extra
    with pytest.raises(RunFolderError, match=r"could not be loaded again: \['controller'\]\['_extra_state'\]"):
        trainer(tmp_path / "run", controller, engine="autograd").fit()
    assert not list((tmp_path / "run").iterdir())


def test_state_that_becomes_unloadable_is_refused_and_the_last_checkpoint_stands(tmp_path):
    class Spoil(Callback):
        def on_epoch_end(self, trainer, metrics):
            trainer.controller.extra = Anything() if metrics.epoch == 1 else None

    controller = Extra(1, 1)
    with pytest.raises(RunFolderError, match="could not be loaded again"):
        trainer(tmp_path, controller, [Spoil()], engine="autograd").fit()
    assert RunFolder(tmp_path).load("last")["epoch"] == 1


# What is written comes back as it was


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor([3]))
        self.register_buffer("scale", torch.tensor(0.1, dtype=torch.float64))
        self.register_buffer("apart", torch.tensor(0.5, dtype=torch.float64), persistent=False)
        self.one, self.two = nn.Linear(1, 2), nn.Linear(2, 1).double()

    def forward(self, observation):
        return (self.two(self.one(observation).tanh().double()) * self.scale * self.apart).float()


@pytest.mark.parametrize("make", [Mixed, lambda: Mixed().double(), lambda: MLP((1,), (1,), (2,)).double()])
def test_dtypes_come_back_whatever_tensor_is_the_first(tmp_path, make):
    torch.manual_seed(0)
    controller = make()
    folder = RunFolder(tmp_path)
    checkpoint = {"epoch": 0, "train_loss": 1.0, "test_loss": 1.0, "controller": controller.state_dict()}
    folder.save("best", checkpoint)
    like = Mixed() if isinstance(controller, Mixed) else MLP((1,), (1,), (2,))
    loaded, _ = folder.load_controller(Integrator(), controller=like)
    for (name, one), (_, other) in zip(loaded.state_dict().items(), controller.state_dict().items(), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


# Another network, dtype or system of the same shapes is another run


def net(activation, **kwargs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), activation, nn.Linear(4, 1))


class Scaled(nn.Module):
    def __init__(self, scale, mean=0.0, act=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.act, self.layer = scale, act, nn.Linear(1, 1)
        self.register_buffer("mean", torch.tensor([mean]))

    def forward(self, observation):
        return self.act(self.layer(observation - self.mean)) * self.scale


def frozen(value):
    controller = net(nn.Tanh())
    with torch.no_grad():
        controller[2].bias.fill_(value)
    controller[2].bias.requires_grad_(False)
    return controller


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (lambda: net(nn.ReLU()), lambda: net(nn.Tanh()), r"parts\.1: 'torch.*ReLU\(\).* in the folder, .*Tanh\(\)"),
        (lambda: net(nn.LeakyReLU(0.1)), lambda: net(nn.LeakyReLU(0.2)), r"parts\.1: .*negative_slope=0.1.*0.2"),
        (lambda: net(nn.Tanh()), lambda: net(nn.Tanh()).double(), r"dtypes\.0\.weight: 'float32'.*'float64'"),
        (lambda: Scaled(1.0), lambda: Scaled(2.0), r"controller\.parts\.: "),
        (lambda: Scaled(1.0), lambda: Scaled(1.0, mean=0.5), r"controller\.tensors\.mean"),
        (lambda: Scaled(1.0), lambda: Scaled(1.0, act=torch.relu), r"controller\.parts\.: "),
        (lambda: Scaled(1, act=lambda x: 2 * x), lambda: Scaled(1, act=lambda x: 3 * x), r"controller\.parts\.: "),
        (lambda: frozen(0.0), lambda: frozen(1.0), r"controller\.tensors\.2\.bias"),
    ],
)
def test_another_network_of_the_same_shapes_is_refused_with_what_differs(tmp_path, one, other, said):
    trainer(tmp_path, one(), engine="autograd").fit()
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=said):
        trainer(tmp_path, other(), engine="autograd", epochs=4).fit()
    assert contents(tmp_path) == before
    assert trainer(tmp_path, one(), engine="autograd", epochs=4).fit()[-1].epoch == 4


def test_weights_are_loaded_into_the_network_that_was_trained_only(tmp_path):
    trainer(tmp_path, net(nn.ReLU()).double(), engine="autograd").fit()
    folder = RunFolder(tmp_path)
    loaded, _ = folder.load_controller(Integrator(), "last", net(nn.ReLU()).eval())
    assert loaded[0].weight.dtype == torch.float64
    with pytest.raises(RunFolderError, match=r"another network than .*\n  1: .*ReLU.* in the folder, .*Tanh"):
        folder.load_controller(Integrator(), "last", net(nn.Tanh()))


class Learned(Integrator):
    """A system with a learned part."""

    def __init__(self, seed=0, gain=1.0, **kwargs):
        super().__init__(**kwargs)
        torch.manual_seed(seed)
        self.model = nn.Linear(1, 1)
        self.model.requires_grad_(False)
        self.table = torch.tensor([gain])

    def step(self, state, action):
        return state + self.table * action + 0.01 * self.model(state)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: Learned(seed=1), r"environment\.content\.model: .*Linear"),
        (lambda: Learned(gain=2.0), r"environment\.content\.table: torch.Tensor|environment\.content\.table"),
        (lambda: type("Learned", (Learned,), {"__module__": "elsewhere"})(), r"environment\.content\.class"),
    ],
)
def test_another_learned_system_is_another_run(tmp_path, other, said):
    trainer(tmp_path, system=Learned()).fit()
    trainer(tmp_path, system=Learned(), epochs=4).fit()
    with pytest.raises(RunFolderError, match=said):
        trainer(tmp_path, system=other(), epochs=5).fit()


def test_running_statistics_may_be_as_training_found_them_or_as_it_left_them(tmp_path):
    def normed():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    controller = normed()
    whole = trainer(tmp_path / "whole", controller, engine="autograd", epochs=5)
    whole.fit()
    controller = normed()
    trainer(tmp_path / "parts", controller, engine="autograd", epochs=2).fit()
    trainer(tmp_path / "parts", controller, engine="autograd", epochs=4).fit()
    trainer(tmp_path / "parts", normed(), engine="autograd", epochs=5).fit()
    one, other = (RunFolder(tmp_path / name).load("last")["controller"] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_of_an_earlier_version_goes_on(run):
    config = json.loads((run / "config.json").read_text())
    del config["environment"]["content"]
    for name in ("dtypes", "parts", "tensors"):
        del config["controller"][name]
    (run / "config.json").write_text(json.dumps(config))
    last = torch.load(run / "last.pt")
    del last["config"]
    torch.save(last, run / "last.pt")
    assert trainer(run, epochs=4).fit()[-1].epoch == 4


# Objects and numbers among the options


class WithModel(Integrator):
    def __init__(self, *, model=None, gain=1.0, where=None, **kwargs):
        super().__init__(**kwargs)
        self.model, self.gain, self.where = model, gain, where


def plus(x):
    return x + 1


@pytest.fixture
def with_model(monkeypatch):
    monkeypatch.setitem(bptt_envs.registration.ENTRIES, "WithModel-v0", None)
    bptt_envs.registration.ENTRIES.pop("WithModel-v0")
    monkeypatch.setattr(bptt_envs.systems, "WithModel", WithModel, raising=False)
    bptt_envs.register("WithModel-v0", "bptt_envs.systems:WithModel", "with a model")
    yield
    bptt_envs.registration.ENTRIES.pop("WithModel-v0")
    gym.registry.pop("WithModel-v0")


@pytest.mark.parametrize("make", [lambda: nn.Linear(1, 1), lambda: plus, lambda: np, Anything, lambda: {1: 2}])
def test_objects_among_the_options_are_named_and_the_environment_is_built_in_python(tmp_path, with_model, make):
    torch.manual_seed(0)
    model = make()
    env = gym.make("WithModel-v0", model=model, gain=np.float32(0.1), where=Path("here"))
    Trainer(env, None, replace(TINY, out=tmp_path)).fit()
    stored = json.loads((tmp_path / "config.json").read_text())["environment"]["options"]
    assert stored["gain"] == 0.1
    assert stored["where"] == "here"
    assert set(stored["model"]) == {"object", "digest"}
    Trainer(env, None, replace(TINY, out=tmp_path, epochs=4)).fit()
    with pytest.raises(RunFolderError, match="among its options, which no file holds; build the environment in Python"):
        RunFolder(tmp_path).make_env()


def test_another_network_among_the_options_is_another_run(tmp_path, with_model):
    for seed in (0, 1):
        torch.manual_seed(seed)
        one = Trainer(gym.make("WithModel-v0", model=nn.Linear(1, 1)), None, replace(TINY, out=tmp_path))
        if seed == 0:
            one.fit()
    with pytest.raises(RunFolderError, match=r"environment\.options\.model\.digest"):
        one.fit()


def test_numbers_of_numpy_come_back_equal(tmp_path):
    numbers = {"learning_rate": np.float64(1e-3), "epochs": np.int64(1)}
    for _ in range(2):
        env = gym.make("DiffIntegrator-v0", target=np.float32(2.5))
        Trainer(env, None, replace(TINY, out=tmp_path, **numbers)).fit()
    assert RunFolder(tmp_path).make_env().system.target == 2.5


@pytest.mark.parametrize("part", ["environment", "controller", "training"])
@pytest.mark.parametrize("value", [3, "x", [1], None])
def test_a_config_whose_parts_hold_something_else_is_refused_in_words(tmp_path, part, value):
    trainer(tmp_path).fit()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(RunFolderError):
        trainer(tmp_path).fit()
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path).read_config()


# Folders that a kill or a full disk left


@pytest.mark.parametrize("name", [".config.json.part", ".config.json.abc.part", ".config.json.0123456789abcdef.part"])
@pytest.mark.parametrize("kind", ["run", "rl", "comparison"])
def test_a_folder_with_nothing_but_half_written_files_of_ours_is_free(tmp_path, name, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text('{"environment"')
    if kind == "run":
        trainer(folder).fit()
    elif kind == "rl":
        config = RLConfig(env="DiffIntegrator-v0", steps=16, evaluations=1, test_states=2, overrides=SMALL_PPO)
        train_rl(config, folder, progress=False)
        assert load_rl(folder).config == config
    else:
        options = {"env": "DiffIntegrator-v0", "methods": ("zero",), "seeds": (0,), "test_states": 2}
        compare(ComparisonConfig(**options, out=folder), progress=False)
    assert not list(folder.rglob("*.part"))


def test_hidden_files_of_others_are_other_files(tmp_path):
    (tmp_path / ".thesis.part").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files and no run"):
        trainer(tmp_path).fit()
    assert (tmp_path / ".thesis.part").read_text() == "mine"


# The place of a folder


class Move(Callback):
    def __init__(self, folder, hook):
        self.folder, self.hook = folder, hook

    def move(self):
        if self.folder.exists():
            self.folder.rename(self.folder.with_name("elsewhere"))

    def on_update_end(self, trainer, loss, direction_norm):
        if self.hook == "update" and trainer.epoch == 1:
            self.move()

    def on_epoch_end(self, trainer, metrics):
        if self.hook == "end" and metrics.epoch == TINY.epochs:
            self.move()


@pytest.mark.parametrize("hook", ["update", "end"])
def test_a_folder_that_is_moved_while_training_is_an_error_and_not_made_again(tmp_path, hook):
    with pytest.raises(RunFolderError, match="moved"):
        trainer(tmp_path / "run", callbacks=[Move(tmp_path / "run", hook)], record=("pictures",), keep_every=1).fit()
    assert not (tmp_path / "run").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    assert trainer(tmp_path / "run").fit()[-1].epoch == 3


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS])
def test_a_mount_without_locks_has_a_file_for_a_lock(tmp_path, monkeypatch, code):
    def no_locks(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with locked(tmp_path / "run"), pytest.raises(RunFolderError, match=r"in use by another process.*\.run\.lock"):
            trainer(tmp_path / "run").fit()
    assert trainer(tmp_path / "run").fit()[-1].epoch == TINY.epochs
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "closed").touch()
    monkeypatch.setattr(turn, "create", lambda path, data: os.open(tmp_path / "closed" / "file", os.O_CREAT))
    with pytest.warns(UserWarning, match="file system without locks"):
        trainer(tmp_path / "run").fit()


@pytest.mark.parametrize("left", ["gone", "silent", "alive", "another's"])
def test_a_lock_that_was_left_behind_counts_for_nothing(tmp_path, monkeypatch, left):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: os.close(-1))  # an error: no locks
    path = tmp_path / ".run.lock"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host, process = socket.gethostname(), gone.pid if left == "gone" else os.getppid()
    path.write_text(json.dumps(["elsewhere" if left in ("silent", "another's") else host, process, "token"]))
    if left == "silent":
        os.utime(path, (time.time() - turn.SILENCE - 1,) * 2)
    if left in ("gone", "silent"):
        with locked(tmp_path / "run"):
            assert json.loads(path.read_text())[1] == os.getpid()
        assert not path.exists()
    else:
        with pytest.raises(RunFolderError, match="in use"), locked(tmp_path / "run"):
            pass
        assert json.loads(path.read_text())[2] == "token"


def test_a_lock_that_is_let_go_of_is_waited_for_and_kept_young(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: os.close(-1))
    monkeypatch.setattr(turn, "BEAT", 0.01)
    monkeypatch.setattr(turn, "PAUSE", 0.01)
    path = tmp_path / ".run.lock"
    with locked(tmp_path / "run"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        monkeypatch.setattr(turn, "BEAT", 60.0)
        threading.Timer(0.1, path.unlink).start()  # as its owner does
        with locked(tmp_path / "run", wait=30):
            assert path.exists()


def test_a_failed_save_followed_by_fit_leaves_every_epoch_once(tmp_path):
    one = trainer(tmp_path)
    save, failing = one.folder.save, [True]

    def flaky(name, checkpoint):
        if name == "last" and checkpoint["epoch"] == 2 and failing:
            failing.clear()
            raise RunFolderError("disk full")
        save(name, checkpoint)

    one.folder.save = flaky
    with pytest.raises(RunFolderError, match="disk full"):
        one.fit()
    one.fit()
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == [
        *("epoch", "0", "1", "2", "3")
    ]


def test_a_trainer_whose_folder_was_emptied_says_so(tmp_path):
    one = trainer(tmp_path / "run")
    one.fit()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunFolderError, match="no longer holds the 3 epochs"):
        one.fit()


# TensorBoard and stable-baselines3


def steps(folder):
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss/train")]


def test_events_hold_the_epochs_that_the_metrics_hold(tmp_path):
    class Stop(Callback):
        def on_update_end(self, trainer, loss, direction_norm):
            if trainer.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, callbacks=[Stop()], record=("tensorboard",)).fit()
    trainer(tmp_path, epochs=2, record=("pictures",)).fit()
    for epochs in (3, 3, 4):
        trainer(tmp_path, epochs=epochs, record=("tensorboard",)).fit()
        assert steps(tmp_path) == list(range(epochs + 1))
        assert len(list(tmp_path.glob("events.*"))) == 1


def test_a_disk_without_room_for_events_is_a_warning_and_training_goes_on(tmp_path, monkeypatch):
    def full(path, data, at):
        if "events" in path.name:
            raise RunFolderError("No space left on device")
        return files.append(path, data, at)

    monkeypatch.setattr("bptt_trainers.training.tensorboard.append", full)
    with pytest.warns(UserWarning, match="TensorBoard gets no more events of this fit: No space left"):
        assert trainer(tmp_path, record=("tensorboard",)).fit()[-1].epoch == 3
    monkeypatch.undo()
    trainer(tmp_path, record=("tensorboard",)).fit()
    assert steps(tmp_path) == [0, 1, 2, 3]


def test_reinforcement_learning_leaves_no_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    config = RLConfig(env="DiffIntegrator-v0", steps=16, evaluations=1, test_states=2, overrides=SMALL_PPO)
    train_rl(config, tmp_path / "run", progress=False)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path):
    write_atomic(tmp_path / "new" / "file.csv", b"one")
    write_atomic(tmp_path / "new" / "file.csv", b"two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.csv"]
    assert files.read_bytes(tmp_path / "new" / "file.csv") == b"two"


def test_options_in_a_cell_come_back_equal():
    options = {
        "a": np.float64(0.1),
        "b": "x; y=1",
        "c": np.arange(2),
        "d": (np.int64(1), [2.5, None]),
        "e": "",
        "f": -3,
        "g": "'",
    }
    assert read_options(write_options(options)) == options | {"c": [0, 1]}
    assert read_options("") == {}
    with pytest.raises(ValueError, match="options must be names and values"):
        read_options("a=open; b=2")
