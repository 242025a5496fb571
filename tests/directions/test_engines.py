"""Both engines against finite differences, one another, independent routes and the published scripts."""

import copy
import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs.registration import ENTRIES
from bptt_envs.systems import CartPole, Guidance, Integrator, MultiPole, QuantumControl
from bptt_trainers import MLP, RULES, TrainConfig, Trainer, default_controller, losses, policy_gradient, rollout
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.rules import MODIFIED, PAPER_RULES, REGULAR, STOPPED, Feedback, Rule, base_of, combined

REFERENCE = Path(__file__).parent.parent / "reference"
PLAIN = [
    name for name in RULES if base_of(name) == name
]  # tests/directions/test_decay_and_truncation.py has the others
SETTINGS = [
    pytest.param(env_id, options | {"objective": objective}, id=f"{env_id}-{objective}-{options}")
    for env_id in ENTRIES
    for objective in ("final", "continuous")
    for options in (
        {"DiffMultiPole-v0": [{"n_poles": 3}, {"n_poles": 2, "dynamics": "exact", "max_force": 0.3}]}
        | {"DiffCartPole-v0": [{}, {"observation": "cos_sin"}, {"observe_time": True}]}
        | {"DiffHeat-v0": [{"n_cells": 6}], "DiffBurgers-v0": [{"n_cells": 8, "horizon": 4}]}
        | {"DiffKuramotoSivashinsky-v0": [{"n_points": 16, "n_sensors": 8, "horizon": 8}]}
        | {"DiffChainedPendulum-v0": [{"horizon": 12}], "DiffPusher-v0": [{"horizon": 20}]}
        | {"DiffHopper-v0": [{"horizon": 12, "substeps": 2, "stiffness": 2e3}]}
    ).get(env_id, [{}])
]


def make_system(env_id, options):
    return gym.make(env_id, **options).unwrapped.system


def start(system, batch=4, seed=0):
    return system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)


def mlp(system, *, bias=True, hidden=(16, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    controller = MLP(system.observation_shape, system.action_shape, hidden, bias=bias, generator=generator)
    return controller.double()


def relative_error(directions, expected):
    return max(float((directions[n] - e).norm() / (e.norm() + 1e-300)) for n, e in expected.items())


@pytest.mark.parametrize(("env_id", "options"), SETTINGS)
def test_regular_direction_is_the_gradient_by_finite_differences(env_id, options):
    system = make_system(env_id, options)
    states, controller = start(system), mlp(system)
    directions = policy_gradient(system, controller, states, "R", "autograd").directions
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):  # along random lines in parameter space
        line = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in controller.named_parameters()}

        def loss_at(distance, line=line):
            with torch.no_grad():
                for name, parameter in controller.named_parameters():
                    parameter += distance * line[name]
                value = losses(system, rollout(system, controller, states)).mean()
                for name, parameter in controller.named_parameters():
                    parameter -= distance * line[name]
            return float(value)

        h = 1e-5
        slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h)
        expected = sum(float((directions[n] * line[n]).sum()) for n in line)
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("env_id", "options", "bias"),
    [
        *((*setting.values, True) for setting in SETTINGS),
        *((env_id, {"horizon": 4}, False) for env_id in ("DiffCartPole-v0", "DiffGuidance-v0")),  # dense, by products
    ],
)
def test_adjoint_engine_agrees_with_autograd_engine(env_id, options, bias):
    system = make_system(env_id, options)
    states, controller = start(system), mlp(system, bias=bias)
    for rule in PLAIN:
        fast = policy_gradient(system, controller, states, rule, "adjoint")
        defined = policy_gradient(system, controller, states, rule, "autograd")
        assert fast.engine == "adjoint"
        assert fast.reason == "asked for"  # and not: layers need a product for each rule
        assert float(fast.loss) == pytest.approx(float(defined.loss), rel=1e-12)
        assert relative_error(fast.directions, defined.directions) <= 1e-10


def with_jacobians(system, dense):
    """A copy of the system whose recursion takes dense Jacobians, or products with vectors."""
    kind = type(system)
    changed = copy.copy(system)
    changed.__class__ = type(kind.__name__, (kind,), {"dense_jacobians": dense})
    return changed


