"""Many runs trained as one batch: each does what it does alone, and none disturbs another."""

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole, Integrator
from bptt_trainers import (
    MLP,
    Callback,
    Ensemble,
    NonFiniteError,
    ProgressBar,
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    variations,
)
from bptt_trainers.cli import main
from bptt_trainers.directions.policy_gradient import stacked_engine
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.training import ensemble as ensemble_module
from bptt_trainers.training.ensemble import CannotStackError

TINY = TrainConfig(epochs=3, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=())
DIFFERENT = [  # in everything that may differ, with a ragged last batch among them
    replace(TINY, rule="R"),
    replace(TINY, rule="M", seed=1, clip="norm"),
    replace(TINY, rule="S", seed=2, learning_rate=0.01),
    replace(TINY, rule="C", seed=3, clip="value"),
    replace(TINY, rule="C", seed=4, combine="regular", adam_epsilon=1e-3),
    replace(TINY, rule="C", seed=5, train_states=10),
    replace(TINY, rule="R", seed=6, batch_size=3, test_states=5),
    replace(TINY, rule="C", seed=7, epochs=2),
    replace(TINY, rule="C", seed=8, combine="random", average=0.5, amsgrad=True),
    replace(TINY, rule="C", seed=9, combine="random", final_learning_rate=0.0),
    replace(TINY, rule="C decay 0.9 every 3", seed=11),
    replace(TINY, rule="R every 4", seed=12),
    replace(TINY, rule="R", seed=10, average=0.9, adam_betas=(0.5, 0.9), final_learning_rate=1e-4, clip="norm"),
]


def steep():
    """A cart-pole whose loss is large enough for both kinds of clipping to bite."""
    system = CartPole(horizon=10)
    system.final_cost = lambda state: 1e3 * CartPole.final_cost(system, state)
    return system


def cart_pole():
    return gym.make("DiffCartPole-v0", horizon=10)


def doubles(configs):
    """Controllers for float64, by the seeds of the configurations."""
    return [MLP((4,), (1,), (8,), generator=torch.Generator().manual_seed(config.seed)).double() for config in configs]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.controller.parameters()])


def apart(first, second):
    """The largest difference between the weights of two trainers, relative to the size of all."""
    return float((weights(first) - weights(second)).abs().max() / weights(second).abs().max())


def rows(folder):
    """What metrics.csv holds, the seconds left out."""
    return json.dumps([{**vars(row), "seconds": 0} for row in RunFolder(folder).rewind_metrics(10**9)])


class Raise(Callback):
    """Raises in the first update after an epoch of the run with a seed."""

    def __init__(self, epoch, seed, error):
        self.epoch, self.seed, self.error = epoch, seed, error

    def on_update_end(self, trainer, loss, direction_norm):
        if (trainer.epoch, trainer.config.seed) == (self.epoch, self.seed) and self.error is not None:
            error, self.error = self.error, None
            raise error


# Each member does what it does alone


def test_in_float64_every_member_is_its_single_run_to_rounding():
    ensemble = Ensemble(steep(), DIFFERENT, controllers=doubles(DIFFERENT))
    histories = ensemble.fit()
    assert ensemble.errors == {}
    clipped = 0
    for i, (config, controller) in enumerate(zip(DIFFERENT, doubles(DIFFERENT), strict=True)):
        alone = Trainer(steep(), controller, config)
        expected = alone.fit()
        assert apart(ensemble.members[i], alone) < 1e-12, config
        assert [row.epoch for row in histories[i]] == list(range(config.epochs + 1))
        for row, wanted in zip(histories[i], expected, strict=True):
            for name in ("train_loss", "test_loss", "direction_norm", "sign_agreement", "cosine"):
                assert getattr(row, name) == pytest.approx(getattr(wanted, name), rel=1e-10, nan_ok=True), name
            assert (row.skipped, row.simulator_steps) == (wanted.skipped, wanted.simulator_steps)
        clipped += config.clip == "norm" and max(row.direction_norm for row in expected[1:]) > 1
    assert clipped


