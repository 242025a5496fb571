"""A window is what its equation says, sample by sample in plain autograd, under every rule and by both engines."""

import pytest
import torch
from cliff import ByProducts, Cliff
from recorded import Recorded

from bptt_envs import Task
from bptt_envs.systems import CartPole, Guidance, QuantumControl
from bptt_envs.task import as_task
from bptt_trainers import RULES, Gaussian
from bptt_trainers.controllers.normalized import Normalized
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import combined
from bptt_trainers.training.critic import Critic, targets
from bptt_trainers.training.window import EndValue, Window, window_steps

STEPS = 4
BATCH = 6
LEFT = (1, 2, STEPS, STEPS + 1, 9, 10)  # steps that the episodes have left: three of them end within the window

SYSTEMS = {
    "final cost": lambda: CartPole(horizon=10),
    "running cost and time, bounded": lambda: Task(Guidance(horizon=10, max_control=0.2), observe_time=True),
    "by products": lambda: QuantumControl(horizon=10, n_points=6),
    "early ends": lambda: Cliff(horizon=10),
    "early ends by products": lambda: Task(ByProducts(horizon=10, max_action=0.1), observe_time=True),
}


def made(system, discount, controller=None):
    """A window of the system, a controller, and start states with episodes of which some end."""
    task = as_task(system)
    generator = torch.Generator().manual_seed(0)
    critic = Critic(task.observation_shape, task.horizon, (8,), generator).double()
    with torch.no_grad():  # one that has learned: a new one says 0 everywhere
        last = critic.networks[0][-1]
        last.weight.copy_(torch.randn(last.weight.shape, dtype=torch.float64, generator=generator))
        last.bias.fill_(0.3)
        critic.middle.fill_(0.7)
        critic.unit.fill_(1.5)
    window = Window(system, STEPS, discount, EndValue(critic))
    inner = task.initial_states(BATCH, generator, torch.float64)
    if controller is None:
        controller = Normalized(task.observation_shape, task.action_shape, (8,), generator=generator).double()
        controller.normalizer.gather(task.observe(task.initial_states(50, generator, torch.float64)))
        critic.normalizer.gather(task.observe(task.initial_states(50, generator, torch.float64)))
    return window, controller, critic, window.at(inner, torch.tensor(LEFT))


def by_hand(task, controller, critic, state, left, discount, feedback):
    """The loss of one window from one state, (1, *state_shape), as the equation has it."""
    weight, total = 1.0, 0.0
    for _ in range(STEPS):
        action = task.bound(controller(task.observe(state if feedback.controller else state.detach())))
        following = task.step(state if feedback.physics else state.detach(), action)
        total = total + weight * task.running_cost(state, action, following)
        state, left, weight = following, left - 1, weight * discount
        early = task.episode_over(state)
        if left == 0 or (early is not None and bool(early)):
            return total + weight * task.final_cost(state)
    return total + weight * critic(task.observe(state), torch.tensor([float(left)], dtype=torch.float64))


@pytest.mark.parametrize("discount", [1.0, 0.9])
@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_directions_of_a_window_are_those_of_its_equation(name, discount):
    window, controller, critic, states = made(SYSTEMS[name](), discount)
    parameters = {n: p for n, p in controller.named_parameters() if p.requires_grad}
    for rule in (RULES["R"], RULES["M"], RULES["C"]):
        passes = {}
        for feedback in rule.passes:
            losses = torch.cat(
                [
                    by_hand(
                        window.system, controller, critic, window.inner(states[i : i + 1]), LEFT[i], discount, feedback
                    )
                    for i in range(BATCH)
                ]
            )
            slopes = torch.autograd.grad(losses.mean(), list(parameters.values()))
            passes[feedback] = dict(zip(parameters, slopes, strict=True))
        expected = combined(rule, passes)
        for engine in ("adjoint", "autograd"):
            seen = []
            choice = choose_engine(window, controller, states, engine)
            found, directions = choice.engine(states, rule.passes, show=seen.append)
            torch.testing.assert_close(found, losses.detach())
            for one, direction in combined(rule, directions).items():
                torch.testing.assert_close(direction, expected[one], rtol=1e-8, atol=1e-12)
            assert seen[0].states.shape == (STEPS + 1, BATCH, *window.state_shape)


def test_a_state_stays_where_its_episode_ended_and_costs_nothing_more():
    window, controller, _, states = made(Cliff(horizon=10), 0.9)
    states = window.at(window.inner(states), torch.tensor(LEFT[::-1]))  # the third goes on, the others end
    seen = []
    choose_engine(window, controller, states).engine(states, RULES["R"].passes, show=seen.append)
    through, actions = seen[0].states, seen[0].actions
    over = window.episode_over(through)
    assert over[-1].any()
    assert not over[-1].all()
    assert not over[0].any()
    for t in range(STEPS):
        torch.testing.assert_close(through[t + 1][over[t]], through[t][over[t]], rtol=0, atol=0)
        costs = window.running_cost(through[t], window.bound(actions[t]), through[t + 1])
        assert not costs[over[t]].any()