@pytest.mark.parametrize(("env_id", "options"), SETTINGS)
def test_dense_jacobians_and_products_give_the_same_directions(env_id, options):
    system = make_system(env_id, options)
    states, controller = start(system), mlp(system)
    passes = (REGULAR, MODIFIED, STOPPED, Feedback(physics=False, controller=True))
    dense, products = (AdjointEngine(with_jacobians(system, d), controller)(states, passes)[1] for d in (True, False))
    for feedback in passes:
        assert relative_error(products[feedback], dense[feedback]) <= 1e-10


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("samples", [1, 7, 12, 50, 10_000])
def test_segments_do_not_change_the_directions(samples, dense):
    system = with_jacobians(MultiPole(objective="continuous", horizon=23, max_force=1.0), dense)
    states, controller = start(system), mlp(system)
    passes = (REGULAR, MODIFIED, Feedback(physics=False, controller=True))
    _, whole = AdjointEngine(system, controller)(states, passes)
    _, cut = AdjointEngine(system, controller, segment_samples=samples)(states, passes)
    for feedback in passes:
        assert relative_error(cut[feedback], whole[feedback]) <= 1e-12


class BlindToSlopes(nn.Module):
    """The controller's actions with no slope by the observation: K_t = 0."""

    def __init__(self, controller):
        super().__init__()
        self.controller = controller

    def forward(self, observation):
        return self.controller(observation.detach())


@pytest.mark.parametrize(("env_id", "options"), SETTINGS)  # the adjoint engine agrees with it on all of them: above
def test_modified_is_regular_of_a_controller_with_zero_input_jacobian(env_id, options):
    system = make_system(env_id, options)
    states, controller = start(system), mlp(system)
    modified = policy_gradient(system, controller, states, "M", "autograd").directions
    blind = policy_gradient(system, BlindToSlopes(controller), states, "R", "autograd").directions
    assert relative_error(modified, {n.removeprefix("controller."): d for n, d in blind.items()}) <= 1e-10


@pytest.mark.parametrize(("env_id", "options"), SETTINGS)
def test_stopped_is_the_sum_of_gradients_of_one_step_problems(env_id, options):
    system = make_system(env_id, options)
    states, controller = start(system), mlp(system)
    trajectory = rollout(system, controller, states)
    total = {n: torch.zeros_like(p) for n, p in controller.named_parameters()}
    for t in range(system.horizon):
        state = trajectory.states[t]
        action = system.bound(controller(system.observe(state)))
        next_state = system.step(state, action)
        cost = system.running_cost(state, action, next_state)
        if t == system.horizon - 1:
            cost = cost + system.final_cost(next_state)
        else:  # what the next step pays for the state that this action leads to
            next_action = system.bound(trajectory.actions[t + 1])
            cost = cost + system.running_cost(next_state, next_action, trajectory.states[t + 2])
        if not cost.requires_grad:
            continue  # nothing is paid before the end
        for name, gradient in zip(total, torch.autograd.grad(cost.mean(), controller.parameters()), strict=True):
            total[name] += gradient
    stopped = policy_gradient(system, controller, states, "S", "autograd").directions
    assert relative_error(stopped, total) <= 1e-10


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
@pytest.mark.parametrize("combine", ["modified", "regular"])
def test_combined_keeps_a_component_where_signs_agree(engine, combine):
    system = MultiPole(objective="continuous")
    states, controller = start(system), mlp(system)
    regular = policy_gradient(system, controller, states, "R", engine).directions
    modified = policy_gradient(system, controller, states, "M", engine).directions
    result = policy_gradient(system, controller, states, "C", engine, combine=combine).directions
    kept = modified if combine == "modified" else regular
    zeros = 0
    for name, direction in result.items():
        for got, r, m, k in zip(*(d[name].flatten().tolist() for d in (result, regular, modified, kept)), strict=True):
            agree = (r > 0) == (m > 0) and (r < 0) == (m < 0)
            assert got == (pytest.approx(k, rel=1e-9) if agree else 0.0)
            zeros += not agree
        assert direction.shape == regular[name].shape
    assert 0 < zeros < sum(d.numel() for d in result.values())


