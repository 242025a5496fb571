"""Compiled steps are those of the system as it is, singly and in a batch."""

import copy
import pickle
import shutil
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
import torch
from cliff import Cliff
from torch.fx.experimental.proxy_tensor import make_fx

from bptt_envs import DifferentiableEnv, DifferentiableVectorEnv, make_env
from bptt_envs.fingerprint import Watch
from bptt_envs.systems import LQR, CartPole

HORIZON = 5
COMPILED = {"horizon": HORIZON, "compile": True}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class Recorded:
    """Keeps constants as a program does, but nothing is compiled."""

    made = 0

    def __init__(self, function, inputs):
        Recorded.made += 1
        self._graph = make_fx(function)(*inputs)

    def __call__(self, *inputs):
        return self._graph(*inputs)

    again = __call__


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr("bptt_envs.program.Program", Recorded)
    Recorded.made = 0
    return Recorded


def steps(env, count=HORIZON, seed=0):
    """What an episode gives, and its info at the end."""
    env.action_space.seed(seed)
    seen, info = [env.reset(seed=seed)[0]], {}
    for _ in range(count):
        observation, reward, *ends, info = env.step(env.action_space.sample())
        seen += [observation, np.float32(reward), *ends]
        if any(np.atleast_1d(ends[0])):
            break
    return seen, info


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_single_environment_steps_as_it_does_uncompiled():
    compiled, plain = gym.make("DiffCartPole-v0", **COMPILED), gym.make("DiffCartPole-v0", horizon=HORIZON)
    ours, theirs = steps(compiled), steps(plain)
    assert_alike(ours[0], theirs[0])
    assert ours[1]["loss"] == pytest.approx(theirs[1]["loss"], rel=1e-5)


@pytest.mark.usefixtures("recorded")
def test_every_system_steps_as_it_does_uncompiled(env_id):
    for options in ({}, {"observe_time": True}):
        compiled, plain = make_env(env_id, **COMPILED, **options), make_env(env_id, horizon=HORIZON, **options)
        assert_alike(steps(compiled)[0], steps(plain)[0])


@pytest.mark.usefixtures("recorded")
def test_episodes_end_early_as_they_do_uncompiled():
    system = Cliff(horizon=20)
    ours, theirs = (steps(DifferentiableEnv(system, compile=one), 20) for one in (True, False))
    assert_alike(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()


@pytest.mark.usefixtures("recorded")
def test_a_compiled_environment_is_copied_and_pickled():
    env = make_env("DiffCartPole-v0", **COMPILED)
    env.reset(seed=0)
    action = np.ones(1, np.float32)
    again = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    after = env.step(action)
    for other in again:
        assert_alike(other.step(action)[:2], after[:2])


@pytest.mark.usefixtures("recorded")
def test_what_a_compiled_environment_returns_is_the_callers_own():
    env = make_env("DiffIntegrator-v0", **COMPILED)  # which observes its state
    env.reset(seed=0)
    observation = env.step(np.ones(1, np.float32))[0]
    state = env.state
    observation[:] = 7.0
    assert torch.equal(env.state, state)


@pytest.mark.usefixtures("recorded")
def test_what_a_caller_has_switched_on_changes_nothing():
    env, other = make_env("DiffCartPole-v0", **COMPILED), make_env("DiffCartPole-v0", **COMPILED)
    with torch.inference_mode(), torch.autocast("cpu"):
        ours = steps(env, 3)[0]
    assert_alike(ours, steps(other, 3)[0])
    env.step(np.zeros(1, np.float32))
    assert not env.state.is_inference()


def test_compile_is_true_or_false():
    with pytest.raises(ValueError, match=r"compile must be True or False; got 1\."):
        gym.make("DiffCartPole-v0", compile=1)


def change_bound(system):
    system.max_action = 0.3


def change_constant(system):
    system.A[0, 1] = 5.0


def change_memory(system):
    system.A.numpy()[0, 1] = 5.0  # behind torch's back


def change_option(system):
    system.objective = "continuous"


def change_class(system):
    type(system).running_cost = lambda self, state, action, next_state: next_state[:, 0]


AT_ONCE = [change_bound, change_constant, change_option]
AT_A_RESET = [change_memory, change_class]


def environments(kind):
    system = type("Own", (LQR,), {"__module__": __name__})(objective="final")
    if kind == "batch":
        return system, DifferentiableVectorEnv(system, 2, compile=True), DifferentiableVectorEnv(system, 2)
    return system, DifferentiableEnv(system, compile=True), DifferentiableEnv(system)


@pytest.mark.parametrize("kind", ["single", "batch"])
@pytest.mark.parametrize("change", AT_ONCE + AT_A_RESET)
def test_a_compiled_step_is_that_of_the_system_as_it_is(change, kind, recorded):
    system, compiled, plain = environments(kind)
    actions = np.ones(compiled.action_space.shape, np.float32)
    for env in (compiled, plain):
        env.reset(seed=0)
        env.step(actions)
    assert recorded.made == 1
    change(system)
    if change in AT_A_RESET:
        for env in (compiled, plain):
            env.reset(seed=1)
    for _ in range(2):
        assert_alike(compiled.step(actions)[:2], plain.step(actions)[:2])
    assert recorded.made == 2


def test_another_system_in_place_of_the_first_is_stepped(recorded):
    env = DifferentiableEnv(CartPole(), compile=True)
    env.reset(seed=0)
    env.system = CartPole(pole_length=2.0)
    other = DifferentiableEnv(env.system)
    other.reset(seed=0)
    action = np.ones(1, np.float32)
    assert_alike(env.step(action)[:2], other.step(action)[:2])
    assert recorded.made == 2


class Holder:
    def __init__(self, **held):
        vars(self).update(held)


def test_a_watch_sees_what_a_fingerprint_sees():
    inner = Holder(x=torch.zeros(3), deeper={"a": (1.0, torch.zeros(2))})
    thing = Holder(inner=inner, number=1.0, some=[1, 2], text="a")

    def in_a_list():
        thing.some[0] = 5

    changes = [
        lambda: inner.x.add_(1.0),
        lambda: inner.deeper["a"][1].mul_(2.0).add_(1.0),
        lambda: inner.deeper.update(b=1),
        lambda: setattr(thing, "number", 2.0),
        lambda: setattr(inner, "new", None),
        lambda: delattr(inner, "new"),
        in_a_list,
    ]
    for change in changes:
        watch = Watch(thing)
        assert watch.unchanged()
        assert watch.unchanged(thoroughly=True)
        change()
        assert not watch.unchanged()
        assert not watch.unchanged(thoroughly=True)


def test_a_watch_looks_closely_at_every_kind_of_container():
    class Named(dict):
        pass

    for held in (Named(a=1), OrderedDict(a=1), [1], {1}):
        watch = Watch(Holder(held=held))
        assert watch.unchanged()
        held.clear()
        assert not watch.unchanged()


@pytest.mark.parametrize("held", [{"function": lambda x: x}, {"module": torch.nn.Linear(1, 1)}, {"array": np.zeros(2)}])
def test_a_watch_looks_closely_at_what_can_change_unseen(held):
    thing = Holder(**held)
    watch = Watch(thing)
    assert watch.unchanged()
    one = next(iter(held.values()))
    if isinstance(one, np.ndarray):
        one[0] = 1.0
    elif isinstance(one, torch.nn.Module):
        one.eval()
    else:
        one.__defaults__ = (2,)
    assert not watch.unchanged()