def test_in_float32_the_first_updates_are_those_of_the_single_run():
    configs = variations(replace(TINY, epochs=1), rules=("R", "M", "S", "C"), seeds=range(3))
    ensemble = Ensemble(cart_pole(), configs)
    ensemble.fit()
    for member, config in zip(ensemble.members, configs, strict=True):
        alone = Trainer(cart_pole(), None, config)
        alone.fit()
        assert apart(member, alone) < 1e-5


def test_seeds_differ_from_each_other():
    ensemble = Ensemble(cart_pole(), variations(TINY, seeds=(0, 1)))
    first, second = ensemble.fit()
    assert apart(*ensemble.members) > 0.1
    assert first[-1].test_loss != second[-1].test_loss


def test_controllers_that_the_layers_do_not_serve_are_stacked_too():
    def make(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)).double()

    configs = variations(TINY, rules=("R", "C"))
    ensemble = Ensemble(cart_pole(), configs, controllers=[make(3), make(4)])
    ensemble.fit()
    for member, seed in zip(ensemble.members, (3, 4), strict=True):
        alone = Trainer(cart_pole(), make(seed), member.config)
        alone.fit()
        assert apart(member, alone) < 1e-12


def test_judged_is_the_controller_in_eval_mode():
    class Louder(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if self.training else 2.0)

    def make(seed):
        torch.manual_seed(seed)
        return Louder(4, 1)

    ensemble = Ensemble(cart_pole(), variations(TINY, seeds=(0, 1)), controllers=[make(0), make(1)])
    histories = ensemble.fit()
    for i, (member, history) in enumerate(zip(ensemble.members, histories, strict=True)):
        assert history[-1].test_loss == pytest.approx(member.evaluate(member.test_states), rel=1e-5)
        alone = Trainer(cart_pole(), make(i), member.config)
        alone.fit()
        assert apart(member, alone) < 1e-5
        assert member.controller.training


# It is one batch


@pytest.fixture
def calls(monkeypatch):
    """The states of every call of the stacked engine, once it trains."""
    seen = {"directions": [], "losses": []}
    directions, losses = StackedEngine.__call__, StackedEngine.losses

    def directed(self, parameters, states, passes, **options):
        if self.system.horizon == 10:  # not a probe
            seen["directions"].append((tuple(states.shape), len(passes)))
        return directions(self, parameters, states, passes, **options)

    def judged(self, parameters, states):
        seen["losses"].append(tuple(states.shape))
        return losses(self, parameters, states)

    monkeypatch.setattr(StackedEngine, "__call__", directed)
    monkeypatch.setattr(StackedEngine, "losses", judged)
    return seen


def test_all_members_share_one_call_for_each_update(calls):
    Ensemble(cart_pole(), variations(TINY, rules=("R", "C"), seeds=(0, 1, 2))).fit()
    assert calls["directions"] == [((6, 4, 4), 2)] * 9
    assert calls["losses"] == [(6, 12, 4), (6, 6, 4)] * 4


def test_only_the_passes_that_someone_needs_are_computed(calls):
    Ensemble(cart_pole(), variations(replace(TINY, rule="M", epochs=1), seeds=(0, 1))).fit()
    assert calls["directions"] == [((2, 4, 4), 2), ((2, 4, 4), 1), ((2, 4, 4), 1)]  # the first compares R and M


def test_members_at_different_epochs_keep_in_step(calls, tmp_path):
    Ensemble(cart_pole(), variations(replace(TINY, epochs=1, out=tmp_path), seeds=(1,))).fit()
    for shapes in calls.values():
        shapes.clear()
    ensemble = Ensemble(cart_pole(), variations(replace(TINY, out=tmp_path), seeds=(0, 1, 2)))
    ensemble.fit()
    assert [member.epoch for member in ensemble.members] == [3, 3, 3]
    # the new ones wait while the other has an epoch, are judged with it, and go on together
    assert [shape[0] for shape, _ in calls["directions"]] == [1] * 3 + [3] * 3 + [2] * 6
    assert [shape[0] for shape in calls["losses"]] == [3, 3] * 2 + [2, 2] * 2


