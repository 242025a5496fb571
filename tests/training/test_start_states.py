"""Which start states a run visits: fixed, shuffled, fresh, the user's own."""

from dataclasses import replace

import gymnasium as gym
import pytest
import torch

import bptt_envs
from bptt_trainers import Callback, Ensemble, RunFolder, RunFolderError, TrainConfig, Trainer
from bptt_trainers.training.start_states import held_out_states, training_states, validation_states

TINY = TrainConfig(epochs=3, batch_size=4, train_states=10, test_states=6, hidden=(8,), record=())
KINDS = ("fixed", "shuffled", "fresh")


@pytest.fixture
def env():
    return gym.make("DiffCartPole-v0", horizon=5)


class Visits(Trainer):
    """Notes the start states of each update."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.visited = []

    def answer(self, query):
        if hasattr(query, "rule"):
            self.visited.append(query.states.clone())
        super().answer(query)


def epochs_of(trainer):
    trainer.fit()
    whole = torch.cat(trainer.visited)
    return whole.split(trainer.config.train_states)


def as_set(states):
    return {tuple(row) for row in states.tolist()}


def test_fixed_states_come_in_one_order_shuffled_ones_in_another_fresh_ones_once(env):
    one, two, three = epochs_of(Visits(env, config=TINY))
    assert torch.equal(one, two)
    assert torch.equal(two, three)
    assert torch.equal(one, training_states(env.unwrapped.system, 10, TINY.seed))

    shuffled = epochs_of(Visits(env, config=replace(TINY, start_states="shuffled")))
    assert as_set(shuffled[0]) == as_set(shuffled[1]) == as_set(one)
    assert not torch.equal(shuffled[0], shuffled[1])

    fresh = epochs_of(Visits(env, config=replace(TINY, start_states="fresh")))
    assert len(as_set(torch.cat([*fresh, one]))) == 40


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_loss_is_that_over_the_same_states_in_every_epoch(env, kind):
    trainer = Trainer(env, config=replace(TINY, start_states=kind, learning_rate=1e-12, epochs=2))
    history = trainer.fit()
    assert history[1].train_loss == pytest.approx(history[2].train_loss, rel=1e-5)
    assert torch.equal(trainer.train_states, training_states(trainer.system, 10, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_simulator_steps_are_those_that_were_taken(env, kind):
    trainer = Visits(env, config=replace(TINY, start_states=kind))
    history = trainer.fit()
    taken = sum(len(states) for states in trainer.visited) * trainer.system.horizon
    assert history[-1].simulator_steps == taken == 3 * 10 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_visits_the_states_of_an_undisturbed_one(env, tmp_path, kind):
    class StopAfterOne(Callback):
        def on_epoch_end(self, trainer, metrics):
            return metrics.epoch < 1

    config = replace(TINY, start_states=kind)
    whole = Trainer(env, config=replace(config, out=tmp_path / "whole")).fit()
    Trainer(env, config=replace(config, out=tmp_path / "cut"), callbacks=[StopAfterOne()]).fit()
    resumed = Trainer(env, config=replace(config, out=tmp_path / "cut")).fit()
    assert [row.test_loss for row in resumed] == [row.test_loss for row in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_an_ensemble_visit_the_states_that_they_visit_alone(env, kind):
    configs = [replace(TINY, start_states=kind, seed=seed) for seed in (0, 1)]
    together = Ensemble(env, configs).fit()
    for config, history in zip(configs, together, strict=True):
        alone = Trainer(env, config=config).fit()
        assert history[-1].test_loss == pytest.approx(alone[-1].test_loss, rel=1e-4)


def test_seeds_have_fresh_states_of_their_own(env):
    first, second = (
        epochs_of(Visits(env, config=replace(TINY, start_states="fresh", seed=seed, epochs=1)))[0] for seed in (0, 1)
    )
    assert not as_set(first) & as_set(second)


def test_training_validation_and_held_out_states_have_none_in_common(env):
    system = env.unwrapped.system
    sets = [training_states(system, 64, 0), validation_states(system, 64), held_out_states(system, 64)]
    assert len(as_set(torch.cat(sets))) == 3 * 64


def test_a_set_of_the_users_own_is_trained_on_and_recorded(env, tmp_path):
    own = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    config = replace(TINY, out=tmp_path / "run")
    trainer = Visits(env, config=config, train_states=own, test_states=own[:2])
    assert (trainer.config.train_states, trainer.config.test_states) == (6, 2)
    one, *_ = epochs_of(trainer)
    assert torch.equal(one, own)
    assert RunFolder(tmp_path / "run").read_config()["own"].keys() == {"train_states", "test_states"}
    again = Trainer(env, config=config, train_states=own, test_states=own[:2]).fit()
    assert [row.test_loss for row in again] == [row.test_loss for row in trainer.history]
    with pytest.raises(
        RunFolderError, match=r"by Trainer\(..., train_states=float32 \(6, 4\), test_states=float32 \(2, 4\)\)"
    ):
        RunFolder(tmp_path / "run").check_complete()
    with pytest.raises(RunFolderError, match=r"own\.train_states"):
        Trainer(env, config=config, train_states=own + 1e-3, test_states=own[:2]).fit()


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_users_own_draws_the_states(env, kind):
    def draw(count, generator):
        return 0.1 * torch.randn(count, 4, generator=generator)

    one, two, _ = epochs_of(Visits(env, config=replace(TINY, start_states=kind), train_states=draw))
    assert float(one.abs().max()) < 1.0
    assert torch.equal(one, two) == (kind == "fixed")


def test_a_draw_gets_the_count_of_an_epoch_and_a_generator_that_the_seed_and_the_epoch_make(env):
    asked = []

    def draw(count, generator):
        states = torch.rand(count, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        asked.append((count, generator.device.type, tuple(states[0].tolist())))
        return states

    config = replace(TINY, start_states="fresh", epochs=2)
    trainer = Visits(env, config=config, train_states=draw)
    assert {states.dtype for states in (*epochs_of(trainer), trainer.train_states)} == {torch.float32}
    assert not trainer.train_states.requires_grad
    assert [one[:2] for one in asked] == [(10, "cpu")] * 3  # the first set, then each epoch's
    assert len({one[2] for one in asked}) == 3
    first, asked = asked, []
    Trainer(env, config=config, train_states=draw).fit()
    assert asked == first


def test_states_of_the_system_itself_do_where_the_time_is_shown():
    timed = gym.make("DiffCartPole-v0", horizon=5, observe_time=True)
    own = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(timed, config=TINY, train_states=own, test_states=own)
    assert torch.equal(trainer.train_states, timed.unwrapped.system.at_start(own))
    assert torch.equal(trainer.test_states, trainer.train_states)
    assert torch.equal(Trainer(timed, config=TINY, train_states=trainer.train_states).train_states[:, :4], own)
    with pytest.raises(ValueError, match="test_states must be a tensor of shape"):
        Trainer(timed, config=TINY, test_states=own[:, :3])


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({}, {"train_states": torch.zeros(6, 3)}, "train_states must be a tensor of shape"),
        ({}, {"train_states": torch.full((6, 4), float("nan"))}, "train_states must be one or more finite states"),
        ({}, {"train_states": [1.0]}, "train_states must be a tensor .* a function"),
        ({}, {"train_states": lambda count, generator: torch.zeros(count - 1, 4)}, "must be 10 start states"),
        ({}, {"train_states": torch.zeros(2, 4)}, "batch_size must be at most train_states"),
        ({"start_states": "fresh"}, {"train_states": torch.zeros(6, 4)}, "must be a function, not a set"),
        ({}, {"test_states": torch.zeros(0, 4)}, "test_states must be"),
    ],
)
def test_states_that_cannot_be_used_are_refused_before_training(env, changes, given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Trainer(env, config=replace(TINY, **changes), **given)


def test_fresh_states_of_a_system_of_the_users_own_need_nothing_of_it():
    class Own(bptt_envs.System):
        state_shape, action_shape = (1,), (1,)

        def __init__(self):
            super().__init__(horizon=3, dt=0.1)

        def step(self, state, action):
            return state + 0.1 * action

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.rand(batch, 1, generator=generator, dtype=dtype)

        def state_cost(self, state):
            return state.square().sum(-1)

    history = Trainer(Own(), config=replace(TINY, start_states="fresh", learning_rate=1e-2, epochs=8)).fit()
    assert history[-1].test_loss < history[0].test_loss
