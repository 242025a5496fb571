"""Ways of computing the same update: the engines of this project, torch.compile on plain autograd, JAX."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from bptt_envs import System
from bptt_envs.program import CompilerError
from bptt_envs.systems import CartPole
from bptt_studies.benchmarks.config import GIB
from bptt_trainers.controllers.networks import MLP
from bptt_trainers.directions.autograd import AutogradEngine, fed_back
from bptt_trainers.directions.chosen_engine import ChosenEngine
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import PAPER_RULES, REGULAR, Feedback, combined

Update = Callable[[str], object]
"""Computes one update by the rule of that name: the loss and the direction."""

RESIDENT = 3  # times what autograd keeps is what it takes: many small tensors leave gaps (2.8 on one pole, batch 256)


class LeftOut(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Task:
    """One batch of start states, and what acts on it.

    Attributes:
        system: the physics.
        controller: from observations to actions.
        states: (B, *state_shape), on the device on which all is done.
        threads: cores that the process may use.
        unrolled: whether autograd-loss-compiled takes part.
        memory: bytes that autograd may take.
    """

    system: System
    controller: nn.Module
    states: Tensor
    threads: int
    unrolled: bool = True
    memory: float = float("inf")


def adjoint(task: Task) -> Update:
    """The adjoint engine as it is."""
    return _by_engine(task, choose_engine(task.system, task.controller, task.states, "adjoint").engine)


def adjoint_compiled(task: Task) -> Update:
    """The adjoint engine with its loops compiled."""
    choice = choose_engine(task.system, task.controller, task.states, "adjoint", compile=True)
    return _compiled(_by_engine(task, choice.engine))


def autograd(task: Task) -> Update:
    """The plain engine: the definition."""
    _check_memory(task)
    return _by_engine(task, AutogradEngine(task.system, task.controller))


def autograd_step_compiled(task: Task) -> Update:
    """The plain engine with torch.compile on controller and step together."""
    _check_memory(task)
    return _compiled(_by_engine(task, _StepCompiled(task.system, task.controller)))


def autograd_loss_compiled(task: Task) -> Update:
    """The plain engine with torch.compile on the whole unrolled loss."""
    if not task.unrolled:
        raise LeftOut("compiling the whole unrolled loss takes minutes; --unrolled-batches says at which batch sizes")
    _check_memory(task)
    return _compiled(_by_engine(task, _LossCompiled(task.system, task.controller)))


def in_jax(task: Task) -> Update:
    """JAX: jit, scan and grad."""
    if util.find_spec("jax") is None:
        raise LeftOut('JAX is not installed: pip install -e ".[bench]"')
    system, controller = task.system, task.controller
    if not (isinstance(system, CartPole) and isinstance(controller, MLP)) or (
        (system.objective, system.observation, system.max_action) != ("final", "state", None)
    ):
        raise LeftOut("the JAX version is written for DiffCartPole-v0 with its default options")
    cuda = task.states.device.type == "cuda"
    if not cuda and cores() != task.threads:
        raise LeftOut("JAX takes a thread for each core, and this system cannot bind a process to some of its cores")
    import jax

    from bptt_studies.benchmarks.jax_cart_pole import JaxCartPole

    if cuda and jax.default_backend() != "gpu":
        raise LeftOut('JAX has no GPU here: pip install "jax[cuda12]"')
    return JaxCartPole(system, controller, task.states)


PEERS: dict[str, Callable[[Task], Update]] = {
    "adjoint": adjoint,
    "adjoint-compiled": adjoint_compiled,
    "autograd": autograd,
    "autograd-step-compiled": autograd_step_compiled,
    "autograd-loss-compiled": autograd_loss_compiled,
    "jax": in_jax,
}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def autograd_bytes(system: System, controller: nn.Module, states: Tensor) -> int:
    """What an update by the plain engine takes, roughly: extrapolated from what its first steps keep."""

    def kept(horizon: int) -> int:
        short = copy.copy(system)
        short.horizon = horizon
        storages: dict[int, int] = {}

        def see(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            losses = AutogradEngine(short, controller).unrolled_losses(states, REGULAR)
        assert losses.requires_grad
        return sum(storages.values())

    first, second = kept(2), kept(4)
    return RESIDENT * (first + (second - first) // 2 * (system.horizon - 2))


class _StepCompiled(AutogradEngine):
    """Unrolls a compiled step."""

    def __init__(self, system: System, controller: nn.Module) -> None:
        super().__init__(system, controller)

        def step(state: Tensor, feedback: Feedback) -> tuple[Tensor, Tensor]:
            action = system.bound(controller(system.observe(fed_back(state, feedback.controller))))
            following = system.step(fed_back(state, feedback.physics), action)
            return following, system.running_cost(state, action, following)

        self._step = torch.compile(step, dynamic=False)

    def unrolled_losses(
        self, initial_states: Tensor, feedback: Feedback, noise: Tensor | None = None, meet: object = None
    ) -> Tensor:
        """The loss of each episode, (B,)."""
        state, total = initial_states, initial_states.new_zeros(initial_states.shape[0])
        for t in range(self.system.horizon):
            state, cost = self._step(state, feedback.at(t))
            total = total + cost
        return total + self.system.final_cost(state)


class _LossCompiled(AutogradEngine):
    """The unrolled loss as one compiled graph."""

    def __init__(self, system: System, controller: nn.Module) -> None:
        super().__init__(system, controller)
        self._losses = torch.compile(super().unrolled_losses, dynamic=False)

    def unrolled_losses(
        self, initial_states: Tensor, feedback: Feedback, noise: Tensor | None = None, meet: object = None
    ) -> Tensor:
        """The loss of each episode, (B,)."""
        return self._losses(initial_states, feedback, noise)


def _by_engine(task: Task, engine: ChosenEngine | AutogradEngine) -> Update:
    def update(rule: str) -> object:
        losses, passes = engine(task.states, PAPER_RULES[rule].passes)
        return losses.mean(), combined(PAPER_RULES[rule], passes)

    return update


def _compiled(update: Update) -> Update:
    """The update, without the compiler's remarks, and with its failure in words."""

    def run(rule: str) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what it does not fuse
            try:
                return update(rule)
            except (TorchDynamoException, CompilerError) as error:
                reason = next(iter(str(error).splitlines()), "").rstrip(".")
                raise LeftOut(f"it cannot be compiled here: {type(error).__name__}: {reason}") from error

    return run


def _check_memory(task: Task) -> None:
    """Leave autograd out where it takes too much."""
    needed = autograd_bytes(task.system, task.controller, task.states)
    if needed > task.memory:
        raise LeftOut(f"it needs some {needed / GIB:.1f} GiB, more than --memory-gib {task.memory / GIB:g}")
