"""The compiled engine computes what the adjoint engine does; programs are compiled once and kept."""

import math
import os
import shutil
from dataclasses import replace

import pytest
import torch
from recorded import Recorded
from torch import nn

from bptt_envs import Task
from bptt_envs.program import (
    CACHE_VARIABLE,
    CompilerError,
    Order,
    Program,
    _compiler_version,
    cache_folder,
)
from bptt_envs.systems import (
    BouncingBall,
    Burgers,
    CartPole,
    ChainedPendulum,
    Guidance,
    Hopper,
    KuramotoSivashinsky,
    Pusher,
    Quadrotor,
    QuantumControl,
    guidance,
)
from bptt_trainers import MLP, TrainConfig, Trainer, default_controller
from bptt_trainers.directions import perceptron
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.compiled import CompiledEngine, _length
from bptt_trainers.directions.policy_gradient import choose_engine, stacked_engine
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED, Feedback
from bptt_trainers.directions.stacked import StackedEngine

PASSES = (REGULAR, MODIFIED)
NUMBERS = [torch.tensor([0.5, 1.5, 2.0]), torch.tensor([2.0, 1.5, 0.5])]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def small(system, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MLP(system.observation_shape, system.action_shape, (6, 5), generator=generator)


def assert_same(found, expected, tolerance):
    for feedback, directions in expected.items():
        for name, direction in directions.items():
            assert (found[feedback][name] - direction).norm() <= tolerance * direction.norm() + 1e-12


LONG = bool(os.environ.get("BPTT_TEST_LONG"))
COMPILED = (Guidance,)  # by products; dense Jacobians are compiled in a stack below and in test_tasks.py; each 10 s


def is_compiled(system):
    """Whether the programs of a system are compiled; else they are recorded, and have no operation of their own."""
    return LONG or isinstance(getattr(system, "system", system), COMPILED)


def of_others(x, y):
    """The operations that no system has whose programs are compiled."""
    filled = torch.zeros(3)
    filled[1:] = x[:2] + torch.tensor([1.0, 2.0])
    filled[0].fill_(torch.tensor(4.0))
    return (
        x.exp() + x.expm1() + x.log1p() + x.floor() + x.reciprocal() + torch.pow(2.0, x),
        torch.ops.aten.threshold_backward(x, y, 1.0) + torch.ops.aten.alias(y) + torch.full_like(y, 2.0),
        (x > 1.0) & (x != y) | (y == 2.0) | (y < 1.0) & ~(x == y) | (x != 2.0),
        x.roll(1) * y.flip(0) + torch.maximum(x, y).relu() + torch.lerp(x, y, 0.25) * y.sign() + filled,
        x.unfold(0, 2, 1) + x.new_zeros(2, 2) + torch.zeros_like(x)[:2],
        (x / (y - 0.5)).nan_to_num(0.0, 9.0, -9.0) + x.masked_fill(x > 1.0, 7.0) + (x > 1.0).to(x.dtype),
        torch.addmm(x, x.view(1, 3), torch.outer(x, y)),
    )


def operations(*programs):
    """The kinds of operations in recorded programs."""
    return {str(node.target) for one in programs for node in one.graph.graph.nodes if node.op == "call_function"}


@pytest.fixture
def two_steps(monkeypatch):
    """Let programs be of two steps, so that one is left over, and treat two of the three samples of a step at once."""
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_THERE", 2)
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_BACK", 2)
    monkeypatch.setattr(guidance, "PAIRS_AT_ONCE", 2 * 5**2)


each_system = pytest.mark.parametrize(
    "system",
    [
        CartPole(horizon=5, max_force=3.0, objective="continuous"),
        QuantumControl(horizon=3, n_points=6),
        Guidance(horizon=3, n_drivers=2, n_evaders=3),
        ChainedPendulum(horizon=3, n_links=2, substeps=1),
        Quadrotor(horizon=3, course="obstacles"),
        BouncingBall(horizon=3, contact_gradient="from_distance"),
        Pusher(horizon=3, stiffness=200.0, substeps=1),
        Burgers(horizon=3, n_cells=4, boundary="walled", n_actuators=2, substeps=1),
        KuramotoSivashinsky(horizon=3, n_points=8, length=5.0, n_actuators=2, n_sensors=4),
        Task(Hopper(horizon=3, form="vertical", stiffness=5e3, substeps=2)),
        Task(CartPole(horizon=4), observe_time=True),
    ],
    ids=lambda system: type(system).__name__,
)


@pytest.fixture(scope="module")
def compiled_operations():
    """The kinds of operations that this file compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bptt_trainers.directions.compiled.Program", Recorded)
        patch.setattr(guidance, "PAIRS_AT_ONCE", 2 * 5**2)
        seen = operations(Recorded(of_others, NUMBERS))
        cart_pole = CartPole(horizon=2, max_force=3.0, objective="continuous")  # that of the stack
        for system in (cart_pole, *filter(is_compiled, each_system.args[1])):
            engine = CompiledEngine(AdjointEngine(system, small(system).double()))
            engine(system.initial_states(3, torch.Generator().manual_seed(0), torch.float64), PASSES)
            seen |= operations(*engine._programs.values())
    return seen


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@each_system
@pytest.mark.usefixtures("two_steps")
def test_compiled_directions_are_those_of_the_adjoint_engine(system, device, monkeypatch, request):
    recorded = device == "cpu" and not is_compiled(system)
    if recorded:
        monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Recorded)
    elif device == "cpu" and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    controller = small(system).double().to(device)
    states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64).to(device)
    engine = AdjointEngine(system, controller)
    compiled = CompiledEngine(engine)
    passes = PASSES
    if isinstance(system, (CartPole, Guidance)):  # one by dense Jacobians, one by products
        passes += (Feedback(physics=0.7, controller=0.5, every=2),)
    for _ in range(2):
        losses, directions = engine(states, passes)
        found_losses, found = compiled(states, passes)
        torch.testing.assert_close(found_losses, losses, rtol=1e-10, atol=1e-12)
        assert_same(found, directions, 1e-10)
        with torch.no_grad():  # other weights and states, the same program
            for parameter in controller.parameters():
                parameter.add_(0.1)
        states = states + 0.01
    if recorded:  # an operation that is in none of the compiled ones might be one that cannot be compiled
        new = operations(*compiled._programs.values()) - request.getfixturevalue("compiled_operations")
        assert not new, f"{type(system).__name__} needs {new}, which is not compiled yet: add it to of_others"


@pytest.mark.parametrize("kept", [2**26, 1])
@pytest.mark.usefixtures("two_steps")
def test_closed_forms_in_programs_are_those_of_the_adjoint_engine_alone_and_stacked(kept, monkeypatch):
    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Recorded)
    monkeypatch.setattr(perceptron, "KEPT_NUMBERS", kept)
    system = QuantumControl(horizon=5, n_points=16)  # of which a step is left over after programs of two
    controller = default_controller(system, hidden=(5, 4)).double()
    states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64)
    engine = AdjointEngine(system, controller)
    compiled = CompiledEngine(engine)
    assert compiled._perceptron is not None
    for _ in range(2):
        losses, expected = engine(states, PASSES)
        found_losses, found = compiled(states, PASSES)
        torch.testing.assert_close(found_losses, losses)
        assert_same(found, expected, 1e-10)
        trajectory = rollout(system, controller, states)  # of which nothing is kept
        assert_same(compiled.backward(trajectory, PASSES), expected, 1e-10)
        with torch.no_grad():
            for parameter in controller.parameters():
                parameter.mul_(1.1)
    parameters = {name: torch.stack([p, 0.9 * p]).detach() for name, p in controller.named_parameters()}
    both = torch.stack([states, states + 0.01])
    expected = StackedEngine(system, controller)(parameters, both, PASSES)
    found = StackedEngine(system, controller, compile=True)(parameters, both, PASSES)
    torch.testing.assert_close(found[0], expected[0])
    assert_same(found[1], expected[1], 1e-10)


@needs_compiler
def test_a_program_is_compiled_once_and_for_the_operations_of_systems_that_are_only_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    first, again = Program(of_others, NUMBERS), Program(of_others, [2 * one for one in NUMBERS])
    assert first.compiled
    assert not again.compiled
    assert len(list(tmp_path.iterdir())) == 1
    for program in (first, again):
        for found, expected in zip(program(*NUMBERS), of_others(*NUMBERS), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("two_steps")
def test_what_a_controller_holds_besides_its_trained_weights_is_no_part_of_the_program(monkeypatch):
    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Recorded)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small(system)
            self.register_buffer("scale", torch.tensor(0.5))

        def forward(self, observation):
            return self.scale * self.inner(observation)

    system = CartPole(horizon=5, max_force=3.0, objective="continuous")
    controller = Scaled()
    controller.inner.layers[0].weight.requires_grad_(False)
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    engine = AdjointEngine(system, controller)
    compiled = CompiledEngine(engine)
    for scale, weight in ((0.5, 1.0), (2.0, 0.7)):
        with torch.no_grad():
            controller.scale.fill_(scale)
            controller.inner.layers[0].weight.mul_(weight)
        losses, expected = engine(states, PASSES)
        found_losses, found = compiled(states, PASSES)
        torch.testing.assert_close(found_losses, losses)
        assert "inner.layers.0.weight" not in found[REGULAR]
        assert_same(found, expected, 1e-4)
        states = states + 0.01


@needs_compiler
def test_members_of_a_compiled_stack_are_what_they_are_alone():
    system = CartPole(horizon=2, max_force=3.0, objective="continuous")
    controllers = [small(system, seed).double() for seed in range(3)]
    parameters = {
        name: torch.stack([controller.get_parameter(name).detach() for controller in controllers])
        for name, _ in controllers[0].named_parameters()
    }
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([system.initial_states(4, generator, torch.float64) for _ in controllers])
    losses, directions = stacked_engine(system, controllers[0], states[0], "tests", compile=True)(
        parameters, states, (STOPPED, REGULAR)
    )
    for i, controller in enumerate(controllers):
        alone_losses, alone = AdjointEngine(system, controller)(states[i], (STOPPED, REGULAR))
        torch.testing.assert_close(losses[i], alone_losses)
        for feedback in alone:
            for name, direction in alone[feedback].items():
                torch.testing.assert_close(directions[feedback][name][i], direction)


def test_programs_that_differ_in_anything_have_other_names():
    def name(inputs, constant=(1.0, 2.0), factor=2.0):
        constant = torch.tensor(constant)
        return Order(lambda x: (factor * x + constant,), inputs).name

    names = {
        name([torch.ones(2)]),
        name([torch.ones(2)], constant=3.0),
        name([torch.ones(2)], factor=3.0),
        name([torch.ones(2).double()]),
        name([torch.ones(2, 2)]),
        name([torch.ones(2, 2).t()]),
    }
    assert len(names) == 5 + 1
    assert name([torch.zeros(2)]) in names  # values of inputs are no part of a program
    assert name([torch.ones(2)], constant=(1.0, 3.0)) in names  # neither are those of constants


def test_without_a_compiler_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    _compiler_version.cache_clear()
    with pytest.raises(CompilerError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler.*compile=False"):
        Program(lambda x: (x + 1.0,), [torch.ones(2)])
    assert not list((tmp_path / "empty").iterdir())


def test_an_older_torch_is_told_which_one_is_needed(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CompilerError, match=r"needs torch 2\.13 or a later one; this is torch 2\.9\.1\+cpu"):
        Program(lambda x: (x + 1.0,), [torch.ones(2)])


def test_a_function_that_looks_at_values_is_refused_in_words(tmp_path):
    with pytest.raises(CompilerError, match=r"cannot record.*compile=False"):
        Program(lambda x: (x if x.sum() > 0 else -x,), [torch.ones(2)])


def test_only_the_adjoint_engine_is_compiled():
    system = CartPole(horizon=2)
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="engine must be 'adjoint' or 'auto', not 'autograd'"):
        choose_engine(system, default_controller(system), states, "autograd", compile=True)
    dropout = nn.Sequential(nn.Linear(4, 1), nn.Dropout())
    with pytest.raises(ValueError, match="compile=True cannot serve this Sequential: it draws random numbers"):
        choose_engine(system, dropout, states, compile=True)


def test_the_cache_folder_is_the_users_unless_named(monkeypatch, tmp_path):
    assert cache_folder().name.startswith("programs")
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "stable-bptt"


@pytest.mark.parametrize(
    ("horizon", "longest", "expected"),
    [(100, 10, 10), (128, 10, 8), (101, 10, 10), (60, 25, 20), (3, 10, 3), (7, 1, 1)],
)
def test_programs_have_the_length_that_leaves_the_fewest_steps_over(horizon, longest, expected):
    assert _length(horizon, longest) == expected


def test_training_compiled_follows_training_uncompiled(monkeypatch):
    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Recorded)
    curves = []
    for compile in (False, True):
        config = TrainConfig(epochs=2, batch_size=3, train_states=6, test_states=3, hidden=(6, 5), compile=compile)
        curves.append([row.test_loss for row in Trainer(CartPole(horizon=2), config=config).fit()])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("rule", ["R", "C"])
def test_the_comparison_of_rules_once_an_epoch_needs_no_program_of_its_own(rule, monkeypatch):
    made = []

    class Counted(Recorded):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("bptt_trainers.directions.compiled.Program", Counted)
    config = TrainConfig(rule=rule, epochs=2, batch_size=3, train_states=6, test_states=3, hidden=(4,), compile=True)
    curve = Trainer(CartPole(horizon=2), config=config).fit()
    assert len(made) == 2  # there and back
    assert all(math.isfinite(row.sign_agreement) for row in curve[1:])


@gpu
def test_a_compiled_run_on_a_gpu_is_that_of_the_cpu():
    config = TrainConfig(epochs=2, train_states=8, batch_size=4, clip="norm")
    losses = []
    for changes in ({}, {"device": "cuda"}, {"device": "cuda", "compile": True}):
        system = CartPole(horizon=30)
        run = Trainer(system, small(system).double(), replace(config, **changes))
        losses.append([epoch.test_loss for epoch in run.fit()])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-9)
