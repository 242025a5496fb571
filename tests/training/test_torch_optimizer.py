"""Optimizers of torch, by name or a user's own, and own schedules: what they do, what resumes, what is refused."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import gymnasium as gym
import pytest
import torch
from torch import nn

from bptt_trainers import Callback, Ensemble, RunFolder, RunFolderError, TrainConfig, Trainer
from bptt_trainers.cli import main
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.presets.presets import parse_overrides
from bptt_trainers.training.optimizer import Optimizer
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.torch_optimizer import NAMES

TINY = TrainConfig(epochs=3, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=())
OPTIONS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "AdamW": {"betas": (0.8, 0.9), "amsgrad": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "NAdam": {},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "ASGD": {"t0": 3.0},
    "Rprop": {},
}


def cart_pole():
    return gym.make("DiffCartPole-v0", horizon=10)


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, dtype=dtype).t())  # not contiguous
    return {
        "a": weight,
        "b": nn.Parameter(torch.randn(3, dtype=dtype)),
        "c": nn.Parameter(torch.randn((), dtype=dtype)),
    }


def directions(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, generator=generator, dtype=dtype) for _ in range(count)]


def descend(optimizer, steps, first=0):
    for update, direction in enumerate(steps, start=first):
        with optimizer.training():
            assert optimizer.objection(direction, float(direction.norm())) is None
            optimizer.step(update, direction, float(direction.norm()))


def by_hand(optimizer, own, steps, rates):
    for direction, rate in zip(steps, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, part in zip(own.values(), direction.split([p.numel() for p in own.values()]), strict=True):
            parameter.grad = part.view(parameter.shape).clone()
        optimizer.step()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class Lion(torch.optim.Optimizer):
    """A user's own (Chen et al. 2023), which keeps a count in its groups, too."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas, "count": 0})

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter, dtype=torch.float64))
                first, second = group["betas"]
                sign = (first * mean + (1 - first) * parameter.grad).sign()
                parameter.add_(sign.to(parameter.dtype), alpha=-group["lr"] / group["count"])
                mean.mul_(second).add_(parameter.grad, alpha=1 - second)


def falling(share):
    return 0.01 * 0.1**share


def grouped(params):
    """The vectors have a group of their own."""
    matrices = [one for one in params if one.ndim > 1]
    vectors = [one for one in params if one.ndim < 2]
    return torch.optim.SGD([{"params": matrices}, {"params": vectors, "momentum": 0.5}], momentum=0.9)


# What they do


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "Rprop"])
def test_one_of_torch_steps_as_it_does_by_hand(name, weight_decay):
    own, others = parameters(), parameters()
    config = TrainConfig(
        optimizer=name,
        optimizer_options=OPTIONS[name],
        weight_decay=weight_decay,
        learning_rate=0.1,
        final_learning_rate=0.0,
        warmup=0.3,
        clip="value",
        clip_threshold=0.5,
    )
    optimizer = Optimizer(own, config, updates=8)
    descend(optimizer, directions(8))
    torchs = getattr(torch.optim, name)(others.values(), lr=1.0, weight_decay=weight_decay, **OPTIONS[name])
    rates = [optimizer.learning_rate(update) for update in range(8)]
    by_hand(torchs, others, [one.clamp(-0.5, 0.5) for one in directions(8)], rates)
    assert_same(own, others)
    assert all(one.grad is None for one in own.values())


def test_adam_of_torch_is_the_built_in_one_but_for_rounding():
    own, others = parameters(torch.float64), parameters(torch.float64)
    descend(Optimizer(own, TrainConfig(learning_rate=0.1, adam_epsilon=1e-8), 8), directions(8, torch.float64))
    descend(Optimizer(others, TrainConfig(learning_rate=0.1, optimizer="Adam"), 8), directions(8, torch.float64))
    for name in own:
        torch.testing.assert_close(own[name], others[name], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("LBFGS", "SparseAdam", "Muon")])
def test_every_one_that_torch_has_trains(name):
    trainer = Trainer(cart_pole(), None, replace(TINY, optimizer=name, epochs=1, train_states=4))
    before = {name: one.clone() for name, one in trainer.controller.state_dict().items()}
    assert math.isfinite(trainer.fit()[-1].train_loss)
    assert any(not torch.equal(one, before[name]) for name, one in trainer.controller.state_dict().items())


