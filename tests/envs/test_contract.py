"""A system that breaks its contract is named in words before anything is trained on it."""

import functools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch

import bptt_envs
from bptt_envs import DifferentiableEnv, System, check_system
from bptt_envs.contract import linear_backward
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import constant_like
from bptt_envs.systems import LQR, CartPole, Guidance, Integrator, MultiPole, QuantumControl


class Plain(System):
    state_shape = (2,)
    action_shape = (1,)

    def step(self, state, action):
        return state + action

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.rand(batch, 2, generator=generator, dtype=dtype)

    def final_cost(self, state):
        return state.square().sum(1)


@pytest.mark.parametrize("env_id", ENTRIES)
def test_registered_systems_keep_it_in_float64_too(env_id):
    for objective in ("final", "continuous"):
        check_system(system_class(env_id)(objective=objective), dtype=torch.float64)


def test_systems_with_every_option_keep_it(system):
    check_system(system)


BREACHES = {
    "final_cost": (lambda self, state: state.square().sum(), r"final_cost must return \(3,\), torch.float32"),
    "running_cost": (lambda self, state, action, after: after, r"running_cost must return \(3,\)"),
    "step": (lambda self, state, action: state[:, :1], r"step must return \(3, 2\)"),
    "observe": (lambda self, state: state.double(), r"observe must return \(3, 2\), torch.float32.*torch.float64"),
    "initial_states": (
        lambda self, batch, generator, dtype=None: torch.rand(batch, 2),
        r"initial_states must draw from its generator only",
    ),
}


@pytest.mark.parametrize("method", BREACHES)
def test_breaches_are_named(method, monkeypatch):
    check_system(Plain(horizon=3, dt=0.1))
    broken, message = BREACHES[method]
    monkeypatch.setattr(Plain, method, broken)
    with pytest.raises(ValueError, match=rf"Plain.{message}"):
        DifferentiableEnv(Plain(horizon=3, dt=0.1))


def test_samples_that_influence_one_another_are_named(monkeypatch):
    monkeypatch.setattr(Plain, "step", lambda self, state, action: state - state.mean(0) + action)
    with pytest.raises(ValueError, match=r"Plain.step must treat samples apart"):
        check_system(Plain(horizon=3, dt=0.1))


def test_an_id_that_is_taken_and_a_class_for_a_path_are_refused():
    with pytest.raises(ValueError, match=r"env_id 'DiffCartPole-v0' is taken by bptt_envs.systems:CartPole"):
        bptt_envs.register("DiffCartPole-v0", "bptt_envs.systems:Integrator", "not a pole")
    with pytest.raises(ValueError, match='system must be an import path "module:Class"; got <class'):
        bptt_envs.register("DiffOther-v0", Integrator, "a class")


def test_start_states_say_what_generator_they_want():
    env = DifferentiableEnv(Integrator())
    with pytest.raises(ValueError, match=r"generator must be a torch.Generator, such as .*; got 0"):
        env.initial_states(8, 0)
    with pytest.raises(ValueError, match="batch must be an integer of at least 1; got 0"):
        env.initial_states(0)


# What is looked at before training: slopes


