"""Estimators of a stochastic controller's gradient: by hand, by both engines, and in the mean the gradient itself."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from bptt_envs.systems import LQR, CartPole, Guidance, QuantumControl
from bptt_trainers import Gaussian, draw_noise, policy_gradient, rollout
from bptt_trainers.controllers.gaussian import REACH
from bptt_trainers.directions import estimators
from bptt_trainers.directions.estimators import (
    ESTIMATORS,
    EstimatorEngine,
    alpha_of,
    likelihood_ratio,
    share_of_ratio,
)
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import REGULAR
from bptt_trainers.directions.sampled import Distribution, SampledSystem

OTHERS = [name for name in ESTIMATORS if name != "pathwise"]
SYSTEMS = {
    "positions": lambda: CartPole(horizon=6, observation="positions", max_force=0.4),
    "guidance": lambda: Guidance(horizon=3, n_drivers=1, n_evaders=1),
    "quantum": lambda: QuantumControl(horizon=3, n_points=20),
}
KINDS = {
    "squashed": {"hidden": (5,), "squash": (-0.5, 0.5)},
    "state": {"hidden": (5,), "deviation": "state"},
    "with memory": {"hidden": (4,), "network": "gru", "deviation": "state", "squash": (-0.5, 0.5)},
}


def made(system, batch=5, **kind):
    """A controller, start states and noise, in float64."""
    generator = torch.Generator().manual_seed(0)
    kind = {"initial_deviation": 0.3} | kind
    controller = Gaussian(system.observation_shape, system.action_shape, generator=generator, **kind).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(3.0).add_(0.1)  # so that much is fed back, and no deviation is what it was set to
    states = system.initial_states(batch, torch.Generator().manual_seed(1), torch.float64)
    return controller, states, draw_noise(controller, system.horizon, states, torch.Generator().manual_seed(2))


def flat(by_name):
    return torch.cat([one.flatten() for one in by_name.values()])


def near(found, expected, tolerance=1e-10):
    return bool((found - expected).norm() <= tolerance * expected.norm() + 1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_fast_engine_is_the_definition(name, kind):
    system = SYSTEMS[name]()
    controller, states, noise = made(system, **KINDS[kind])
    for estimator in OTHERS:
        found, expected = (
            policy_gradient(system, controller, states, "R", engine, entropy=0.3, noise=noise, estimator=estimator)
            for engine in ("adjoint", "autograd")
        )
        assert (found.engine, expected.engine) == ("adjoint", "autograd")
        assert found.directions.keys() == dict(controller.named_parameters()).keys()
        torch.testing.assert_close(found.loss, expected.loss)
        assert near(flat(found.directions), flat(expected.directions)), estimator


def log_probability(controller, observation, memory, taken):
    """That of actions before they are bent, by torch's distributions."""
    mean, log_deviation, *memory = controller.distribution(observation, *memory)
    normal = Independent(Normal(mean, log_deviation.exp()), mean.dim() - 1)
    return normal.log_prob(taken), normal.entropy(), memory