def integrator_by_hand(theta1, theta2, feedback, x0=-0.3, target=2.0, steps=4):
    """Direction for u = theta1 x^2 + theta2 x through x' = x + u, by the recursion written out on numbers."""
    xs = [x0]
    for _ in range(steps):
        xs.append(xs[-1] + theta1 * xs[-1] ** 2 + theta2 * xs[-1])
    lam, d1, d2 = xs[-1] - target, 0.0, 0.0
    for x in reversed(xs[:-1]):
        d1, d2 = d1 + lam * x**2, d2 + lam * x
        lam = feedback.physics * lam + feedback.controller * (2 * theta1 * x + theta2) * lam
    return d1, d2


class Quadratic(nn.Module):
    def __init__(self, theta1, theta2):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta1, theta2], dtype=torch.float64))

    def forward(self, x):
        return self.theta[0] * x**2 + self.theta[1] * x


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
@pytest.mark.parametrize("physics", [True, False])
@pytest.mark.parametrize("controller", [True, False])
def test_toy_of_the_paper_matches_numbers_by_hand(engine, physics, controller):
    feedback = Feedback(physics=physics, controller=controller)
    rule = Rule("one", (feedback,), "")
    state = torch.tensor([[-0.3]], dtype=torch.float64)
    result = policy_gradient(Integrator(), Quadratic(0.7, -0.4), state, rule, engine)
    assert result.directions["theta"].tolist() == pytest.approx(integrator_by_hand(0.7, -0.4, feedback), rel=1e-12)


DENSE = {f"layers.{2 * i}.{kind}": f"{key}{i}" for i in range(3) for kind, key in (("weight", "W"), ("bias", "b"))}
CONVOLUTIONS = {
    f"{layer}.{kind}": f"{key}_{letter}"
    for layer, key in (("convolutions.0", "conv0"), ("convolutions.1", "conv1"), ("head", "dense"))
    for kind, letter in (("weight", "W"), ("bias", "b"))
}
PUBLISHED = {  # file: the system of its settings, and its keys of the controller's parameters
    "cart_pole_1": (lambda data: MultiPole(n_poles=1), DENSE),
    "cart_pole_2": (lambda data: MultiPole(n_poles=2), DENSE),
    "quantum_3": (
        lambda data: QuantumControl(n_points=int(data["nx"]), target=int(data["target_state"])),
        CONVOLUTIONS,
    ),
    "guidance_2_4": (lambda data: Guidance(control_weight=float(data["control_cost"])), DENSE),
}


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
@pytest.mark.parametrize("objective", ["final", "continuous"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_directions_match_the_published_scripts(name, objective, engine):
    reference = np.load(REFERENCE / f"{name}.npz")
    make, keys = PUBLISHED[name]
    system = make(reference)
    system.objective = objective
    assert system.horizon == int(reference["horizon"])
    assert system.dt == pytest.approx(float(reference["dt"]))
    controller = default_controller(system)
    shapes = {parameter: value.shape for parameter, value in controller.named_parameters()}
    controller.load_state_dict({p: torch.tensor(reference[key]).reshape(shapes[p]) for p, key in keys.items()})
    states = torch.tensor(reference["initial_states"])
    for rule in PAPER_RULES:
        result = policy_gradient(system, controller, states, rule, engine)
        assert float(result.loss) == pytest.approx(float(reference[f"loss_{objective}"]), rel=1e-5)
        expected = {p: torch.tensor(reference[f"{objective}_{rule}_{k}"]).reshape(shapes[p]) for p, k in keys.items()}
        assert relative_error(result.directions, expected) <= 1e-3


class TwoHeads(nn.Module):
    """Fixed statistics, normalised layers, a shared trunk and a gate."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((6,), 0.5))
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh())
        self.value, self.gate = nn.Linear(8, 1, bias=False), nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, observation):
        hidden = self.trunk(observation - self.mean)
        return self.scale * self.value(hidden) * self.gate(hidden).sigmoid()


class TiedWeights(nn.Module):
    """Uses a Linear layer's weight outside the layer too."""

    def __init__(self):
        super().__init__()
        self.there, self.out = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, observation):
        return self.out(nn.functional.linear(self.there(observation).tanh(), self.there.weight.T))


class PerPole(nn.Module):
    """A Linear layer over an inner dimension."""

    def __init__(self):
        super().__init__()
        self.each, self.out = nn.Linear(2, 5), nn.Linear(15, 1)

    def forward(self, observation):
        return self.out(self.each(observation.view(-1, 3, 2)).tanh().flatten(1))


def called_twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 1))