def test_a_class_or_a_callable_from_parameters_steps_as_it_does_by_hand():
    for make, wanted in (
        (partial(torch.optim.SGD, momentum=0.9), lambda own: torch.optim.SGD(own, momentum=0.9)),
        (torch.optim.RMSprop, torch.optim.RMSprop),
        (lambda own: torch.optim.Adagrad(own, lr=7.0), torch.optim.Adagrad),
    ):
        own, others = parameters(), parameters()
        descend(Optimizer(own, TrainConfig(learning_rate=0.1), 4, optimizer=make), directions(4))
        by_hand(wanted(others.values()), others, directions(4), [0.1] * 4)
        assert_same(own, others)


def test_the_learning_rate_is_that_of_all_groups_and_what_else_they_have_stays():
    own, others = parameters(), parameters()
    descend(Optimizer(own, TrainConfig(), 4, optimizer=grouped, schedule=falling), directions(4))
    torchs = grouped(list(others.values()))
    for update, direction in enumerate(directions(4)):
        torchs.param_groups[1]["lr"] = falling(update / 4)
        by_hand(torchs, others, [direction], [falling(update / 4)])
    assert_same(own, others)


def test_a_schedule_of_ones_own_gives_each_updates_step_size():
    shares = []

    def schedule(share):
        shares.append(share)
        return 0.5 * (1 - share) ** 2

    optimizer = Optimizer({"w": nn.Parameter(torch.zeros(1))}, TrainConfig(), 40, schedule=schedule)
    assert 0.0 in shares
    assert max(shares) == 39 / 40
    rates = [optimizer.learning_rate(update) for update in (0, 10, 20, 39)]
    assert rates == pytest.approx([0.5, 0.28125, 0.125, 0.5 / 1600])


@pytest.mark.parametrize("make", ["SGD", "NAdam", "Adagrad", Lion])
def test_making_one_leaves_weights_grads_and_random_numbers_as_they_were(make):
    own = parameters()
    own["a"].grad = torch.ones(4, 3)
    before = {name: one.detach().clone() for name, one in own.items()}
    state = torch.get_rng_state()
    settings, given = ({"optimizer": make}, None) if isinstance(make, str) else ({}, make)
    optimizer = Optimizer(own, TrainConfig(**settings, weight_decay=0.1 if given is None else 0.0), 4, optimizer=given)
    assert_same(own, before)
    assert optimizer.state_dict()["optimizer"]["state"] == {}
    assert torch.equal(torch.get_rng_state(), state)
    descend(optimizer, directions(2))
    assert torch.equal(own["a"].grad, torch.ones(4, 3))
    assert own["b"].grad is None