def test_a_critic_that_changes_needs_no_new_engine():
    window, controller, critic, states = made(CartPole(horizon=10), 1.0)
    engine = choose_engine(window, controller, states).engine
    before, _ = engine(states, RULES["R"].passes)
    fast = engine._fast
    with torch.no_grad():
        critic.middle += 1.0
    after, _ = engine(states, RULES["R"].passes)
    assert engine._fast is fast
    known = engine._judgement
    controller.normalizer.gather(2.0 + window.observe(states))  # nor do observations that are normalised otherwise
    moved, _ = engine(states, RULES["R"].passes)
    assert engine._judgement is known
    assert not torch.equal(moved, after)
    going_on = torch.tensor([left > STEPS for left in LEFT])
    torch.testing.assert_close(after - before, going_on.double())


def soft(system, discount, steps=STEPS):
    """A window in which entropy counts, a stochastic controller, its noise, and start states."""
    generator = torch.Generator().manual_seed(1)
    shapes = as_task(system).observation_shape, as_task(system).action_shape
    controller = Gaussian(*shapes, (4,), deviation="state", squash=(-2.0, 2.0), generator=generator).double()
    plain, _, critic, states = made(system, discount, controller)
    window = Window(system, steps, discount, EndValue(critic, 0.3), soft=True)
    noise = torch.randn(steps, BATCH, *controller.noise_shape, dtype=torch.float64, generator=generator)
    return window, controller, critic, noise, plain.inner(states)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_window_counts_the_entropy_of_actions_by_what_it_is_worth(discount):
    system = CartPole(horizon=10, objective="continuous")
    window, controller, critic, noise, inner = soft(system, discount)
    total = 0.0
    for i in range(BATCH):
        x, weight = inner[i : i + 1], 1.0
        for k in range(STEPS):
            action, entropy = controller(x, noise[k, i : i + 1])
            following = system.step(x, action)
            total = total + weight * (system.running_cost(x, action, following) - 0.3 * entropy)
            x, weight = following, weight * discount
            if k + 1 == LEFT[i]:
                break
        else:
            total = total + weight * critic(x, torch.tensor([float(LEFT[i] - STEPS)], dtype=torch.float64))
    parameters = dict(controller.named_parameters())
    expected = torch.autograd.grad(total.sum() / BATCH, list(parameters.values()))
    states = window.at(inner, torch.tensor(LEFT))
    for engine in ("adjoint", "autograd"):
        choice = choose_engine(window, controller, states, engine, entropy=window.entropy_weight)
        losses, passes = choice.engine(states, RULES["R"].passes, noise=noise)
        torch.testing.assert_close(losses.mean(), total.sum().detach() / BATCH)
        (found,) = passes.values()
        torch.testing.assert_close(found, dict(zip(parameters, expected, strict=True)), rtol=1e-8, atol=1e-12)


def test_a_compiled_window_follows_the_critic_and_what_entropy_is_worth(monkeypatch):
    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Recorded)
    window, controller, critic, noise, inner = soft(Cliff(horizon=10), 0.9, steps=2)
    states = window.at(inner, torch.tensor(LEFT))
    compiled, plain = (
        choose_engine(window, controller, states, "adjoint", compile=one, entropy=window.entropy_weight).engine
        for one in (True, False)
    )
    passes = RULES["C"].passes
    for _ in range(2):
        states = window.at(inner, torch.tensor(LEFT))
        losses, directions = compiled(states, passes, noise=noise)
        expected_losses, expected = plain(states, passes, noise=noise)
        torch.testing.assert_close(losses, expected_losses)
        torch.testing.assert_close(directions, expected)
        window.end.temperature += 0.5
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter += 0.1


def test_targets_of_the_critic_are_means_of_returns_of_every_length():
    # arXiv 2204.07137, equations 6 to 8, by its sums; the second episode ends after two of four steps
    costs = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[10.0, 20.0, 30.0, 40.0], [10.0, 7.0, 7.0, 7.0]], dtype=torch.float64)
    over = torch.tensor([[False] * 4, [False, True, True, True]])
    gamma, decay = 0.9, 0.8
    found = targets(costs.T, values.T, over.T, gamma, decay).T
    for episode, length in ((0, 4), (1, 2)):
        for start in range(length):
            returns = [
                sum(gamma**i * costs[episode, start + i] for i in range(k)) + gamma**k * values[episode, start + k - 1]
                for k in range(1, length - start + 1)
            ]
            weighted = (1 - decay) * sum(decay**i * one for i, one in enumerate(returns[:-1]))
            assert float(found[episode, start]) == pytest.approx(
                float(weighted + decay ** (len(returns) - 1) * returns[-1])
            )


def test_windows_divide_the_horizon_into_equal_parts():
    assert [window_steps(horizon, 32) for horizon in (20, 32, 33, 60, 100, 128)] == [20, 32, 17, 30, 25, 32]