def partly_frozen():
    controller = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    controller[0].weight.requires_grad_(False)
    controller[2].bias.requires_grad_(False)
    return controller


MODULES = {
    "two heads": TwoHeads,
    "tied weights": TiedWeights,
    "inner dimension": PerPole,
    "one layer called twice": called_twice,
    "partly frozen": partly_frozen,
    "activation in place": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 1)),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 1)
    ),
    "batch norm in eval mode": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).eval(),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)
    ),
}


@pytest.mark.parametrize("module", MODULES)
def test_any_module_of_observations_gets_the_right_directions(module):
    torch.manual_seed(0)
    system, controller = MultiPole(max_force=5.0), MODULES[module]().double()
    states = start(system)
    for rule in PLAIN:
        fast = policy_gradient(system, controller, states, rule)
        assert fast.engine == "adjoint"
        defined = policy_gradient(system, controller, states, rule, "autograd")
        assert fast.directions.keys() == {n for n, p in controller.named_parameters() if p.requires_grad}
        # a layer norm's slopes cancel to rounding, so directions are compared as one vector
        error = torch.cat([(fast.directions[n] - d).flatten() for n, d in defined.directions.items()]).norm()
        size = torch.cat([d.flatten() for d in defined.directions.values()]).norm()
        assert float(error / size) <= 1e-10


class ManyActions(Integrator):
    """x' = x + M u with two states and three actions, and a cost on both."""

    state_shape = (2,)
    action_shape = (3,)
    mix = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]], dtype=torch.float64)

    def step(self, state, action):
        return state + action @ self.mix + 0.1 * state.flip(1).sin()

    def running_cost(self, state, action, next_state):
        return (0.1 * action.square().sum(1) + (state * next_state).sum(1) + state[:, 0].square()) / self.horizon

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.rand(batch, 2, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("max_action", [None, 0.2])
def test_engines_agree_with_several_actions_and_costs_of_everything(max_action, dense):
    system = with_jacobians(ManyActions(horizon=9, max_action=max_action), dense)
    states, controller = start(system), mlp(system)
    for rule in RULES:
        fast = policy_gradient(system, controller, states, rule, "adjoint")
        defined = policy_gradient(system, controller, states, rule, "autograd")
        assert float(fast.loss) == pytest.approx(float(defined.loss), rel=1e-12)
        assert relative_error(fast.directions, defined.directions) <= 1e-10


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 1), 0

    def forward(self, observation):
        self.calls += 1
        return self.layer(observation)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1)), "draws random numbers"),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), "keeps state"),
        (
            lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1)),
            "other samples",
        ),
        (Remembering, "keeps state"),
    ],
    ids=["dropout", "batch norm", "batch norm without statistics", "counter"],
)
def test_auto_falls_back_to_autograd_and_says_so_once(make, why):
    system, controller = CartPole(horizon=5), make().double()
    states = start(system)
    with pytest.warns(UserWarning, match=why):
        result = policy_gradient(system, controller, states)
    assert result.engine == "autograd"
    assert why in result.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy_gradient(system, controller, states).engine == "autograd"
    with pytest.raises(ValueError, match=f"engine='adjoint' cannot serve.*{why}"):
        policy_gradient(system, controller, states, engine="adjoint")


def test_probing_leaves_the_controller_and_the_random_numbers_alone():
    system = CartPole(horizon=3)
    controller = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)).double()
    before = {n: v.clone() for n, v in controller.state_dict().items()}
    random_state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="falls back"):
        policy_gradient(system, controller, start(system), "R")
    calls = controller[1].num_batches_tracked - before["1.num_batches_tracked"]
    assert calls == system.horizon  # the rollout's own, none by the probe
    assert not torch.equal(torch.get_rng_state(), random_state)  # dropout drew in the rollout
    torch.set_rng_state(random_state)


@pytest.mark.parametrize(
    "call",
    [
        lambda system, random: policy_gradient(system, random, start(system).float(), "R"),
        lambda system, random: Trainer(system, random, TrainConfig(epochs=1, batch_size=2, train_states=2)).fit(),
    ],
)
def test_the_warning_points_at_the_line_that_called(call):
    random = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match="falls back") as warned:
        call(CartPole(horizon=3), random)
    assert [one.filename for one in warned] == [__file__]