def test_many_states_are_judged_in_parts_that_fit_the_memory(calls, monkeypatch):
    whole = Ensemble(cart_pole(), variations(replace(TINY, epochs=1), seeds=(0, 1))).fit()
    monkeypatch.setattr(ensemble_module, "TRAJECTORY_NUMBERS", 2 * 11 * 4 * 5)  # 2 members, 11 states of 4 numbers
    calls["losses"].clear()
    parts = Ensemble(cart_pole(), variations(replace(TINY, epochs=1), seeds=(0, 1))).fit()
    assert calls["losses"] == [(2, 5, 4), (2, 5, 4), (2, 2, 4), (2, 5, 4), (2, 1, 4)] * 2
    for one, other in zip(whole, parts, strict=True):
        assert [row.test_loss for row in one] == pytest.approx([row.test_loss for row in other], rel=1e-5)


def test_a_compiled_engine_is_asked_for_few_numbers_of_members(calls, monkeypatch):
    """Each number is compiled: those of members that dropped out are filled up, down to half."""
    monkeypatch.setattr(ensemble_module, "stacked_engine", uncompiled)
    configs = [replace(TINY, seed=seed, epochs=epochs) for seed, epochs in enumerate((1, 2, 3, 4, 5))]
    compiled = Ensemble(cart_pole(), [replace(config, compile=True) for config in configs])
    compiled.fit()
    assert [shape[0] for shape, _ in calls["directions"][::3]] == [5, 5, 5, 2, 1]
    assert [shape[0] for shape in calls["losses"][2::2]] == [5, 4, 3, 2, 1]
    monkeypatch.undo()
    for member, config in zip(compiled.members, configs, strict=True):
        alone = Trainer(cart_pole(), None, config)
        alone.fit()
        assert apart(member, alone) < 1e-4
        assert member.epoch == config.epochs


def uncompiled(*arguments, compile=False, **others):
    return stacked_engine(*arguments, **others)


# Who drops out


def test_a_member_that_is_not_finite_drops_out_and_disturbs_nobody(tmp_path):
    config = replace(TINY, record=("pictures",), out=tmp_path)
    configs = variations(config, learning_rates=(1e-3, 1e30, 1e-2))
    ensemble = Ensemble(Integrator(), configs)
    histories = ensemble.fit()
    assert list(ensemble.errors) == [1]
    assert isinstance(ensemble.errors[1], NonFiniteError)
    assert "holds the state after epoch 0" in str(ensemble.errors[1])
    assert [len(history) for history in histories] == [4, 1, 4]
    assert RunFolder(tmp_path / "lr1e+30").load("last")["epoch"] == 0
    assert [config.out.name for config in configs if (config.out / "learning_curve.png").exists()] == [
        "lr0.001",
        "lr0.01",
    ]
    for i in (0, 2):
        alone = Trainer(Integrator(), None, replace(configs[i], out=None))
        alone.fit()
        assert apart(ensemble.members[i], alone) < 1e-5
    before = rows(tmp_path / "lr0.001")
    ensemble.fit()  # it fails again, and the others are done
    assert list(ensemble.errors) == [1]
    assert rows(tmp_path / "lr0.001") == before
    skipping = Ensemble(Integrator(), [replace(one, on_nonfinite="skip") for one in configs])
    assert [len(history) for history in skipping.fit()] == [4, 4, 4]
    assert skipping.errors == {}


def test_a_callback_ends_one_member_and_sees_each_with_its_trainer():
    class StopSecond(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, trainer, metrics):
            self.seen.append((trainer.config.seed, metrics.epoch))
            return trainer.config.seed != 1

    callback = StopSecond()
    ensemble = Ensemble(cart_pole(), variations(TINY, seeds=(0, 1, 2)), [callback])
    assert [history[-1].epoch for history in ensemble.fit()] == [3, 1, 3]
    assert ensemble.errors == {}
    assert callback.seen == [(0, 1), (1, 1), (2, 1), (0, 2), (2, 2), (0, 3), (2, 3)]
    alone = Trainer(cart_pole(), None, ensemble.members[2].config)
    alone.fit()
    assert apart(ensemble.members[2], alone) < 1e-5


# What is kept


