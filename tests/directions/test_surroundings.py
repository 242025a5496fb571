"""What the caller has switched on around us changes no result; looking changes nothing."""

import functools
import random
import warnings
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from bptt_envs import DifferentiableEnv, System
from bptt_envs.systems import CartPole
from bptt_trainers import MLP, Callback, Controller, Ensemble, TrainConfig, Trainer, losses, policy_gradient, rollout
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.rules import MODIFIED, REGULAR
from bptt_trainers.directions.snapshot import evaluating, left_as_it_was
from bptt_trainers.rl.sb3 import RLConfig, train_rl
from bptt_trainers.training.start_states import held_out_states

SHORT = {"epochs": 2, "train_states": 16, "test_states": 4}


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS = {
    "grad mode off": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": default_dtype,
    "default device": default_device,
    "a device as context": lambda: torch.device("meta"),
    "parametrizations cached": parametrize.cached,
}


@pytest.fixture(params=SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
def surroundings(request):
    return request.param


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


class Parametrized(Plain):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.layers[0])


class MinusSlope(nn.Module):
    """u = -dV/dx: takes a gradient in its forward."""

    def __init__(self):
        super().__init__()
        self.potential = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.potential(x).sum(), x, create_graph=True)
        return -slope[:, 2:3]


class Pendulum(System):
    """Hamilton's equations by autograd."""

    state_shape, action_shape = (2,), (1,)

    def __init__(self, *, horizon: int = 6) -> None:
        super().__init__(horizon=horizon, dt=0.1)

    def step(self, state, action):
        with torch.enable_grad():
            x = state if state.requires_grad else state.detach().requires_grad_()
            energy = (0.5 * x[:, 1] ** 2 - x[:, 0].cos()).sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        p = state[:, 1:] + self.dt * (action - slope[:, :1])
        return torch.cat([state[:, :1] + self.dt * p, p], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, generator=generator, dtype=dtype, device=generator.device)

    def state_cost(self, state):
        return state.square().sum(1)


