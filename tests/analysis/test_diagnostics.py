"""Diagnostics measure what they say, and cost a training run nothing but time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs import Task
from bptt_envs.systems import CartPole, Integrator, MultiPole
from bptt_trainers import MLP, RunFolderError, TrainConfig, Trainer, policy_gradient, rollout
from bptt_trainers.analysis.diagnostics import diagnose, read_diagnostics
from bptt_trainers.analysis.diagnostics_figure import diagnostics_figure
from bptt_trainers.analysis.growth import feedback_growth
from bptt_trainers.directions.rules import cosine, sign_agreement
from bptt_trainers.figures.style import save_figure

SYSTEMS = [
    CartPole(horizon=12, max_force=3.0),
    MultiPole(n_poles=2, horizon=9, objective="continuous"),
    Integrator(objective="continuous"),
]
CONFIG = TrainConfig(epochs=3, batch_size=4, train_states=12, test_states=6, hidden=(8,), record=("pictures",))


def setting(system, seed=0):
    generator = torch.Generator().manual_seed(seed)
    controller = MLP(system.observation_shape, system.action_shape, (8, 6), generator=generator).double()
    return controller, system.initial_states(5, generator, torch.float64)


@pytest.fixture(params=SYSTEMS, ids=lambda system: type(system).__name__)
def system(request):
    return request.param


def flat(directions):
    return torch.cat([direction.flatten() for direction in directions.values()])


def test_norms_angles_and_agreement_are_those_of_the_directions(system):
    controller, states = setting(system)
    found = diagnose(system, controller, states, epoch=7)
    assert found.epoch == 7
    assert found.layers == ("layers.0", "layers.2", "layers.4")
    by_rule = {rule: policy_gradient(system, controller, states, rule, "autograd").directions for rule in "RMC"}
    for i, directions in enumerate(by_rule.values()):
        for j, layer in enumerate(found.layers):
            both = torch.cat([directions[f"{layer}.weight"].flatten(), directions[f"{layer}.bias"]])
            assert found.norms[i, j] == pytest.approx(float(both.norm()), rel=1e-9)
    vectors = {rule: flat(directions) for rule, directions in by_rule.items()}
    for i, (a, b) in enumerate(("RM", "RC", "MC")):
        first, second = vectors[a], vectors[b]
        assert found.cosine[i] == pytest.approx(float(first @ second / first.norm() / second.norm()), rel=1e-9)
        assert found.agreement[i] == pytest.approx(float((first.sign() == second.sign()).double().mean()), abs=1e-3)


def test_adjoints_are_the_slopes_of_the_loss_by_the_states(system):
    controller, states = setting(system)
    for row, keeps_controller in enumerate((True, False)):
        state, cost, visited = states.clone(), 0.0, []
        for _ in range(system.horizon):
            seen = state if keeps_controller else state.detach()
            action = system.bound(controller(system.observe(seen)))
            state_after = system.step(state, action)
            state_after.retain_grad()
            visited.append(state_after)
            cost = cost + system.running_cost(state, action, state_after)
            state = state_after
        (cost + system.final_cost(state)).sum().backward()
        expected = [float(one.grad.flatten(1).norm(dim=1).mean()) for one in visited]
        np.testing.assert_allclose(diagnose(system, controller, states).adjoints[row], expected, rtol=1e-9)


def test_growth_is_the_largest_singular_value_of_the_jacobian_of_what_follows(system):
    controller, states = setting(system)
    trajectory = rollout(system, controller, states)
    times, growth = feedback_growth(system, controller, trajectory)
    assert times == list(range(system.horizon))

    def end(state, start, closed, episode):
        for t in range(start, system.horizon):
            action = trajectory.actions[t, episode : episode + 1]
            action = controller(system.observe(state[None])) if closed else action
            state = system.step(state[None], system.bound(action))[0]
        return state

    for t in (0, system.horizon // 2, system.horizon - 1):
        for row, closed in enumerate((False, True)):
            expected = []
            for episode in range(4):
                jacobian = torch.autograd.functional.jacobian(
                    lambda x, closed=closed, episode=episode, t=t: end(x, t, closed, episode),
                    trajectory.states[t, episode],
                )
                expected.append(float(torch.linalg.svdvals(jacobian)[0].log10()))
            assert float(growth[row, t]) == pytest.approx(np.mean(expected), abs=0.01)


class Exploding(Integrator):
    """x' = 1000 x + u: the product of Jacobians leaves the range of float32."""

    def step(self, state, action):
        return 1000.0 * state + action


def test_growth_beyond_the_range_of_floats_is_a_number():
    system = Exploding(horizon=30)
    controller = nn.Linear(1, 1)
    nn.init.zeros_(controller.weight)
    trajectory = rollout(system, controller, torch.zeros(2, 1))
    _, growth = feedback_growth(system, controller, trajectory)
    torch.testing.assert_close(growth[:, 0], torch.full((2,), 90.0))


