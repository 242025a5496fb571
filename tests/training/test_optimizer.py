"""How weights move: the falling learning rate, the average of the weights, random masks; and all of it resumed."""

import math
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from torch import nn

from bptt_trainers import MLP, Callback, Ensemble, RunFolder, RunFolderError, TrainConfig, Trainer, losses, rollout
from bptt_trainers.training.optimizer import Optimizer
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.start_states import MASKS, stream_seed

TINY = TrainConfig(epochs=4, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=())
MIXED = replace(
    TINY,
    combine="random",
    final_learning_rate=0.0,
    adam_betas=(0.8, 0.95),
    amsgrad=True,
    average=0.7,
    clip="norm",
    clip_threshold=0.5,
    weight_decay=0.01,
    schedule="linear",
    warmup=0.3,
)


def cart_pole():
    return gym.make("DiffCartPole-v0", horizon=10)


def guidance():
    """In a tenth of the components R and M have different signs."""
    return gym.make("DiffGuidance-v0", horizon=10)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Watch(Callback):
    """Keeps the weights after each update and at the end of each epoch; may raise once, or spoil updates."""

    def __init__(self, stop=None):
        self.stop = stop
        self.after_updates, self.after_epochs = [], []

    def on_update_end(self, trainer, loss, direction_norm):
        self.after_updates.append(flat(trainer.controller))
        if self.stop is not None and trainer.epoch == self.stop:
            self.stop = None
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer, metrics):
        self.after_epochs.append(flat(trainer.controller))


def flat(controller):
    return torch.cat([parameter.detach().flatten() for parameter in controller.parameters()])


# The learning rate


def test_the_learning_rate_falls_along_half_a_cosine():
    parameters = {"w": nn.Parameter(torch.zeros(1, dtype=torch.float64))}
    config = TrainConfig(learning_rate=0.1, final_learning_rate=0.02)
    optimizer = Optimizer(parameters, config, updates=100)
    assert optimizer.learning_rate(0) == 0.1
    assert optimizer.learning_rate(50) == pytest.approx(0.06)
    assert optimizer.learning_rate(100) == pytest.approx(0.02)
    rates = [optimizer.learning_rate(update) for update in range(101)]
    assert rates == sorted(rates, reverse=True)
    steps = torch.optim.SGD(parameters.values(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, T_max=100, eta_min=0.02)
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        steps.step()
        schedule.step()
    constant = Optimizer(parameters, TrainConfig(learning_rate=0.1), updates=100)
    assert constant.learning_rate(0) == constant.learning_rate(99) == 0.1


def rates(updates, **settings):
    parameters = {"w": nn.Parameter(torch.zeros(1))}
    optimizer = Optimizer(parameters, TrainConfig(learning_rate=0.1, **settings), updates)
    return [optimizer.learning_rate(update) for update in range(updates)]


def test_it_may_fall_linearly():
    assert rates(5, schedule="linear", final_learning_rate=0.0) == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02])
    assert rates(4, schedule="linear", final_learning_rate=0.02) == pytest.approx([0.1, 0.08, 0.06, 0.04])
    assert rates(4, schedule="linear") == [0.1] * 4


@pytest.mark.parametrize(
    "settings", [{}, {"final_learning_rate": 0.01}, {"final_learning_rate": 0.0, "schedule": "linear"}]
)
def test_it_rises_over_the_warmup_to_what_it_is_without(settings):
    plain = rates(100, **settings)
    for warmup, rising in ((0.1, 10), (0.125, 12.5), (0.005, 0.5), (0.99, 99)):
        wanted = [rate * min(1.0, (update + 1) / rising) for update, rate in enumerate(plain)]
        assert rates(100, warmup=warmup, **settings) == pytest.approx(wanted, rel=1e-12)
    assert rates(100, warmup=0.0, **settings) == plain


def test_each_update_steps_at_its_learning_rate():
    # With betas of 0 and no epsilon to speak of, Adam steps by the learning rate against the sign of the direction
    config = replace(
        TINY, rule="R", adam_betas=(0.0, 0.0), adam_epsilon=1e-30, learning_rate=0.1, final_learning_rate=0.0
    )
    watch = Watch()
    trainer = Trainer(cart_pole(), None, config, [watch])
    before = flat(trainer.controller)
    trainer.fit()
    assert len(watch.after_updates) == 12
    for update, after in enumerate(watch.after_updates):
        wanted = 0.1 * (1 + math.cos(math.pi * update / 12)) / 2
        assert float((after - before).abs().max()) == pytest.approx(wanted, rel=1e-3)
        before = after


def test_a_skipped_update_is_time_passing(monkeypatch):
    taken = []
    monkeypatch.setattr(Optimizer, "step", lambda self, update, direction, norm: taken.append(update))

    class Breaking(nn.Linear):
        calls = 0

        def forward(self, observation):
            self.calls += self.training
            return super().forward(observation) * (math.nan if 0 < self.calls <= 10 else 1.0)

    config = replace(TINY, engine="autograd", on_nonfinite="skip", rule="R", epochs=2)
    history = Trainer(cart_pole(), Breaking(4, 1), config).fit()
    assert sum(row.skipped for row in history) > 0
    assert taken == list(range(sum(row.skipped for row in history), 6))


