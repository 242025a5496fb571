"""Stochastic controllers: their distribution is the one that is said, they learn with noise and are judged without."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

from bptt_envs.systems import CartPole, Guidance, Integrator
from bptt_trainers import Ensemble, Gaussian, RunFolder, TrainConfig, Trainer, default_controller, losses, rollout
from bptt_trainers.cli import main
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.training.ensemble import variations

KINDS = [
    {},
    {"deviation": "state"},
    {"squash": (-0.5, 2.0)},
    {"deviation": "state", "squash": ([-0.5, -1.0], [2.0, 1.0]), "initial_deviation": [0.1, 0.7]},
]


def made(**given):
    controller = Gaussian((3,), (2,), (6,), generator=torch.Generator().manual_seed(0), **given).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return controller


@pytest.mark.parametrize("given", KINDS)
def test_its_actions_and_entropy_are_those_of_torchs_distributions(given):
    """The entropy of one draw is the normal's own and the correction by the slope; its mean is -E[log p]."""
    controller = made(**given)
    observation = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        action, entropy = controller(observation.expand(len(noise), 3), noise)
        bent, controller.squash = controller.squash, None
        mean, of_normal = controller(observation, torch.zeros(1, 2, dtype=torch.float64))
        deviation = controller(observation, torch.ones(1, 2, dtype=torch.float64))[0] - mean
    distribution = Independent(Normal(mean, deviation), 1)
    torch.testing.assert_close(of_normal, distribution.entropy())
    if bent is not None:
        mid, reach = bent.mid.double(), bent.reach.double()
        steps = [AffineTransform(-mid / reach, 1 / reach), TanhTransform(cache_size=1), AffineTransform(mid, reach)]
        distribution = TransformedDistribution(distribution.base_dist, steps)
        inner = mean + deviation * noise
        torch.testing.assert_close(action, mid + reach * ((inner - mid) / reach).tanh())
        slopes = TransformedDistribution(Normal(mean, deviation), steps)
        by_torch = Normal(mean, deviation).log_prob(inner).sum(1) - slopes.log_prob(action).sum(1)
        sane = (((inner - mid) / reach).abs() < 8).all(1)  # beyond, torch's tanh rounds to 1
        torch.testing.assert_close((entropy - of_normal)[sane], by_torch[sane], rtol=1e-6, atol=1e-6)
        log_p = slopes.log_prob(action).sum(1)[sane]
    else:
        log_p = distribution.log_prob(action)
    assert entropy.isfinite().all()
    error = 4 * float((entropy.std() + log_p.std()) / math.sqrt(len(noise)))
    assert float(entropy.mean()) == pytest.approx(float(-log_p.mean()), abs=error)


@pytest.mark.parametrize("low", [-0.5, 2.0])
def test_the_entropy_is_finite_and_has_slopes_where_the_action_is_at_its_bound(low):
    controller = Gaussian((3,), (1,), (4,), squash=(low, low + 1.0))
    with torch.no_grad():
        controller.network.layers[-1].bias.fill_(1e4)
    action, entropy = controller(torch.zeros(2, 3), torch.randn(2, 1))
    assert action.max() <= low + 1.0
    assert entropy.isfinite().all()
    gradients = torch.autograd.grad(entropy.sum(), [controller.spread.weight, controller.network.layers[-1].bias])
    assert all(bool((one.isfinite() & (one != 0)).all()) for one in gradients)


