"""A method of stable-baselines3 is a learner like others: its own numbers, the same folder, it goes on bit for bit."""

import csv
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import register
from bptt_envs.registration import ENTRIES
from bptt_trainers import Callback, RunFolderError, held_out_states, training_states
from bptt_trainers.cli import main
from bptt_trainers.records.curve import curve_to_csv
from bptt_trainers.records.files import list_names
from bptt_trainers.rl.learner import SB3Learner
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl
from bptt_trainers.training.books import Books

OF_PPO = {"num_envs": 8, "n_steps": 16, "batch_size": 64, "n_epochs": 2, "hidden": (16,)}
OF_SAC = {"num_envs": 8, "learning_starts": 128, "batch_size": 64, "gradient_steps": 2, "hidden": (32,)}
PPO = RLConfig(
    env_options={"horizon": 7}, steps=900, evaluations=7, test_states=16, overrides=OF_PPO, record=(), preset="paper"
)
SAC = RLConfig(
    method="SAC",
    env="DiffIntegrator-v0",
    steps=600,
    evaluations=4,
    test_states=64,
    overrides=OF_SAC | {"buffer_size": 300},  # is overwritten while it learns
    record=(),
)
ASKED = {"env": "TestCliff-v0", "env_options": {"horizon": 7, "randomize": {"grip": (0.0, 0.3)}}}
CONFIGS = {
    "PPO": PPO,
    "SAC": SAC,
    "SAC, fixed entropy": replace(SAC, overrides=OF_SAC | {"ent_coef": 0.1}),
}
EARLY = {"PPO, early ends": PPO, "SAC, early ends": SAC}


def config_of(name):
    return replace(EARLY[name], **ASKED) if name in EARLY else CONFIGS[name]


@pytest.fixture(autouse=True)
def cliff(monkeypatch):
    """A system whose episodes end early, registered for one test."""
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    before = dict(ENTRIES)
    register("TestCliff-v0", "cliff:Cliff", "a cliff, where an episode ends")
    yield
    ENTRIES.clear()
    ENTRIES.update(before)


class StopAfter(Callback):
    """Interrupts after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, run, metrics):
        if metrics.epoch == self.epoch:
            raise KeyboardInterrupt


def assert_same(one, other, but=()):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - set(but):
            assert_same(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def rows(folder):
    """The rows of metrics.csv, without the seconds."""
    with (folder / "metrics.csv").open() as file:
        return [{name: one for name, one in row.items() if name != "seconds"} for row in csv.DictReader(file)]


# The same numbers as stable-baselines3's own loop gave, uninterrupted (taken from the version before runs had learners)


def test_the_curve_is_that_of_one_uninterrupted_call_of_learn():
    config = RLConfig(env="DiffIntegrator-v0", steps=600, evaluations=4, test_states=64, overrides=OF_PPO)
    curve = train_rl(config, progress=False).curve
    assert [point.simulator_steps for point in curve] == [0, 256, 384, 512, 640]
    expected = [1.8608604669570923, 1.8279844522476196, 1.793574571609497, 1.7817367315292358, 1.787079095840454]
    assert [point.test_loss for point in curve] == pytest.approx(expected, rel=1e-5)


def test_the_curve_of_sac_is_that_of_one_uninterrupted_call_of_learn():
    curve = train_rl(replace(SAC, overrides=OF_SAC), progress=False).curve
    assert [point.simulator_steps for point in curve] == [0, 152, 304, 456, 600]
    expected = [1.4181605577468872, 1.5664316415786743, 0.4585305452346802, 0.2613395154476166, 0.2463170439004898]
    assert [point.test_loss for point in curve] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "evaluations", "num_envs"), [(64, 1, 4), (65, 4, 4), (300, 7, 4), (300, 90, 2), (1, 1, 1)]
)
def test_a_run_has_as_many_epochs_as_its_settings_say(steps, evaluations, num_envs):
    few = {"num_envs": num_envs, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": (4,)}
    config = RLConfig(env="DiffIntegrator-v0", steps=steps, evaluations=evaluations, test_states=2, overrides=few)
    curve = train_rl(config, progress=False).curve
    assert len(curve) == 1 + config.epochs <= 2 + evaluations
    assert curve[-1].simulator_steps == math.ceil(steps / (8 * num_envs)) * 8 * num_envs
    assert all(before.simulator_steps < after.simulator_steps for before, after in itertools.pairwise(curve))


@pytest.mark.parametrize("method", ["PPO", "SAC"])
def test_episodes_that_end_early_are_learnt_from_and_judged_until_they_end(method):
    run = train_rl(config_of(f"{method}, early ends"), progress=False)
    system = run.config.judged_system()
    states = held_out_states(system, run.config.test_states)
    trajectory = run.controller.rollout(system, states)
    over = torch.stack([system.episode_over(state) for state in trajectory.states])
    assert 0 < int(over[-1].sum()) < len(states)
    expected = torch.zeros(len(states))
    for i in range(len(states)):
        end = int((~over[:, i]).sum())  # the first state in which it is over
        for t in range(min(end, 7)):
            state, following = (trajectory.states[s, i : i + 1] for s in (t, t + 1))
            expected[i] += system.running_cost(state, trajectory.actions[t, i : i + 1], following)[0]
        expected[i] += system.final_cost(trajectory.states[min(end, 7), i : i + 1])[0]
    assert run.curve[-1].test_loss == pytest.approx(float(expected.mean()), rel=1e-5)


# Going on


@pytest.mark.parametrize(
    ("method", "stop_after"), [(name, 3 if i % 2 else 1) for i, name in enumerate([*CONFIGS, *EARLY])]
)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, method, stop_after):
    config = config_of(method)
    whole = train_rl(config, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train_rl(config, tmp_path / "parts", progress=False, callbacks=[StopAfter(stop_after)])
    assert len(load_rl(tmp_path / "parts").curve) == 1 + stop_after
    parts = train_rl(config, tmp_path / "parts", progress=False)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert_same(dict(parts.controller.policy.state_dict()), dict(whole.controller.policy.state_dict()))
    last = [Books(tmp_path / name, lambda stored, wanted: []).load("last") for name in ("parts", "whole")]
    assert_same(*last)


KILLED = """
import os, signal, sys
from pathlib import Path
from bptt_trainers.records.files import write_atomic
from bptt_trainers.rl.sb3 import RLConfig, train_rl
from bptt_trainers.training import books

