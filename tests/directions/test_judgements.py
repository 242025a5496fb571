"""No judgement outlives what it judged: judge, change something, judge again; the direction is that of what is now."""

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from recorded import Recorded
from torch import nn

from bptt_envs.systems import CartPole
from bptt_trainers import Callback, Ensemble, TrainConfig, Trainer, policy_gradient
from bptt_trainers.directions import compiled
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR

PASSES = (REGULAR, MODIFIED)


class Scale:
    """A forward hook with a setting of its own."""

    by = 1.0

    def __call__(self, module, inputs, output):
        return self.by * output


class Net(nn.Module):
    """Has one of everything that may change."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.act, self.last = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)
        self.fixed = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.unregistered = [nn.Linear(8, 8, bias=False)]
        for layer in (self.fixed, *self.unregistered):
            nn.init.eye_(layer.weight)
        self.scale = Scale()
        self.act.register_forward_hook(self.scale)
        self.gain, self.center, self.noise = 1.0, False, False
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        h = self.act(self.unregistered[0](self.fixed(self.first(x - self.mean))))
        h = h - h.mean(0) if self.center else h
        h = h + 0.1 * torch.randn_like(h) if self.noise else h
        return (2.0 if self.training else 1.0) * self.gain * self.last(h)


def bound(net, system):
    system.max_action = 0.05


def frozen(net, system):
    net.first.weight.requires_grad_(False)


def forward_hook(net, system):
    net.act.register_forward_hook(lambda _, inputs, output: output**2)


def hook_of_a_parameter(net, system):
    net.first.weight.register_hook(lambda slope: slope.clamp(-1e-5, 1e-5))


def backward_hook(net, system):
    net.act.register_full_backward_hook(lambda _, slopes, by_output: (3.0 * slopes[0],))


def patched_forward(net, system):
    net.first.forward = lambda x: nn.functional.linear(x, net.first.weight**3)


def attribute(net, system):
    net.gain = 3.0


def centred(net, system):
    net.center = True


def buffer_in_place(net, system):
    net.mean.fill_(0.5)


def buffer_assigned(net, system):
    net.mean = torch.full((4,), 0.5)


def stride(net, system):
    net.first.weight.data = net.first.weight.detach().t().contiguous().t()


def mode(net, system):
    net.eval()


def part(net, system):
    net.act = nn.Sigmoid()


def other_parameter(net, system):
    net.last = nn.Linear(8, 1)
    with torch.no_grad():
        net.last.weight.fill_(0.1)
        net.last.bias.fill_(0.2)


def other_layer_of_the_same_parameters(net, system):
    layer = nn.Linear(8, 1)
    layer.weight, layer.bias = net.last.weight, net.last.bias
    net.last = layer


def setting_of_a_hook(net, system):
    net.scale.by = 3.0


def fixed_weight(net, system):
    with torch.no_grad():
        net.fixed.weight.mul_(2.0)


def weight_of_an_unregistered_part(net, system):
    net.unregistered[0].weight.data.mul_(2.0)


def option(net, system):
    system.dt = 0.05


CHANGES = (
    bound,
    frozen,
    forward_hook,
    hook_of_a_parameter,
    backward_hook,
    patched_forward,
    attribute,
    centred,
    buffer_in_place,
    buffer_assigned,
    stride,
    mode,
    part,
    other_parameter,
    other_layer_of_the_same_parameters,
    setting_of_a_hook,
    fixed_weight,
    weight_of_an_unregistered_part,
    option,
)


OF_PROGRAMS = (bound, frozen, attribute, buffer_in_place, buffer_assigned, stride, part)  # a change of each kind
SHARED = (bound, option)  # of the system, which the members of an ensemble share


@pytest.fixture(params=CHANGES, ids=lambda change: change.__name__)
def change(request) -> Callable[[Net, CartPole], None]:
    return request.param


@pytest.fixture(autouse=True)
def quiet():
    """An engine that steps aside says so; here it is the direction that counts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(falls back to the slower|train one by one)")
        yield


@pytest.fixture
def recorded(monkeypatch):
    """Programs as recorded, not compiled: they hold the same constants."""
    monkeypatch.setattr(compiled, "Program", Recorded)


def make_system() -> CartPole:
    return CartPole(horizon=2, objective="continuous")