def test_its_deviation_is_set_and_kept_within_reach():
    controller = Gaussian((3,), (2,), (4,), initial_deviation=(0.2, 3.0))
    mean, action = (controller(torch.zeros(1, 3), e * torch.ones(1, 2))[0] for e in (0.0, 1.0))
    torch.testing.assert_close(action - mean, torch.tensor([[0.2, 3.0]]))
    for weight in (1e6, -1e6):
        with torch.no_grad():
            controller.spread.weight.fill_(weight)
        action = controller(torch.zeros(1, 3), torch.ones(1, 2))[0]
        wanted = torch.tensor([[0.2, 3.0]]) * math.exp(math.copysign(5.0, weight))
        torch.testing.assert_close(action - mean, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "mpl"}, r"network must be .*mlp"),
        ({"deviation": "none"}, "deviation must be one of"),
        ({"initial_deviation": 0.0}, "initial_deviation must be a number above 0"),
        ({"initial_deviation": [0.1, 0.2, 0.3]}, r"of shape \(2,\)"),
        ({"initial_deviation": math.inf}, "initial_deviation must be finite"),
        ({"initial_deviation": math.nan}, "initial_deviation must be a number above 0"),
        ({"squash": (1.0, 0.0)}, "squash must be finite bounds"),
        ({"hidden": (0,)}, "hidden"),
    ],
)
def test_what_it_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Gaussian((3,), (2,), **given)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
@pytest.mark.parametrize("deviation", ["constant", "state"])
def test_it_is_named_scaled_and_drawn_from_its_seed(kind, deviation):
    system = CartPole(max_force=3.0)
    one, same = (
        default_controller(system, 0, (6,), kind, squash=True, deviation=deviation, initial_deviation=0.2)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert one.settings == {
        "hidden": [6],
        "network": kind,
        "deviation": deviation,
        "initial_deviation": [pytest.approx(0.6)],
        "squash": [[-3.0], [3.0]],
    }
    assert one.memory_shape == ((6,) if kind == "gru" else ())


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_predict_is_the_mean_or_a_draw(kind):
    system = CartPole(horizon=4)
    controller = default_controller(system, 0, (5,), kind, deviation="constant")
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    trajectory, remembered = rollout(system, controller, states), None
    for t in range(4):
        actions, remembered = controller.predict(trajectory.states[t].numpy(), remembered)
        np.testing.assert_allclose(actions, trajectory.actions[t].numpy(), rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    drawn = np.stack([controller.predict(states.numpy(), deterministic=False)[0] for _ in range(400)])
    mean = controller.predict(states.numpy())[0]
    deviation = controller.initial_deviation[0]
    np.testing.assert_allclose(drawn.mean(0), mean, atol=4 * deviation / 20)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.2)


TINY = TrainConfig(epochs=3, train_states=8, batch_size=4, test_states=8, hidden=(5,), deviation="constant", record=())


def system():
    return CartPole(horizon=6)


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.controller.parameters()]


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize(
    "changes", [{"entropy": 0.1}, {"deviation": "state", "controller": "gru", "combine": "random"}]
)
def test_a_run_is_resumed_bit_for_bit_loaded_and_judged_by_the_mean(tmp_path, engine, changes):
    config = replace(TINY, engine=engine, **changes)
    whole = Trainer(system(), config=config)
    history = whole.fit()
    Trainer(system(), config=replace(config, epochs=1, out=tmp_path)).fit()
    resumed = Trainer(system(), config=replace(config, out=tmp_path))
    resumed.fit()
    assert resumed.choice.engine.name == ("adjoint" if engine == "auto" else "autograd")
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    loaded, _ = RunFolder(tmp_path).load_controller(system(), "last")
    assert isinstance(loaded, Gaussian)
    trajectory = rollout(system(), loaded, resumed.test_states)
    assert float(losses(system(), trajectory).mean()) == pytest.approx(history[-1].test_loss, rel=1e-5)


def test_members_of_an_ensemble_have_the_noise_that_each_has_alone():
    config = replace(TINY, entropy=0.1, epochs=2, deviation="state")
    configs = variations(config, rules=["R", "C"], seeds=[0, 1])
    ensemble = Ensemble(system(), configs)
    ensemble.fit()
    assert all(engine is not None for engine in ensemble._engines.values())
    for member, own in zip(ensemble.members, configs, strict=True):
        alone = Trainer(system(), config=own)
        alone.fit()
        for one, other in zip(weights(member), weights(alone), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_every_update_has_noise_of_its_own():
    trainer = Trainer(system(), config=TINY)
    queries = (trainer.learner._direction_query(trainer.train_states, i, False) for i in (0, 0, 1))
    first, again, other = (query.noise for query in queries)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, 8, 1)