def test_auto_says_why_it_chose_the_adjoint_engine():
    system = CartPole(horizon=3)
    assert policy_gradient(system, mlp(system), start(system)).reason == (
        "the controller acts on each observation alone"
    )


def test_policy_gradient_changes_nothing():
    env = gym.make("DiffCartPole-v0", horizon=5)
    env.reset(seed=0)
    state = env.unwrapped.state
    controller = MLP(env.observation_space.shape, env.action_space.shape)
    before = {n: p.clone() for n, p in controller.named_parameters()}
    for engine in ("autograd", "adjoint"):
        policy_gradient(env, controller, env.unwrapped.initial_states(3), "C", engine)
    assert torch.equal(env.unwrapped.state, state)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in controller.named_parameters())


def test_loss_is_the_same_under_every_rule_and_minus_the_rewards():
    env = gym.make("DiffMultiPole-v0", objective="continuous", horizon=20)
    controller = MLP(env.observation_space.shape, env.action_space.shape)
    states = env.unwrapped.initial_states(1, torch.Generator().manual_seed(3))
    observation, _ = env.reset(options={"state": states[0]})
    total, done = 0.0, False
    while not done:
        action, _ = controller.predict(observation)
        observation, reward, done, _, _ = env.step(action)
        total += reward
    for rule in RULES:
        assert float(policy_gradient(env, controller, states, rule).loss) == pytest.approx(-total, rel=1e-5)


@contextmanager
def counting_saved_tensors():
    """Yields a list of one number: the most bytes that autograd kept at any one time."""
    kept, most = 0, [0]

    class Kept:
        def __init__(self, tensor):
            nonlocal kept
            self.tensor = tensor.detach()  # what a node gave refers to the node: a cycle would keep both
            kept += tensor.nbytes
            most[0] = max(most[0], kept)

        def __del__(self):
            nonlocal kept
            kept -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda saved: saved.tensor):
        yield most