def test_training_is_the_same_with_diagnostics_and_they_are_off_by_default(tmp_path):
    plain = Trainer(CartPole(horizon=10), config=CONFIG).fit()
    watched = Trainer(CartPole(horizon=10), config=replace(CONFIG, record=("diagnostics",), out=tmp_path / "run")).fit()
    numbers = [[(row.train_loss, row.test_loss) for row in history] for history in (plain, watched)]
    assert numbers[0] == numbers[1]
    assert "diagnostics" not in TrainConfig().record


def test_every_epoch_has_a_line_and_an_interrupted_run_ends_with_the_same(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = replace(CONFIG, record=("diagnostics",))
    Trainer(CartPole(horizon=10), config=replace(config, out=whole)).fit()
    Trainer(CartPole(horizon=10), config=replace(config, out=cut, epochs=2)).fit()
    stale = read_diagnostics(cut / "diagnostics.npz")
    Trainer(CartPole(horizon=10), config=replace(config, out=cut)).fit()
    assert [one.epoch for one in stale] == [0, 1, 2]
    assert (cut / "diagnostics.csv").read_text() == (whole / "diagnostics.csv").read_text()
    for one, other in zip(*(read_diagnostics(run / "diagnostics.npz") for run in (whole, cut)), strict=True):
        assert one.epoch == other.epoch
        np.testing.assert_array_equal(one.growth, other.growth)
        np.testing.assert_array_equal(one.adjoints, other.adjoints)
    header, *lines = (whole / "diagnostics.csv").read_text().splitlines()
    assert len(lines) == 4
    assert all(len(line.split(",")) == len(header.split(",")) for line in lines)


def test_a_run_that_had_none_may_have_them_from_then_on(tmp_path):
    Trainer(CartPole(horizon=10), config=replace(CONFIG, out=tmp_path, epochs=1)).fit()
    Trainer(CartPole(horizon=10), config=replace(CONFIG, out=tmp_path, record=("diagnostics",))).fit()
    assert [one.epoch for one in read_diagnostics(tmp_path / "diagnostics.npz")] == [1, 2, 3]


class Mixing(nn.Module):
    """An action depends on the whole batch, which the adjoint engine cannot serve."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, observation):
        return self.layer(observation - observation.mean(0))


def test_a_controller_without_adjoints_is_refused_before_any_work(tmp_path):
    config = replace(CONFIG, record=("diagnostics",), engine="autograd", out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"diagnostics need the adjoint engine, .*the other samples of the batch"):
        Trainer(CartPole(), Mixing(), config)
    assert not (tmp_path / "run").exists()


def test_what_is_not_a_number_agrees_with_nothing():
    zero, nan = {"a": torch.zeros(2)}, {"a": torch.tensor([1.0, math.nan])}
    assert sign_agreement(zero, zero) == 1.0
    assert math.isnan(sign_agreement(zero, nan))
    assert math.isnan(cosine(zero, nan))


def test_missing_and_damaged_files_are_errors_in_words(tmp_path):
    with pytest.raises(RunFolderError, match=r"train with record=\['diagnostics'\]"):
        read_diagnostics(tmp_path / "diagnostics.npz")
    (tmp_path / "diagnostics.npz").write_bytes(b"no archive")
    with pytest.raises(RunFolderError, match="damaged"):
        read_diagnostics(tmp_path / "diagnostics.npz")


@pytest.mark.usefixtures("drawn")
def test_figure_is_drawn_whatever_the_numbers_are(tmp_path):
    controller, states = setting(CartPole(horizon=6))
    one = diagnose(CartPole(horizon=6), controller, states)
    broken = replace(one, epoch=1, norms=one.norms * np.nan, cosine=one.cosine * np.nan, adjoints=one.adjoints * 0.0)
    for i, diagnoses in enumerate(([one], [one, broken])):
        save_figure(diagnostics_figure(diagnoses, CartPole(horizon=6), "a run"), tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 10_000


def test_what_a_task_holds_does_not_grow():
    class Shrinks(Integrator):
        def step(self, state, action):
            return 0.1 * state + action

    plain, task = Shrinks(horizon=6), Task(Shrinks(horizon=6), observe_time=True)
    states = plain.initial_states(4, torch.Generator().manual_seed(0))
    found = diagnose(task, MLP((2,), (1,), (4,)), states)
    np.testing.assert_allclose(found.growth[0], diagnose(plain, MLP((1,), (1,), (4,)), states).growth[0], atol=1e-5)
    np.testing.assert_allclose(found.growth[0], [-6, -5, -4, -3, -2, -1], atol=1e-5)