def test_the_entropy_bonus_widens_and_the_task_narrows_the_deviation():
    """On x' = x + u the loss of the mean over noise grows with its variance, and entropy is log-deviation."""

    def deviation(weight):
        config = replace(TINY, epochs=20, learning_rate=0.05, entropy=weight, rule="R", initial_deviation=0.5)
        trainer = Trainer(Integrator(horizon=6), config=config)
        trainer.fit()
        return float(trainer.controller.spread.weight.detach())

    assert deviation(0.0) < -0.1
    assert deviation(10.0) > 0.1


def test_a_bonus_or_a_deviation_for_who_has_none_is_refused():
    with pytest.raises(ValueError, match="entropy must be 0 for a controller that does not give its entropy"):
        Trainer(system(), config=replace(TINY, deviation="none", entropy=0.1))
    with pytest.raises(ValueError, match=r"deviation is for the controllers that TrainConfig names.*'constant'"):
        Trainer(system(), nn.Linear(4, 1), TINY)
    with pytest.raises(ValueError, match="initial_deviation has no effect where deviation is 'none'"):
        replace(TINY, deviation="none", initial_deviation=0.3)
    with pytest.raises(ValueError, match="diagnostics need a controller without memory and noise"):
        Trainer(system(), config=replace(TINY, record=("diagnostics",)))


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_a_controller_of_ones_own_takes_the_noise_and_keeps_its_entropy(engine):
    class Own(Controller):
        noise_shape = (2,)
        gives_entropy = True

        def __init__(self):
            super().__init__((1,), (1,))
            self.layer = nn.Linear(3, 1)

        def forward(self, observation, noise):
            return self.layer(torch.cat([observation, noise], 1)), self.layer.weight[0, 1:].norm().expand(len(noise))

    torch.manual_seed(0)
    config = replace(TINY, deviation="none", hidden=None, entropy=0.5, engine=engine, rule="R")
    trainer = Trainer(Integrator(horizon=4), Own(), config)
    before = trainer.controller.layer.weight.detach().clone()
    trainer.fit()
    assert not torch.equal(before, trainer.controller.layer.weight)
    assert trainer.controller.predict(np.zeros(1))[0].shape == (1,)


def test_a_wide_system_takes_it_by_products():
    wide = Guidance(horizon=3, n_drivers=2, n_evaders=8)
    trainer = Trainer(wide, config=replace(TINY, deviation="state", entropy=0.1, epochs=1))
    trainer.fit()
    assert trainer.choice.engine.name == "adjoint"


@pytest.mark.parametrize(
    "options", ["--deviation state", "--deviation constant --controller gru --squash --entropy 0.1"]
)
def test_the_command_line_trains_it_and_goes_on(tmp_path, options, capsys):
    sizes = "--preset paper --env-option horizon=6 --train-states 8 --test-states 8 --hidden 4 --record"
    assert main(f"train --epochs 1 {sizes} {options} --out {tmp_path / 'run'}".split()) == 0
    assert main(f"resume {tmp_path / 'run'} --epochs 2 --record".split()) == 0
    assert main(f"train --epochs 2 {sizes} {options} --out {tmp_path / 'whole'}".split()) == 0
    parts, whole = (RunFolder(tmp_path / name).load("last")["controller"] for name in ("run", "whole"))
    assert all(torch.equal(parts[name], one) for name, one in whole.items())
    capsys.readouterr()


def test_it_says_what_it_is_called_with():
    for controller, given in ((Gaussian((3,), (1,)), []), (Gaussian((3,), (1,), network="gru"), [torch.zeros(2, 1)])):
        with pytest.raises(TypeError, match=r"is called with observations.* and noise"):
            controller(torch.zeros(2, 3), *given)