def states(system) -> torch.Tensor:
    return system.initial_states(8, torch.Generator().manual_seed(1))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    scale = max(float(one.norm()) for one in expected.values())
    for name, one in expected.items():
        assert float((found[name] - one).norm()) <= 1e-4 * scale, name


def test_policy_gradient(change):
    net, system = Net(), make_system()
    policy_gradient(system, net, states(system), "C")
    change(net, system)
    found = policy_gradient(system, net, states(system), "C").passes
    _, expected = AutogradEngine(system, net)(states(system), PASSES)
    for feedback in PASSES:
        assert_equal(found[feedback], expected[feedback])


def test_policy_gradient_changed_back(change):
    net, system = Net(), make_system()
    before = policy_gradient(system, net, states(system), "R").directions
    with torch.no_grad():
        net.first.weight.mul_(1.0)  # the value of a parameter is no part of a judgement
    change(net, system)
    policy_gradient(system, net, states(system), "R")
    assert_equal(policy_gradient(make_system(), Net(), states(system), "R").directions, before)


def test_thawed():
    net, system = Net(), make_system()
    net.first.weight.requires_grad_(False)
    assert "first.weight" not in policy_gradient(system, net, states(system), "R").directions
    net.first.weight.requires_grad_(True)
    found = policy_gradient(system, net, states(system), "R").directions
    assert_equal(found, AutogradEngine(system, net)(states(system), (REGULAR,))[1][REGULAR])


class Once(Callback):
    """Makes a change after the first epoch, for each member of an ensemble."""

    def __init__(self, change, system) -> None:
        self.change, self.system = change, system

    def on_epoch_end(self, trainer, metrics):
        if metrics.epoch == 1:
            self.change(trainer.controller, self.system)


SHORT = {"epochs": 3, "train_states": 16, "test_states": 4, "rule": "R", "learning_rate": 1e-3}


def history(change, seed=0, **settings):
    system = make_system()
    config = TrainConfig(**SHORT | settings, seed=seed)
    return Trainer(system, Net(seed), config, [Once(change, system)]).fit()


@functools.cache
def by_definition(change, seed=0):
    return history(change, seed, engine="autograd")


def assert_same_run(found, expected):
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.direction_norm == pytest.approx(other.direction_norm, rel=1e-3)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


def test_trainer(change):
    assert_same_run(history(change), by_definition(change))


@pytest.mark.parametrize("change", OF_PROGRAMS, ids=lambda change: change.__name__)
def test_compiled(change, recorded):
    net, system = Net(), make_system()
    engine = choose_engine(system, net, states(system), compile=True).engine
    engine(states(system), (REGULAR,))
    change(net, system)
    _, found = engine(states(system), (REGULAR,))
    assert_equal(found[REGULAR], AutogradEngine(system, net)(states(system), (REGULAR,))[1][REGULAR])


def test_programs_serve_other_values_of_buffers(recorded):
    net, system = Net(), make_system()
    engine = choose_engine(system, net, states(system), compile=True).engine
    engine(states(system), PASSES)
    programs = engine._fast._programs
    for change, kept in ((buffer_in_place, True), (buffer_assigned, True), (attribute, False)):
        change(net, system)
        net.mean.mul_(1.1)
        _, found = engine(states(system), PASSES)
        _, expected = AutogradEngine(system, net)(states(system), PASSES)
        for feedback in PASSES:
            assert_equal(found[feedback], expected[feedback])
        assert (engine._fast._programs is programs) == kept


def test_ensemble(change):
    assert_members_are_their_runs(change)


@pytest.mark.parametrize("change", [bound, attribute, buffer_in_place], ids=lambda change: change.__name__)
def test_compiled_ensemble(change, recorded):
    assert_members_are_their_runs(change, compile=True)


def assert_members_are_their_runs(change, **settings):
    system = make_system()
    configs = [TrainConfig(**SHORT, seed=seed, **settings) for seed in (0, 1)]
    ensemble = Ensemble(system, configs, [Once(change, system)], [Net(0), Net(1)])
    if change in SHARED:  # the first to end an epoch would change it for all: it is changed before
        change(None, system)
    for seed, found in enumerate(ensemble.fit()):
        if change in SHARED:
            other = make_system()
            change(None, other)
            config = TrainConfig(**SHORT, seed=seed, engine="autograd")
            assert_same_run(found, Trainer(other, Net(seed), config).fit())
        else:
            assert_same_run(found, by_definition(change, seed))


