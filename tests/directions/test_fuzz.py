"""Random systems, controllers, segments, bounds and passes: the fast engine against autograd, in float64."""

import copy
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from bptt_envs import System, check_system
from bptt_trainers import policy_gradient, rollout
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.linear_layer import is_linear
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED
from bptt_trainers.directions.stacked import StackedEngine

LONG = bool(os.environ.get("BPTT_TEST_LONG"))
EXAMPLES = 3000 if LONG else 150

PASSES = (REGULAR, MODIFIED, STOPPED)


class Clip(torch.autograd.Function):
    """Clips what comes back: a backward function that is not linear."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope.clamp(-1e-3, 1e-3)


class Random(System):
    """x' = x + dt tanh(A x + B u + x * x_rolled), with costs of all three arguments."""

    def __init__(self, seed, *, n, m, horizon, objective, low, high, closed_form, observed, clipped) -> None:
        self.state_shape, self.action_shape = (n,), (m,)
        super().__init__(horizon=horizon, dt=0.3, objective=objective, action_low=low, action_high=high)
        generator = torch.Generator().manual_seed(seed)
        self.A = torch.randn(n, n, generator=generator, dtype=torch.float64)
        self.B = torch.randn(n, m, generator=generator, dtype=torch.float64)
        self.C = torch.randn(n + 1, n, generator=generator, dtype=torch.float64)
        self.closed_form, self.observed, self.clipped = closed_form, observed, clipped

    def step(self, state, action):
        inner = state @ self.A.T.to(state) + action @ self.B.T.to(state) + state * state.roll(1, -1)
        following = state + self.dt * inner.tanh()
        return Clip.apply(following) if self.clipped else following

    def linearize(self, state, action):
        if not self.closed_form:
            return super().linearize(state, action)
        n = self.state_size
        inner = state @ self.A.T.to(state) + action @ self.B.T.to(state) + state * state.roll(1, -1)
        slope = (self.dt * (1 - inner.tanh() ** 2)).unsqueeze(-1)
        shift = torch.eye(n).to(state).roll(1, 0)  # row i has its 1 at i - 1
        rolled = torch.diag_embed(state.roll(1, -1)) + state.unsqueeze(-1) * shift
        return torch.eye(n).to(state) + slope * (self.A.to(state) + rolled), slope * self.B.to(state)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, *self.state_shape, generator=generator, dtype=dtype, device=generator.device)

    def state_cost(self, state):
        return (state.square() + 0.3 * state.sin()).sum(1)

    def running_cost(self, state, action, next_state):
        cost = super().running_cost(state, action, next_state)
        return cost + 0.1 * action.square().sum(1) + 0.05 * (state * next_state).sum(1)

    def observe(self, state):
        return torch.cat([state.sin(), state.sum(1, keepdim=True)], dim=1) if self.observed else state

    @property
    def observation_shape(self):
        return (self.state_size + 1,) if self.observed else self.state_shape


class Anything(nn.Module):
    """A network with the given peculiarities."""

    def __init__(self, inputs, outputs, width, features) -> None:
        super().__init__()
        self.features = features
        self.first, self.second, self.last = (
            nn.Linear(inputs, width),
            nn.Linear(width, width),
            nn.Linear(width, outputs),
        )
        self.norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.tensor(1.3))
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", 0.1 * torch.ones(inputs))
        if "weight norm" in features:
            parametrizations.weight_norm(self.second)
        if "spectral" in features:
            parametrizations.spectral_norm(self.last)
        if "frozen" in features:
            self.second.requires_grad_(False)
        if "hook" in features:
            self.first.weight.register_hook(lambda slope: slope.clamp(-1e-2, 1e-2))
        if "forward hook" in features:
            self.second.register_forward_hook(lambda _, inputs, output: output.sin())
        if "zeros" in features:
            nn.init.zeros_(self.last.weight if "spectral" not in features else self.last.bias)

    def forward(self, x):
        on = self.features
        h = self.first(input=x - self.mean) if "keyword" in on else self.first(x - self.mean)
        h = torch.relu_(h) if "in place" in on else h.tanh()
        h = self.second(h)
        h = self.second(h.tanh()) if "twice" in on else h
        h = self.norm(h) if "norm" in on else h
        h = Clip.apply(h) if "clip" in on else h
        if "tied" in on:
            h = h + h @ self.first.weight @ self.first.weight.T
        if "mixed" in on:
            h = h - 0.3 * h.mean(0)
        if "noise" in on:
            h = h + 0.1 * torch.randn_like(h)
        if "counts" in on and self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if "detached" in on:
            h = h + h.detach() ** 2
        if "gradient" in on:
            with torch.enable_grad():
                z = h if h.requires_grad else h.detach().requires_grad_()
                (h,) = torch.autograd.grad((z.sin() * z).sum(), z, create_graph=True)
        return self.gain * self.last(h) if "gain" in on else self.last(h)


FEATURES = [
    "weight norm", "spectral", "frozen", "hook", "forward hook", "zeros", "keyword", "in place", "twice", "norm",
    "clip", "tied", "mixed", "noise", "counts", "detached", "gradient", "gain",
]  # fmt: skip


