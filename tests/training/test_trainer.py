"""The trainer: what it computes, what it keeps, and what it does when things go wrong."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs.systems import LQR, CartPole, Guidance, Integrator
from bptt_trainers import (
    MLP,
    Callback,
    NonFiniteError,
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    default_controller,
    held_out_states,
    losses,
    policy_gradient,
    rollout,
    training_states,
)
from bptt_trainers.records.files import write_atomic

TINY = TrainConfig(epochs=3, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=())


def cart_pole():
    return gym.make("DiffCartPole-v0", horizon=10)


def weights(trainer):
    return {n: v.clone() for n, v in trainer.controller.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def rows(folder):
    return [{**vars(row), "seconds": 0} for row in RunFolder(folder).rewind_metrics(10**9)]


def same_rows(first, second):
    return json.dumps(first) == json.dumps(second)  # NaN equals NaN in text


# What it computes


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.rule, config.combine, config.clip) == ("C", "modified", "none")
    assert (config.batch_size, config.train_states, config.test_states, config.epochs) == (8, 256, 256, 1000)
    assert (config.learning_rate, config.adam_epsilon, config.hidden) == (1e-3, 1e-7, None)
    assert (config.final_learning_rate, config.adam_betas, config.amsgrad) == (None, (0.9, 0.999), False)
    assert config.average == 0.0
    controller = default_controller(CartPole())
    linear = [layer for layer in controller.layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(100, 4), (100, 100), (1, 100)]
    assert all(not layer.bias.any() for layer in linear)
    for layer in linear:  # Glorot: uniform within sqrt(6 / (in + out))
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize(
    ("clip", "threshold"), [("none", 1.0), ("value", 1.0), ("norm", 1.0), ("value", 3), ("norm", 0.2)]
)
@pytest.mark.parametrize("rule", ["R", "M", "S", "C"])
def test_an_epoch_is_adam_on_the_clipped_directions_in_fixed_order(rule, clip, threshold):
    system = CartPole(horizon=10)
    config = replace(TINY, rule=rule, clip=clip, clip_threshold=threshold, epochs=1, learning_rate=0.01)
    # a large scale makes both kinds of clipping bite
    system.final_cost = lambda state: 1e7 * CartPole.final_cost(system, state)
    trainer = Trainer(system, None, config)
    controller = default_controller(system, hidden=(8,))
    controller.load_state_dict(weights(trainer))
    adam = torch.optim.Adam(controller.parameters(), lr=0.01, eps=1e-7)
    clipped = 0
    for states in training_states(system, 12, 0).split(4):
        result = policy_gradient(system, controller, states, rule)
        for name, parameter in controller.named_parameters():
            parameter.grad = result.directions[name]
        if clip == "value":
            clipped += max(float(p.grad.abs().max()) for p in controller.parameters()) > threshold
            nn.utils.clip_grad_value_(controller.parameters(), threshold)
        elif clip == "norm":
            clipped += float(nn.utils.clip_grad_norm_(controller.parameters(), threshold)) > threshold
        adam.step()
    trainer.fit()
    assert clipped == (0 if clip == "none" else 3)
    for name, value in controller.state_dict().items():
        torch.testing.assert_close(trainer.controller.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_metrics_say_what_they_claim():
    system = CartPole(horizon=10)
    trainer = Trainer(system, None, replace(TINY, rule="C", epochs=1))
    controller = default_controller(system, hidden=(8,))
    controller.load_state_dict(weights(trainer))
    first = training_states(system, 12, 0)[:4]
    regular, modified = (
        torch.cat([d.flatten() for d in policy_gradient(system, controller, first, rule).directions.values()])
        for rule in "RM"
    )
    untrained, trained = trainer.fit()
    held_out = held_out_states(system, 6)
    assert untrained.epoch == 0
    assert untrained.test_loss == pytest.approx(float(losses(system, rollout(system, controller, held_out)).mean()))
    assert trained.test_loss == pytest.approx(
        float(losses(system, rollout(system, trainer.controller, held_out)).mean())
    )
    assert trained.sign_agreement == pytest.approx(float((regular.sign() == modified.sign()).float().mean()))
    assert trained.cosine == pytest.approx(float(torch.cosine_similarity(regular, modified, dim=0)), rel=1e-4)
    assert trained.simulator_steps == 12 * 10
    assert trained.skipped == 0
    assert trained.seconds > 0
    assert trained.direction_norm > 0


def test_training_learns_the_integrator():
    trainer = Trainer(Integrator(), None, replace(TINY, epochs=60, train_states=32, learning_rate=0.01))
    history = trainer.fit()
    assert history[-1].test_loss < 0.05 < history[0].test_loss


def test_seed_sets_weights_and_training_states_but_not_the_held_out_states():
    first, same, other = (Trainer(cart_pole(), None, replace(TINY, seed=seed)) for seed in (0, 0, 1))
    assert_same(weights(first), weights(same))
    assert torch.equal(first.train_states, same.train_states)
    assert torch.equal(first.test_states, other.test_states)
    assert not torch.equal(first.train_states, other.train_states)
    assert not torch.equal(weights(first)["layers.0.weight"], weights(other)["layers.0.weight"])
    assert not set(first.test_states[:, 0].tolist()) & set(first.train_states[:, 0].tolist())


def test_all_engines_train_alike():
    results = [Trainer(cart_pole(), None, replace(TINY, engine=engine)).fit() for engine in ("autograd", "adjoint")]
    assert results[0][-1].test_loss == pytest.approx(results[1][-1].test_loss, rel=1e-4)


def test_random_numbers_of_the_caller_are_left_alone():
    before = torch.get_rng_state()
    Trainer(cart_pole(), None, TINY).fit()
    assert torch.equal(torch.get_rng_state(), before)


# What it keeps


def test_a_run_is_a_folder(tmp_path):
    out = tmp_path / "run"
    history = Trainer(cart_pole(), None, replace(TINY, out=out, record=("tensorboard", "pictures"))).fit()
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "metrics.csv", "last.pt", "best.pt", "learning_curve.png", "trajectories.png"} <= names
    assert any(name.startswith("events.") for name in names)
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 1 + 3
    config = json.loads((out / "config.json").read_text())
    assert config["environment"]["id"] == "DiffCartPole-v0"
    assert config["environment"]["options"] == {"horizon": 10}
    assert config["training"]["rule"] == "C"
    env = RunFolder(out).make_env()
    controller, checkpoint = RunFolder(out).load_controller(env.system)
    best = min(history, key=lambda row: row.train_loss)
    assert checkpoint["epoch"] == best.epoch
    states = held_out_states(env.system, 6)
    loss = float(losses(env.system, rollout(env.system, controller, states)).mean())
    assert loss == pytest.approx(best.test_loss, rel=1e-6)


def test_matrices_among_the_options_are_kept_and_compared_by_value(tmp_path):
    config, A = replace(TINY, epochs=1, out=tmp_path / "run"), [[1.0, 0.25], [0.0, 1.0]]
    for same in (A, tuple(map(tuple, A)), np.array(A), torch.tensor(A)):  # one run, begun and continued
        Trainer(gym.make("DiffLQR-v0", A=same, horizon=3), None, config).fit()
        stored = json.loads((tmp_path / "run" / "config.json").read_text())
        assert stored["environment"]["options"] == {"A": A, "horizon": 3}
    assert RunFolder(tmp_path / "run").make_env().system.A.tolist() == A
    with pytest.raises(RunFolderError, match=r"environment.options.A: \[\[1.0, 0.25\], .* in the folder, \[\[2.0"):
        Trainer(gym.make("DiffLQR-v0", A=[[2.0, 0.0], [0.0, 1.0]], horizon=3), None, config).fit()


def test_systems_that_differ_in_a_matrix_or_a_target_are_other_runs(tmp_path):
    config = replace(TINY, epochs=1)
    pairs = {"A": (LQR(), LQR(A=[[1.0, 0.9], [0.0, 1.0]])), "target": (Guidance(), Guidance(target=(3, 3)))}
    for name, (one, other) in pairs.items():
        Trainer(one, config=replace(config, out=tmp_path / name)).fit()
        with pytest.raises(RunFolderError, match=rf"environment\.settings\.{name}"):
            Trainer(other, config=replace(config, out=tmp_path / name)).fit()


def test_best_checkpoint_is_chosen_on_the_training_states(tmp_path):
    trainer = Trainer(cart_pole(), None, replace(TINY, out=tmp_path / "run"))
    scores = iter([5.0, 1.0, 3.0, 9.0, 4.0, 0.1, 3.5, 0.2])  # train, test of epochs 0 to 3
    trainer.evaluate = lambda states: next(scores)
    trainer.fit()
    assert RunFolder(tmp_path / "run").load("best")["epoch"] == 1


def test_checkpoints_are_kept_as_often_as_asked_for(tmp_path):
    system = CartPole(horizon=10)
    trainer = Trainer(system, config=replace(TINY, keep_every=2, epochs=4, out=tmp_path))
    trainer.fit()
    folder = RunFolder(tmp_path)
    assert list(folder.kept()) == [0, 2, 4]
    controller, checkpoint = folder.load_controller(system, folder.kept()[4])
    assert checkpoint["epoch"] == 4
    assert all(torch.equal(a, b) for a, b in zip(controller.parameters(), trainer.controller.parameters(), strict=True))
    first, _ = folder.load_controller(system, folder.kept()[0])
    assert not torch.equal(next(first.parameters()), next(controller.parameters()))


class StopAfter(Callback):
    def __init__(self, epoch, how):
        self.epoch, self.how = epoch, how

    def on_update_end(self, trainer, loss, direction_norm):
        if trainer.epoch == self.epoch and self.how is not None:
            how, self.how = self.how, None
            raise how


@pytest.mark.parametrize("rule", ["C", "R"])
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_ends(tmp_path, rule):
    config = replace(TINY, rule=rule, epochs=5)
    whole = Trainer(cart_pole(), None, replace(config, out=tmp_path / "whole"))
    whole.fit()
    parts = replace(config, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        Trainer(cart_pole(), None, parts, [StopAfter(2, KeyboardInterrupt())]).fit()
    assert RunFolder(tmp_path / "parts").load("last")["epoch"] == 2
    resumed = Trainer(cart_pole(), None, parts)
    resumed.fit()
    assert_same(weights(resumed), weights(whole))
    assert same_rows(rows(tmp_path / "parts"), rows(tmp_path / "whole"))


def test_a_controller_with_dropout_resumes_bit_for_bit_too(tmp_path):
    def controller():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    config = replace(TINY, epochs=4, engine="autograd")
    whole = Trainer(cart_pole(), controller(), config)
    whole.fit()
    parts = replace(config, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        Trainer(cart_pole(), controller(), parts, [StopAfter(1, KeyboardInterrupt())]).fit()
    resumed = Trainer(cart_pole(), controller(), parts)
    resumed.fit()
    assert_same(weights(resumed), weights(whole))


def test_after_an_interruption_the_controller_is_that_of_the_last_epoch_and_fit_goes_on():
    whole = Trainer(cart_pole(), None, TINY)
    whole.fit()
    trainer = Trainer(cart_pole(), None, TINY, [StopAfter(1, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.epoch == 1
    assert_same(weights(trainer), trainer._last["controller"])
    trainer.fit()
    assert_same(weights(trainer), weights(whole))


KILLED = """
import sys, os, signal
import gymnasium as gym
from pathlib import Path
from dataclasses import replace
from bptt_trainers import *
class Kill(Callback):
    def on_update_end(self, trainer, loss, direction_norm):
        if trainer.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
