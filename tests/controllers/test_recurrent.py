"""Cells are torch's, what is remembered ends with its episode, and `predict` hands it on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole
from bptt_trainers import GRU, LSTM, Ensemble, RunFolder, TrainConfig, Trainer, default_controller, losses, rollout
from bptt_trainers.training.ensemble import variations


@pytest.mark.parametrize(("kind", "cell", "parts"), [(GRU, nn.GRUCell, 1), (LSTM, nn.LSTMCell, 2)])
def test_the_cells_are_torchs(kind, cell, parts):
    controller = kind((3,), (2,), (5, 4)).double()
    observation, memory = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 9 * parts, dtype=torch.float64)
    action, after = controller(observation, memory)
    x, remembered = observation, []
    pieces = memory.split([5] * parts + [4] * parts, dim=-1)
    for i, (own, inputs, width) in enumerate(zip(controller.cells, (3, 5), (5, 4), strict=True)):
        theirs = cell(inputs, width).double()
        theirs.load_state_dict(
            {
                "weight_ih": own["seen"].weight,
                "bias_ih": own["seen"].bias,
                "weight_hh": own["remembered"].weight,
                "bias_hh": own["remembered"].bias,
            }
        )
        mine = pieces[parts * i : parts * (i + 1)]
        now = theirs(x, mine[0] if parts == 1 else tuple(mine))
        now = (now,) if parts == 1 else now
        x = now[0]
        remembered += now
    torch.testing.assert_close(after, torch.cat(remembered, -1))
    torch.testing.assert_close(action, controller.head(x))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_it_is_named_bounded_and_drawn_from_its_seed(kind):
    system = CartPole(max_force=3.0, observation="positions")
    one, same, other = (default_controller(system, seed, (6,), kind, squash=True) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    action, _ = one(1e3 * torch.randn(9, 3), torch.zeros(9, *one.memory_shape))
    assert action.abs().max() <= 3.0
    assert one.settings == {"hidden": [6], "squash": [[-3.0], [3.0]]}


def test_predict_goes_through_an_episode_as_a_rollout_does():
    system = CartPole(horizon=6)
    controller = default_controller(system, 0, (5,), "lstm")
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    trajectory = rollout(system, controller, states)
    remembered, begins = None, np.ones(3, dtype=bool)
    for _ in range(2):  # what is left of the first episode does not count in the second
        for t in range(6):
            actions, remembered = controller.predict(trajectory.states[t].numpy(), remembered, begins)
            np.testing.assert_allclose(actions, trajectory.actions[t].numpy(), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(remembered[0], trajectory.memories[t + 1].numpy(), rtol=1e-5, atol=1e-6)
            begins = np.zeros(3, dtype=bool)
        begins = np.ones(3, dtype=bool)
    single, after = controller.predict(trajectory.states[0, 0].numpy())
    assert single.shape == (1,)
    assert after[0].shape == (1, 10)


@pytest.mark.parametrize(
    ("state", "begins", "message"),
    [
        (np.zeros((3, 10)), None, r"state must be what predict handed back, a tuple of numbers of shape \(3, 10\)"),
        ((np.zeros((2, 10)),), None, "state must be what predict handed back"),
        ((np.zeros((3, 10)),), [True, False], r"episode_start must be booleans of shape \(3,\)"),
        (None, np.ones(2, dtype=bool), r"episode_start must be booleans of shape \(3,\)"),
        ((np.zeros((3, 10)),), np.zeros(3), r"episode_start must be booleans of shape \(3,\)"),
    ],
)
def test_predict_refuses_other_memories(state, begins, message):
    controller = default_controller(CartPole(), 0, (5,), "lstm")
    with pytest.raises(ValueError, match=message):
        controller.predict(np.zeros((3, 4)), state, begins)


@pytest.mark.parametrize(("hidden", "message"), [((), "at least one width"), ((0,), "hidden"), (3, "hidden")])
def test_widths_that_are_none_are_refused(hidden, message):
    with pytest.raises(ValueError, match=message):
        GRU((3,), (1,), hidden)


TINY = TrainConfig(
    epochs=3, train_states=8, batch_size=4, test_states=8, controller="gru", hidden=(5,), record=("tensorboard",)
)


def system():
    return CartPole(horizon=8, observation="positions")


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.controller.parameters()]


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_a_run_is_resumed_bit_for_bit_and_loaded(tmp_path, engine):
    config = replace(TINY, engine=engine)
    whole = Trainer(system(), config=config)
    history = whole.fit()
    assert [epoch.test_loss for epoch in history] != [history[0].test_loss] * 4
    Trainer(system(), config=replace(config, epochs=1, out=tmp_path)).fit()
    resumed = Trainer(system(), config=replace(config, out=tmp_path))
    resumed.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    loaded, _ = RunFolder(tmp_path).load_controller(system(), "last")
    assert isinstance(loaded, GRU)
    trajectory = rollout(system(), loaded, resumed.test_states)
    assert float(losses(system(), trajectory).mean()) == pytest.approx(history[-1].test_loss, rel=1e-5)


@pytest.mark.parametrize("rule", ["R", "M", "C", "M without memory"])
def test_an_ensemble_trains_as_its_members_do_alone(rule):
    configs = variations(replace(TINY, rule=rule), seeds=(0, 1))
    together = Ensemble(system(), configs)
    together.fit()
    for member, config in zip(together.members, configs, strict=True):
        alone = Trainer(system(), config=config)
        alone.fit()
        for one, other in zip(weights(member), weights(alone), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_hidden_memory_is_refused_with_the_way_to_do_it():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head, self.memory = nn.GRUCell(3, 5), nn.Linear(5, 1), None

        def forward(self, observation):
            if self.memory is None or len(self.memory) != len(observation):
                self.memory = observation.new_zeros(len(observation), 5)
            self.memory = self.cell(observation, self.memory).detach()
            return self.head(self.memory)

    with pytest.raises(ValueError, match=r"keeps state between calls.* with an attribute memory_shape it gets"):
        Trainer(system(), Hidden(), replace(TINY, controller="default", hidden=None, engine="autograd")).fit()


def test_diagnostics_say_that_they_need_one_without_memory():
    with pytest.raises(ValueError, match="diagnostics need a controller without memory and noise; got a GRU"):
        Trainer(system(), config=replace(TINY, record=("diagnostics",)))