def test_each_member_has_the_folder_of_a_single_run(tmp_path):
    configs = variations(
        replace(TINY, record=("tensorboard", "pictures"), keep_every=2, out=tmp_path / "many"), seeds=(0, 1)
    )
    Ensemble(cart_pole(), configs).fit()
    for seed in (0, 1):
        alone = replace(configs[seed], out=tmp_path / f"alone{seed}")
        Trainer(cart_pole(), None, alone).fit()
        many = tmp_path / "many" / f"seed{seed}"
        assert many == configs[seed].out
        for path in (many, alone.out):
            for event in path.glob("events.*"):
                event.rename(path / "events")
        names = [sorted(str(path.relative_to(out)) for path in out.rglob("*")) for out in (many, alone.out)]
        assert names[0] == names[1]
        assert (many / "config.json").read_text() == (alone.out / "config.json").read_text()
        for which in ("last", "best"):
            one, other = (RunFolder(out).load(which) for out in (many, alone.out))
            assert one.keys() == other.keys()
            assert one["epoch"] == other["epoch"]
        one, other = (RunFolder(out).load("last") for out in (many, alone.out))
        assert torch.equal(one["rng_state"], other["rng_state"])
        assert one["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()


def test_random_numbers_of_the_caller_are_left_alone():
    before = torch.get_rng_state()
    Ensemble(cart_pole(), variations(TINY, seeds=(0, 1))).fit()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", [KeyboardInterrupt(), OSError("disk full")])
def test_after_an_interruption_all_are_at_their_last_epoch_and_go_on_bit_for_bit(tmp_path, how):
    whole = Ensemble(cart_pole(), variations(TINY, rules=("R", "C"), seeds=(0, 1)))
    whole.fit()
    configs = variations(replace(TINY, out=tmp_path), rules=("R", "C"), seeds=(0, 1))
    parts = Ensemble(cart_pole(), configs, [Raise(1, 1, how)])
    with pytest.raises(type(how)):
        parts.fit()
    for member in parts.members:
        last = RunFolder(member.folder.path).load("last")
        assert member.epoch == last["epoch"] == 1
        assert all(
            torch.equal(value, last["controller"][name]) for name, value in member.controller.state_dict().items()
        )
    for ensemble in (Ensemble(cart_pole(), configs), parts):  # in a new process, and in the same
        ensemble.fit()
        for member, expected in zip(ensemble.members, whole.members, strict=True):
            assert torch.equal(weights(member), weights(expected))


KILLED = """
import sys, os, signal
import gymnasium as gym
from pathlib import Path
from bptt_trainers import *
class Kill(Callback):
    def on_update_end(self, trainer, loss, direction_norm):
        if trainer.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
config = TrainConfig(
    epochs=3, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=(), out=Path(sys.argv[1])
)
Ensemble(gym.make("bptt_envs:DiffCartPole-v0", horizon=10), variations(config, seeds=range(3)), [Kill()]).fit()
"""


def test_a_killed_ensemble_ends_bit_for_bit_where_an_undisturbed_one_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL
    configs = variations(replace(TINY, out=tmp_path), seeds=range(3))
    assert [RunFolder(config.out).load("last")["epoch"] for config in configs] == [2, 2, 2]
    resumed = Ensemble(cart_pole(), configs)
    resumed.fit()
    whole = Ensemble(cart_pole(), variations(TINY, seeds=range(3)))
    whole.fit()
    for member, expected in zip(resumed.members, whole.members, strict=True):
        assert torch.equal(weights(member), weights(expected))


def test_a_member_goes_on_alone_and_a_single_run_in_an_ensemble(tmp_path):
    configs = variations(replace(TINY, out=tmp_path), seeds=(0, 1))
    Ensemble(cart_pole(), [replace(config, epochs=1) for config in configs]).fit()
    for config in configs:
        Trainer(cart_pole(), None, replace(config, epochs=2)).fit()
    ensemble = Ensemble(cart_pole(), configs)
    ensemble.fit()
    for member, config in zip(ensemble.members, configs, strict=True):
        alone = Trainer(cart_pole(), None, replace(config, out=None))
        alone.fit()
        assert [row.epoch for row in member.history] == [0, 1, 2, 3]
        assert apart(member, alone) < 1e-5


def test_a_finished_ensemble_is_not_computed_again(tmp_path, calls):
    configs = variations(replace(TINY, out=tmp_path), seeds=(0, 1))
    Ensemble(cart_pole(), configs).fit()
    for shapes in calls.values():
        shapes.clear()
    again = Ensemble(cart_pole(), configs)
    assert [len(history) for history in again.fit()] == [4, 4]
    assert calls == {"directions": [], "losses": []}


def test_a_folder_of_another_run_is_refused_before_any_is_begun(tmp_path):
    Trainer(cart_pole(), None, replace(TINY, rule="M", seed=1, out=tmp_path / "seed1")).fit()
    before = (tmp_path / "seed1" / "last.pt").read_bytes()
    with pytest.raises(RunFolderError, match=r"training.rule: 'M' in the folder, 'C' asked for"):
        Ensemble(cart_pole(), variations(replace(TINY, out=tmp_path), seeds=(0, 1))).fit()
    assert not list((tmp_path / "seed0").iterdir())
    assert (tmp_path / "seed1" / "last.pt").read_bytes() == before


def test_folders_are_trained_into_by_one_process_at_a_time(tmp_path):
    configs = variations(replace(TINY, out=tmp_path), seeds=(0, 1))

    class Another(Callback):
        def on_fit_start(self, trainer):
            with pytest.raises(RunFolderError, match="in use by another process"):
                Trainer(cart_pole(), None, configs[1]).fit()

    assert [len(history) for history in Ensemble(cart_pole(), configs, [Another()]).fit()] == [4, 4]


def test_one_bar_counts_the_updates_of_all(tmp_path, capsys):
    configs = variations(replace(TINY, out=tmp_path), seeds=(0, 1, 2))
    Trainer(cart_pole(), None, replace(configs[0], epochs=1)).fit()
    Ensemble(cart_pole(), configs, [ProgressBar("three runs")]).fit()
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("three runs: 100%")
    assert " 27/27 " in last
    Ensemble(cart_pole(), configs, [ProgressBar()]).fit()
    assert capsys.readouterr().err == ""  # nothing was left to do


# Variations


def test_variations_are_every_combination_in_folders_named_by_what_varies(tmp_path):
    configs = variations(replace(TINY, out=tmp_path), rules=("R", "C"), clips=("none", "norm"), seeds=(3, 4))
    assert [config.out.name for config in configs] == [
        f"{rule}-{clip}-seed{seed}" for rule in ("R", "C") for clip in ("none", "norm") for seed in (3, 4)
    ]
    assert [(c.rule, c.clip, c.seed) for c in configs[:3]] == [("R", "none", 3), ("R", "none", 4), ("R", "norm", 3)]
    assert all(config.out.parent == tmp_path for config in configs)
    rates = variations(replace(TINY, out=tmp_path), learning_rates=(0.1, 1e-05))
    assert [(config.out.name, config.learning_rate) for config in rates] == [("lr0.1", 0.1), ("lr1e-05", 1e-05)]
    assert [config.out for config in variations(TINY, seeds=range(2))] == [None, None]
    faded = variations(replace(TINY, out=tmp_path), rules=("R decay .90", "C every 16"), clips=("none",))
    assert [config.out.name for config in faded] == ["R-decay-0.9-none", "C-every-16-none"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs values for at least one of rules, clips, learning_rates, seeds"),
        ({"seeds": ()}, r"seeds must be at least one, each once; got \(\)"),
        ({"rules": ("C", "C")}, r"rules must be at least one, each once; got \('C', 'C'\)"),
        ({"rules": ("C", "Z")}, "rules must be one of"),
        ({"clips": ("nrom",)}, "Did you mean 'norm'"),
        ({"learning_rates": (0.0,)}, "learning_rates must be a finite number above 0"),
    ],
)
def test_wrong_variations_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        variations(TINY, **given)