class Clip(torch.autograd.Function):
    """The identity, which clips what comes back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope.clamp(-0.1, 0.1)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, slope):
        return slope


class Pendulum(System):
    """Hamilton's equations, by autograd."""

    state_shape, action_shape = (2,), (1,)

    def step(self, state, action):
        with torch.enable_grad():
            x = state if state.requires_grad else state.detach().requires_grad_()
            energy = 0.5 * x[:, 1] ** 2 - x[:, 0].cos()
            (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        p = state[:, 1:] + self.dt * (action - slope[:, :1])
        return torch.cat([state[:, :1] + self.dt * p, p], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, generator=generator, dtype=dtype, device=generator.device)

    def state_cost(self, state):
        return state.square().sum(1)


class Resting(Pendulum):
    """A ball on the floor, where its height has a kink, pushed along it."""

    def step(self, state, action):
        height, place = state[:, :1], state[:, 1:]
        return torch.cat([torch.relu(height), place + self.dt * action], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.nn.functional.pad(torch.rand(batch, 1, generator=generator, dtype=dtype), (1, 0))


class Strict(Pendulum):
    """Takes no states but its own, on the circle, of which it does not use the length."""

    def step(self, state, action):
        if not torch.allclose(state.norm(dim=1), torch.ones(len(state), dtype=state.dtype)):
            raise ValueError("not on the circle")
        angle = torch.atan2(state[:, 1], state[:, 0]) + self.dt * action[:, 0]
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        angle = torch.rand(batch, generator=generator, dtype=dtype)
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def state_cost(self, state):
        return state[:, 0]


class Stairs(Pendulum):
    def step(self, state, action):
        return state + self.dt * StraightThrough.apply(10 * action)


class Delayed(Plain):
    """What an action does takes twelve steps to cost something."""

    state_shape = (12,)

    def step(self, state, action):
        return torch.cat([action, state[:, :-1]], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.rand(batch, 12, generator=generator, dtype=dtype)

    def final_cost(self, state):
        return state[:, -1].square()


class Flat(Plain):
    """At rest at a point where a slope happens to be 0, such as that of a quadratic drag, or where a friction jumps."""

    def step(self, state, action):
        force = state[:, 1] * state[:, 1].abs() + 0.1 * state[:, 1].sign()
        return torch.stack([state[:, 0] + action[:, 0] - force, state[:, 1]], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.zeros(batch, 2, dtype=dtype, device=generator.device)


class DeadZone(Plain):
    """Forces of less than 0.6 move nothing."""

    def step(self, state, action):
        return state + torch.nn.functional.softshrink(action, 0.6)


class Far(Plain):
    """A cost beyond where mild actions lead."""

    def final_cost(self, state):
        return (state[:, 0] - 8.0).relu()


@pytest.mark.parametrize("kind", [Pendulum, Resting, Strict, Stairs, Delayed, Flat, DeadZone, Far])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unusual_systems_keep_it(kind, dtype):
    check_system(kind(horizon=30, dt=0.1), dtype=dtype)
    env = DifferentiableEnv(kind(horizon=30, dt=0.1))
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape))


SLOPES = {
    "detached": ("step", lambda self, x, u: (x + u).detach(), "step depends on component 0 of its state, and its grad"),
    "partly": (
        "step",
        lambda self, x, u: torch.cat([x[:, :1] + x[:, 1:].detach(), x[:, 1:] + u], 1),
        "step depends on component 1 of its state, and its gradient does not: component 0 of what it returns",
    ),
    "action": ("step", lambda self, x, u: x + u.detach(), "step depends on component 0 of its action"),
    "numpy": (
        "step",
        lambda self, x, u: torch.from_numpy(x.detach().numpy() + u.detach().numpy()),
        "step depends on component 0 of its state",
    ),
    "numpy without detach": (
        "step",
        lambda self, x, u: torch.from_numpy(x.numpy() + u.numpy()),
        "step cannot be differentiated .*without NumPy",
    ),
    "unmoved": (
        "step",
        lambda self, x, u: 0.9 * x,
        "loss does not depend differentiably on the actions, over 20 steps",
    ),
    "free": ("final_cost", lambda self, x: x.new_zeros(len(x)), "has no cost.*Implement state_cost"),
    "cost": (
        "final_cost",
        lambda self, x: x.detach().square().sum(1),
        "final_cost depends on component 0 of its state",
    ),
    "action's cost": (
        "running_cost",
        lambda self, x, u, y: u.detach().square().sum(1),
        "running_cost depends on component 0 of its action",
    ),
    "seen": ("observe", lambda self, x: x.detach().clone(), "observe depends on component 0 of its state"),
    "mixed slopes": (
        "final_cost",
        lambda self, x: x.square().sum(1) + (x.mean(0) - x.mean(0).detach()).sum(),
        "final_cost must treat samples apart; the slopes of one sample reach others",
    ),
}


@pytest.mark.parametrize("name", SLOPES)
def test_what_is_not_differentiable_is_named(name, monkeypatch):
    method, broken, message = SLOPES[name]
    monkeypatch.setattr(Plain, method, broken)
    with pytest.raises(ValueError, match=f"Plain('s)? ?.?{message}"):
        check_system(Plain(horizon=20, dt=0.1))


VALUES = {
    "cost mixes": (
        "final_cost",
        lambda self, x: (x - x.mean(0)).square().sum(1),
        "final_cost must treat samples apart",
    ),
    "running mixes": (
        "running_cost",
        lambda self, x, u, y: u.sum(1) * u.sum(),
        "running_cost must treat samples apart",
    ),
    "observe mixes": ("observe", lambda self, x: x - x.mean(0), "observe must treat samples apart"),
    "step in place": ("step", lambda self, x, u: x.add_(u), "step must not change its arguments in place"),
    "observe in place": ("observe", lambda self, x: x.clamp_(-0.1, 0.1), "observe must not change its arguments"),
    "random": ("step", lambda self, x, u: x + u + torch.rand_like(x), "step must be a function of its arguments"),
    "squeezed": (
        "final_cost",
        lambda self, x: x.square().sum(1).squeeze(),
        r"final_cost must return \(1,\), torch.float64, for 1 float64 sample on cpu; got \(\)",
    ),
    "infinite": ("final_cost", lambda self, x: x.sum(1) / 0.0, "final_cost gives values that are not finite"),
    "float32": ("step", lambda self, x, u: (x + u).float(), r"step must return \(3, 2\), torch.float64, for 3 float64"),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_no_function_of_each_sample_is_named(name, monkeypatch):
    method, broken, message = VALUES[name]
    monkeypatch.setattr(Plain, method, broken)
    with pytest.raises(ValueError, match=rf"Plain\.{message}"):
        check_system(Plain(horizon=3, dt=0.1), dtype=torch.float64, thorough=False)


class Buffered(Plain):
    """Has all that it gives in tensors that it keeps, as simulators do, torch's or NumPy's."""

    method = "none"  # whose results are kept
    numpy = False

    def kept(self, method, values):
        if self.method != method:
            return values
        name = f"{method}_of_{len(values)}"
        if name not in vars(self):
            setattr(self, name, torch.from_numpy(values.numpy().copy()) if self.numpy else values.clone())
        if self.numpy:
            getattr(self, name).numpy()[:] = values.numpy()
        else:
            getattr(self, name).copy_(values)
        return getattr(self, name)

    def step(self, state, action):
        return self.kept("step", state + action)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return self.kept("initial_states", torch.rand(batch, 2, generator=generator, dtype=dtype))

    def observe(self, state):
        return self.kept("observe", 2.0 * state)

    def running_cost(self, state, action, next_state):
        return self.kept("running_cost", action.square().sum(1) + state[:, 0])

    def final_cost(self, state):
        return self.kept("final_cost", state.square().sum(1))

    def terminated(self, state):
        return self.kept("terminated", state[:, 0] < -9.0)


@pytest.mark.parametrize("method", ["step", "initial_states", "observe", "running_cost", "final_cost", "terminated"])
@pytest.mark.parametrize("numpy", [False, True])
def test_results_that_a_later_call_writes_to_are_named(method, numpy):
    system = Buffered(horizon=3, dt=0.1)
    check_system(system, thorough=False)
    system.method, system.numpy = method, numpy
    if numpy and method == "terminated":  # seen in its values alone, which are the same
        return
    with pytest.raises(ValueError, match=rf"Buffered.{method} must return a tensor of its own in each call.*clone"):
        check_system(system, thorough=False)


def test_a_linearize_that_writes_to_what_it_gave_is_named(monkeypatch):
    def linearize(self, state, action):
        vars(self).setdefault("kept", torch.eye(2).expand(len(state), 2, 2).clone()).copy_(torch.eye(2))
        return self.kept, torch.ones(len(state), 2, 1)

    monkeypatch.setattr(Plain, "linearize", linearize)
    with pytest.raises(ValueError, match=r"Plain.linearize must return a tensor of its own in each call"):
        check_system(Plain(horizon=3, dt=0.1))


def test_results_may_be_arguments_views_of_them_and_constants():
    class Viewing(Plain):
        ones = torch.ones(3, 2)

        def step(self, state, action):
            return state.view(-1, 2) + action

        def observe(self, state):
            return state[:, :]

        def running_cost(self, state, action, next_state):
            return next_state[:, 0]

        def initial_states(self, batch, generator, dtype=torch.float32):
            return self.ones[:batch].to(dtype) if batch <= 3 else torch.ones(batch, 2, dtype=dtype)

    check_system(Viewing(horizon=3, dt=0.1))


def test_start_states_follow_the_dtype_they_are_asked_for(monkeypatch):
    broken = lambda self, batch, generator, dtype=None: torch.rand(batch, 2, generator=generator)  # noqa: E731
    monkeypatch.setattr(Plain, "initial_states", broken)
    with pytest.raises(ValueError, match=r"Plain.initial_states\(..., dtype=torch.float64\) must return"):
        check_system(Plain(horizon=3, dt=0.1))


@pytest.mark.parametrize(("name", "shape"), [("state_shape", [2]), ("action_shape", 1), ("observation_shape", (2.0,))])
def test_shapes_are_tuples(name, shape):
    kind = type("Shaped", (Plain,), {name: shape})
    with pytest.raises(ValueError, match=rf"Shaped.{name} must be a tuple of positive integers, such as \(2,\); got"):
        DifferentiableEnv(kind(horizon=3, dt=0.1))


def test_start_states_without_a_dtype_are_named():
    kind = type("Single", (Plain,), {"initial_states": lambda self, batch, generator: torch.rand(batch, 2)})
    message = r"Single.initial_states must take \(batch, generator, dtype\); too many positional arguments"
    with pytest.raises(ValueError, match=message):
        DifferentiableEnv(kind(horizon=3, dt=0.1))


# Errors in code of the user's


def unpacking(self, state, *others):
    place, _speed = state
    return place


BATCHED = r"States come as \(B, 2\), actions as \(B, 1\): B samples at once"
RAISES = {
    **{
        method: (
            {method: unpacking},
            rf"Plain.{method} raised ValueError: too many .*\(.*test_contract.py:\d+\). {BATCHED}",
        )
        for method in ("step", "observe", "running_cost", "final_cost", "linearize", "pullback", "terminated")
    },
    "state_cost": (
        {"state_cost": unpacking, "final_cost": System.final_cost},
        r"Plain.state_cost raised ValueError: too many values to unpack",
    ),
    "initial_states": (
        {"initial_states": lambda self, batch, generator, dtype: {}["key"]},
        r"Plain.initial_states raised KeyError: 'key' \(.*test_contract.py:\d+\)\.$",
    ),
    "within a library": (
        {"step": lambda self, state, action: torch.cat([state, action[:1]], dim=1)},
        r"Plain.step raised RuntimeError: .*\(.*test_contract.py:\d+\). States come as",
    ),
    "within a base class": (
        {"step": lambda self, state, action: CartPole.step(self, state, action)},
        r"Plain.step raised \w+Error: .*\(.*test_contract.py:\d+\). States come as",
    ),
    "of a function that pullback gives": (
        {"pullback": lambda self, state, action: lambda rows, vectors: vectors["key"]},
        r"the function of Plain.pullback raised \w+Error: .*\(.*test_contract.py:\d+\)",
    ),
    "arguments": (
        {"running_cost": lambda self, state, action: state},
        r"Plain.running_cost must take \(state, action, next_state\); too many positional arguments",
    ),
    "arguments of a function that pullback gives": (
        {"pullback": lambda self, state, action: lambda rows: rows},
        r"the function of Plain.pullback must take \(rows, vectors\); too many positional arguments",
    ),
}


@pytest.mark.parametrize("name", RAISES)
def test_errors_of_the_users_name_the_method_the_line_and_the_shapes(name, monkeypatch):
    methods, message = RAISES[name]
    for method, broken in methods.items():
        monkeypatch.setattr(Plain, method, broken)
    with pytest.raises(ValueError, match=message):
        check_system(Plain(horizon=3, dt=0.1))


def test_a_function_of_a_task_is_named_as_its_own():
    for cost, said in ((unpacking, r"raised ValueError: too many"), (lambda state, action: state, "must take")):
        with pytest.raises(ValueError, match=rf"Task.running_cost {said}"):
            check_system(bptt_envs.Task(Plain(horizon=3, dt=0.1), running_cost=cost))


def test_a_model_that_needs_a_batch_is_told_of_its_mode(monkeypatch):
    model = torch.nn.BatchNorm1d(2)
    monkeypatch.setattr(Plain, "step", lambda self, state, action: model(state) + action)
    with pytest.raises(ValueError, match=r"Plain.step must treat samples apart, and take one alone.*model\.eval\(\)"):
        check_system(Plain(horizon=3, dt=0.1))


def test_a_constructor_that_does_not_call_systems_is_named():
    kind = type("Bare", (Plain,), {"__init__": lambda self: None})
    with pytest.raises(ValueError, match=r"Bare.__init__ must call super\(\).__init__"):
        DifferentiableEnv(kind())


# Slopes in closed form


def wrong_in(method, which):
    """Systems whose slopes by the state (0) or the action (1) have another sign."""
    base = {"linearize": MultiPole, "pullback": Guidance}[method]

    def linearize(self, state, action):
        return tuple(-one if i == which else one for i, one in enumerate(base.linearize(self, state, action)))

    def pullback(self, state, action):
        right = base.pullback(self, state, action)
        return lambda rows, vectors: tuple(-one if i == which else one for i, one in enumerate(right(rows, vectors)))

    return type("Wrong", (base,), {method: {"linearize": linearize, "pullback": pullback}[method]})()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("which", "label"), [(0, "A = d next/d state"), (1, "B = d next/d action")])
@pytest.mark.parametrize("method", ["linearize", "pullback"])
def test_wrong_slopes_are_named(method, which, label, dtype):
    with pytest.raises(ValueError, match=rf"{label} of Wrong.{method} differs from autograd's slopes of step"):
        check_system(wrong_in(method, which), dtype=dtype)


def test_of_a_system_that_writes_products_only_products_are_asked_for():
    def pullback(self, state, action):
        return lambda rows, vectors: (vectors, vectors[..., :1])

    products = {"pullback": pullback}
    both = products | {"linearize": lambda self, state, action: System.linearize(self, state, action)}
    assert Plain(horizon=3, dt=0.1).dense_jacobians
    wide = {"state_shape": (9,)}
    assert type("Few", (Plain,), products)(horizon=3, dt=0.1).dense_jacobians
    assert not type("Products", (Plain,), products | wide)(horizon=3, dt=0.1).dense_jacobians
    both |= wide
    assert type("Both", (Plain,), both)(horizon=3, dt=0.1).dense_jacobians


def test_a_pullback_that_takes_other_rows_is_named(monkeypatch):
    right = QuantumControl.pullback
    monkeypatch.setattr(
        QuantumControl,
        "pullback",
        lambda self, x, u: lambda rows, vectors: right(self, x, u)(slice(0, vectors.shape[1]), vectors),
    )
    with pytest.raises(ValueError, match=r"A = d next/d state of QuantumControl.pullback differs"):
        check_system(QuantumControl(n_points=4))


def test_jacobians_of_another_shape_are_named(monkeypatch):
    monkeypatch.setattr(LQR, "linearize", lambda self, x, u: (self.A.float(), self.B.float()))
    with pytest.raises(ValueError, match=r"A = d next/d state of LQR.linearize must return \(3, 2, 2\), torch.float32"):
        check_system(LQR())


# What goes backwards otherwise than by a linear map is legal, and known


@pytest.mark.parametrize("made", [None, (torch.ones(3, 2, 2),), torch.ones(3, 2, 2)])
@pytest.mark.parametrize("method", ["linearize", "pullback"])
def test_slopes_that_are_no_pair_are_named(method, made, monkeypatch):
    monkeypatch.setattr(Plain, method, lambda self, state, action: made)
    with pytest.raises(ValueError, match=rf"Plain.{method} must return"):
        check_system(Plain(horizon=3, dt=0.1))


def clipped(method):
    def override(self, *arguments):
        return Clip.apply(getattr(super(kind, self), method)(*arguments))

    kind = type("Clipped", (MultiPole,), {method: override})
    return kind(objective="final" if method == "final_cost" else "continuous")


@pytest.mark.parametrize("method", ["step", "running_cost", "final_cost", "observe"])
def test_backward_functions_that_clip_are_known(method):
    system = clipped(method)
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    assert linear_backward(system, states, torch.ones(4, 1)).startswith(f"{method} goes back otherwise")


def test_the_slopes_of_all_systems_are_linear_backwards(system):
    for dtype in (torch.float32, torch.float64):
        states = system.initial_states(4, torch.Generator().manual_seed(0), dtype)
        actions = torch.full((4, *system.action_shape), 0.5, dtype=dtype)
        assert linear_backward(system, states, actions) is None
    assert linear_backward(Pendulum(horizon=3, dt=0.1), torch.randn(4, 2), torch.randn(4, 1)) is None


# Numbers that are too extreme


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CartPole(dt=1e300), "dt must be of a size that float32 can hold, .*; got 1e\\+300"),
        (lambda: LQR(dt=1e-300), "dt must be of a size that float32 can hold, .*; got 1e-300"),
        (
            lambda: CartPole(dt=1e10),
            "CartPole.step .* not finite .*; dt=10000000000.0 is too extreme .*default is 0.01",
        ),
        (lambda: Integrator(target=1e30), "final_cost gives values that are not finite .*; target=1e\\+30"),
        (lambda: Guidance(target=(0.0, 1e30)), "Guidance.running_cost .* not finite .*; target=\\(0.0, 1e\\+30\\)"),
        (lambda: Guidance(control_weight=1e300), "control_weight must be of a size that float32 can hold"),
        (lambda: LQR(A=[[1e300]], B=[[1.0]]), "LQR.step gives values that are not finite .*; A="),
        (
            lambda: QuantumControl(box_length=1e300),
            "box_length must be of a size that float32 can hold, .*; got 1e\\+300",
        ),
        (lambda: QuantumControl(box_length=1e-300), "box_length must be of a size that float32 can hold"),
        (lambda: Integrator(max_action=1e300), "max_action must be of a size that float32 can hold"),
    ],
)
def test_extreme_settings_are_named(make, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            DifferentiableEnv(make())


class Steep(Pendulum):
    """Overflows, unless the actions are small."""

    def step(self, state, action):
        return state + (1e30 * action).exp()


def test_actions_that_overflow_are_no_fault_of_the_system():
    check_system(Steep(horizon=4, dt=0.1))
    with pytest.warns(UserWarning, match="Steep is not finite from step 5 of 30 on.*bounds of the actions"):
        check_system(Steep(horizon=30, dt=0.1))


def test_an_episode_that_overflows_is_warned_of():
    with pytest.warns(UserWarning, match=r"Guidance is not finite from step \d+ of 3000 on.*horizon.*dt.*bounds"):
        check_system(Guidance(horizon=3000))


# Bounds


class Thruster(Plain):
    """A push to one side only, of two engines."""

    action_shape = (2,)

    def __init__(self, *, horizon=5, dt=0.1, low=0.0, high=1.0):
        super().__init__(horizon=horizon, dt=dt, action_low=low, action_high=high)


@pytest.mark.parametrize(
    ("low", "high", "bounded", "space"),
    [
        (0.0, 1.0, [0.0, 1.0], ([0.0, 0.0], [1.0, 1.0])),
        (0.0, None, [0.0, 3.0], ([0.0, 0.0], [1.0, 1.0])),
        (None, -2.0, [-3.0, -2.0], ([-3.0, -3.0], [-2.0, -2.0])),
        ([-1.0, 0.0], 2.0, [-1.0, 2.0], ([-1.0, 0.0], [2.0, 2.0])),
        ([-1.0, -np.inf], np.array([0.5, 0.25]), [-1.0, 0.25], ([-1.0, -1.0], [0.5, 0.25])),
    ],
)
def test_bounds_clamp_each_component(low, high, bounded, space):
    system = Thruster(low=low, high=high)
    check_system(system)
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(
            system.bound(torch.tensor([[-3.0, 3.0]], dtype=dtype)), torch.tensor([bounded], dtype=dtype)
        )
    env = DifferentiableEnv(system)
    assert env.action_space == gym.spaces.Box(*map(np.float32, space))
    ends = system.action_at(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    np.testing.assert_allclose(ends, space)


def test_bounds_follow_max_action():
    system = Thruster(low=0.0, high=1.0)
    assert system.max_action is None
    system.max_action = 0.3
    assert (system.action_low, system.action_high) == (-0.3, 0.3)
    assert system.bound(torch.tensor([[-5.0, 5.0]])).tolist() == torch.tensor([[-0.3, 0.3]]).tolist()
    system.max_action = None
    assert (system.action_low, system.action_high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="max_action must be a finite number above 0; got -1"):
        system.max_action = -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "action_low must be below action_high; got 1.0 and 1.0"),
        ({"low": np.nan}, "action_low must be a finite number; got nan"),
        ({"low": "left"}, "action_low must be None, a finite number or numbers of action_shape; got 'left'"),
        ({"high": [1.0, np.nan]}, "action_high must be None, a finite number or numbers of action_shape; got"),
        (
            {"high": [1.0, 1.0, 1.0]},
            r"action_low must be a number or have Thruster.action_shape, \(2,\); got shape \(3,\)",
        ),
    ],
)
def test_bounds_that_are_none_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DifferentiableEnv(Thruster(**options))


