"""Controllers and systems that a probe must see through, or leave alone."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole
from bptt_trainers import Ensemble, TrainConfig, Trainer, policy_gradient
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.rules import MODIFIED, REGULAR
from bptt_trainers.directions.snapshot import left_as_it_was
from bptt_trainers.training.ensemble import CannotStackError


def seeded(kind, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.first(x).tanh())


class Unused(Net):
    """One of its layers is not called."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 8)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.action = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.action.expand(len(x), 1)


class Mixed(Net):
    """Computes in part in float64."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 1).double()

    def forward(self, x):
        return self.last(self.first(x).tanh().double()).float()


class Caching(Net):
    """Keeps what it last computed, as one does to look at it."""

    def forward(self, x):
        self.hidden = self.first(x).tanh()
        return self.last(self.hidden)


class Largest(Net):
    """Divides by the largest that it ever saw."""

    def __init__(self):
        super().__init__()
        self.largest = torch.ones(())

    def forward(self, x):
        self.largest = torch.maximum(self.largest, x.detach().abs().max())
        return super().forward(x / self.largest)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope / len(slope)


class DividesByTheBatch(Net):
    def forward(self, x):
        return _Mean.apply(super().forward(x))


class CostOfWeights(CartPole):
    def __init__(self, net, **options):
        super().__init__(**options)
        self.net = net

    def running_cost(self, state, action, next_state):
        return super().running_cost(state, action, next_state) + 0.1 * self.net.first.weight.square().sum()


def directions(system, net, engine):
    states = system.initial_states(8, torch.Generator().manual_seed(1))
    other_system, other = copy.deepcopy((system, net))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = policy_gradient(system, net, states, "C")
    assert found.engine == engine
    assert [str(one.message) for one in caught if engine == "adjoint"] == []
    _, expected = AutogradEngine(other_system, other)(states, (REGULAR, MODIFIED))
    for feedback in (REGULAR, MODIFIED):
        scale = max(float(one.norm()) for one in expected[feedback].values())
        for name, one in expected[feedback].items():
            assert not found.passes[feedback][name].requires_grad
            assert float((found.passes[feedback][name] - one).norm()) <= 1e-4 * scale


@pytest.mark.parametrize("kind", [Unused, Constant, Mixed, Caching])
def test_served(kind):
    directions(CartPole(horizon=6, objective="continuous"), seeded(kind), "adjoint")


@pytest.mark.parametrize("kind", [Largest, DividesByTheBatch])
def test_not_served(kind):
    directions(CartPole(horizon=6, objective="continuous"), seeded(kind), "autograd")


def test_a_system_that_depends_on_what_is_trained_is_not_served():
    net = seeded(Net)
    directions(CostOfWeights(net, horizon=6), net, "autograd")


def test_an_ensemble_with_a_layer_that_is_not_called():
    config = TrainConfig(epochs=1, train_states=8, test_states=4)
    ensemble = Ensemble(CartPole(horizon=4), [config], (), [seeded(Unused)])
    assert len(ensemble.fit()[0]) == 2


def test_an_ensemble_refuses_what_cannot_be_copied_in_words():
    net = seeded(Net)
    net.lock = threading.Lock()
    config = TrainConfig(epochs=1, train_states=8, test_states=4)
    with pytest.raises(CannotStackError, match=r"controllers of type Net cannot be stacked \(cannot pickle .*lock"):
        Ensemble(CartPole(horizon=4), [config], (), [net])


@pytest.mark.filterwarnings("ignore:members of an ensemble train one by one")
def test_an_ensemble_of_controllers_that_keep_what_they_computed():
    configs = [TrainConfig(epochs=2, train_states=8, test_states=4, seed=seed) for seed in (0, 1)]
    found = Ensemble(CartPole(horizon=4), configs, (), [seeded(Caching), seeded(Caching)]).fit()
    alone = Trainer(CartPole(horizon=4), seeded(Caching), configs[0]).fit()
    assert found[0][-1].train_loss == pytest.approx(alone[-1].train_loss)


def test_a_cache_is_no_change():
    system, net = CartPole(horizon=4), seeded(Caching)
    config = TrainConfig(epochs=4, train_states=8, test_states=4)
    trainer = Trainer(system, net, config)
    judgement = trainer.choice.engine._judgement
    trainer.fit()
    assert trainer.choice.engine._judgement is judgement


def test_nan_in_a_buffer_is_left_alone():
    module = nn.BatchNorm1d(4)
    module.running_mean.fill_(float("nan"))
    version = module.running_mean._version
    with left_as_it_was(module):
        pass
    assert module.running_mean._version == version


def test_what_slots_hold_is_put_back():
    class Memory:
        __slots__ = ("count",)

    module = nn.Linear(4, 1)
    module.memory = Memory()
    module.memory.count = 1
    with left_as_it_was(module):
        module.memory.count += 1
    assert module.memory.count == 1


def test_no_device_is_seeded(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    policy_gradient(CartPole(horizon=4), Net(), torch.zeros(3, 4))
    assert seeds == []