# What is refused, before any work


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), 1)


class Offset(nn.Linear):
    """Adds what neither a parameter nor a buffer shows."""

    def __init__(self, offset):
        super().__init__(4, 1)
        self.offset = [offset]

    def forward(self, x):
        return super().forward(x) * self.offset[0]


class Picky(nn.Linear):
    """Branches on a value, which vmap cannot."""

    def forward(self, x):
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.weight.sum() < 1e9 else -y


def scaled(scale):
    controller = nn.BatchNorm1d(4).eval(), nn.Linear(4, 1)
    controller[0].running_var.fill_(scale)
    return nn.Sequential(*controller).eval()


@pytest.mark.parametrize(
    ("configs", "controllers", "error", "message"),
    [
        ([], None, TypeError, r"configs must be a list of TrainConfig, at least one; got \[\]"),
        (TINY, None, TypeError, "configs must be a list of TrainConfig"),
        ([TINY, TINY], None, ValueError, r"configs\[0\] and configs\[1\] are the same run"),
        (
            [TINY, replace(TINY, seed=1, hidden=(9,))],
            None,
            ValueError,
            r"must agree in hidden; configs\[0\] has \(8,\), configs\[1\] \(9,\)",
        ),
        ([TINY, replace(TINY, seed=1, engine="adjoint")], None, ValueError, "must agree in engine"),
        ([TINY, replace(TINY, seed=1, compile=True)], None, ValueError, "must agree in compile"),
        (
            [replace(TINY, engine="autograd", seed=seed) for seed in (0, 1)],
            None,
            CannotStackError,
            "got engine='autograd'. Train such runs one by one",
        ),
        ([TINY, replace(TINY, seed=1)], [MLP((4,), (1,))], ValueError, "controllers must be one for each of the 2"),
        (
            [TINY, replace(TINY, seed=1)],
            [MLP((4,), (1,), (8,)), MLP((4,), (1,), (9,))],
            ValueError,
            r"members 0 and 1 differ: layers.0.weight is \(8, 4\) torch.float32, trained and \(9, 4\)",
        ),
        (
            [TINY, replace(TINY, seed=1)],
            [scaled(1.0), scaled(2.0)],
            ValueError,
            "differ: 0.running_var, which is not trained, has other values",
        ),
        (
            [TINY, replace(TINY, seed=1)],
            [Offset(1.0), Offset(2.0)],
            ValueError,
            "that of member 1 does something else than that of member 0",
        ),
        (
            [TINY, replace(TINY, seed=1)],
            [Picky(4, 1), Picky(4, 1)],
            CannotStackError,
            "controllers of type Picky cannot be stacked",
        ),
    ],
)
def test_members_that_do_not_fit_together_are_refused(configs, controllers, error, message):
    with pytest.raises(error, match=message):
        Ensemble(cart_pole(), configs, controllers=controllers)


