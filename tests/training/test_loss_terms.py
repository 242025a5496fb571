"""Terms of a user's own in the loss that is trained on."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch

from bptt_trainers import RunFolder, RunFolderError, TrainConfig, Trainer

TINY = TrainConfig(epochs=2, batch_size=4, train_states=8, test_states=6, hidden=(8,), record=())


@pytest.fixture
def env():
    return gym.make("DiffIntegrator-v0")


def effort(state, action, next_state):
    return 10.0 * action.square().sum(-1)


def size(controller):
    return 0.5 * sum(parameter.square().sum() for parameter in controller.parameters())


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
def test_an_extra_cost_is_trained_on_and_not_reported(env, engine):
    config = replace(TINY, rule="R", engine=engine)
    trainer = Trainer(env, config=config, extra_cost=effort)
    states = trainer.train_states[:4]
    plain = Trainer(env, config=config)
    plain.controller.load_state_dict(trainer.controller.state_dict())
    assert trainer.evaluate(states) == plain.evaluate(states)

    loss, passes = trainer.choice.engine(states, trainer.rule.passes)
    (direction,) = passes.values()
    system, controller = trainer.system, trainer.controller
    state, total = states, torch.zeros(4)
    for _ in range(system.horizon):
        action = system.bound(controller(system.observe(state)))
        following = system.step(state, action)
        total = total + system.running_cost(state, action, following) + effort(state, action, following)
        state = following
    total = total + system.final_cost(state)
    expected = torch.autograd.grad(total.mean(), list(controller.parameters()))
    torch.testing.assert_close(loss, total.detach())
    torch.testing.assert_close(list(direction.values()), list(expected), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_regularizer_is_added_to_the_direction(env):
    config = replace(TINY, epochs=1, train_states=4, optimizer="SGD", learning_rate=0.5, seed=3)
    plain, decayed = Trainer(env, config=config), Trainer(env, config=config, regularizer=size)
    start = {name: one.detach().clone() for name, one in plain.parameters.items()}
    plain.fit()
    decayed.fit()
    for name, one in start.items():  # the gradient of half the sum of squares is the weights themselves
        torch.testing.assert_close(decayed.parameters[name], plain.parameters[name] - 0.5 * one)


def test_terms_are_recorded_and_another_one_is_another_run(env, tmp_path):
    config = replace(TINY, out=tmp_path / "run")
    history = Trainer(env, config=config, extra_cost=effort, regularizer=size).fit()
    assert RunFolder(config.out).read_config()["own"].keys() == {"extra_cost", "regularizer"}
    again = Trainer(env, config=config, extra_cost=effort, regularizer=size).fit()
    assert [row.test_loss for row in again] == [row.test_loss for row in history]
    with pytest.raises(RunFolderError, match=r"own\.extra_cost"):
        Trainer(env, config=config, regularizer=size).fit()
    with pytest.raises(RunFolderError, match=r"own\.extra_cost"):
        Trainer(env, config=config, extra_cost=lambda s, a, n: 0.5 * effort(s, a, n), regularizer=size).fit()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra_cost": 3}, "extra_cost must be a function"),
        ({"extra_cost": lambda state, action, following: action.square()}, "extra_cost is no cost of a step"),
        ({"extra_cost": lambda state, action, following: action.square().mean().expand(len(action))}, "extra_cost"),
        ({"regularizer": "L2"}, "regularizer must be a function"),
        ({"regularizer": lambda controller: 1.0}, "regularizer must return a tensor"),
        ({"regularizer": lambda controller: torch.tensor(1.0)}, "depends on none"),
        ({"regularizer": lambda controller: next(controller.parameters())}, "one real number"),
        ({"regularizer": lambda controller: size(controller) * 1j}, "one real number .*complex64"),
    ],
)
def test_terms_that_cannot_be_used_are_refused_before_training(env, given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Trainer(env, config=TINY, **given)


def test_diagnostics_look_at_the_loss_that_is_trained_on(env):
    def diagnoses(**given):
        trainer = Trainer(env, config=replace(TINY, epochs=1, record=("diagnostics",), learning_rate=1e-12), **given)
        trainer.fit()
        return trainer.callbacks[-1].diagnoses[0].norms, trainer.history[-1].direction_norm

    plain, _ = diagnoses()
    costly, trained = diagnoses(extra_cost=effort)
    assert costly[2].sum() > 2 * plain[2].sum()
    assert (costly[2] ** 2).sum() ** 0.5 == pytest.approx(trained, rel=0.5)


def test_a_regularizer_goes_with_frozen_parameters_and_an_average(env):
    trainer = Trainer(env, config=replace(TINY, average=0.5), regularizer=size)
    for parameter in list(trainer.controller.parameters())[:2]:
        parameter.requires_grad_(False)
    frozen = [parameter.detach().clone() for parameter in trainer.controller.parameters()]
    trainer.fit()
    moved = [not torch.equal(a, b) for a, b in zip(frozen, trainer.controller.parameters(), strict=True)]
    assert moved == [False, False, True, True]
