"""A system that breaks its contract is named in words before anything is trained on it."""

import pytest
import torch

import bptt_envs
from bptt_envs import DifferentiableEnv, System, check_system
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.systems import Integrator


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
def test_registered_systems_keep_it(env_id):
    check_system(system_class(env_id)())


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