def test_both_kinds_of_bounds_at_once_are_refused():
    with pytest.raises(ValueError, match="max_action is for both bounds; give it alone"):
        type(
            "Both",
            (Plain,),
            {"__init__": lambda self: System.__init__(self, horizon=3, dt=0.1, max_action=1.0, action_low=0.0)},
        )()


def test_bound_cannot_be_replaced(monkeypatch):
    message = "must not replace System.bound: .*action_low=0.0, action_high=1.0"
    with pytest.raises(ValueError, match=f"Own {message}"):
        type("Own", (Plain,), {"bound": lambda self, action: action.clamp(0, 1)})(horizon=3, dt=0.1)
    with pytest.raises(ValueError, match=r"Own must not replace System\.action_low: "):
        type("Own", (Plain,), {"action_low": 0.0})(horizon=3, dt=0.1)
    system = Plain(horizon=3, dt=0.1)
    with pytest.raises(ValueError, match=r"Plain must not replace System\.action_low: "):
        system.action_low = 0.0
    with pytest.raises(ValueError, match=f"Plain {message}"):
        system.bound = lambda action: action.clamp(0, 1)
    monkeypatch.setattr(Plain, "bound", lambda self, action: action.clamp(0, 1))
    with pytest.raises(ValueError, match=f"Plain {message}"):
        check_system(system)