def test_long_horizon_keeps_memory_to_the_states():
    def saved(engine, horizon):
        system = CartPole(horizon=horizon)
        controller = MLP(system.observation_shape, system.action_shape, (8,))
        with counting_saved_tensors() as most:
            engine(system, controller)(start(system, 2), (REGULAR, MODIFIED))
        return most[0]

    def adjoint(system, controller):
        return AdjointEngine(system, controller.double(), segment_samples=64)

    assert saved(adjoint, 64) > 0
    assert saved(adjoint, 640) <= saved(adjoint, 64)
    assert saved(lambda system, controller: AutogradEngine(system, controller.double()), 640) > 10 * saved(adjoint, 640)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "Q"}, "rule must be one of 'R', 'M', 'S', 'C', 'M without memory', or a rule with a decay.* got 'Q'"),
        ({"engine": "adjont"}, "engine must be one of .* got 'adjont'. Did you mean 'adjoint'?"),
        ({"combine": "both"}, "combine must be one of 'modified', 'regular', 'random', 'turned'; got 'both'"),
        ({"initial_states": torch.zeros(3, 5)}, r"initial_states must be a tensor \(B, 4\).*got \(3, 5\)"),
        ({"initial_states": torch.zeros(0, 4)}, "B >= 1"),
        ({"initial_states": torch.zeros(3, 4)}, "initial_states must be torch.float64 .*got torch.float32"),
        ({"controller": nn.Linear(4, 2).double()}, r"to actions \(B, 1\); got shape \(6, 2\)"),
        (
            {"controller": nn.Linear(5, 1).double()},
            r"Linear fails on observations of CartPole, \(B, 4\) in .*float64: mat1",
        ),
        ({"controller": nn.Tanh()}, "no parameter that requires a gradient"),
        ({"env": gym.make("CartPole-v1")}, "env must be a differentiable environment"),
        (
            {"env": gym.wrappers.RescaleAction(gym.make("DiffCartPole-v0"), np.float32(-1), np.float32(1))},
            "wrapped in RescaleAction, which backpropagation .* does not see",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    system = CartPole(horizon=3)
    good = {"env": system, "controller": mlp(system), "initial_states": start(system, 3)}
    with pytest.raises(ValueError, match=message):
        policy_gradient(**(good | arguments))


@pytest.mark.parametrize("error", [RuntimeError(), NotImplementedError("no"), torch.OutOfMemoryError("full")])
def test_what_a_controller_raises_otherwise_stays_what_it_is(error):
    class Failing(nn.Linear):
        def forward(self, observation):
            raise error

    system = CartPole(horizon=3)
    with pytest.raises(type(error)) as raised:
        policy_gradient(system, Failing(4, 1).double(), start(system, 3))
    assert raised.value is error


class Centred(nn.Module):
    """Mixes the samples of a batch, which a head of zeros hides."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, observation):
        hidden = self.hidden(observation).tanh()
        return self.head(hidden - hidden.mean(0))


def test_a_head_of_zeros_hides_nothing_from_the_probe():
    system, controller = CartPole(horizon=5), Centred().double()
    with pytest.warns(UserWarning, match="other samples of the batch"):
        assert policy_gradient(system, controller, start(system, batch=1)).engine == "autograd"


class FrozenEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, observation):
        with torch.no_grad():
            code = self.encoder(observation).tanh()
        return self.head(code) + 0.1 * observation[:, :1]


class Embedded(nn.Module):
    """Runs a Linear layer on a parameter instead of the observation."""

    def __init__(self):
        super().__init__()
        self.code, self.layer = nn.Parameter(torch.randn(3, 5)), nn.Linear(5, 4)

    def forward(self, observation):
        return (observation @ self.layer(self.code).T).tanh().sum(1, keepdim=True)


@pytest.mark.parametrize("module", [FrozenEncoder, Embedded])
def test_modules_whose_layers_cannot_be_taken_apart_get_the_right_directions_too(module):
    torch.manual_seed(0)
    system, controller = CartPole(horizon=6), module().double()
    states = start(system)
    fast = policy_gradient(system, controller, states, "C")
    defined = policy_gradient(system, controller, states, "C", "autograd")
    assert relative_error(fast.directions, defined.directions) <= 1e-10


class Switchable(nn.Module):
    """Dropout whose rate is changed after the first look."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout, self.out = nn.Linear(4, 16), nn.Dropout(0.0), nn.Linear(16, 1)

    def forward(self, observation):
        return self.out(self.dropout(self.layer(observation)))


def test_a_controller_that_changes_is_looked_at_again():
    system, controller = CartPole(horizon=4), Switchable().double()
    policy_gradient(system, controller, start(system))
    controller.dropout.p = 0.5
    with pytest.warns(UserWarning, match="draws random numbers"):
        assert policy_gradient(system, controller, start(system)).engine == "autograd"


def test_passes_of_a_rule_see_the_same_random_numbers():
    system, controller = CartPole(horizon=5, objective="continuous"), Switchable().double()
    controller.dropout.p = 0.5
    states = start(system)
    results = {}
    for rule in ("R", "M", "C"):
        torch.manual_seed(7)
        results[rule] = policy_gradient(system, controller, states, rule, "autograd")
    assert float(results["C"].loss) == float(results["R"].loss) == float(results["M"].loss)
    assert relative_error(results["C"].passes[REGULAR], results["R"].directions) == 0
    assert relative_error(results["C"].passes[MODIFIED], results["M"].directions) == 0


def test_combined_at_random_keeps_as_much_of_each_tensor_of_m_as_agreement_would():
    system = MultiPole(objective="continuous")
    states, controller = start(system), mlp(system)
    agreeing = policy_gradient(system, controller, states, "C")
    modified = agreeing.passes[MODIFIED]

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return policy_gradient(system, controller, states, combine="random", generator=generator).directions

    first, same, other = drawn(0), drawn(0), drawn(1)
    unlike = {"agreement": 0, "another seed": 0}
    for name, direction in first.items():
        kept = direction != 0
        assert kept.sum() == (other[name] != 0).sum() == (agreeing.directions[name] != 0).sum(), name
        assert torch.equal(direction[kept], modified[name][kept])
        assert torch.equal(direction, same[name])
        unlike["agreement"] += int((kept != (agreeing.directions[name] != 0)).sum())
        unlike["another seed"] += int((kept != (other[name] != 0)).sum())
    assert min(unlike.values()) > 0


def test_without_a_generator_the_random_places_are_drawn_from_torchs_random_numbers():
    system = MultiPole(objective="continuous")
    states, controller = start(system), mlp(system)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        directions = policy_gradient(system, controller, states, combine="random").directions
        drawn.append(torch.cat([direction.flatten() for direction in directions.values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
def test_combined_and_turned_has_the_sizes_of_m_and_the_signs_of_r(engine):
    system = MultiPole(objective="continuous")
    states, controller = start(system), mlp(system)
    regular, modified = (policy_gradient(system, controller, states, rule, engine).directions for rule in "RM")
    turned = policy_gradient(system, controller, states, "C", engine, combine="turned").directions
    assert any((regular[name].sign() * modified[name].sign() < 0).any() for name in regular)
    for name, direction in turned.items():
        torch.testing.assert_close(direction, modified[name].abs() * regular[name].sign(), rtol=1e-9, atol=0.0)


def test_combined_does_not_hide_what_is_not_a_number():
    nan, one = {"w": torch.tensor([math.nan, 1.0, 2.0])}, {"w": torch.tensor([1.0, 1.0, -1.0])}
    for first, second in ((nan, one), (one, nan)):
        direction = combined(RULES["C"], {REGULAR: first, MODIFIED: second})["w"]
        assert direction.isnan().tolist() == [True, False, False]
        assert direction[1:].tolist() == [1.0, 0.0]
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            shuffled = combined(RULES["C"], {REGULAR: first, MODIFIED: second}, "random", generator)["w"]
            assert shuffled.isnan().tolist() == [True, False, False]
        turned = combined(RULES["C"], {REGULAR: first, MODIFIED: second}, "turned")["w"]
        assert turned.isnan().tolist() == [True, False, False]
    infinite = {"w": torch.tensor([math.inf])}  # an exploded R still has a sign
    assert combined(RULES["C"], {REGULAR: infinite, MODIFIED: {"w": torch.tensor([2.0])}})["w"].tolist() == [2.0]


def test_a_loss_without_any_parameter_in_it_has_directions_of_zero():
    class Alone(Integrator):
        def final_cost(self, state):
            return state[:, 0].detach()

    system = Alone(horizon=1)
    for engine in ("autograd", "adjoint"):
        directions = policy_gradient(system, mlp(system), start(system), "C", engine).directions
        assert all(not direction.any() for direction in directions.values())


def test_start_states_that_are_no_numbers_are_named_as_such():
    system = make_system("DiffCartPole-v0", {"horizon": 3})
    states = start(system)
    states[1, 2] = math.nan
    with pytest.raises(ValueError, match="start states of CartPole must be finite; 1 of their 16 numbers are not"):
        policy_gradient(system, mlp(system), states, "R", "adjoint")


def test_a_controller_that_changes_its_observation_in_place_is_refused():
    class Halving(nn.Linear):
        def forward(self, observation):
            return super().forward(observation.mul_(0.5))

    system, states = CartPole(horizon=3), start(CartPole())
    before = states.clone()
    with pytest.raises(ValueError, match="Halving changes its observations in place"):
        policy_gradient(system, Halving(4, 1).double(), states)
    assert torch.equal(states, before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.TimeLimit(env, 5),
        lambda env: gym.wrappers.NormalizeReward(env),
        lambda env: gym.wrappers.FrameStackObservation(env, 2),
    ],
)
def test_wrappers_that_change_the_task_are_refused(wrap):
    env = wrap(gym.make("DiffCartPole-v0"))
    with pytest.raises(ValueError, match=r"env is wrapped in .* which backpropagation .* does not see"):
        policy_gradient(env, MLP((4,), (1,)), torch.zeros(2, 4))


def test_wrappers_that_only_watch_are_fine():
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(gym.make("DiffCartPole-v0"), 100))
    policy_gradient(env, MLP((4,), (1,)), env.unwrapped.initial_states(2))


def test_a_rule_has_one_or_two_passes():
    with pytest.raises(ValueError, match="passes of rule 'X' must be one or two; got 3"):
        Rule("X", (REGULAR, MODIFIED, REGULAR), "")
