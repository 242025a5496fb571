"""compile="auto": uncompiled at once, compiled from an epoch on, and a resumed run knows from which."""

import pytest
import torch

from bptt_envs.program import CompilerError
from bptt_envs.systems import CartPole
from bptt_trainers import Callback, SHACConfig, TrainConfig, Trainer, default_controller
from bptt_trainers.directions import switching
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import get_rule
from bptt_trainers.training.ensemble import CannotStackError, Ensemble, variations

SETTINGS = {"batch_size": 3, "train_states": 6, "test_states": 3, "hidden": (6, 5)}
TINY = SETTINGS | {"epochs": 4, "compile": "auto"}


class Program:
    """Stands in for `bptt_envs.program.Program`: the function itself."""

    def __init__(self, function, inputs):
        self.function = function

    def __call__(self, *inputs):
        with torch.no_grad():
            return list(self.function(*inputs))

    again = __call__


class Order:
    """Stands in for `bptt_envs.program.Order`: nothing is recorded."""

    def __init__(self, function, inputs):
        self.shapes = [tuple(one.shape) for one in inputs]


class Maker:
    """Stands in for `bptt_envs.maker.Maker`: it is asked before an epoch, and has made all when asked twice."""

    asked_for = 2
    error = None

    def __init__(self):
        self.orders, self.asked = [], 0

    def make(self, orders):
        self.orders += orders

    def finished(self):
        if self.error is not None:
            raise self.error
        self.asked += 1
        return self.asked >= self.asked_for

    def close(self):
        self.orders = []


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Program)
    monkeypatch.setattr("bptt_trainers.directions.compiled.Order", Order)
    monkeypatch.setattr(switching, "Maker", Maker)


def used(trainer):
    return type(trainer.learner.choice.engine._fast)


class Seen(Callback):
    """Keeps what computes in each epoch, and stops in the middle of one."""

    def __init__(self, stop_in=None):
        self.engines, self.stop_in = [], stop_in

    def on_update_end(self, trainer, loss, norm):
        if trainer.epoch == len(self.engines):
            self.engines.append(used(trainer))
        if trainer.epoch == self.stop_in:
            raise KeyboardInterrupt


def test_a_run_is_compiled_from_an_epoch_on():
    seen = Seen()
    trainer = Trainer(CartPole(horizon=4), config=TrainConfig(**TINY), callbacks=[seen])
    trainer.fit()
    assert seen.engines == [AdjointEngine, AdjointEngine, CompiledEngine, CompiledEngine]
    assert trainer.learner.choice.reason.endswith("; compiled")
    plain = Trainer(CartPole(horizon=4), config=TrainConfig(**{**TINY, "compile": False}))
    plain.fit()
    assert [one.test_loss for one in trainer.history[:3]] == [one.test_loss for one in plain.history[:3]]
    assert trainer.history[4].test_loss == pytest.approx(plain.history[4].test_loss, rel=1e-4)


@pytest.mark.parametrize("kind", [TrainConfig, SHACConfig])
def test_a_resumed_run_is_compiled_from_the_same_epoch_on(kind, tmp_path, monkeypatch):
    system = CartPole(horizon=4)
    settings = TINY | ({"window": 2} if kind is SHACConfig else {})

    class StopAfter(Callback):
        def on_epoch_end(self, trainer, metrics):
            return metrics.epoch < epochs

    def run(name):
        trainer = Trainer(system, config=kind(**settings, out=tmp_path / name), callbacks=[StopAfter()])
        trainer.fit()
        return trainer

    epochs = 4
    straight = run("straight")
    epochs = 3
    run("parts")
    monkeypatch.setattr(Maker, "asked_for", 100)  # it knows from its folder
    epochs = 4
    resumed = run("parts")
    assert used(resumed) is CompiledEngine
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["compiled_from"] == 2
    for one, other in zip(straight.history, resumed.history, strict=True):
        assert (one.train_loss, one.test_loss) == (other.train_loss, other.test_loss)
    for one, other in zip(straight.controller.parameters(), resumed.controller.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_epoch_that_is_lost_takes_the_programs_back():
    trainer = Trainer(CartPole(horizon=4), config=TrainConfig(**TINY), callbacks=[Seen(stop_in=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.epoch == 2
    assert used(trainer) is AdjointEngine
    assert not trainer.learner.choice.reason.endswith("compiled")


def test_where_programs_cannot_be_made_a_run_goes_on_and_says_so_once(monkeypatch):
    monkeypatch.setattr(Maker, "error", CompilerError("there is no room"))
    trainer = Trainer(CartPole(horizon=4), config=TrainConfig(**TINY))
    with pytest.warns(UserWarning, match="compile='auto' goes on uncompiled: there is no room") as seen:
        trainer.fit()
    assert len(seen) == 1
    assert trainer.epoch == 4
    assert used(trainer) is AdjointEngine


def test_programs_are_ordered_for_every_shape_and_rule_of_an_epoch():
    trainer = Trainer(CartPole(horizon=4), config=TrainConfig(**{**TINY, "rule": "R", "epochs": 1, "train_states": 7}))
    ordered = []
    trainer.learner.choice.engine._switch._maker.make = ordered.extend
    trainer.fit()
    batches = [one.shapes[0] for one in ordered]  # of states: (B, 4) on the way there, (S + 1, B, 4) on the way back
    # For R alone, as M is compared with it too seldom; the last batch has one state
    assert sorted(batches) == sorted([(3, 4), (5, 3, 4), (1, 4), (5, 1, 4)])


def test_from_python_the_caller_says_when():
    system = CartPole(horizon=4)
    controller = default_controller(system, hidden=(6, 5))
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    passes = get_rule("C").passes
    engine = choose_engine(system, controller, states, compile="auto").engine
    assert not engine.switch()  # nothing is asked for yet
    uncompiled = engine(states, passes)[0]
    assert [engine.switch() for _ in range(3)] == [False, True, False]
    torch.testing.assert_close(engine(states, passes)[0], uncompiled)
    assert isinstance(engine._fast, CompiledEngine)
    plain = choose_engine(system, controller, states, compile=False).engine
    plain(states, passes)
    assert not plain.switch(wait=True)


def test_what_cannot_be_compiled_so_is_refused():
    system = CartPole(horizon=4)
    with pytest.raises(ValueError, match=r"compile must be True, False or 'auto'; got 'yes'\."):
        TrainConfig(compile="yes")
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="compile='auto' compiles the adjoint engine"):
        choose_engine(system, default_controller(system), states, "autograd", compile="auto")
    with pytest.raises(CannotStackError, match="an ensemble is compiled from its start or not; got compile='auto'"):
        Ensemble(system, variations(TrainConfig(**TINY), seeds=[0, 1]))