# Constants


def test_a_constant_changed_in_place_is_seen():
    system = LQR()
    state, action = torch.ones(1, 2), torch.ones(1, 1)
    before = system.step(state, action)
    assert constant_like(system.A, state) is constant_like(system.A, state)  # moved once
    system.A[0, 0] = 5.0
    torch.testing.assert_close(system.step(state, action) - before, torch.tensor([[4.0, 0.0]]))
    system.A.numpy()[1, 0] = 3.0  # behind torch's back
    system.A.data[0, 1] += 2.0
    torch.testing.assert_close(system.step(state, action) - before, torch.tensor([[6.0, 3.0]]))


# The caller's surroundings


def surroundings():
    return {
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
        "device": torch.device("meta"),
    }


def episode(kind):
    system = kind()
    env = DifferentiableEnv(system, render_mode="rgb_array")  # which checks the system
    envs = bptt_envs.DifferentiableVectorEnv(system, num_envs=2, render_mode="rgb_array")
    action, actions = np.full(env.action_space.shape, 0.3), np.full(envs.action_space.shape, 0.3)
    seen = [env.reset(seed=0)[0], *env.step(action)[:2], env.render(), envs.reset(seed=0)[0], *envs.step(actions)[:2]]
    return [*seen, *envs.render()]


KINDS = {env_id: system_class(env_id) for env_id in ENTRIES} | {"Hamiltonian": lambda: Pendulum(horizon=9, dt=0.1)}