def seeded(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def start(system, count=6):
    return system.initial_states(count, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("kind", [Plain, Parametrized, MinusSlope])
def test_directions(surroundings, kind, engine):
    system = CartPole(horizon=6, objective="continuous")
    controller, states = seeded(kind), start(system)
    expected = policy_gradient(system, controller, states, "C", "autograd")
    with surroundings():
        found = policy_gradient(system, controller, states, "C", engine)
    assert found.loss.dtype is torch.float32
    torch.testing.assert_close(found.loss, expected.loss)
    for feedback in (REGULAR, MODIFIED):
        for name, direction in expected.passes[feedback].items():
            assert float(direction.norm()) > 0 or name.startswith("potential.2")
            torch.testing.assert_close(found.passes[feedback][name], direction, rtol=1e-3, atol=1e-7)


def test_start_states_made_in_inference_mode():
    system = CartPole(horizon=6)
    controller = seeded(Plain)
    with torch.inference_mode():
        states = start(system)
    found = policy_gradient(system, controller, states, "R", "autograd").directions
    expected = policy_gradient(system, controller, start(system), "R", "autograd").directions
    assert all(found[name].equal(expected[name]) for name in expected)


@functools.cache
def plain_run(system, engine):
    return Trainer(system, None, TrainConfig(**SHORT, engine=engine)).fit()


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize("system", [CartPole(horizon=6), Pendulum()], ids=lambda system: type(system).__name__)
def test_a_run(surroundings, system, engine):
    expected = plain_run(system, engine)
    with surroundings():
        trainer = Trainer(system, None, TrainConfig(**SHORT, engine=engine))
        found = trainer.fit()
    assert [row.train_loss for row in found] == [row.train_loss for row in expected]
    assert [row.test_loss for row in found] == [row.test_loss for row in expected]
    assert {p.dtype for p in trainer.controller.parameters()} == {torch.float32}


def ensemble():
    return Ensemble(CartPole(horizon=6), [TrainConfig(**SHORT, seed=seed) for seed in (0, 1)]).fit()


@pytest.fixture(scope="module")
def plain_ensemble():
    return ensemble()


def test_an_ensemble(surroundings, plain_ensemble):
    expected = plain_ensemble
    with surroundings():
        found = ensemble()
    assert [row.train_loss for one in found for row in one] == [row.train_loss for one in expected for row in one]


def test_rollouts_and_predictions(surroundings):
    system, controller = Pendulum(), MLP((2,), (1,), generator=torch.Generator().manual_seed(0))
    expected = rollout(system, controller, start(system))
    loss = losses(system, expected)
    action, _ = controller.predict(np.ones(2, np.float32))
    with surroundings():
        found = rollout(system, controller, start(system))
        assert found.states.equal(expected.states)
        assert losses(system, found).equal(loss)
        assert controller.predict(np.ones(2, np.float32))[0] == action


def test_environments(surroundings):
    def episode():
        env = gym.make("DiffCartPole-v0", horizon=3)
        seen = [env.reset(seed=0)[0], *(env.step(np.array([0.5], np.float32))[0] for _ in range(3))]
        many = gym.make_vec("DiffCartPole-v0", num_envs=2, horizon=3)
        many_seen = [many.reset(seed=0)[0], many.step(np.ones((2, 1), np.float32))[0]]
        own = DifferentiableEnv(Pendulum())
        own_seen = [own.reset(seed=0)[0], own.step([0.1])[0]]
        return [*seen, *many_seen, *own_seen]

    expected = episode()
    with surroundings():
        found = episode()
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


class Busy(Controller):
    """Changes everything that a module can change as it runs."""

    def __init__(self) -> None:
        super().__init__((4,), (1,))
        self.layer = nn.Linear(4, 1)
        self.register_buffer("in_place", torch.zeros(4))
        self.register_buffer("assigned", torch.zeros(4))
        self.tensor = torch.zeros(4)
        self.count, self.seen, self.array = 0, [], np.zeros(2)
        self.helper = type("Helper", (), {})()
        self.helper.total = torch.zeros(())
        self.generator = torch.Generator().manual_seed(0)
        self.numpy_generator = np.random.default_rng(0)

    def forward(self, x):
        mean = x.detach().mean(0)
        self.in_place.add_(mean)
        self.assigned = self.assigned + mean
        self.tensor = self.tensor + mean
        self.count += 1
        self.seen.append(float(mean[0]))
        self.array += 1
        self.helper.total += 1
        noise = torch.rand(1) + float(np.random.rand()) + random.random()  # noqa: NPY002
        noise = noise + torch.rand(1, generator=self.generator) + self.numpy_generator.random()
        self.train(False)
        return self.layer(x) + 1e-3 * (noise + self.count + self.helper.total)


def everything(module: Busy):
    return (
        module.in_place.tolist(),
        module.assigned.tolist(),
        module.tensor.tolist(),
        module.count,
        list(module.seen),
        module.array.tolist(),
        float(module.helper.total),
        module.generator.get_state().tolist(),
        module.numpy_generator.bit_generator.state,
        [part.training for part in module.modules()],
        torch.get_rng_state().tolist(),
        [*np.random.get_state()[1]],  # noqa: NPY002
        random.getstate(),
    )


@pytest.mark.parametrize("context", [left_as_it_was, evaluating])
def test_a_controller_is_left_as_it_was(context):
    module = seeded(Busy)
    before = everything(module)
    with context(module):
        module(torch.ones(3, 4))
        assert everything(module) != before
    assert everything(module) == before


@pytest.mark.parametrize("context", [left_as_it_was, evaluating])
def test_after_an_error_it_is_left_as_it_was_too(context):
    module = seeded(Busy)
    before = everything(module)
    with pytest.raises(RuntimeError), context(module):
        module(torch.ones(3, 5))
    assert everything(module) == before


def test_looking_changes_nothing():
    module = seeded(Busy)
    system = CartPole(horizon=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(system, module, TrainConfig(**SHORT))
    before = everything(module)
    trainer.evaluate(trainer.test_states)
    module.predict(np.ones(4, np.float32))
    assert everything(module) == before


def test_the_passes_of_c_see_the_same():
    system, states = CartPole(horizon=4), start(CartPole())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = policy_gradient(system, seeded(Busy), states, "C").passes
    engine = AutogradEngine(system, None)
    for feedback in (REGULAR, MODIFIED):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        engine.controller = seeded(Busy)
        alone = engine(states, (feedback,))[1][feedback]
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        engine.controller = seeded(Busy)
        for name, direction in engine(states, (REGULAR, MODIFIED))[1][feedback].items():
            assert direction.equal(alone[name])
            assert name in together[feedback]


@pytest.mark.parametrize("extra", [nn.Dropout(0.5), nn.BatchNorm1d(8)], ids=lambda extra: type(extra).__name__)
@pytest.mark.filterwarnings("ignore:.*falls back to the slower")
def test_predict_is_in_eval_mode(extra):
    class Own(Controller):
        def __init__(self):
            super().__init__((4,), (1,))
            self.net = nn.Sequential(nn.Linear(4, 8), extra, nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            return self.net(x)

    controller = seeded(Own)
    Trainer(CartPole(horizon=4), controller, TrainConfig(**SHORT)).fit()
    assert controller.training
    with torch.no_grad():
        controller.eval()
        right = controller(torch.ones(1, 4)).numpy()[0]
        controller.train()
    assert all(np.array_equal(controller.predict(np.ones(4, np.float32))[0], right) for _ in range(3))
    assert controller.training


class Remembers(nn.Module):
    """Filters what it sees, over the ends of episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.hidden = nn.Linear(4, 1), None

    def forward(self, x):
        known = self.hidden is not None and len(self.hidden) == len(x)
        self.hidden = 0.9 * self.hidden + 0.1 * x.detach() if known else 0.1 * x.detach()
        return self.layer(self.hidden)


class Counts(nn.Module):
    """Takes its calls for the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Delays(nn.Module):
    """Acts on what it saw some calls ago."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 1), []

    def forward(self, x):
        self.seen = [*self.seen[-4:], x.detach()]
        return self.layer(self.seen[0] if self.seen[0].shape == x.shape else x)


class Normaliser(nn.Module):
    """Gathers statistics in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = nn.Linear(4, 1), torch.zeros(4)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.layer(x - self.mean)


class Noisy(nn.Module):
    """Draws noise in eval mode, too, and counts its calls for nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + 0.1 * torch.randn(len(x), 1)


@pytest.mark.filterwarnings("ignore:.*falls back to the slower")
@pytest.mark.parametrize("kind", [Remembers, Counts, Delays])
def test_memory_that_nobody_resets_is_refused(kind, tmp_path):
    config = TrainConfig(**SHORT, out=tmp_path / "run")
    with pytest.raises(ValueError, match=f"controller {kind.__name__} keeps state between calls, in eval mode too"):
        Trainer(CartPole(horizon=4), kind(), config).fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*falls back to the slower")
@pytest.mark.parametrize("kind", [Normaliser, Noisy])
def test_statistics_and_noise_are_no_memory(kind):
    assert len(Trainer(CartPole(horizon=4), kind(), TrainConfig(**SHORT)).fit()) == 3


@pytest.mark.filterwarnings("ignore:.*falls back to the slower")
def test_a_measurement_of_agreement_counts_no_observations():
    counts = []

    class Counting(Normaliser):
        def __init__(self):
            super().__init__()
            self.steps = 0

        def forward(self, x):
            self.steps += self.training
            return super().forward(x)

    class Note(Callback):
        def on_epoch_end(self, trainer, metrics):
            counts.append(trainer.controller.steps)

    for rule in "RC":
        Trainer(CartPole(horizon=4), Counting(), TrainConfig(**SHORT, rule=rule), [Note()]).fit()
    assert counts == [8, 16, 8, 16]  # two updates an epoch, of four steps


def test_reinforcement_learning(surroundings):
    config = RLConfig(env_options={"horizon": 8}, steps=64, evaluations=1, test_states=4, overrides=ONE_UPDATE)
    expected = train_rl(config, progress=False)
    with surroundings():
        found = train_rl(config, progress=False)
        states = held_out_states(config.judged_system(), 4)
        again = found.controller.evaluate(config.judged_system(), states)
    assert [one.test_loss for one in found.curve] == [one.test_loss for one in expected.curve]
    assert float(again.mean()) == found.curve[-1].test_loss


ONE_UPDATE = {"num_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 1}
