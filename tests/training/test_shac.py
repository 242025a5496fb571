"""The learner of short windows: where its episodes are, what flows between them, what it learns, how it goes on."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from cliff import Cliff

from bptt_envs import Task
from bptt_envs.systems import LQR, CartPole
from bptt_trainers import (
    GRU,
    MLP,
    RULES,
    Callback,
    Ensemble,
    NonFiniteError,
    RunFolder,
    RunFolderError,
    SAPOConfig,
    SHACConfig,
    TrainConfig,
    Trainer,
    policy_gradient,
)
from bptt_trainers.cli import main
from bptt_trainers.controllers.normalized import Normalized
from bptt_trainers.directions.rules import combined
from bptt_trainers.presets.presets import rule_settings
from bptt_trainers.training.critic import Critic
from bptt_trainers.training.metrics import read_csv, scalars

TINY = SHACConfig(
    epochs=3,
    batch_size=6,
    train_states=12,
    test_states=4,
    window=4,
    hidden=(4,),
    critic_hidden=(4,),
    critic_iterations=2,
    record=(),
)


class Watch(Callback):
    """Keeps, of every update, where the windows began and ended and how the critic was."""

    def __init__(self):
        self.began, self.through, self.critics = [], [], []

    def on_fit_start(self, trainer):
        learner, watch = trainer.learner, self
        next_states, keep = learner._next_states, learner._keep

        def began(number):
            watch.began.append(next_states(number).clone())
            return watch.began[-1].clone()

        def kept(trajectory):
            watch.through[len(watch.began) - 1 :] = [trajectory]  # a comparison of R and M goes through it again
            keep(trajectory)

        learner._next_states, learner._keep = began, kept


def watched(system, config):
    watch = Watch()
    trainer = Trainer(system, config=config, callbacks=[watch])
    trainer.fit()
    return trainer, watch


def test_a_window_of_the_whole_horizon_is_backpropagation_through_time():
    system = CartPole(horizon=8, objective="continuous")
    config = replace(TINY, window=8, rule="C", normalize=False, train_states=6)
    trainer = Trainer(system, config=config)
    learner = trainer.learner
    with learner.session():
        learner.begin()
        with learner.epoch(0):
            updating = learner.update(0)
            query = next(updating)
            learner.answer(query)
    expected = policy_gradient(system, trainer.controller, learner.window.inner(query.states), "C")
    flat = torch.cat([direction.flatten() for direction in expected.directions.values()])
    torch.testing.assert_close(query.direction, flat)
    assert query.loss == pytest.approx(float(expected.loss))


@pytest.mark.parametrize("rule", ["R", "M", "C"])
def test_the_direction_of_an_update_is_that_of_the_windows_by_autograd(rule):
    """What is normalised, where the windows are, the slow critic: all by hand, in float64."""
    task = Task(CartPole(horizon=10, objective="continuous"), observe_time=True)
    controller = Normalized(task.observation_shape, (1,), (4,), generator=torch.Generator().manual_seed(0)).double()
    trainer = Trainer(task, controller, replace(TINY, rule=rule, discount=0.9, epochs=1))
    learner = trainer.learner
    with learner.session():
        learner.begin()
        with learner.epoch(0):
            for number in range(2):  # the second one meets a critic that was fitted
                updating = learner.update(number)
                query = next(updating)
                learner.answer(query)
                if number == 1:
                    break
                with pytest.raises(StopIteration):
                    next(updating)
    window, slow = learner.window, learner._slow.network
    starts, left = window.inner(query.states), window.left(query.states)
    named = {name: one for name, one in controller.named_parameters() if one.requires_grad}
    normalizer = controller.normalizer

    def act(observation):
        return controller.controller((observation - normalizer.mean) / normalizer.deviation)

    passes = {}
    for feedback in RULES[rule].passes:
        total = 0.0
        for i in range(len(starts)):
            state, weight = starts[i : i + 1], 1.0
            for k in range(window.steps):
                action = act(task.observe(state if feedback.controller else state.detach()))
                following = task.step(state, action)
                total = total + weight * task.running_cost(state, action, following)
                state, weight = following, 0.9 * weight
                if left[i] == k + 1:
                    total = total + weight * task.final_cost(state)
                    break
            else:
                total = total + weight * slow(task.observe(state), left[i : i + 1] - window.steps)
        slopes = torch.autograd.grad(total.sum() / len(starts), list(named.values()))
        passes[feedback] = dict(zip(named, slopes, strict=True))
    expected = torch.cat([one.flatten() for one in combined(RULES[rule], passes).values()])
    torch.testing.assert_close(query.direction, expected, rtol=1e-8, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in slow.parameters())


def test_episodes_are_spread_over_the_horizon_and_go_on_where_they_were():
    trainer, watch = watched(CartPole(horizon=10), TINY)  # windows of 4, 4 and 2 steps
    window = trainer.learner.window
    assert window.left(watch.began[0]).tolist() == [10, 10, 6, 6, 2, 2]
    for before, after in zip(watch.through, watch.began[1:], strict=False):
        ended, left = before.states[-1], window.left(after)
        over = window.episode_over(ended)
        torch.testing.assert_close(window.inner(after)[~over], window.inner(ended)[~over], rtol=0, atol=0)
        torch.testing.assert_close(left[~over], window.left(ended)[~over], rtol=0, atol=0)
        assert over.sum() == 2
        assert (left[over] == 10).all()
        assert not (window.inner(after)[over] == window.inner(ended)[over]).all(dim=1).any()
    assert len({tuple(one[0].tolist()) for one in watch.began}) == len(watch.began)


def test_an_episode_that_ends_early_is_followed_by_another():
    trainer, watch = watched(Cliff(horizon=12), replace(TINY, batch_size=8))
    window = trainer.learner.window
    for before, after in zip(watch.through, watch.began[1:], strict=False):
        early = window.episode_over(before.states[-1])
        assert early.any()
        inner = window.inner(after)[early]
        alive = inner[:, 2] > 0.5
        assert (window.left(after)[early][alive] == 12).all()
        assert not window.left(after)[early][~alive].any()  # one of its start states is beyond the cliff already
    assert all(torch.isfinite(one.states).all() for one in watch.through)


def test_start_states_may_be_any_of_a_set():
    states = torch.tensor([[0.1 * i, 0.0, 0.0, 0.0] for i in range(12)])
    trainer = Trainer(
        CartPole(horizon=4), config=replace(TINY, start_states="shuffled"), train_states=states, callbacks=[Watch()]
    )
    trainer.fit()
    for began in trainer.callbacks[0].began:
        inner = trainer.learner.window.inner(began)
        assert all((states == one).all(dim=1).any() for one in inner)


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
    system = Task(CartPole(horizon=10, objective="continuous"), terminated=lambda state: state[:, 0].abs() > 0.3)
    config = replace(TINY, deviation="constant", final_learning_rate=None, epochs=4, average=0.5)
    whole = Trainer(system, config=config)
    whole.fit()
    for epochs in (1, 3):
        part = replace(config, out=tmp_path / str(epochs))
        Trainer(system, config=replace(part, epochs=epochs)).fit()
        resumed = Trainer(system, config=part)
        resumed.fit()
        for found, expected in zip(resumed.history, whole.history, strict=True):
            assert (found.test_loss, found.direction_norm) == (expected.test_loss, expected.direction_norm) or (
                found.epoch == 0 and found.test_loss == expected.test_loss
            )
        assert_equal(resumed.learner.state_dict(), whole.learner.state_dict())


def assert_equal(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_equal(found[name], expected[name])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def test_a_resumed_run_with_soft_values_is_the_same_bit_for_bit(tmp_path):
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    config = SAPOConfig(epochs=3, hidden=(4,), critic_hidden=(4,), critic_iterations=2, **settings)
    whole = Trainer(CartPole(horizon=10), config=config)
    whole.fit()
    part = replace(config, out=tmp_path)
    Trainer(CartPole(horizon=10), config=replace(part, epochs=1, final_learning_rate=None))
    stopped = Trainer(CartPole(horizon=10), config=part, callbacks=[EndAfter(1)])
    assert len(stopped.fit()) == 2
    resumed = Trainer(CartPole(horizon=10), config=part)
    resumed.fit()
    assert_equal(resumed.learner.state_dict(), whole.learner.state_dict())


class Own(Callback):
    """Keeps of every update what the learner says of itself, found another way."""

    def __init__(self):
        self.losses, self.temperatures, self.entropies = [], [], []

    def on_fit_start(self, trainer):
        learner = trainer.learner
        fit, go_on = learner._fit, learner._go_on

        def fitted(found, number):
            critic, columns = learner.critic, []
            for network in critic.networks:  # one by one
                said = network(critic.inputs(found.observations, found.left)).squeeze(1)
                columns.append((critic.middle + critic.unit * said - found.targets) / critic.unit)
            self.losses.append(float(torch.stack(columns).square().mean()))
            return fit(found, number)

        def gone_on(number):
            self.temperatures.append(learner._end.temperature)
            actions = learner._trajectory.actions
            self.entropies.append(float(learner.choice.engine.system.entropies(actions).mean()))
            return go_on(number)

        learner._fit, learner._go_on = fitted, gone_on


def test_every_epoch_keeps_the_critics_loss_the_temperature_and_the_entropy(tmp_path):
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    config = SAPOConfig(epochs=2, hidden=(4,), critic_hidden=(4,), critic_iterations=2, out=tmp_path, **settings)
    own = Own()
    trainer = Trainer(CartPole(horizon=12), config=config, callbacks=[own])
    history, updates = trainer.fit(), trainer.updates_per_epoch
    named = {"critic_loss": own.losses, "temperature": own.temperatures, "entropy": own.entropies}
    assert all(math.isnan(value) for value in history[0].own.values())
    for row in history[1:]:
        for name, values in named.items():
            expected = sum(values[(row.epoch - 1) * updates : row.epoch * updates]) / updates
            assert row.own[name] == pytest.approx(expected, rel=1e-5)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith(",seconds,critic_loss,temperature,entropy")
    assert read_csv(tmp_path / "metrics.csv")[1:] == history[1:]
    assert {"loss/critic", "train/temperature", "train/entropy"} <= scalars(history[1]).keys()
    assert not {"loss/critic", "train/temperature", "train/entropy"} & scalars(history[0]).keys()


def test_a_run_whose_metrics_lack_the_learners_own_numbers_goes_on_without_them(tmp_path):
    whole = replace(TINY, out=tmp_path)
    Trainer(CartPole(horizon=12), config=whole, callbacks=[EndAfter(1)]).fit()
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in metrics.read_text().splitlines()))
    history = Trainer(CartPole(horizon=12), config=whole).fit()
    assert [list(row.own) for row in history] == [[], [], ["critic_loss"], ["critic_loss"]]
    assert [list(row.own) for row in read_csv(metrics)] == [[]] * 4
    assert Trainer(CartPole(horizon=12), config=whole).fit()[-1].test_loss == history[-1].test_loss


class EndAfter(Callback):
    """Ends a run after so many epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, trainer, metrics):
        return metrics.epoch < self.epochs