config = TrainConfig(epochs=4, batch_size=4, train_states=12, test_states=6, hidden=(8,), out=Path(sys.argv[1]))
Trainer(gym.make("bptt_envs:DiffCartPole-v0", horizon=10), None, config, [Kill()]).fit()
"""


def test_kill_9_loses_at_most_the_epoch_in_progress(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert RunFolder(out).load("last")["epoch"] == 2
    with (out / "metrics.csv").open("a") as file:
        file.write("3,0.1,0.")  # as if killed in the middle of a line
    config = TrainConfig(epochs=4, batch_size=4, train_states=12, test_states=6, hidden=(8,), out=out)
    resumed = Trainer(cart_pole(), None, config)
    resumed.fit()
    whole = Trainer(cart_pole(), None, replace(config, out=None))
    whole.fit()
    assert_same(weights(resumed), weights(whole))
    assert [row["epoch"] for row in rows(out)] == [0, 1, 2, 3, 4]


def test_more_epochs_may_be_asked_for_later_but_not_fewer(tmp_path):
    config = replace(TINY, out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()
    longer = Trainer(cart_pole(), None, replace(config, epochs=5))
    longer.fit()
    assert longer.epoch == 5
    with pytest.raises(RunFolderError, match="has 5 epochs already; epochs=4 asks for fewer"):
        Trainer(cart_pole(), None, replace(config, epochs=4)).fit()


def test_a_run_goes_on_under_settings_that_do_not_change_it(tmp_path):
    whole = Trainer(cart_pole(), None, TINY)
    whole.fit()
    config = replace(TINY, epochs=2, keep_every=1, out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()

    def as_by_an_earlier_version(stored):
        assert (stored["training"].pop("device"), stored["training"].pop("compile")) == ("cpu", False)
        optimizer = ("final_learning_rate", "adam_betas", "amsgrad", "average")
        assert [stored["training"].pop(name) for name in optimizer] == [None, [0.9, 0.999], False, 0.0]
        younger = ("clip_threshold", "schedule", "warmup", "weight_decay")
        assert [stored["training"].pop(name) for name in younger] == [1.0, "cosine", 0.0, 0.0]

    edit_config(tmp_path / "run", as_by_an_earlier_version)
    assert RunFolder(tmp_path / "run").train_config() == config
    edit_config(tmp_path / "run", lambda stored: stored["training"].update(device="cuda:3", compile=True))
    assert RunFolder(tmp_path / "run").train_config().device == "cuda:3"  # as found on a machine with another GPU
    resumed = Trainer(cart_pole(), None, replace(config, epochs=3, keep_every=None))
    resumed.fit()
    assert_same(weights(resumed), weights(whole))


def test_finished_run_is_not_computed_or_drawn_again(tmp_path):
    config = replace(TINY, record=("pictures",), out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()
    drawn = (tmp_path / "run" / "trajectories.png").stat().st_mtime_ns
    again = Trainer(cart_pole(), None, config, [StopAfter(3, AssertionError("an update was made"))])
    assert len(again.fit()) == 4
    assert (tmp_path / "run" / "trajectories.png").stat().st_mtime_ns == drawn
    (tmp_path / "run" / "learning_curve.png").unlink()
    again.fit()
    assert (tmp_path / "run" / "learning_curve.png").exists()
    Trainer(cart_pole(), None, replace(config, epochs=4)).fit()
    assert (tmp_path / "run" / "trajectories.png").stat().st_mtime_ns > drawn


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"rule": "M"}, r"training.rule: 'C' in the folder, 'M' asked for"),
        ({"seed": 3}, r"training.seed: 0 in the folder, 3 asked for"),
        ({"combine": "random"}, r"training.combine: 'modified' in the folder, 'random' asked for"),
        ({"adam_betas": (0.9, 0.99)}, r"training.adam_betas: \[0.9, 0.999\] in the folder, \[0.9, 0.99\] asked for"),
        ({"clip_threshold": 2.0}, r"training.clip_threshold: 1.0 in the folder, 2.0 asked for"),
        ({"weight_decay": 0.1}, r"training.weight_decay: 0.0 in the folder, 0.1 asked for"),
        ({"schedule": "linear"}, r"training.schedule: 'cosine' in the folder, 'linear' asked for"),
        ({"warmup": 0.1}, r"training.warmup: 0.0 in the folder, 0.1 asked for"),
        ({"amsgrad": True}, r"training.amsgrad: False in the folder, True asked for"),
        ({"average": 0.9}, r"training.average: 0.0 in the folder, 0.9 asked for"),
        ({"final_learning_rate": 0.0}, r"training.final_learning_rate: None in the folder, 0.0 asked for"),
        ({"hidden": (9,)}, r"controller.settings.hidden: \[8\] in the folder, \[9\] asked for"),
    ],
)
def test_folder_of_another_configuration_is_refused_with_the_difference(tmp_path, change, shown):
    config = replace(TINY, out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunFolderError, match=shown):
        Trainer(cart_pole(), None, replace(config, **change)).fit()
    with pytest.raises(RunFolderError, match=r"environment.settings.horizon: 10 in the folder, 11 asked for"):
        Trainer(gym.make("DiffCartPole-v0", horizon=11), None, config).fit()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files and no run"):
        Trainer(cart_pole(), None, replace(TINY, out=tmp_path)).fit()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# When things go wrong


def test_a_full_disk_is_an_error_in_words_and_what_stood_there_stands(tmp_path):
    target = tmp_path / "file"
    write_atomic(target, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # writing beyond fails as a full disk does
    try:
        with pytest.raises(RunFolderError, match=r"cannot write .*file: File too large. What stood there .* stands"):
            write_atomic(target, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_training_on_a_full_disk_keeps_the_finished_epochs(tmp_path):
    config = replace(TINY, out=tmp_path / "run", epochs=2)
    Trainer(cart_pole(), None, config).fit()
    metrics, last = ((tmp_path / "run" / name).read_bytes() for name in ("metrics.csv", "last.pt"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(Callback):
        def on_fit_start(self, trainer):
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(metrics) + 10, hard))

    try:
        with pytest.raises(RunFolderError, match="cannot write"):
            Trainer(cart_pole(), None, replace(config, epochs=4), [Fill()]).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == metrics
    assert (tmp_path / "run" / "last.pt").read_bytes() == last
    assert Trainer(cart_pole(), None, replace(config, epochs=4)).fit()[-1].epoch == 4


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*run: Not a directory. Nothing was written"):
        Trainer(cart_pole(), None, replace(TINY, out=tmp_path / "file" / "run")).fit()


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def test_a_checkpoint_from_a_stranger_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Trainer(cart_pole(), None, replace(TINY, out=tmp_path / "run")).fit()
    torch.save({"epoch": 1, "controller": Harmful()}, tmp_path / "run" / "best.pt")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"cannot read .*best.pt"):
        folder.load("best")
    (tmp_path / "run" / "last.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(RunFolderError, match=r"cannot read .*last.pt"):
        folder.load("last")
    assert not (tmp_path / "harm").exists()


class BrokenSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, float("inf"))


class Breaking(nn.Module):
    """A controller whose slope by `bad` becomes infinite once `broken` is set."""

    def __init__(self):
        super().__init__()
        self.good, self.bad = nn.Linear(4, 1), nn.Parameter(torch.zeros(1))
        self.broken = False

    def forward(self, observation):
        return self.good(observation) + (BrokenSlope.apply(self.bad) if self.broken else self.bad)


class Break(Callback):
    def on_epoch_end(self, trainer, metrics):
        trainer.controller.broken = metrics.epoch == 1


def test_a_direction_that_is_not_finite_stops_the_run_with_epoch_update_and_parameter(tmp_path):
    torch.manual_seed(0)
    config = replace(TINY, engine="autograd", out=tmp_path / "run")
    trainer = Trainer(cart_pole(), Breaking(), config, [Break()])
    with pytest.raises(NonFiniteError, match=r"in epoch 2, update 1 of 3, the direction of bad is not finite") as error:
        trainer.fit()
    assert "holds the state after epoch 1" in str(error.value)
    assert 'on_nonfinite="skip"' in str(error.value)
    assert RunFolder(tmp_path / "run").load("last")["epoch"] == 1
    assert_same(weights(trainer), RunFolder(tmp_path / "run").load("last")["controller"])
    assert len(rows(tmp_path / "run")) == 2


def test_skipping_counts_the_updates_it_skips():
    torch.manual_seed(0)
    config = replace(TINY, engine="autograd", on_nonfinite="skip")
    history = Trainer(cart_pole(), Breaking(), config, [Break()]).fit()
    assert [row.skipped for row in history] == [0, 0, 3, 0]
    assert history[2].train_loss == history[1].train_loss
    assert history[3].train_loss != history[2].train_loss


def test_a_loss_that_is_not_finite_stops_the_run():
    class Unbounded(Integrator):
        def step(self, state, action):
            return state + (action * 1e30).exp()

    with pytest.raises(NonFiniteError, match="in epoch 1, update 1 of 3"):
        Trainer(Unbounded(), None, TINY).fit()


def test_large_finite_directions_do_not_overflow_their_norm():
    class Steep(Integrator):
        def final_cost(self, state):
            return 1e25 * state[:, 0]

    trainer = Trainer(Steep(), None, replace(TINY, epochs=1, clip="norm", rule="R"))
    history = trainer.fit()
    assert history[-1].direction_norm > 1e22
    assert history[-1].skipped == 0


def test_callbacks_are_called_in_order_and_can_end_training():
    calls = []

    class Record(Callback):
        def on_fit_start(self, trainer):
            calls.append("start")

        def on_update_end(self, trainer, loss, direction_norm):
            calls.append("update")

        def on_epoch_end(self, trainer, metrics):
            calls.append(f"epoch {metrics.epoch}")
            return metrics.epoch < 2

        def on_fit_end(self, trainer):
            calls.append("end")

    history = Trainer(cart_pole(), None, TINY, [Record()]).fit()
    assert calls == ["start", *["update"] * 3, "epoch 1", *["update"] * 3, "epoch 2", "end"]
    assert history[-1].epoch == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rule": "Z"}, "rule must be one of 'R', 'M', 'S', 'C', 'M without memory', or a rule with a decay.* got 'Z'"),
        ({"clip": "nrom"}, "clip must be one of .*got 'nrom'. Did you mean 'norm'?"),
        ({"epochs": 0}, "epochs must be an integer of at least 1; got 0"),
        ({"batch_size": 300}, r"batch_size must be at most train_states \(256\); got 300"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0; got -1.0"),
        ({"final_learning_rate": -1e-4}, "final_learning_rate must be a finite number of at least 0; got -0.0001"),
        ({"final_learning_rate": 0.01}, r"final_learning_rate must be at most learning_rate \(0.001\); got 0.01"),
        ({"schedule": "cosin"}, "schedule must be one of 'cosine', 'linear'; got 'cosin'. Did you mean 'cosine'?"),
        ({"warmup": 1.0}, "warmup must be a number of at least 0 and below 1; got 1.0"),
        ({"clip_threshold": 0.0}, "clip_threshold must be a finite number above 0; got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number of at least 0; got -0.1"),
        ({"adam_betas": (0.9,)}, r"adam_betas must be 2 values; got \(0.9,\)"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas must be a number of at least 0 and below 1; got 1.0"),
        ({"adam_betas": (-0.1, 0.9)}, "adam_betas must be a number of at least 0 and below 1; got -0.1"),
        ({"average": 1.0}, "average must be a number of at least 0 and below 1; got 1.0"),
        ({"average": float("nan")}, "average must be a number of at least 0 and below 1; got nan"),
        ({"hidden": (10, 0)}, "hidden must be an integer of at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of 'stop', 'skip'; got 'ignore'"),
        ({"device": "gpu"}, "device must be 'cpu', 'cuda' or one such as 'cuda:1'; got 'gpu'"),
        ({"device": 0}, "device must be 'cpu', 'cuda' or one such as 'cuda:1'; got 0"),
    ],
)
def test_bad_settings_are_named_before_any_work(setting, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting)


def test_run_of_a_users_own_controller_says_that_it_must_be_built_in_python(tmp_path):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(4, 1))
    Trainer(cart_pole(), own, replace(TINY, out=tmp_path / "run")).fit()
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="controller of its own type, Sequential; build it in Python"):
        folder.load_controller(folder.make_env().system)
    with pytest.raises(RunFolderError, match=r"its user's own, Sequential, .* run the same Python program again"):
        folder.check_complete()


def test_float64_controllers_train_in_float64():
    trainer = Trainer(cart_pole(), MLP((4,), (1,), (8,)).double(), replace(TINY, epochs=1))
    trainer.fit()
    assert trainer.train_states.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in trainer.controller.parameters())


# What evaluation, interruptions and strangers may not change


def noisy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def test_the_number_of_held_out_states_has_no_influence_on_training():
    results = []
    for count in (4, 16):
        trainer = Trainer(cart_pole(), noisy(), replace(TINY, engine="autograd", test_states=count))
        trainer.fit()
        results.append(weights(trainer))
    assert_same(*results)


def test_evaluation_is_in_eval_mode_and_leaves_the_mode_alone():
    trainer = Trainer(cart_pole(), noisy(), replace(TINY, engine="autograd"))
    trainer.controller[3].eval()
    before = weights(trainer)
    assert trainer.evaluate(trainer.test_states) == trainer.evaluate(trainer.test_states)
    assert_same(weights(trainer), before)
    assert [part.training for part in trainer.controller] == [True, True, True, False, True]


@pytest.mark.parametrize("make", [noisy, lambda: None])
def test_fitting_on_in_the_same_process_is_bit_for_bit_too(tmp_path, make):
    config = replace(TINY, epochs=5, engine="autograd")
    whole = Trainer(cart_pole(), make(), config)
    whole.fit()
    config = replace(config, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        Trainer(cart_pole(), make(), config, [StopAfter(1, KeyboardInterrupt())]).fit()
    resumed = Trainer(cart_pole(), make(), config, [StopAfter(3, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        resumed.fit()
    resumed.fit()
    assert_same(weights(resumed), weights(whole))


def test_rule_c_stops_where_r_is_not_a_number():
    class NaNSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return torch.full_like(grad, float("nan"))

    class Broken(nn.Linear):
        def forward(self, observation):
            return super().forward(NaNSlope.apply(observation))

    torch.manual_seed(0)
    with pytest.raises(NonFiniteError, match="in epoch 1, update 1 of 3, the direction of weight"):
        Trainer(cart_pole(), Broken(4, 1), replace(TINY, engine="autograd")).fit()


def test_a_folder_is_trained_into_by_one_process_at_a_time(tmp_path):
    config = replace(TINY, out=tmp_path / "run")

    class Another(Callback):
        def on_fit_start(self, trainer):
            with pytest.raises(RunFolderError, match="in use by another process"):
                Trainer(cart_pole(), None, config).fit()

    assert len(Trainer(cart_pole(), None, config, [Another()]).fit()) == 4


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_config_from_a_stranger_imports_nothing(tmp_path, monkeypatch):
    Trainer(cart_pole(), None, replace(TINY, epochs=1, out=tmp_path / "run")).fit()
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    edit_config(folder, lambda config: config["environment"]["options"].update(system="evil:System"))
    with pytest.raises(RunFolderError, match="has no option 'system'"):
        RunFolder(folder).make_env()
    edit_config(folder, lambda config: config["environment"].update(id="evil:Env-v0"))
    with pytest.raises(RunFolderError, match="not registered here"):
        RunFolder(folder).make_env()
    edit_config(folder, lambda config: config["environment"].update(id="CartPole-v1"))
    with pytest.raises(RunFolderError, match="not registered here"):
        RunFolder(folder).make_env()


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config["training"].pop("hidden"),
        lambda config: config["training"].update(new_setting=1),
        lambda config: config.update(training=3),
    ],
)
def test_a_damaged_config_is_an_error_in_words(tmp_path, damage):
    Trainer(cart_pole(), None, replace(TINY, epochs=1, out=tmp_path / "run")).fit()
    edit_config(tmp_path / "run", damage)
    with pytest.raises(RunFolderError, match=r"config.json.* damaged or of another version|cannot read"):
        RunFolder(tmp_path / "run").train_config()


def test_a_checkpoint_of_another_kind_is_an_error_in_words(tmp_path):
    config = replace(TINY, epochs=2, out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()
    torch.save({"epoch": 1}, tmp_path / "run" / "best.pt")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"cannot use .*best.pt: it is damaged or of another version"):
        folder.load_controller(folder.make_env().system)
    torch.save({"epoch": 2, "best_train_loss": 1.0}, tmp_path / "run" / "last.pt")
    with pytest.raises(RunFolderError, match=r"cannot use .*last.pt: it is damaged or of another version"):
        Trainer(cart_pole(), None, config).fit()


def test_a_users_own_controller_is_loaded_into_a_module_like_it(tmp_path):
    trainer = Trainer(cart_pole(), noisy(), replace(TINY, epochs=1, engine="autograd", out=tmp_path / "run"))
    trainer.fit()
    loaded, _ = RunFolder(tmp_path / "run").load_controller(trainer.system, "last", controller=noisy())
    assert_same(dict(loaded.state_dict()), weights(trainer))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"controller": TINY}, "controller must be a torch.nn.Module; settings are passed as config="),
        ({"config": {"rule": "C"}}, "config must be a TrainConfig"),
        ({"callbacks": [Callback]}, "callbacks must be a list of Callback objects"),
        ({"callbacks": Callback()}, "callbacks must be a list of Callback objects"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        Trainer(cart_pole(), **arguments)


def test_other_wrong_arguments_are_named_too():
    with pytest.raises(ValueError, match="controller Identity has no parameters to train"):
        Trainer(cart_pole(), nn.Identity(), TINY)
    with pytest.raises(ValueError, match=r"env must be a differentiable environment .* got 'DiffCartPole-v0'"):
        Trainer("DiffCartPole-v0", None, TINY)
    with pytest.raises(ValueError, match=r"hidden must be a tuple of widths, such as \(100, 100\), or None; got 64"):
        TrainConfig(hidden=64)


# On another device


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch, device, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    here = r"\(cpu\)" if count == 0 else r"\(cpu, cuda:0, cuda:1\)"
    with pytest.raises(ValueError, match=f"device must be one that torch finds here {here}; got '{device}'"):
        Trainer(cart_pole(), None, replace(TINY, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ["adjoint", "autograd"])
@pytest.mark.parametrize("first", ["cuda", "cpu"])
def test_a_run_goes_on_on_another_device(tmp_path, engine, first):
    def controller():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    expected = Trainer(cart_pole(), controller(), replace(TINY, engine=engine))
    expected.fit()
    config = replace(TINY, engine=engine, device=first, out=tmp_path)
    one = Trainer(cart_pole(), controller(), config, [StopAfter(1, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        one.fit()
    assert {p.device.type for p in one.controller.parameters()} == {one.train_states.device.type} == {first}
    other = Trainer(cart_pole(), controller(), replace(config, device="cpu" if first == "cuda" else "cuda"))
    other.fit()
    for name, value in weights(other).items():
        torch.testing.assert_close(value.cpu(), weights(expected)[name], rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_of_the_gpu_go_on_too_and_the_callers_are_left_alone(tmp_path):
    def controller():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))

    before = torch.cuda.get_rng_state()
    config = replace(TINY, epochs=4, engine="autograd", device="cuda")
    whole = Trainer(cart_pole(), controller(), config)
    whole.fit()
    parts = replace(config, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Trainer(cart_pole(), controller(), parts, [StopAfter(1, KeyboardInterrupt())]).fit()
    resumed = Trainer(cart_pole(), controller(), parts)
    resumed.fit()
    assert_same(weights(resumed), weights(whole))
    assert torch.equal(torch.cuda.get_rng_state(), before)
