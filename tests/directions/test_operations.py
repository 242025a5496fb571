"""What an update asks of torch: how many operations, on which device, in which dtype. Time itself is never tested."""

import itertools
import warnings

import gymnasium as gym
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bptt_envs.registration import ENTRIES
from bptt_envs.systems import CartPole
from bptt_trainers import RULES, default_controller
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED, combined
from bptt_trainers.directions.stacked import StackedEngine

PASSES = (REGULAR, MODIFIED)
VIEWS = {"view", "unsafe_view", "unbind", "expand", "slice", "select", "t", "transpose", "permute"}
VIEWS |= {"unsqueeze", "squeeze", "detach", "alias"}
VIEWS |= {"mT", "flatten", "unflatten", "reshape"}  # in inference mode these come whole; none of them copies here


class Recorder(TorchDispatchMode):
    """Counts operations (views aside) and copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket.__name__.strip("_") not in VIEWS:
            self.operations += 1
        given, made = (
            {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)} for tree in (args, result)
        )
        if made and given and not made <= given:
            self.copies += 1
        return result


def count(run):
    with Recorder() as recorder:
        run()
    return recorder.operations


def cart_pole(horizon=100, batch=8):
    system = CartPole(horizon=horizon)
    return system, default_controller(system), system.initial_states(batch, torch.Generator().manual_seed(0))


# Operations of one update of rule C on one pole, 100 steps. A change that adds some has to say so here.


def test_operations_of_a_rollout():
    system, controller, states = cart_pole()
    assert count(lambda: rollout(system, controller, states)) <= 2610
    assert count(lambda: AdjointEngine(system, controller).rollout(states)) <= 2410


def test_operations_of_the_adjoint_engine():
    system, controller, states = cart_pole()
    engine = AdjointEngine(system, controller)
    assert count(lambda: engine(states, PASSES)) <= 2650
    one, two = (count(lambda passes=passes: engine(states, passes)) for passes in (PASSES[:1], PASSES))
    assert two - one <= 20  # the second pass of C


def test_operations_of_the_autograd_engine():
    system, controller, states = cart_pole()
    assert count(lambda: AutogradEngine(system, controller)(states, PASSES)) <= 18_500


def test_operations_of_an_ensemble_do_not_grow_with_its_members():
    system, controller, states = cart_pole(batch=4)
    counts = []
    for members in (2, 8):
        parameters = {n: p.detach().repeat(members, *(1 for _ in p.shape)) for n, p in controller.named_parameters()}
        engine = StackedEngine(system, controller)
        each = states.expand(members, *states.shape)
        engine(parameters, each, PASSES)
        counts.append(count(lambda e=engine, p=parameters, x=each: e(p, x, PASSES)))
    assert counts[0] == counts[1] <= 2760


def test_operations_of_the_way_back_grow_by_one_a_step():
    counts = []
    for horizon in (100, 200):
        system, controller, states = cart_pole(horizon)
        engine = AdjointEngine(system, controller)
        trajectory = rollout(system, controller, states)
        counts.append(count(lambda e=engine, t=trajectory: e.backward(t, PASSES)))
    assert counts[1] - counts[0] <= 100 * 1


def test_operations_of_the_way_back_without_feedback_do_not_grow_with_the_steps():
    counts = []
    for horizon in (100, 200):
        system, controller, states = cart_pole(horizon)
        engine = AdjointEngine(system, controller)
        trajectory = rollout(system, controller, states)
        counts.append(count(lambda e=engine, t=trajectory: e.backward(t, (STOPPED,))))
    assert counts[0] == counts[1]


# On the device "meta" a tensor has no values: whatever would wait for one, or mix it with one of another device, fails.


def engines(system, controller):
    return {
        "adjoint": AdjointEngine(system, controller),
        "adjoint by products": AdjointEngine(system, controller, by_layer=False),
        "autograd": AutogradEngine(system, controller),
    }


def settings(env_id, objective, horizon=3):
    fewer = {"form": "vertical", "substeps": 2} if env_id == "DiffHopper-v0" else {}  # operations
    system = gym.make(env_id, objective=objective, **fewer).unwrapped.system
    system.horizon = horizon
    system.max_action = 5.0
    return system, default_controller(system), system.initial_states(2, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("env_id", "objective"), [*zip(ENTRIES, itertools.cycle(["final", "continuous"]))])
def test_an_update_stays_on_its_device_and_never_waits_for_a_value(env_id, objective):
    system, controller, states = settings(env_id, objective)
    for engine in engines(system, controller.to("meta")).values():
        losses, passes = engine(states.to("meta"), (*PASSES, STOPPED))
        direction = combined(RULES["C"], passes)
        assert {one.device.type for one in (losses, *direction.values())} == {"meta"}


@pytest.mark.parametrize("env_id", ENTRIES)
def test_no_step_copies_between_devices(env_id):
    copies = []
    for horizon in (2, 6):
        system, controller, states = settings(env_id, "continuous", horizon)
        engine = AdjointEngine(system, controller.to("meta"))
        states = states.to("meta")
        engine(states, PASSES)  # constants may move once
        with Recorder() as recorder:
            engine(states, PASSES)
        copies.append(recorder.copies)
    assert copies == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("env_id", ENTRIES)
def test_an_update_keeps_its_dtype(env_id, dtype):
    system, controller, states = settings(env_id, "continuous")
    for engine in engines(system, controller.to(dtype)).values():
        losses, passes = engine(states.to(dtype), PASSES)
        direction = combined(RULES["C"], passes)
        assert {one.dtype for one in (losses, *direction.values())} == {dtype}
        assert {name: one.shape for name, one in direction.items()} == {
            name: one.shape for name, one in controller.named_parameters()
        }


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("env_id", ENTRIES)
def test_a_gpu_computes_what_the_cpu_does(env_id, dtype):
    system, controller, states = settings(env_id, "continuous")
    controller, states = controller.to(dtype), states.to(dtype)
    expected = {name: engine(states, (*PASSES, STOPPED)) for name, engine in engines(system, controller).items()}
    controller, states = controller.to("cuda"), states.to("cuda")
    there = engines(system, controller)
    for engine in there.values():
        engine(states, PASSES)  # constants of the system are copied to the GPU once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = {name: engine(states, (*PASSES, STOPPED)) for name, engine in there.items()}
        finally:
            torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-3 if dtype is torch.float32 else 1e-9
    for name, (losses, passes) in expected.items():
        assert found[name][0].device.type == "cuda"
        torch.testing.assert_close(found[name][0].cpu(), losses, rtol=tolerance, atol=tolerance)
        for feedback, directions in passes.items():
            for parameter, direction in directions.items():
                difference = (found[name][1][feedback][parameter].cpu() - direction).norm()
                assert difference <= tolerance * direction.norm() + 1e-12