def test_soft_values_take_the_critic_that_expects_most_and_the_entropy():
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    system = CartPole(horizon=10, objective="continuous")
    config = SAPOConfig(epochs=1, hidden=(4,), critic_hidden=(4,), normalize=False, td_lambda=0.0, **settings)
    learner = Trainer(system, config=config).learner
    seen = []
    learner._fit = lambda found, number: seen.append(found)
    with learner.session():
        learner.begin()
        with learner.epoch(0):
            updating = learner.update(0)
            query = next(updating)
            learner.answer(query)
            critic, worth = copy.deepcopy(learner.critic), learner._end.temperature
            through = learner._trajectory
            with pytest.raises(StopIteration):
                next(updating)
    augmented, window, found = learner.choice.engine.system, learner.window, seen[-1]
    states, actions = augmented.inner(through.states), augmented.action(through.actions)
    entropies = augmented.entropies(through.actions)
    expected = []
    for k in range(window.steps):
        for i in range(len(states[0])):
            left = window.left(states[k, i])
            if left == 0:
                continue
            x, y = window.inner(states[k, i : i + 1]), window.inner(states[k + 1, i : i + 1])
            cost = system.running_cost(x, actions[k, i : i + 1], y) - worth * entropies[k, i]
            shown = torch.cat([critic.normalizer(y), (left.view(1, 1) - 1) / 10], dim=1)
            both = torch.stack([network(shown) for network in critic.networks])
            rest = critic.middle + critic.unit * both.max() if left > 1 else system.final_cost(y)
            expected.append(float((cost + rest).detach()))
    assert len(critic.networks) == 2
    torch.testing.assert_close(found.targets, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_what_entropy_is_worth_follows_what_it_should_be():
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    small = {"epochs": 1, "hidden": (4,), "critic_hidden": (4,), "critic_iterations": 1, **settings}
    worth = {}
    for wanted in (5.0, -5.0):
        trainer = Trainer(
            CartPole(horizon=10, max_force=50.0), config=SAPOConfig(target_entropy=wanted, squash=False, **small)
        )
        trainer.fit()
        assert trainer.learner.wanted_entropy == pytest.approx(wanted + math.log(50.0))
        worth[wanted] = trainer.learner.state_dict()["learner"]["log_temperature"]
    steps = trainer.updates_per_epoch
    assert float(worth[5.0] - worth[-5.0]) == pytest.approx(2 * steps * 5e-3, rel=1e-3)  # Adam's steps, up and down
    with pytest.raises(ValueError, match="deviation must be 'state' or 'constant'"):
        SAPOConfig(deviation="none")


@pytest.mark.parametrize("wanted", [0.6, -5.0])
def test_a_temperature_never_overflows(wanted):
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    small = {"epochs": 1, "hidden": (4,), "critic_hidden": (4,), "critic_iterations": 1, **settings}
    config = SAPOConfig(target_entropy=wanted, temperature_learning_rate=1000.0, **small)
    trainer = Trainer(CartPole(horizon=10), config=config)
    assert math.isfinite(trainer.fit()[-1].test_loss)
    state = trainer.learner.state_dict()["learner"]
    assert float(state["log_temperature"]) == math.copysign(30.0, wanted)
    assert all(one.isfinite().all() for one in state["critic"].values())


class Even(CartPole):
    """What is still to be paid is the same everywhere, once `paid` is set."""

    paid = None

    def final_cost(self, state):
        return super().final_cost(state) if self.paid is None else self.paid + 0.0 * state[:, 0]


@pytest.mark.parametrize(("paid", "unit"), [(4.0, 0.04), (-4.0, 0.04), (0.0, 1.0)])
def test_entropy_is_worth_something_where_all_costs_are_the_same(paid, unit):
    settings = {one: getattr(TINY, one) for one in ("batch_size", "train_states", "test_states", "window", "record")}
    config = SAPOConfig(epochs=1, hidden=(4,), critic_hidden=(4,), temperature=0.2, **settings)
    system = Even(horizon=10)
    learner = Trainer(system, config=config).learner
    system.paid = paid
    with learner.session():
        learner.begin()
        with learner.epoch(0):
            next(learner.update(0))
            assert learner._end.temperature == pytest.approx(0.2 * unit / 10, rel=1e-3)


def test_an_entropy_that_no_bounded_action_has_is_refused():
    with pytest.raises(ValueError, match=r"target_entropy must be below log 2, about 0.6931, where squash .* got 0.7"):
        SAPOConfig(target_entropy=0.7)
    SAPOConfig(target_entropy=0.69)
    SAPOConfig(target_entropy=0.7, squash=False)


def test_an_interrupted_run_stands_at_its_last_epoch_and_goes_on():
    class Stop(Callback):
        def on_update_end(self, trainer, loss, direction_norm):
            if trainer.epoch == 1 and not self.done:
                self.done = True
                raise KeyboardInterrupt

        done = False

    expected = Trainer(CartPole(horizon=10), config=TINY)
    expected.fit()
    trainer = Trainer(CartPole(horizon=10), config=TINY, callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.epoch == 1
    trainer.fit()
    assert_equal(trainer.learner.state_dict(), expected.learner.state_dict())


class Blowing(CartPole):
    """Costs are not finite once the cart is far to one side."""

    def running_cost(self, state, action, next_state):
        return torch.where(next_state[:, 0] > 0.02, torch.inf, 0.1 * next_state.square().sum(-1))


def test_what_is_not_finite_is_refused_or_skipped():
    with pytest.raises(NonFiniteError, match="the loss is inf"):
        Trainer(Blowing(horizon=10), config=TINY).fit()
    trainer = Trainer(Blowing(horizon=10), config=replace(TINY, on_nonfinite="skip"))
    history = trainer.fit()
    assert history[-1].skipped > 0
    assert all(one.isfinite().all() for one in trainer.learner.state_dict()["learner"]["critic"].values())
    assert trainer.learner.state_dict()["learner"]["under_way"].isfinite().all()


class Overflowing(CartPole):
    """The cart's position is this once it is to one side, as soon as `far_out` is set."""

    far_out = None

    def step(self, state, action):
        following = super().step(state, action)
        if self.far_out is None:
            return following
        place = following[:, :1].masked_fill(following[:, :1] > 0.0, self.far_out)
        return torch.cat([place, following[:, 1:]], dim=1)

    def running_cost(self, state, action, next_state):
        return 0.1 * next_state.abs().sum(-1)


@pytest.mark.parametrize("far_out", [torch.inf, 1e25])
def test_an_untrained_episode_that_is_not_finite_or_far_out_harms_nothing(far_out):
    system = Overflowing(horizon=10)
    learner = Trainer(system, config=TINY).learner
    system.far_out = far_out
    with learner.session():
        learner.begin()
        learner._set_out()
        begun = learner._next_states(0)
    assert begun.isfinite().all()
    assert (learner.window.left(begun) > 0).all()
    assert 0.0 < float(learner.critic.unit) < 1e6
    assert (learner.critic.normalizer.deviation < 1e6).all()


def test_it_reaches_the_known_optimum_of_lqr():
    system = LQR()
    config = SHACConfig(epochs=6, train_states=64, batch_size=16, window=10, learning_rate=2e-2, hidden=(64,), rule="C")
    trainer = Trainer(Task(system, observe_time=True), config=config)
    history = trainer.fit()
    best = float(system.optimal_cost(trainer.system.inner(trainer.test_states)).mean())
    assert history[0].test_loss > 5 * best
    assert history[-1].test_loss < 1.06 * best


def test_its_folder_serves_every_command(tmp_path, capsys):
    out = str(tmp_path / "run")
    small = ["--epochs", "1", "--train-states", "8", "--batch-size", "4", "--hidden", "4", "--test-states", "4"]
    options = ["--env", "DiffLQR-v0", "--record", "csv", "diagnostics", "--keep-every", "1", *small]
    assert main(["train", "--learner", "SHAC", "--rule", "C", "--window", "8", "--out", out, *options]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["learner"], stored["training"]["rule"], stored["training"]["window"]) == ("SHAC", "C", 8)
    assert main(["resume", out, "--keep-every", "2"]) == 0
    assert main(["evaluate", out]) == 0
    assert main(["render", out, "--out", str(tmp_path / "picture.png")]) == 0
    folder = RunFolder(tmp_path / "run")
    assert isinstance(folder.train_config(), SHACConfig)
    env = folder.make_env()
    controller, _ = folder.load_controller(env.system, "last")
    assert isinstance(controller, Normalized)
    assert controller.predict(env.reset(seed=0)[0])[0].shape == (1,)
    capsys.readouterr()


def test_a_folder_of_another_learner_is_refused(tmp_path):
    system = CartPole(horizon=10)
    Trainer(system, config=replace(TINY, out=tmp_path, epochs=1)).fit()
    other = TrainConfig(epochs=1, hidden=(4,), train_states=8, test_states=4, out=tmp_path, record=())
    with pytest.raises(RunFolderError, match="learner: 'SHAC' in the folder, 'BPTT' asked for"):
        Trainer(system, config=other).fit()
    with pytest.raises(RunFolderError, match="window"):
        Trainer(system, config=replace(TINY, out=tmp_path, epochs=1, window=5)).fit()


def test_what_has_no_meaning_is_refused_in_words():
    with pytest.raises(ValueError, match="start_states must be 'fresh' or 'shuffled'"):
        SHACConfig(start_states="fixed")
    with pytest.raises(ValueError, match="target_rate must be above 0"):
        SHACConfig(target_rate=0.0)
    with pytest.raises(ValueError, match=r"entropy has no effect where .*SAPO is SHAC with entropy"):
        SHACConfig(deviation="constant", entropy=0.1)
    with pytest.raises(ValueError, match="without memory"):
        SHACConfig(controller="gru")
    with pytest.raises(ValueError, match="without memory"):
        Trainer(CartPole(horizon=10), GRU((4,), (1,), (4,)), TINY)
    with pytest.raises(ValueError, match="learn over whole episodes"):
        Ensemble(CartPole(horizon=10), [TINY, replace(TINY, seed=1)])


def test_the_critic_steps_by_adam_whatever_the_optimizer_of_the_actor():
    trainer = Trainer(CartPole(horizon=10), config=replace(TINY, optimizer="SGD", adam_betas=(0.5, 0.6)))
    of_critic = trainer.learner._critic_optimizer.config
    assert (of_critic.optimizer, of_critic.adam_betas) == ("adam", (0.5, 0.6))
    with pytest.raises(ValueError, match="amsgrad has no effect where optimizer 'SGD'"):
        replace(TINY, optimizer="SGD", amsgrad=True)
    assert rule_settings("SHAC", "DiffCartPole-v0", {"optimizer": "SGD"}, learner="SHAC").training["optimizer"] == "SGD"


def test_a_controller_of_ones_own_sees_what_it_is_shown():
    controller = MLP((4,), (1,), (4,), generator=torch.Generator().manual_seed(0))
    trainer = Trainer(CartPole(horizon=10), controller, replace(TINY, epochs=1))
    trainer.fit()
    assert set(dict(controller.named_parameters())) == set(trainer.parameters)
    assert float(trainer.learner.critic.normalizer.count) > 0


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)])
@pytest.mark.parametrize("count", [1, 2])
def test_slopes_of_a_critic_in_closed_form_are_those_of_autograd(hidden, count):
    generator = torch.Generator().manual_seed(0)
    critic = Critic((3,), 10, hidden, generator, count).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    wanted = torch.randn(7, generator=generator, dtype=torch.float64)
    trained = [one for one in critic.parameters() if one.requires_grad]
    error = critic.relative(inputs) - wanted
    expected = torch.autograd.grad(error.square().mean(1).sum(), trained)
    torch.testing.assert_close(critic.slopes(inputs, wanted), torch.cat([one.flatten() for one in expected]))