def test_controllers_that_the_adjoint_engine_cannot_serve_are_refused_with_the_reason():
    with (
        pytest.warns(UserWarning, match="falls back to the slower autograd engine"),
        pytest.raises(CannotStackError, match=r"of member 0, .* it draws random numbers. Train such runs one by one"),
    ):
        Ensemble(cart_pole(), variations(TINY, seeds=(0, 1)), controllers=[Noisy(4, 1), Noisy(4, 1)])


def test_controllers_that_share_parameters_are_refused():
    controller = MLP((4,), (1,), (8,))
    with pytest.raises(ValueError, match="some of them share parameters"):
        Ensemble(cart_pole(), variations(TINY, seeds=(0, 1)), controllers=[controller, controller])


def test_one_folder_for_two_members_is_refused(tmp_path):
    configs = [replace(TINY, seed=seed, out=tmp_path / "run") for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"folders of their own; out is .*run in configs\[0\] and configs\[1\]"):
        Ensemble(cart_pole(), configs)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_run_with_other_buffers_is_refused(tmp_path):
    configs = variations(replace(TINY, out=tmp_path), seeds=(0, 1))
    Trainer(cart_pole(), scaled(3.0), replace(configs[0], epochs=1)).fit()
    with pytest.raises(RunFolderError, match=r"controller\.tensors\.0\.running_var: .* in the folder, .* asked for"):
        Ensemble(cart_pole(), configs, controllers=[scaled(1.0), copy.deepcopy(scaled(1.0))]).fit()


# The command line

GRID = "--preset paper --env-option horizon=10 --train-states 16 --test-states 16 --hidden 8 --record pictures"