def write(path, data):
    if path.name == "last.pt" and len(path.with_name("metrics.csv").read_text().splitlines()) == 4:  # of epoch 2
        os.kill(os.getpid(), signal.SIGKILL)
    write_atomic(path, data)

books.write_atomic = write
few = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 2, "hidden": (4,)}
config = RLConfig(env="DiffIntegrator-v0", steps=96, evaluations=6, test_states=8, overrides=few, record=("csv",))
train_rl(config, Path(sys.argv[1]), progress=False)
"""


def test_a_kill_between_the_files_of_an_evaluation_loses_that_evaluation_only(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    few = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 2, "hidden": (4,)}
    config = RLConfig(env="DiffIntegrator-v0", steps=96, evaluations=6, test_states=8, overrides=few, record=("csv",))
    assert len(load_rl(tmp_path / "run").curve) == 2
    train_rl(config, tmp_path / "run", progress=False)
    train_rl(config, tmp_path / "whole", progress=False)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    with (tmp_path / "run" / "updates.csv").open() as file:
        assert [row["update"] for row in csv.DictReader(file)] == [str(i + 1) for i in range(config.epochs)]


def test_after_an_interruption_the_random_numbers_of_the_caller_are_his(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        train_rl(PPO, tmp_path, progress=False, callbacks=[StopAfter(1)])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_a_state_of_other_environments_is_an_error_in_words(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_rl(PPO, tmp_path, progress=False, callbacks=[StopAfter(1)])
    books = Books(tmp_path, lambda stored, wanted: [])
    last = books.load("last")
    last["learner"]["env"]["env"]["state"] = torch.zeros(3, 5)
    books.save("last", last)
    with pytest.raises(
        RunFolderError, match=r"cannot use .*last\.pt: .*stored must hold states \(8, 5\); got \(3, 5\)"
    ):
        train_rl(PPO, tmp_path, progress=False)


# The folder, the recorders, the callbacks


def test_a_run_of_reinforcement_learning_is_a_folder_like_others(tmp_path):
    config = replace(PPO, record=("tensorboard", "csv", "pictures"))
    run = train_rl(config, tmp_path, progress=False)
    names = [name for name in list_names(tmp_path) if not name.startswith("events.")]
    assert names == [
        *("best.pt", "config.json", "last.pt", "learning_curve.png", "metrics.csv", "trajectories.png", "updates.csv")
    ]
    assert len(list(tmp_path.glob("events.*"))) == 1
    found = rows(tmp_path)
    assert [int(row["epoch"]) for row in found] == list(range(1 + config.epochs))
    assert [float(row["test_loss"]) for row in found] == [point.test_loss for point in run.curve]
    assert {row[name] for row in found for name in ("direction_norm", "sign_agreement", "cosine")} == {"nan"}
    system = config.judged_system()
    trained = run.controller.evaluate(system, training_states(system, 16, 0))
    assert float(found[-1]["train_loss"]) == pytest.approx(float(trained.mean()), rel=1e-6)
    best = Books(tmp_path, lambda stored, wanted: []).load("best")
    least = min(found, key=lambda row: float(row["train_loss"]))
    assert str(best["epoch"]) == least["epoch"]
    loss = load_rl(tmp_path, "best").controller.evaluate(system, training_states(system, 16, 0)).mean()
    assert float(loss) == pytest.approx(float(least["train_loss"]), rel=1e-6)


def test_seconds_are_those_of_learning_and_not_of_judging(monkeypatch):
    judged = SB3Learner.evaluate
    monkeypatch.setattr(SB3Learner, "evaluate", lambda self, states: time.sleep(0.2) or judged(self, states))
    few = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": (4,)}
    config = RLConfig(env="DiffIntegrator-v0", steps=32, evaluations=2, test_states=2, overrides=few)
    assert 0 < train_rl(config, progress=False).curve[-1].seconds < 0.2


def test_callbacks_see_every_evaluation_and_may_end_the_run(tmp_path):
    class EndAfterTwo(Callback):
        def __init__(self):
            self.called = []

        def on_fit_start(self, run):
            self.called.append(("start", run.epoch))

        def on_update_end(self, run, loss, direction_norm):
            assert math.isnan(loss)
            assert math.isnan(direction_norm)
            self.called.append(("update", run.epoch))

        def on_epoch_end(self, run, metrics):
            self.called.append(("epoch", metrics.epoch))
            return metrics.epoch < 2

        def on_fit_end(self, run):
            self.called.append(("end", run.epoch))

    callback = EndAfterTwo()
    run = train_rl(PPO, tmp_path, progress=False, callbacks=[callback])
    assert callback.called == [("start", 0), ("update", 0), ("epoch", 1), ("update", 1), ("epoch", 2), ("end", 2)]
    assert len(run.curve) == 3
    assert len(train_rl(PPO, tmp_path, progress=False).curve) == 1 + PPO.epochs


def test_diagnostics_are_of_update_rules():
    with pytest.raises(ValueError, match="record='diagnostics' is for the update rules; got a SB3Learner"):
        train_rl(replace(PPO, record=("diagnostics",)), progress=False)


def test_a_comparison_records_what_is_asked_for_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = "--override PPO.num_envs=2 --override PPO.n_steps=8 --override PPO.batch_size=8 --override C.train_states=8"
    command = f"compare --env DiffIntegrator-v0 --methods C PPO --seeds 0 --steps 32 --test-states 4 {few} --out all"
    assert main([*command.split(), "--record", "csv", "tensorboard", "diagnostics"]) == 0
    for method in ("C", "PPO"):
        names = list_names(tmp_path / "all" / "runs" / f"{method}-seed0")
        assert {"updates.csv", "metrics.csv", "last.pt", "best.pt", "curve.csv"} <= set(names)
        assert sum(name.startswith("events.") for name in names) == 1
        assert ("diagnostics.npz" in names) == (method == "C")
        assert not any(name.endswith(".png") for name in names)


def test_a_finished_run_of_an_earlier_version_is_loaded_and_not_computed_again(tmp_path):
    run = train_rl(PPO, tmp_path / "new", progress=False)
    old = tmp_path / "old"
    old.mkdir()
    said = json.loads((tmp_path / "new" / "config.json").read_text())
    del said["record"]
    (old / "config.json").write_text(json.dumps(said))
    acts = Books(tmp_path / "new", lambda stored, wanted: []).load("last")["controller"]
    torch.save(acts, old / "policy.pt")
    (old / "curve.csv").write_text(curve_to_csv(run.curve))
    before = {name: (old / name).stat().st_mtime_ns for name in list_names(old)}
    for loaded in (load_rl(old), train_rl(PPO, old, progress=False)):
        assert loaded.curve == run.curve
        assert_same(dict(loaded.controller.policy.state_dict()), dict(run.controller.policy.state_dict()))
    assert {name: (old / name).stat().st_mtime_ns for name in list_names(old)} == before
    (old / "curve.csv").unlink()  # interrupted: such a run kept nothing to go on from
    again = train_rl(PPO, old, progress=False)
    assert [point.test_loss for point in again.curve] == [point.test_loss for point in run.curve]