@st.composite
def systems(draw):
    low, high = draw(st.sampled_from([(None, None), (-0.5, 0.5), (0.0, None), (None, 0.3), (-1e-3, 2e-3)]))
    return Random(
        draw(st.integers(0, 2**31)),
        n=draw(st.integers(1, 4)),
        m=draw(st.integers(1, 3)),
        horizon=draw(st.integers(1, 7)),
        objective=draw(st.sampled_from(["final", "continuous"])),
        low=low,
        high=high,
        closed_form=draw(st.booleans()),
        observed=draw(st.booleans()),
        clipped=draw(st.integers(0, 9)) == 0,
    )


def controllers(system, seed, width, features):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Anything(system.observation_shape[0], system.action_shape[0], width, features).double()


SEEDS, WIDTHS = st.integers(0, 2**31), st.integers(1, 6)


def fuzz(function):
    """Run it over many examples; the same ones each time in CI, others with BPTT_TEST_LONG."""
    quietly = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES, deadline=None, derandomize=not LONG, suppress_health_check=quietly, database=None
    )(function)


def starts(system, batch):
    return system.initial_states(batch, torch.Generator().manual_seed(0), torch.float64)


def assert_close(found, expected, tolerance=1e-9):
    scale = max([float(one.norm()) for one in expected.values()] + [1e-12])
    for name, one in expected.items():
        assert float((found[name] - one).norm()) <= tolerance * scale, name


@fuzz
@given(systems(), SEEDS, WIDTHS, st.sets(st.sampled_from(FEATURES), max_size=4), st.integers(1, 5), st.booleans())
def test_whatever_engine_is_chosen_gives_autograds_direction(system, seed, width, features, batch, training):
    controller = controllers(system, seed, width, features).train(training)
    other = copy.deepcopy(controller)
    if "hook" in features:
        other.first.weight.register_hook(lambda slope: slope.clamp(-1e-2, 1e-2))
    states = starts(system, batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*falls back")
        torch.manual_seed(1)
        found = policy_gradient(system, controller, states, "C")
    torch.manual_seed(1)
    losses, expected = AutogradEngine(system, other)(states, (REGULAR, MODIFIED))
    torch.testing.assert_close(found.loss, losses.mean())
    for feedback in (REGULAR, MODIFIED):
        assert_close(found.passes[feedback], expected[feedback])
    needs_autograd = {"mixed", "noise", "clip"} & features or (features >= {"counts"} and training) or system.clipped
    if needs_autograd and not (features >= {"mixed"} and batch == 1):
        assert found.engine == "autograd"


@fuzz
@given(systems(), SEEDS, WIDTHS, st.sets(st.sampled_from(["frozen", "zeros", "twice", "keyword"])), st.integers(1, 5),
       st.integers(1, 12), st.lists(st.sampled_from(PASSES), min_size=1, max_size=3, unique=True))  # fmt: skip
def test_segments_and_passes(system, seed, width, features, batch, samples, passes):
    system.clipped = False
    controller = controllers(system, seed, width, features)
    states = starts(system, batch)
    _, expected = AutogradEngine(system, controller)(states, passes)
    for by_layer in (True, False):
        engine = AdjointEngine(system, controller, by_layer=by_layer, segment_samples=samples)
        _, found = engine(states, passes)
        for feedback in passes:
            assert_close(found[feedback], expected[feedback])


@fuzz
@given(systems(), st.lists(SEEDS, min_size=1, max_size=3, unique=True), WIDTHS, st.integers(1, 4), st.booleans())
def test_stacked(system, seeds, width, batch, gain):
    system.clipped = False
    members = [controllers(system, seed, width, {"gain"} if gain else set()) for seed in seeds]
    states = torch.stack([starts(system, batch) + 0.1 * i for i in range(len(members))])
    parameters = {n: torch.stack([dict(one.named_parameters())[n].detach() for one in members])
                  for n, _ in members[0].named_parameters()}  # fmt: skip
    _, found = StackedEngine(system, members[0])(parameters, states, PASSES)
    for i, member in enumerate(members):
        _, expected = AutogradEngine(system, member)(states[i], PASSES)
        for feedback in PASSES:
            assert_close({name: one[i] for name, one in found[feedback].items()}, expected[feedback])


@settings(max_examples=EXAMPLES // 5, deadline=None, derandomize=not LONG, database=None)
@given(systems(), SEEDS)
def test_the_systems_keep_their_contract(system, seed):
    system.closed_form &= not system.clipped  # else the closed form is not what autograd does
    check_system(system, dtype=torch.float64)
    controller = controllers(system, seed, 3, set())
    assert rollout(system, controller, starts(system, 2)).states.isfinite().all()


def test_layers_of_their_own_kind_are_left_to_autograd():
    class Other(nn.Linear):
        pass

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    assert [is_linear(one) for one in (nn.Linear(2, 2), Other(2, 2), patched)] == [True, False, False]


@pytest.mark.parametrize("features", [{"in place"}, {"keyword"}, {"tied"}, {"weight norm"}, {"twice"}, {"hook"}])
def test_peculiar_layers_are_served_by_the_fast_engine(features):
    system = Random(
        0, n=3, m=2, horizon=4, objective="final", low=None, high=None, closed_form=True, observed=False, clipped=False
    )
    assert policy_gradient(system, controllers(system, 0, 4, features), starts(system, 3), "R").engine == "adjoint"