@pytest.mark.parametrize("changing", [{"final_learning_rate": 1e-4}, {"warmup": 0.5}])
def test_with_a_learning_rate_that_changes_the_number_of_epochs_stands(tmp_path, changing):
    config = replace(TINY, **changing, out=tmp_path / "run")
    trainer = Trainer(cart_pole(), None, config)
    trainer.fit()
    assert not trainer.lengthens
    assert len(Trainer(cart_pole(), None, replace(config, keep_every=2)).fit()) == 5
    for epochs in (3, 6):
        with pytest.raises(
            RunFolderError,
            match=f"another configuration.*\n.*training.epochs: 4 .* {epochs} asked for .its step sizes follow from",
        ):
            Trainer(cart_pole(), None, replace(config, epochs=epochs)).fit()


# The average of the weights


def test_the_average_is_the_weighted_mean_of_the_weights_after_each_update():
    watch, plain = Watch(), Watch()
    trainer = Trainer(cart_pole(), None, replace(TINY, average=0.7), [watch])
    untrained = flat(trainer.controller)
    history = trainer.fit()
    Trainer(cart_pole(), None, TINY, [plain]).fit()
    for one, other in zip(watch.after_updates, plain.after_updates, strict=True):
        assert torch.equal(one, other)  # averaging changes nothing of what is trained
    for epoch, average in enumerate(watch.after_epochs, start=1):
        n = 3 * epoch
        shares = torch.tensor([0.7 ** (n - i) for i in range(1, n + 1)])
        wanted = shares / shares.sum() @ torch.stack(watch.after_updates[:n])
        torch.testing.assert_close(average, wanted, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(average, watch.after_updates[n - 1], rtol=1e-3)
    assert torch.equal(flat(trainer.controller), watch.after_epochs[-1])
    assert not torch.equal(untrained, watch.after_epochs[0])
    assert len(history) == 5


def test_what_is_judged_and_kept_is_the_average(tmp_path):
    config = replace(TINY, average=0.9, keep_every=1, learning_rate=0.03, out=tmp_path / "run")
    watch = Watch()
    trainer = Trainer(cart_pole(), None, config, [watch])
    history = trainer.fit()
    folder = RunFolder(tmp_path / "run")
    names = [*folder.kept().values(), "last", "best"]
    assert len(names) == 7
    for name in names:
        controller, checkpoint = folder.load_controller(trainer.system, name)
        if checkpoint["epoch"]:
            assert torch.equal(flat(controller), watch.after_epochs[checkpoint["epoch"] - 1])
        for states, column in ((trainer.train_states, "train_loss"), (trainer.test_states, "test_loss")):
            loss = float(losses(trainer.system, rollout(trainer.system, controller, states)).mean())
            assert loss == pytest.approx(getattr(history[checkpoint["epoch"]], column), rel=1e-6)
    trained = folder.load("last")["trained_weights"]
    assert torch.equal(torch.cat([part.flatten() for part in trained.values()]), watch.after_updates[-1])


def test_buffers_are_those_of_the_trained_weights():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))

    trained = []
    for average in (0.0, 0.9):
        trainer = Trainer(cart_pole(), make(), replace(TINY, engine="autograd", average=average))
        trainer.fit()
        trained.append(trainer.controller)
    assert_same(dict(trained[0].named_buffers()), dict(trained[1].named_buffers()))
    assert not torch.equal(flat(trained[0]), flat(trained[1]))


def test_weights_that_are_set_before_training_are_those_that_are_trained():
    trainers = [Trainer(cart_pole(), None, replace(TINY, average=0.5, seed=seed)) for seed in (0, 0, 1)]
    for trainer in trainers[1:]:
        trainer.train_states = trainers[0].train_states
        trainer.controller.load_state_dict(trainers[0].controller.state_dict())
    for trainer in trainers:
        trainer.fit()
    assert_same(trainers[0].controller.state_dict(), trainers[2].controller.state_dict())


# Random masks


def test_every_update_and_seed_has_random_places_of_its_own(monkeypatch):
    seen = []
    step = Optimizer.step

    def spied(self, update, direction, norm):
        seen.append(direction != 0)
        step(self, update, direction, norm)

    monkeypatch.setattr(Optimizer, "step", spied)
    still = replace(TINY, combine="random", epochs=2, batch_size=12, learning_rate=1e-30)
    for seed in (0, 0, 1):  # of one set of weights and states
        trainer, same = (Trainer(guidance(), None, replace(still, seed=one)) for one in (seed, 0))
        trainer.train_states = same.train_states
        trainer.controller.load_state_dict(same.controller.state_dict())
        trainer.fit()
    first, second, again, _, other, _ = seen
    assert not first.all()
    sizes = [parameter.numel() for parameter in trainer.parameters.values()]
    for one, *others in zip(*(places.split(sizes) for places in seen), strict=True):
        assert all(places.sum() == one.sum() for places in others)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_streams_of_random_numbers_are_what_they_were():
    assert MASKS == 3
    assert [stream_seed(stream, 7) for stream in range(3)] == [
        4625441644015172652,
        8995600287511374582,
        6404264744558398888,
    ]  # by version 0.1.0
    assert len({stream_seed(MASKS, seed, number) for seed in range(10) for number in range(10)}) == 100