@functools.cache
def plain_episode(kind):
    return episode(KINDS[kind])


@pytest.mark.parametrize("name", ["dtype", *surroundings()])
@pytest.mark.parametrize("kind", KINDS)  # the outer one: its episode is played once
def test_the_callers_surroundings_change_nothing(name, kind):
    expected = plain_episode(kind)
    try:
        if name == "dtype":
            torch.set_default_dtype(torch.float64)
            found = episode(KINDS[kind])
        else:
            with surroundings()[name]:
                found = episode(KINDS[kind])
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def test_own_surroundings_leave_what_they_found():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
            with own_surroundings():
                inside = torch.ones(2, 2) @ torch.ones(2, 2)
                assert (inside.dtype, inside.device.type, inside.is_inference()) == (torch.float32, "cpu", False)
                assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_device().type == "meta"
        with own_surroundings(torch.float32, "meta"):
            assert torch.is_grad_enabled()
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("env_id", ENTRIES)
def test_step_differentiable_is_the_same_under_autocast(env_id):
    env = gym.make(env_id).unwrapped
    states, actions = env.initial_states(3), torch.ones(3, *env.system.action_shape)
    expected = env.step_differentiable(states, actions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = env.step_differentiable(states, actions)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("env_id", ["DiffCartPole-v0", "DiffLQR-v0"])
def test_what_looks_around_does_not_stop_torchs_compiler(env_id):
    env = gym.make(env_id).unwrapped
    states, actions = env.initial_states(3), torch.ones(3, *env.system.action_shape)
    compiled = torch.compile(env.step_differentiable, fullgraph=True, backend="eager")(states, actions)
    for one, other in zip(compiled, env.step_differentiable(states, actions), strict=True):
        torch.testing.assert_close(one, other)