def test_only_who_asks_for_one_pays_for_its_import():
    program = (
        "import sys, gymnasium as gym, bptt_envs\n"
        "from bptt_trainers import TrainConfig, Trainer\n"
        "config = TrainConfig(epochs=1, batch_size=1, train_states=1, test_states=1, weight_decay=0.1)\n"
        "Trainer(gym.make('DiffCartPole-v0', horizon=2), None, config).fit()\n"
        "TrainConfig(optimizer='SGD')\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


# Saved and resumed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [*OPTIONS, Lion, grouped])
def test_it_goes_on_from_what_it_saved_bit_for_bit(make, dtype):
    def optimizer(own):
        if isinstance(make, str):
            config = TrainConfig(optimizer=make, optimizer_options=OPTIONS[make], learning_rate=0.1, average=0.5)
            return Optimizer(own, config, 8)
        return Optimizer(own, TrainConfig(learning_rate=0.1, average=0.5), 8, optimizer=make)

    whole = parameters(dtype)
    descend(optimizer(whole), directions(8, dtype))
    for done in (0, 1, 5):
        parts = parameters(dtype)
        first = optimizer(parts)
        descend(first, directions(done, dtype))
        state, weights = first.state_dict(), {name: one.detach().clone() for name, one in parts.items()}
        descend(first, directions(3, dtype), first=done)  # what was saved does not change as training goes on
        for second, own in ((first, parts), (None, parameters(dtype))):
            with torch.no_grad():
                for name, one in own.items():
                    one.copy_(weights[name])
            second = second or optimizer(own)
            second.load_state_dict(state)
            descend(second, directions(8, dtype)[done:], first=done)
            assert_same(own, whole)


class Stop(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_update_end(self, trainer, loss, direction_norm):
        if trainer.epoch == self.epoch:
            raise KeyboardInterrupt


MIXED = replace(TINY, average=0.7, clip="norm", clip_threshold=0.1)
RUNS = {
    "SGD": ({"optimizer": "SGD", "optimizer_options": OPTIONS["SGD"], "schedule": "linear", "warmup": 0.4}, {}),
    "AdamW": ({"optimizer": "AdamW", "optimizer_options": OPTIONS["AdamW"], "weight_decay": 0.1}, {}),
    "NAdam": ({"optimizer": "NAdam", "final_learning_rate": 0.0}, {}),
    "own class": ({"learning_rate": 0.01}, {"optimizer": Lion}),
    "own schedule": ({}, {"schedule": falling}),
    "both": ({}, {"optimizer": partial(torch.optim.RMSprop, momentum=0.5), "schedule": falling}),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_resumed_at_every_epoch_ends_bit_for_bit_where_the_whole_one_ends(tmp_path, run):
    settings, own = RUNS[run]
    whole = Trainer(cart_pole(), None, replace(MIXED, **settings), **own)
    whole.fit()
    config = replace(MIXED, **settings, out=tmp_path / "run")
    for epoch in range(3):
        with pytest.raises(KeyboardInterrupt):
            Trainer(cart_pole(), None, config, [Stop(epoch)], **own).fit()
        assert RunFolder(tmp_path / "run").train_config() == config
    resumed = Trainer(cart_pole(), None, config, **own)
    resumed.fit()
    assert_same(resumed.controller.state_dict(), whole.controller.state_dict())
    trained = [trainer._last["trained_weights"] for trainer in (resumed, whole)]
    assert_same(*trained)
    assert resumed.lengthens == (run == "AdamW" or run == "own class")


def test_who_follows_keeps_what_is_known_of_a_parameter_by_name_and_shape():
    for make in (partial(torch.optim.SGD, momentum=0.9), Lion, grouped, torch.optim.Adagrad):
        own = parameters()
        optimizer = Optimizer({name: own[name] for name in "ab"}, TrainConfig(learning_rate=0.1), 8, optimizer=make)
        descend(optimizer, [direction[:15] for direction in directions(3)])
        kept = optimizer.state_dict()["optimizer"]
        optimizer.follow({name: own[name] for name in "cb"})
        now = optimizer.state_dict()["optimizer"]
        assert list(now["state"]) == [1]
        assert now["state"][1]["steps"] == 3
        for name, value in kept["state"][1]["kept"].items():
            assert torch.equal(now["state"][1]["kept"][name], value)
        if make is Lion:
            assert now["groups"][0]["count"] == 3
        optimizer.follow({"b": nn.Parameter(torch.zeros(5)), "c": own["c"]})
        assert optimizer.state_dict()["optimizer"]["state"] == {}
        descend(optimizer, [torch.ones(6)])


def test_a_layer_that_is_frozen_and_thawed_is_trained_on():
    class Freeze(Callback):
        def on_epoch_end(self, trainer, metrics):
            trainer.controller.layers[0].weight.requires_grad_(metrics.epoch != 1)

    config = replace(TINY, optimizer="SGD", optimizer_options={"momentum": 0.9}, average=0.5)
    assert len(Trainer(cart_pole(), None, config, [Freeze()]).fit()) == 4


def test_members_with_such_optimizers_are_their_single_runs():
    changes = [settings for settings, own in RUNS.values() if not own] + [{}]
    configs = [replace(MIXED, seed=i, **settings) for i, settings in enumerate(changes)]
    ensemble = Ensemble(cart_pole(), configs)
    for member, history, config in zip(ensemble.members, ensemble.fit(), configs, strict=True):
        alone = Trainer(cart_pole(), None, config).fit()
        assert history[-1].test_loss == pytest.approx(alone[-1].test_loss, rel=1e-4)
        assert member.config == config


# Recorded


def test_an_own_optimizer_and_schedule_are_recorded_and_others_are_another_run(tmp_path):
    config = replace(TINY, epochs=1, out=tmp_path / "run")
    given = {"optimizer": partial(torch.optim.SGD, momentum=0.9), "schedule": falling}
    Trainer(cart_pole(), None, config, **given).fit()
    own = json.loads((tmp_path / "run" / "config.json").read_text())["own"]
    assert [line.partition(" ")[0] for line in own.values()] == ["torch.optim.sgd.SGD", f"{__name__}.falling"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for change, words in (
        ({"optimizer": partial(torch.optim.SGD, momentum=0.8)}, "own.optimizer: 'torch.optim.sgd.SGD .* asked for"),
        ({"optimizer": Lion}, "own.optimizer: .* in the folder, '.*Lion .* asked for"),
        ({"schedule": lambda share: 0.01}, "own.schedule: '.*falling .*' in the folder, '.*lambda"),
        ({"schedule": None}, "own.schedule: .* in the folder, None asked for"),
    ):
        with pytest.raises(RunFolderError, match=rf"another configuration.*\n.*{words}"):
            Trainer(cart_pole(), None, config, **given | change).fit()
    with pytest.raises(RunFolderError, match=r"(?s)training.epochs: 1 in the folder, 2 asked for"):
        Trainer(cart_pole(), None, replace(config, epochs=2), **given).fit()
    with pytest.raises(
        RunFolderError, match=r"code or states of its user's own.* in Python, by Trainer\(..., optimizer=torch.op"
    ):
        RunFolder(tmp_path / "run").check_complete()
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert len(Trainer(cart_pole(), None, config, **given).fit()) == 2


def test_another_optimizer_or_option_is_another_run(tmp_path):
    config = replace(TINY, epochs=1, optimizer="SGD", optimizer_options={"momentum": 0.9}, out=tmp_path / "run")
    Trainer(cart_pole(), None, config).fit()
    for change, words in (
        ({"optimizer": "RMSprop"}, "training.optimizer: 'SGD' in the folder, 'RMSprop' asked for"),
        ({"optimizer_options": {}}, "training.optimizer_options.momentum: 0.9 in the folder, None asked for"),
        ({"optimizer": "adam", "optimizer_options": {}}, "training.optimizer: 'SGD' in the folder, 'adam' asked for"),
    ):
        with pytest.raises(RunFolderError, match=words):
            Trainer(cart_pole(), None, replace(config, **change)).fit()


def test_a_comparison_takes_them_as_overrides(tmp_path):
    overrides = parse_overrides(["C.optimizer=SGD", "C.optimizer_options={'momentum': 0.9}", "C.train_states=8"])
    config = ComparisonConfig(
        env_options={"horizon": 4},
        methods=("C",),
        seeds=(0,),
        steps=64,
        test_states=4,
        overrides=overrides,
        out=tmp_path / "comparison",
    )
    compare(config, progress=False)
    compare(config, progress=False)
    stored = RunFolder(tmp_path / "comparison" / "runs" / "C-seed0").train_config()
    assert (stored.optimizer, stored.optimizer_options) == ("SGD", {"momentum": 0.9})
    with pytest.raises(RunFolderError, match="C optimizer: 'SGD' in the folder, 'adam' asked for"):
        compare(replace(config, overrides={"C": {"train_states": 8}}), progress=False)


# Refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "Sgd"}, r"'adam', the built-in one, or .* RMSprop, .*; got 'Sgd'. Did you mean 'SGD'\?"),
        ({"optimizer": "Optimizer"}, "optimizer must be 'adam'"),
        ({"optimizer": 3}, "optimizer must be .adam. or the name of a class .* got 3"),
        ({"optimizer": "LBFGS"}, "LBFGS needs a closure that computes the loss anew"),
        ({"optimizer": "SparseAdam"}, "SparseAdam needs sparse gradients"),
        ({"optimizer": "SGD", "optimizer_options": {"momentun": 0.9}}, r"SGD does not take. Did you mean 'momentum'\?"),
        ({"optimizer": "SGD", "optimizer_options": {"lr": 0.9}}, "'lr', which is set by learning_rate; leave it out"),
        ({"optimizer": "SGD", "optimizer_options": {"weight_decay": 0.9}}, "which is set by weight_decay"),
        (
            {"optimizer": "SGD", "optimizer_options": {"momentum": torch.ones(1)}},
            r"optimizer_options\['momentum'\] must",
        ),
        (
            {"optimizer": "SGD", "optimizer_options": {"momentum": math.nan}},
            r"optimizer_options\['momentum'\] must be a f",
        ),
        (
            {"optimizer": "SGD", "optimizer_options": ["momentum"]},
            "optimizer_options must be a dict from names to values",
        ),
        (
            {"optimizer": "Rprop", "weight_decay": 0.1},
            "weight_decay must be 0.0, as Rprop of torch.optim has none; got 0.1",
        ),
        (
            {"optimizer": "SGD", "amsgrad": True},
            "amsgrad has no effect where optimizer 'SGD' .*leave it at False; got True",
        ),
        ({"optimizer": "SGD", "adam_epsilon": 1e-3}, "adam_epsilon has no effect .* leave it at 1e-07; got 0.001"),
        (
            {"optimizer_options": {"momentum": 0.9}},
            "optimizer_options are those of a class of torch.optim; adam, the bu",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optimizer": "SGD", "optimizer_options": {"momentum": -1.0}},
            r"SGD\(weight_decay=0.0, momentum=-1.0\) cannot be",
        ),
        ({"optimizer": "SGD", "optimizer_options": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
        (
            {"optimizer": "AdamW", "optimizer_options": {"betas": 3}},
            "AdamW.* cannot be made for these parameters: TypeErr",
        ),
        (
            {"optimizer": "AdamW", "optimizer_options": {"amsgrad": "no", "capturable": True}},
            "optimizer AdamW cannot step",
        ),
        ({"optimizer": "Muon"}, "Muon.* cannot be made .*2D parameters"),
    ],
)
def test_options_that_torch_refuses_are_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(cart_pole(), None, replace(TINY, **settings))


class Closed(Lion):
    def step(self, closure):
        raise AssertionError("it was stepped")


class Rateless(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        raise AssertionError("it was stepped")


class Remembers(Lion):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["memory"] = object()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"optimizer": "SGD"},
            TypeError,
            r"got 'SGD'. By name, one of torch.optim is a setting: TrainConfig\(optimizer=",
        ),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1)])},
            TypeError,
            "optimizer must be a class such as torch.optim.SGD or",
        ),
        ({"optimizer": lambda own: 3}, TypeError, "must make a torch.optim.Optimizer from parameters; it made 3"),
        ({"optimizer": lambda own: torch.optim.SGD(own[1:])}, ValueError, "must train the 4 parameters .*made of 3"),
        (
            {"optimizer": lambda own: torch.optim.SGD(own, mass=3)},
            ValueError,
            "<lambda> cannot be made.*TypeError.*mass",
        ),
        (
            {"optimizer": Rateless},
            ValueError,
            "must have its learning rate in param_groups, as 'lr'.* Rateless has none",
        ),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "LBFGS needs a closure"),
        ({"optimizer": Closed}, ValueError, "Closed needs a closure"),
        ({"optimizer": torch.optim.SparseAdam}, ValueError, "SparseAdam needs sparse gradients"),
        ({"optimizer": Remembers}, ValueError, r"Remembers keeps .*\['memory'\] a object; checkpoints hold tensors"),
        (
            {"schedule": "linear"},
            TypeError,
            r"got 'linear'. By its name, one is a setting: TrainConfig\(schedule='linear'",
        ),
        ({"schedule": lambda share: share - 0.5}, ValueError, r"schedule must give a finite .*; at 0.0 it gave -0.5"),
        (
            {"schedule": lambda share: 1.0 if share < 0.5 else math.inf},
            ValueError,
            r"schedule .* at 0.5\S* it gave inf",
        ),
        (
            {"schedule": lambda share: 1 / share},
            ValueError,
            "schedule cannot give a step size at 0.0: ZeroDivisionError",
        ),
        ({"schedule": lambda share: None}, ValueError, "schedule must give .*; at 0.0 it gave None"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words_before_training(given, error, message):
    with pytest.raises(error, match=message):
        Trainer(cart_pole(), None, TINY, **given)


@pytest.mark.parametrize(
    ("given", "settings", "name"),
    [
        ({"optimizer": Lion}, {"optimizer": "SGD"}, "optimizer"),
        ({"optimizer": Lion}, {"weight_decay": 0.1}, "weight_decay"),
        ({"optimizer": Lion}, {"adam_betas": (0.5, 0.5)}, "adam_betas"),
        ({"schedule": falling}, {"learning_rate": 0.1}, "learning_rate"),
        ({"schedule": falling}, {"final_learning_rate": 0.0}, "final_learning_rate"),
        ({"schedule": falling}, {"warmup": 0.5}, "warmup"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(given, settings, name):
    with pytest.raises(ValueError, match=rf"^{name} has no effect where {next(iter(given))}= is given: leave it at"):
        Trainer(cart_pole(), None, replace(TINY, **settings), **given)


# Numbers that are not finite


@pytest.mark.parametrize("make", ["SGD", "RMSprop", "Adagrad"])
def test_a_step_that_is_not_objected_to_leaves_what_is_kept_finite(make):
    for size in (1e18, 1e22, 3e38):
        own = {"small": nn.Parameter(torch.zeros(3)), "large": nn.Parameter(torch.zeros(200))}
        optimizer = Optimizer(own, TrainConfig(optimizer=make), 4)
        direction = torch.cat([torch.ones(3), torch.full((200,), size)])
        norm = float(direction.double().norm())
        objection = optimizer.objection(direction, norm)
        assert not any(one.any() for one in own.values())
        assert optimizer.state_dict()["optimizer"]["state"] == {}
        assert objection == (
            None if make == "SGD" or size < 1e19 else f"the direction of large is too large for {make}'s moments"
        )


def test_a_direction_that_is_not_finite_stops_the_run():
    class Breaking(nn.Linear):
        def forward(self, observation):
            action = super().forward(observation)
            return action + math.nan * (action - action.detach()) if self.training else action

    torch.manual_seed(0)
    trainer = Trainer(cart_pole(), Breaking(4, 1), replace(TINY, optimizer="SGD", engine="autograd"))
    with pytest.raises(NonFiniteError, match="in epoch 1, update 1 of 3, the direction of weight, bias is not finite"):
        trainer.fit()


# On the command line


SHORT = "--preset paper --env-option horizon=4 --train-states 8 --test-states 4 --hidden 4 --record --out run"


def bptt(command, capsys, code=0):
    assert main(command.split()) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def test_the_command_line_names_one_with_its_options_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = "--optimizer RMSprop --optimizer-option momentum=0.9 --optimizer-option centered=true --warmup 0.0"
    bptt(f"train {given} --epochs 1 {SHORT}", capsys)
    stored = RunFolder(tmp_path / "run").train_config()
    assert (stored.optimizer, stored.optimizer_options) == ("RMSprop", {"momentum": 0.9, "centered": True})
    bptt("resume run --epochs 2", capsys)
    bptt(f"train {given} --epochs 3 {SHORT}", capsys)
    assert RunFolder(tmp_path / "run").load("last")["epoch"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--optimizer sgd", "Did you mean 'SGD'?"),
        ("--optimizer SGD --optimizer-option momentum", "--optimizer-option must be NAME=VALUE, such as momentum=0.9"),
        ("--optimizer SGD --optimizer-option momentun=0.9", "Did you mean 'momentum'?"),
        ("--optimizer SGD --optimizer-option momentum=-1", "Invalid momentum value: -1"),
        ("--optimizer-option momentum=0.9", "optimizer_options are those of a class of torch.optim"),
        ("--warmup 1", "warmup must be a number of at least 0 and below 1"),
    ],
)
def test_the_command_line_refuses_in_words(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(bptt(f"train {options} {SHORT}", capsys, code=2).split())
    assert not (tmp_path / "run").exists()


def test_resuming_a_run_of_an_own_optimizer_says_what_is_missing(tmp_path, capsys):
    Trainer(cart_pole(), None, replace(TINY, epochs=1, out=tmp_path / "run"), optimizer=Lion, schedule=falling).fit()
    said = bptt(f"resume {tmp_path / 'run'} --epochs 3", capsys, code=1)
    assert f"Trainer(..., optimizer={__name__}.Lion, schedule={__name__}.falling).fit()" in said