# All of it, interrupted, resumed and together


def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_ends(tmp_path):
    whole = Trainer(guidance(), None, replace(MIXED, out=tmp_path / "whole"))
    whole.fit()
    parts = replace(MIXED, out=tmp_path / "parts")
    assert RunFolder(tmp_path / "whole").train_config(out=None) == MIXED
    for stop in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            Trainer(guidance(), None, parts, [Watch(stop)]).fit()
        assert RunFolder(tmp_path / "parts").load("last")["epoch"] == stop
    resumed = Trainer(guidance(), None, parts)
    resumed.fit()
    assert_same(resumed.controller.state_dict(), whole.controller.state_dict())
    one, other = (RunFolder(tmp_path / name).load("last") for name in ("parts", "whole"))
    assert_same(one["trained_weights"], other["trained_weights"])
    assert [one[name] for name in ("train_loss", "test_loss", "best_train_loss")] == [
        other[name] for name in ("train_loss", "test_loss", "best_train_loss")
    ]


def test_after_an_interruption_the_controller_is_the_average_of_the_last_epoch_and_fit_goes_on():
    whole = Trainer(guidance(), None, MIXED)
    whole.fit()
    watch = Watch(2)
    trainer = Trainer(guidance(), None, MIXED, [watch])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.epoch == 2
    assert torch.equal(flat(trainer.controller), watch.after_epochs[-1])
    trainer.fit()
    assert_same(trainer.controller.state_dict(), whole.controller.state_dict())


CHANGES = [
    {},
    {},
    {"combine": "modified"},
    {"average": 0.0},
    {"amsgrad": False, "final_learning_rate": None, "warmup": 0.0},
    {"rule": "R", "weight_decay": 0.0, "clip_threshold": 2.0, "schedule": "cosine"},
]
VARIATIONS = [replace(MIXED, seed=i, **changes) for i, changes in enumerate(CHANGES)]


def test_members_with_such_options_are_their_single_runs():
    def make(config):
        generator = torch.Generator().manual_seed(config.seed)
        return MLP((24,), (2, 2), (8,), generator=generator).double()

    ensemble = Ensemble(guidance(), VARIATIONS, controllers=[make(config) for config in VARIATIONS])
    histories = ensemble.fit()
    for member, history, config in zip(ensemble.members, histories, VARIATIONS, strict=True):
        alone = Trainer(guidance(), make(config), config)
        for row, wanted in zip(history, alone.fit(), strict=True):
            assert (row.train_loss, row.test_loss) == pytest.approx((wanted.train_loss, wanted.test_loss), rel=1e-10)
        torch.testing.assert_close(flat(member.controller), flat(alone.controller), rtol=1e-10, atol=1e-12)


def test_an_interrupted_ensemble_goes_on_bit_for_bit(tmp_path):
    def configs(out):
        return [replace(config, out=out / str(config.seed)) for config in VARIATIONS]

    whole = Ensemble(guidance(), configs(tmp_path / "whole"))
    whole.fit()

    class Stop(Watch):
        def on_update_end(self, trainer, loss, direction_norm):
            if trainer.config.seed == 0:
                super().on_update_end(trainer, loss, direction_norm)

    parts = Ensemble(guidance(), configs(tmp_path / "parts"), [Stop(2)])
    with pytest.raises(KeyboardInterrupt):
        parts.fit()
    assert [member.epoch for member in parts.members] == [2] * 6
    resumed = Ensemble(guidance(), configs(tmp_path / "parts"))
    resumed.fit()
    for one, other in zip(resumed.members, whole.members, strict=True):
        assert_same(one.controller.state_dict(), other.controller.state_dict())


# Numbers that overflow


class Steep(nn.Linear):
    """Acts like its layer, with slopes that are 1e26 times as large."""

    def forward(self, observation):
        action = super().forward(observation)
        return action + 1e26 * (action - action.detach())


def test_an_update_that_would_freeze_a_parameter_is_not_finite():
    config = replace(TINY, rule="M", engine="autograd", epochs=1)

    def trainer(**changes):
        return Trainer(cart_pole(), Steep(4, 1), replace(config, **changes))

    with pytest.raises(NonFiniteError, match=r"update 1 of 3, the direction of weight, bias is too large for Adam's"):
        trainer().fit()
    assert trainer(on_nonfinite="skip").fit()[-1].skipped == 3
    assert trainer(clip="norm").fit()[-1].skipped == 0


def test_half_precision_is_refused_before_training():
    with pytest.raises(ValueError, match="train in float32 or float64"):
        Trainer(cart_pole(), MLP((4,), (1,), (8,), generator=torch.Generator()).bfloat16(), TINY)