@pytest.fixture
def bptt(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; return what it says to stdout and to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(line, code=0):
        assert main(shlex.split(line)) == code, capsys.readouterr().err
        return capsys.readouterr()

    return run


def test_train_takes_several_rules_clips_rates_and_seeds(bptt, tmp_path):
    command = f"train {GRID} --rules R C --clips none norm --seeds 0 1 --epochs 2 --out grid"
    said = bptt(command).out.splitlines()
    assert said[0] == "grid: 8 runs of 2 epochs, trained together"
    head, *table = (line.split() for line in said[2:11])
    assert head == ["run", "status", "epoch", "untrained", "last", "best"]
    assert [row[0] for row in table] == [path.name for path in sorted((tmp_path / "grid").iterdir(), key=order)]
    for name, status, epoch, untrained, last, _ in table:
        history = RunFolder(tmp_path / "grid" / name).rewind_metrics(10**9)
        assert (status, epoch) == ("done", "2")
        assert [float(untrained), float(last)] == pytest.approx([history[i].test_loss for i in (0, -1)], rel=1e-3)
    assert max(map(len, said)) <= 80
    assert bptt(command).err == ""  # nothing left to compute
    assert len(bptt("evaluate grid/R-none-seed0 grid/C-norm-seed1").out.splitlines()) == 3
    assert "continuing after epoch 2 of 3" in bptt("resume grid/C-norm-seed1 --epochs 3").out
    assert "holds other files and no run" in bptt(f"train {GRID} --epochs 2 --out grid", code=1).err


def order(path):
    rule, clip, seed = path.name.split("-")
    return ("R", "C").index(rule), ("none", "norm").index(clip), seed


def test_runs_that_drop_out_are_named_and_the_others_are_kept(bptt):
    settings = "--env DiffIntegrator-v0 --train-states 8 --test-states 8 --record pictures --epochs 2"
    command = f"train {settings} --learning-rates 0.001 1e30"
    said = bptt(command, code=1)
    assert [line.split()[1:3] for line in said.out.splitlines()[3:5]] == [["done", "2"], ["not", "finite"]]
    assert "1 of 2 runs ended early:\n  lr1e+30: the loss" in said.err
    assert "runs/DiffIntegrator-v0_C_seed0_by_learning_rates" in said.out
    table = bptt(f"{command} --on-nonfinite skip").out.splitlines()
    assert table[4].split()[1:4] == ["done,", "1", "skipped"]


def test_a_folder_of_a_single_run_is_refused_for_several(bptt):
    bptt(f"train {GRID} --epochs 1 --out run")
    assert "holds a single run" in bptt(f"train {GRID} --epochs 1 --seeds 0 1 --out run", code=2).err
    assert "seeds must be at least one, each once" in bptt(f"train {GRID} --seeds 0 0", code=2).err


def test_ctrl_c_names_the_same_command(bptt, tmp_path, monkeypatch):
    metrics, advance = tmp_path / "two seeds" / "seed1" / "metrics.csv", Ensemble._advance

    def interrupted(*arguments):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(Ensemble, "_advance", interrupted)
    command = f"train {GRID} --epochs 5000 --seeds 0 1 --out '{tmp_path}/two seeds'"
    said = bptt(command, code=130).err
    assert "each run stands at its last finished epoch" in said
    assert shlex.split(said.splitlines()[-1]) == ["bptt", *shlex.split(command)]
    for seed in (0, 1):
        folder = RunFolder(tmp_path / "two seeds" / f"seed{seed}")
        assert folder.load("last")["epoch"] >= 1


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_ensemble_on_a_gpu_is_that_of_the_cpu_and_goes_on_there(tmp_path):
    configs = variations(replace(TINY, device="cuda", out=tmp_path), rules=("R", "C"), seeds=(0, 1))
    Ensemble(steep(), configs, controllers=doubles(configs)).fit()
    cpu = [replace(config, device="cpu") for config in configs]
    expected = Ensemble(steep(), [replace(config, out=None) for config in cpu], controllers=doubles(cpu))
    expected.fit()
    resumed = Ensemble(steep(), cpu, controllers=doubles(cpu))
    resumed.fit()
    for member, wanted in zip(resumed.members, expected.members, strict=True):
        assert member.epoch == 3
        assert apart(member, wanted) < 1e-9