def likelihood_ratio_by_hand(system, controller, states, noise, entropy):
    """Sum over steps of the cost to go, less the mean of the other episodes', times the score."""
    batch = len(states)
    x, memory = states, [states.new_zeros(batch, *controller.memory_shape)] if controller.memory_shape else []
    scores, costs, direct = [], [], 0.0
    for t in range(system.horizon):
        observation = system.observe(x)
        with torch.no_grad():
            mean, log_deviation, *_ = controller.distribution(observation, *memory)
            taken = mean + log_deviation.exp() * noise[t]
            answer = controller(observation, *memory, noise[t])
            u = system.bound(answer[0])
            following = system.step(x, u)
            costs.append(system.running_cost(x, u, following) - entropy / system.horizon * answer[-1])
        score, spread, memory = log_probability(controller, observation, memory, taken)
        scores.append(score)
        direct = direct - entropy / system.horizon * spread
        x = following
    costs.append(system.final_cost(x))
    surrogate = direct
    for t, score in enumerate(scores):
        to_go = sum(costs[t:])
        others = (to_go.sum() - to_go) / (batch - 1)
        surrogate = surrogate + (to_go - others) * score
    return torch.autograd.grad(surrogate.mean(), list(controller.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_likelihood_ratio_is_the_score_times_the_cost_to_go(kind, entropy):
    system = SYSTEMS["positions"]()
    controller, states, noise = made(system, **KINDS[kind])
    expected = torch.cat([g.flatten() for g in likelihood_ratio_by_hand(system, controller, states, noise, entropy)])
    found = policy_gradient(
        system, controller, states, "R", entropy=entropy, noise=noise, estimator="likelihood_ratio"
    ).directions
    assert near(flat(found), expected)


def total_propagation_by_hand(system, controller, states, noise):
    """Backwards step by step with the slopes of each step alone by autograd; the variances in plain Python."""
    through = rollout(system, controller, states, noise=noise)
    horizon, batch = system.horizon, len(states)
    with torch.no_grad():
        costs = [
            system.running_cost(through.states[t], system.bound(through.actions[t]), through.states[t + 1])
            for t in range(horizon)
        ]
        costs.append(system.final_cost(through.states[-1]))
    last = through.states[-1].clone().requires_grad_()
    (adjoint,) = torch.autograd.grad(system.final_cost(last).sum(), last)
    total, shares = None, []
    for t in reversed(range(horizon)):
        x = through.states[t].clone().requires_grad_()
        mean, log_deviation = controller.distribution(system.observe(x))
        leaves = [one.detach().requires_grad_() for one in (mean, log_deviation)]
        fixed = x.detach().requires_grad_()
        u = system.bound(controller.sample(*leaves, noise[t])[0])
        following = system.step(fixed, u)
        reached = (following * adjoint).sum() + system.running_cost(fixed, u, following).sum()
        *pathwise, by_state = torch.autograd.grad(reached, [*leaves, fixed])
        to_go = sum(costs[t:])
        advantage = to_go - (to_go.sum() - to_go) / (batch - 1)
        score = torch.autograd.grad(
            Normal(leaves[0], leaves[1].exp()).log_prob(leaves[0].detach() + leaves[1].detach().exp() * noise[t]).sum(),
            leaves,
        )
        ratio = [advantage.view(-1, *(1,) * (s.dim() - 1)) * s for s in score]
        variances = []
        for slopes in (pathwise, ratio):
            mean_part = slopes[0] * leaves[1].detach().exp()
            parts = [*mean_part.flatten(1).T.tolist(), *(slopes[1] * math.sqrt(0.5)).flatten(1).T.tolist()]
            centres = [sum(part) / batch for part in parts]
            variances.append(
                sum(sum((n - c) ** 2 for n in p) / (batch - 1) for p, c in zip(parts, centres, strict=True))
            )
        k = variances[0] / sum(variances)
        shares.append(k)
        mixed = [k * one + (1 - k) * other for one, other in zip(ratio, pathwise, strict=True)]
        fed = sum((one * other).sum() for one, other in zip((mean, log_deviation), mixed, strict=True))
        back, *by_parameter = torch.autograd.grad(fed, [x, *controller.parameters()])
        adjoint = by_state + back
        flat_part = torch.cat([one.flatten() for one in by_parameter]) / batch
        total = flat_part if total is None else total + flat_part
    return total, shares


@pytest.mark.parametrize("kind", ["squashed", "state"])
def test_total_propagation_weighs_each_step_by_inverse_variance(kind):
    system = CartPole(horizon=6, dt=0.2, max_force=3.0)
    controller, states, noise = made(system, **KINDS[kind])
    expected, shares = total_propagation_by_hand(system, controller, states, noise)
    assert min(shares) < 0.9
    assert max(shares) > 0.01
    found = policy_gradient(system, controller, states, "R", noise=noise, estimator="total_propagation").directions
    assert near(flat(found), expected)


def test_alpha_order_weighs_the_directions_by_the_variances_of_the_episodes():
    system = SYSTEMS["positions"]()
    controller, states, noise = made(system, batch=4, hidden=(5,), deviation="state")
    pathwise = torch.stack(
        [flat(policy_gradient(system, controller, states[[i]], "R", noise=noise[:, [i]]).directions) for i in range(4)]
    )
    engine = EstimatorEngine(system, controller, "alpha_order")
    ratio = torch.cat([one.flatten(1) for one in engine.by_episode(states, noise)[2].values()], 1)
    whole = policy_gradient(system, controller, states, "R", noise=noise, estimator="likelihood_ratio").directions
    assert near(ratio.mean(0), flat(whole))
    s1, s0 = (float((one - one.mean(0)).square().sum() / 3) for one in (pathwise, ratio))
    alpha = s0 / (s0 + s1)
    found = policy_gradient(system, controller, states, "R", noise=noise, estimator="alpha_order").directions
    assert near(flat(found), alpha * pathwise.mean(0) + (1 - alpha) * ratio.mean(0))


def test_a_bound_on_the_bias_holds_the_pathwise_share_back():
    generator = torch.Generator().manual_seed(0)
    ratio = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    pathwise = 5.0 + 0.01 * ratio  # hardly any variance, but far away
    free = float(alpha_of(pathwise, ratio))
    assert free > 0.99
    eps = float((ratio.var(0).sum() / (400 * 0.05)).sqrt())
    gap = float((pathwise.mean(0) - ratio.mean(0)).norm())
    assert float(alpha_of(pathwise, ratio, 3.0)) == pytest.approx((3.0 - eps) / gap)
    assert float(alpha_of(pathwise, ratio, 100.0)) == free  # it does not bind
    assert float(alpha_of(pathwise, ratio, 0.5 * eps)) == 0.0  # the likelihood ratio is not known well enough itself
    assert float(alpha_of(ratio, ratio, 2.0 * eps)) == pytest.approx(0.5)  # no gap


@pytest.mark.parametrize("engine", ["adjoint", "autograd"])
def test_at_the_ends_of_the_mixture_are_the_two_estimators(engine, monkeypatch):
    system = SYSTEMS["positions"]()
    controller, states, noise = made(system, hidden=(5,), deviation="state")

    def direction(estimator):
        return flat(
            policy_gradient(system, controller, states, "R", engine, noise=noise, estimator=estimator).directions
        )

    for share, expected in ((0.0, "pathwise"), (1.0, "likelihood_ratio")):
        with monkeypatch.context() as patch:
            wanted = direction(expected)
            patch.setattr(estimators, "share_of_ratio", lambda one, other, k=share: torch.full_like(one, k))
            assert near(direction("total_propagation"), wanted, 1e-13)
            assert near(direction("alpha_order"), wanted, 1e-13)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_goes_on_backwards_is_one_of_the_two_bit_for_bit_at_the_ends(share, monkeypatch):
    system = SampledSystem(SYSTEMS["positions"](), made(SYSTEMS["positions"]())[0])
    controller, states, noise = made(system.system)
    through = rollout(system, Distribution(controller), system.episode_start(states), noise=noise)
    slopes = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    monkeypatch.setattr(estimators, "share_of_ratio", lambda one, other: torch.full_like(one, share))
    mixed = estimators.propagated(system, through, 0.2).taken(3, slopes)
    assert torch.equal(mixed, slopes if share == 0.0 else likelihood_ratio(system, through, 0.2)[3].unsqueeze(0))


def test_what_explodes_has_no_share():
    one, other = torch.tensor([math.inf, math.nan, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 3.0, 2.0])
    assert share_of_ratio(one, other).tolist() == [1.0, 1.0, 0.0, 0.25, 0.0]
    exploded = torch.full((3, 2), math.inf)
    assert torch.equal(estimators.mixture(torch.tensor(1.0), torch.ones(3, 2), exploded), torch.ones(3, 2))


def expected_loss(system, controller, start):
    """The expected loss of a linear system with a linear controller and normal noise, in closed form."""
    K, b = controller.network.layers[-1].weight, controller.network.layers[-1].bias
    log_deviation = controller.log_start + REACH * torch.tanh(controller.spread.weight[:, 0] / REACH)
    A, B, Q, R, Q_T = (
        torch.as_tensor(one, dtype=start.dtype) for one in (system.A, system.B, system.Q, system.R, system.Q_T)
    )
    mean, cov, total = start, torch.zeros(2, 2, dtype=start.dtype), 0.0
    for _ in range(system.horizon):
        u = mean @ K.mT + b
        cov_u = K @ cov @ K.mT + torch.diag((2 * log_deviation).exp())
        total = total + (mean @ Q * mean).sum(1) + (u @ R * u).sum(1) + (Q * cov).sum() + (R * cov_u).sum()
        cov = (A + B @ K) @ cov @ (A + B @ K).mT + B @ torch.diag((2 * log_deviation).exp()) @ B.mT
        mean = mean @ A.mT + u @ B.mT
    return (total + (mean @ Q_T * mean).sum(1) + (Q_T * cov).sum()).mean()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_of_each_estimator_is_the_gradient_of_the_expected_loss_on_a_linear_system(estimator):
    system = LQR(horizon=4)
    controller = Gaussian((2,), (1,), (), initial_deviation=0.5, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        controller.spread.weight.fill_(0.3)
    batch, draws = 128, 100
    start = system.initial_states(batch, torch.Generator().manual_seed(1), torch.float64)
    parameters = list(controller.parameters())
    true = torch.cat([g.flatten() for g in torch.autograd.grad(expected_loss(system, controller, start), parameters)])
    if estimator == "pathwise":
        chosen = choose_engine(system, controller, start).engine
    else:
        chosen = EstimatorEngine(system, controller, estimator)
    generator, found = torch.Generator().manual_seed(2), []
    for _ in range(draws):
        noise = draw_noise(controller, system.horizon, start, generator)
        if estimator == "pathwise":
            found.append(flat(chosen(start, (REGULAR,), noise=noise, look=False)[1][REGULAR]))
        else:
            found.append(flat(chosen(start, noise=noise, look=False)[1]))
    found = torch.stack(found)
    error = (found.mean(0) - true).abs() / (found.std(0) / math.sqrt(draws))
    assert float(error.max()) < 4.0, error  # of four components: once in 4000 if they were not


def test_the_estimators_are_unlike_in_what_they_draw():
    system = LQR(horizon=4)
    controller, states, noise = made(system, hidden=(5,))
    found = [
        flat(policy_gradient(system, controller, states, "R", noise=noise, estimator=one).directions)
        for one in ESTIMATORS
    ]
    assert all((one - other).norm() > 1e-3 * one.norm() for i, one in enumerate(found) for other in found[:i])


class OwnNoise(nn.Module):
    noise_shape = (1,)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, observation, noise):
        return self.layer(observation) + noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "REINFORCE"}, "estimator must be one of"),
        ({"rule": "M"}, "rule must be 'R'; got 'M'"),
        ({"bias_bound": 1.0}, "bias_bound is for estimator 'alpha_order'; got 1.0 for 'likelihood_ratio'"),
        ({"bias_bound": -1.0, "estimator": "alpha_order"}, "bias_bound must be a finite number above 0; got -1.0"),
        ({"batch": 1}, "needs a batch of at least 2 episodes; got 1"),
        ({"controller": OwnNoise()}, "as a Gaussian does .* got a OwnNoise"),
    ],
)
def test_what_no_estimator_serves_is_refused_in_words(changes, message):
    system = LQR(horizon=2)
    given = {"rule": "R", "estimator": "likelihood_ratio", "batch": 3, "controller": Gaussian((2,), (1,))} | changes
    states = system.initial_states(given.pop("batch"), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        policy_gradient(system, given.pop("controller"), states, **given)


@pytest.mark.parametrize("estimator", OTHERS)
def test_hooks_of_parameters_are_called_with_what_is_estimated(estimator):
    system = LQR(horizon=3)
    controller, states, noise = made(system, hidden=(4,))
    plain = policy_gradient(system, controller, states, "R", noise=noise, estimator=estimator).directions
    controller.network.layers[0].weight.register_hook(lambda direction: 3.0 * direction)
    found, expected = (
        policy_gradient(system, controller, states, "R", engine, noise=noise, estimator=estimator).directions
        for engine in ("adjoint", "autograd")
    )
    assert near(flat(found), flat(expected))
    if estimator != "alpha_order":  # whose weight hangs on what single episodes say
        plain["network.layers.0.weight"] *= 3.0
        assert near(flat(found), flat(plain))
