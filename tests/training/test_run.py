"""A run lets any learner learn: judged, saved, recorded, taken up again."""

import copy
import csv
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from bptt_envs.systems import CartPole
from bptt_trainers import (
    MLP,
    Callback,
    NonFiniteError,
    RunFolderError,
    TrainConfig,
    held_out_states,
    losses,
    rollout,
    training_states,
)
from bptt_trainers.training.books import Books
from bptt_trainers.training.learner import Learner, Update
from bptt_trainers.training.run import Run

CONFIG = TrainConfig(epochs=4, record=())


class RandomSearch(Learner):
    """Keeps a random change of the weights if it lowers the training loss; objects to the update of that number."""

    updates_per_epoch = 3

    def __init__(self, objects_to=None):
        self.system, self.objects_to = CartPole(horizon=4), objects_to
        self.net = MLP(self.system.observation_shape, self.system.action_shape, hidden=(4,))
        self.train_states, self.test_states = training_states(self.system, 6, 0), held_out_states(self.system, 5)

    @property
    def policy(self):
        return self.net

    @contextmanager
    def session(self):
        with torch.random.fork_rng(), torch.no_grad():
            yield

    def begin(self):
        torch.manual_seed(0)
        for parameter in self.net.parameters():
            parameter.copy_(torch.randn_like(parameter))

    def update(self, number):
        yield from ()
        before, loss = copy.deepcopy(self.net.state_dict()), self.evaluate(self.train_states)
        for parameter in self.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if self.evaluate(self.train_states) > loss:
            self.net.load_state_dict(before)
        return Update(1.0, 10, loss, number + 0.5, "it does not want to" if number == self.objects_to else None)

    def trajectory(self, states):
        return rollout(self.system, self.net, states)

    def state_dict(self):
        return {"controller": copy.deepcopy(self.net.state_dict())}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["controller"])


class StopAfter(Callback):
    """Interrupts after so many updates."""

    def __init__(self, updates):
        self.left = updates

    def on_update_end(self, run, loss, direction_norm):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def run(folder=None, callbacks=(), learner=None, description=None, **changes):
    books = None if folder is None else Books(folder)
    learner = RandomSearch() if learner is None else learner
    return Run(learner, replace(CONFIG, **changes), books, description or {"method": "search"}, callbacks)


def test_the_books_say_what_the_updates_said():
    learner = RandomSearch()
    history = run(learner=learner).fit()
    assert [row.epoch for row in history] == [0, 1, 2, 3, 4]
    assert [row.simulator_steps for row in history] == [0, 30, 60, 90, 120]
    assert [row.seconds for row in history] == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert [row.direction_norm for row in history[1:]] == [1.5, 4.5, 7.5, 10.5]
    assert all(math.isnan(row.cosine) for row in history)
    expected = losses(learner.system, rollout(learner.system, learner.net, learner.test_states)).mean()
    assert history[-1].test_loss == pytest.approx(float(expected), rel=1e-6)
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("updates", [1, 3, 8])
def test_a_learner_of_ones_own_goes_on_bit_for_bit(tmp_path, updates):
    whole = run(tmp_path / "whole", record=("csv",))
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", [StopAfter(updates)], record=("csv",)).fit()
    parts = run(tmp_path / "parts", record=("csv",))
    parts.fit()
    for name, one in whole.learner.net.state_dict().items():
        assert torch.equal(one, parts.learner.net.state_dict()[name])
    assert [replace(row, sign_agreement=0, cosine=0, direction_norm=0) for row in parts.history] == [
        replace(row, sign_agreement=0, cosine=0, direction_norm=0) for row in whole.history
    ]
    with (tmp_path / "parts" / "updates.csv").open() as file:
        assert [float(row["seconds"]) for row in csv.DictReader(file)] == list(range(1, 13))
    best = Books(tmp_path / "parts").load("best")
    assert best["train_loss"] == min(row.train_loss for row in whole.history)


def test_an_update_that_was_not_made_stops_the_run_or_is_counted(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"in epoch 2, update 2 of 3, it does not want to .*last\.pt holds the state"
    ):
        run(tmp_path, learner=RandomSearch(objects_to=4)).fit()
    history = run(learner=RandomSearch(objects_to=4), on_nonfinite="skip").fit()
    assert [row.skipped for row in history] == [0, 0, 1, 0, 0]
    assert history[2].direction_norm == 4.5  # of updates 3 and 5


def test_a_folder_of_another_description_or_of_more_epochs_is_refused(tmp_path):
    run(tmp_path).fit()
    with pytest.raises(RunFolderError, match="method: 'search' in the folder, 'other' asked for"):
        run(tmp_path, description={"method": "other"}).fit()
    with pytest.raises(RunFolderError, match="has 4 epochs already; epochs=2 asks for fewer"):
        run(tmp_path, epochs=2).fit()
    assert run(tmp_path, epochs=5).fit()[-1].epoch == 5