def test_members_that_change_apart():
    def differently(net, system):
        net.gain = 1.0 + float(net.first.weight.detach().abs().sum())

    system = make_system()
    configs = [TrainConfig(**SHORT, seed=seed) for seed in (0, 1, 2)]
    ensemble = Ensemble(system, configs, [Once(differently, system)], [Net(seed) for seed in (0, 1, 2)])
    for seed, found in enumerate(ensemble.fit()):
        assert_same_run(found, history(differently, seed, engine="autograd"))


def test_noise_switched_on_draws_a_members_own_numbers():
    def noisy(net, system):
        net.noise = True

    system = make_system()
    configs = [TrainConfig(**SHORT, seed=seed) for seed in (0, 1)]
    ensemble = Ensemble(system, configs, [Once(noisy, system)], [Net(0), Net(1)])
    for seed, found in enumerate(ensemble.fit()):
        alone = history(noisy, seed)
        assert found[-1].train_loss == pytest.approx(alone[-1].train_loss, rel=1e-3)


def test_a_frozen_layer_stays_and_a_thawed_one_moves(tmp_path):
    system = make_system()

    class Schedule(Callback):
        def on_fit_start(self, trainer):
            trainer.controller.first.weight.requires_grad_(trainer.epoch % 2 == 0)

        def on_epoch_end(self, trainer, metrics):
            self.on_fit_start(trainer)

    seen = []

    class Watch(Callback):
        def on_epoch_end(self, trainer, metrics):
            seen.append(trainer.controller.first.weight.detach().clone())

    config = TrainConfig(**SHORT | {"epochs": 4}, out=tmp_path / "run", record=())
    whole = Trainer(system, Net(), config, [Watch(), Schedule()])
    whole.fit()
    assert not seen[0].equal(Net().first.weight)
    assert seen[1].equal(seen[0])
    assert not seen[2].equal(seen[1])
    assert seen[3].equal(seen[2])

    for epochs in (1, 2, 3, 4):  # stopped and taken up after each epoch, it is the same run
        part = TrainConfig(**SHORT | {"epochs": epochs}, out=tmp_path / "parts", record=())
        pieces = Trainer(system, Net(), part, [Schedule()])
        pieces.fit()
    for name, value in whole.controller.state_dict().items():
        assert value.equal(pieces.controller.state_dict()[name])


def test_nothing_left_to_train_is_said():
    class FreezeAll(Callback):
        def on_epoch_end(self, trainer, metrics):
            trainer.controller.requires_grad_(False)

    with pytest.raises(ValueError, match="no parameter of the controller requires a gradient any more"):
        Trainer(make_system(), Net(), TrainConfig(**SHORT), [FreezeAll()]).fit()


@pytest.mark.parametrize("seed", range(20))
def test_a_saturated_bound_hides_nothing(seed):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 64), nn.Linear(64, 1)

        def forward(self, x):
            return 50.0 * self.last(torch.relu_(self.first(x)))

    system = CartPole(horizon=30, max_force=10.0)
    torch.manual_seed(seed)
    net = InPlace()
    found = policy_gradient(system, net, states(system), "R").directions
    assert_equal(found, AutogradEngine(system, net)(states(system), (REGULAR,))[1][REGULAR])


def test_what_no_fingerprint_shows_is_watched_for():
    hidden = {"mixing": 0.0}  # which the class refers to, and no instance holds

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            y = self.layer(x)
            return y + hidden["mixing"] * y.mean(0)

    torch.manual_seed(0)
    system, net = CartPole(horizon=8, objective="continuous"), Mixing()  # long enough for the means of steps to differ
    assert policy_gradient(system, net, states(system), "R").engine == "adjoint"
    hidden["mixing"] = 1.0
    with pytest.warns(
        UserWarning, match="falls back to the slower autograd engine for Mixing: its actions differ when"
    ):
        found = policy_gradient(system, net, states(system), "R")
    assert_equal(found.directions, AutogradEngine(system, net)(states(system), (REGULAR,))[1][REGULAR])
    assert found.engine == "autograd"
