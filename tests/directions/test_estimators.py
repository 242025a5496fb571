"""Estimators of a stochastic controller's gradient: by hand, by both engines, and in the mean the gradient itself."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from bptt_envs.systems import LQR, CartPole, Guidance, QuantumControl
from bptt_trainers import Gaussian, Squash, Trajectory, draw_noise, losses, policy_gradient, rollout
from bptt_trainers.directions import estimators
from bptt_trainers.directions.estimators import ESTIMATORS, EstimatorEngine, alpha_of, share_of_ratio
from bptt_trainers.directions.rules import REGULAR

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
    for entropy in (0.0, 0.3):
        for estimator in OTHERS:
            found, expected = (
                policy_gradient(
                    system, controller, states, "R", engine, entropy=entropy, noise=noise, estimator=estimator
                )
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
    system = CartPole(horizon=6, dt=0.2, max_force=0.8)
    controller, states, noise = made(system, **KINDS[kind])
    expected, shares = total_propagation_by_hand(system, controller, states, noise)
    assert min(shares) < 0.9 and max(shares) > 0.01, shares
    found = policy_gradient(system, controller, states, "R", noise=noise, estimator="total_propagation").directions
    assert near(flat(found), expected)


def test_alpha_order_weighs_the_directions_by_the_variances_of_the_episodes():
    system = SYSTEMS["positions"]()
    controller, states, noise = made(system, batch=4, hidden=(5,), deviation="state")
    pathwise = torch.stack(
        [flat(policy_gradient(system, controller, states[[i]], "R", noise=noise[:, [i]]).directions) for i in range(4)]
    )
    engine = EstimatorEngine(system, controller, "alpha_order")
    ratio = torch.cat([one.flatten(1) for one in engine.by_episode("likelihood_ratio", states, noise)[1].values()], 1)
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
def test_at_the_ends_of_the_mixture_are_the_two_estimators_bit_for_bit(engine, monkeypatch):
    system = SYSTEMS["positions"]()
    controller, states, noise = made(system, hidden=(5,), deviation="state")

    def direction(estimator):
        return flat(
            policy_gradient(system, controller, states, "R", engine, noise=noise, estimator=estimator).directions
        )

    whole = EstimatorEngine(system, controller, "total_propagation", engine)
    plain = flat(whole.chosen(states, (REGULAR,), noise=noise)[1][REGULAR])
    assert near(direction("pathwise"), plain, 1e-12)
    for share, expected in ((0.0, plain), (1.0, direction("likelihood_ratio"))):
        monkeypatch.setattr(estimators, "share_of_ratio", lambda one, other, k=share: torch.full_like(one, k))
        assert torch.equal(direction("total_propagation"), expected) or (
            share == 0.0 and engine == "adjoint" and near(direction("total_propagation"), expected, 1e-13)
        )
        by_alpha = direction("alpha_order")
        assert near(by_alpha, expected, 1e-12)


def test_what_explodes_has_no_share():
    one, other = torch.tensor([math.inf, math.nan, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 3.0, 2.0])
    assert share_of_ratio(one, other).tolist() == [1.0, 1.0, 0.0, 0.25, 0.0]
    exploded = torch.full((3, 2), math.inf)
    assert torch.equal(estimators.mixture(torch.tensor(1.0), torch.ones(3, 2), exploded), torch.ones(3, 2))
