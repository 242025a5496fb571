"""Descents of a stack are those of its members, each with Adam of its own."""

import pytest
import torch

from bptt_envs.systems import CartPole
from bptt_studies.toys.descent import descend, falling
from bptt_trainers import MLP, policy_gradient
from bptt_trainers.directions.rules import MODIFIED, REGULAR, RULES, combined
from bptt_trainers.directions.stacked import StackedEngine


def test_each_descent_is_that_of_adam_alone():
    system = CartPole(horizon=10)
    states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64)
    controllers = [MLP((4,), (1,), (5,), generator=torch.Generator().manual_seed(i)).double() for i in range(2)]
    start = {
        name: torch.stack([controller.get_parameter(name).detach() for controller in controllers])
        for name, _ in controllers[0].named_parameters()
    }
    before = {name: value.clone() for name, value in start.items()}

    def sample(parameters):
        each = states.expand(len(next(iter(parameters.values()))), *states.shape)
        losses, passes = StackedEngine(system, controllers[0])(parameters, each, (REGULAR, MODIFIED))
        return losses.mean(1), {rule: combined(RULES[rule], passes) for rule in "RMC"}

    rates = [0.1, 0.05, 0.02]
    points = list(descend(sample, start, ("C", "R"), rates, betas=(0.5, 0.9), eps=1e-3))
    assert len(points) == 4
    assert points[0].losses.shape == (2, 2)
    assert all(torch.equal(start[name], value) for name, value in before.items())
    for p, rule in enumerate(("C", "R")):
        for e, original in enumerate(controllers):
            controller = MLP((4,), (1,), (5,)).double()
            controller.load_state_dict(original.state_dict())
            optimizer = torch.optim.Adam(controller.parameters(), betas=(0.5, 0.9), eps=1e-3)
            for point, rate in zip(points, [*rates, 0.0], strict=True):
                alone = policy_gradient(system, controller, states, rule, "autograd")
                assert float(point.losses[p, e]) == pytest.approx(float(alone.loss), rel=1e-10)
                for name, parameter in controller.named_parameters():
                    torch.testing.assert_close(point.parameters[name][p, e], parameter.detach(), rtol=1e-8, atol=1e-10)
                    parameter.grad = alone.directions[name]
                    torch.testing.assert_close(point.directions[name][p, e], parameter.grad, rtol=1e-7, atol=1e-9)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()


def test_the_rate_falls_from_what_is_asked_to_near_0():
    rates = falling(0.3, 100)
    assert len(rates) == 100
    assert rates[0] == 0.3
    assert rates == sorted(rates, reverse=True)
    assert 0.0 < rates[-1] < 1e-3
