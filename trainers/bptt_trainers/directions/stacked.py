"""Many parameter vectors of one controller at once: each member of the stack is a controller of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bptt_envs import System
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.agreement import LOOK_EVERY, watched
from bptt_trainers.directions.augmented import acting, gives_entropy, memory_shape_of, noise_shape_of
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.linear_layer import StackedLinear, is_linear
from bptt_trainers.directions.perceptron import Parts, parts_of
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.directions.rules import Directions, Feedback
from bptt_trainers.directions.snapshot import forked_rng


class StackedController(nn.Module):
    """E copies of a controller that differ in their parameters only, run as one batch.

    A batch holds E equal parts of observations, one after the other; each part meets one member's parameters.

    Args:
        controller: a module that acts on each observation alone.
        parameters: by the names of the controller's trainable parameters, (E, *shape) each.
        by_layer: run all members through linear layers that hold all their weights (the fast way), where the
            controller has no other trainable parameters; otherwise, or if False, run them by `torch.func.vmap`.
    """

    def __init__(self, controller: nn.Module, parameters: Mapping[str, Tensor], *, by_layer: bool = True) -> None:
        super().__init__()
        self.members = len(next(iter(parameters.values())))
        template = copy.deepcopy(controller)
        self.memory_shape = memory_shape_of(controller)
        self.noise_shape = noise_shape_of(controller)
        self.gives_entropy = gives_entropy(controller)
        self._layered = _layered(template, parameters) if by_layer else None
        if self._layered is not None:
            self._parameters_of = {n: p for n, p in self._layered.named_parameters() if n in parameters}
        else:
            self._template = (template,)  # in a tuple: its own parameters are none of this module's
            self._stack = nn.ParameterList([nn.Parameter(value.detach().clone()) for value in parameters.values()])
            self._parameters_of = dict(zip(parameters, self._stack, strict=True))

    @property
    def by_layer(self) -> bool:
        """Whether the members run through linear layers that hold all their weights."""
        return self._layered is not None

    def perceptron(self) -> Parts | None:
        """See `Parts`; None where its members are none."""
        return None if self._layered is None else parts_of(self._layered)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Observations (E B, ...) and what else is handed a controller, likewise -> all that it gives, likewise."""
        if self._layered is not None:
            answer: Tensor | tuple[Tensor, ...] = self._layered(*given)
            return answer

        def act(values: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            named = dict(zip(self._parameters_of, values, strict=True))
            answer: Tensor | tuple[Tensor, ...] = functional_call(self._template[0], named, given)
            return answer

        parts = tuple(one.unflatten(0, (self.members, -1)) for one in given)
        by_member = vmap(act)(tuple(self._stack), parts)
        if isinstance(by_member, Tensor):
            return by_member.flatten(0, 1)
        return tuple(one.flatten(0, 1) for one in by_member)

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Take over other parameters of the same shapes."""
        for name, own in self._parameters_of.items():
            own.copy_(parameters[name])

    def by_name(self, stacked: Mapping[str, Tensor]) -> Directions:
        """Tensors by this module's parameter names, by the controller's instead."""
        own_names = {p: n for n, p in self.named_parameters()}
        return {name: stacked[own_names[p]] for name, p in self._parameters_of.items()}


class StackedEngine:
    """Losses and directions of E controllers, each on start states of its own, by one run of the adjoint engine.

    Args:
        system: the physics.
        controller: a module that the adjoint engine can serve; its own parameters are not used.
        by_layer: see `StackedController`.
        chained: see `AdjointEngine`.
        inference: see `AdjointEngine`.
        compile: compile the loops over time, see `CompiledEngine`; once for each number of members.
    """

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        *,
        by_layer: bool = True,
        chained: bool = True,
        inference: bool = False,
        compile: bool = False,
    ) -> None:
        self.system = system
        self.controller = controller
        self._by_layer = by_layer
        self._chained = chained
        self._inference = inference
        self._compile = compile
        self._calls = 0
        self._engine: tuple[StackedController, AdjointEngine | CompiledEngine] | None = None

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        initial_states: Tensor,
        passes: Sequence[Feedback],
        *,
        noise: Tensor | None = None,
        look: bool | None = None,
        mixing: Callable[[Trajectory], Mix] | None = None,
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """Losses and directions.

        Args:
            parameters: by name, (E, *shape) each.
            initial_states: (E, B, *state_shape).
            passes: which paths each backward pass takes.
            noise: that of all steps, (T, E, B, *noise_shape), for controllers that are handed any; None: zeros.
            look: as that of `ChosenEngine`.
            mixing: likewise, of an engine that is not compiled; the samples of all members are one batch.

        Returns:
            The loss of each episode, (E, B), and for each pass the directions by name, (E, *shape), for the mean
            loss of each member.

        Raises:
            NotServedError: if they cannot be trusted, see `watched`.
        """
        stack, engine = self._loaded(parameters, initial_states)
        due = self._calls % LOOK_EVERY == 0 if look is None else look
        states = self.system.episode_start(initial_states.flatten(0, 1))
        together = None if noise is None else noise.flatten(1, 2)
        episode_losses, directions = watched(engine, states, passes, due, together, mixing=mixing)
        self._calls += 1
        by_name = {feedback: stack.by_name(direction) for feedback, direction in directions.items()}
        return episode_losses.view(initial_states.shape[:2]), by_name

    def losses(self, parameters: Mapping[str, Tensor], initial_states: Tensor) -> Tensor:
        """The loss of each episode, (E, B), from start states (E, B, *state_shape)."""
        stack, _ = self._loaded(parameters, initial_states)
        trajectory = rollout(self.system, stack, self.system.episode_start(initial_states.flatten(0, 1)))
        return losses(self.system, trajectory).view(initial_states.shape[:2])

    def _loaded(
        self, parameters: Mapping[str, Tensor], initial_states: Tensor
    ) -> tuple[StackedController, AdjointEngine | CompiledEngine]:
        members = len(initial_states)
        if self._engine is not None and self._engine[0].members == members:
            self._engine[0].load(parameters)
            return self._engine
        stack = StackedController(self.controller, parameters, by_layer=self._by_layer)
        if stack.by_layer and not _acts_as_members(
            stack, self.controller, self.system, self.system.observe(self.system.episode_start(initial_states[0]))
        ):
            self._by_layer = False
            stack = StackedController(self.controller, parameters, by_layer=False)
        engine = AdjointEngine(
            self.system,
            stack,
            by_layer=stack.by_layer,
            chained=self._chained,
            members=members,
            inference=self._inference,
        )
        self._engine = stack, CompiledEngine(engine) if self._compile else engine
        return self._engine


def _layered(template: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module | None:
    """`template` with stacked linear layers in place of its own; None if it has other trainable parameters."""
    members = len(next(iter(parameters.values())))
    names = {p: n for n, p in template.named_parameters() if p.requires_grad}
    layers = [module for module in template.modules() if is_linear(module)]
    owned = [p for layer in layers for p in layer.parameters() if p in names]
    if len(owned) != len(set(owned)) or set(owned) != set(names):
        return None

    replaced: dict[nn.Module, StackedLinear] = {}
    for layer in layers:
        own = dict(layer.named_parameters())
        values = {
            name: (parameters[names[p]] if p in names else p.expand(members, *p.shape)).detach().clone()
            for name, p in own.items()
        }
        replaced[layer] = stacked = StackedLinear(values["weight"], values.get("bias"))
        for name, p in own.items():
            stacked.get_parameter(name).requires_grad_(p.requires_grad)
    for parent in template.modules():
        for name, child in parent.named_children():
            if child in replaced:
                setattr(parent, name, replaced[child])
    return replaced.get(template, template)


@torch.no_grad()
def _acts_as_members(stack: StackedController, controller: nn.Module, system: System, observations: Tensor) -> bool:
    """Whether linear layers do with each part of the rows what the controller does, on other weights than its own.

    They do not where the controller uses a weight outside of its layer, or hands a layer rows in another order.
    """
    with forked_rng(stack):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach for every device
        probe = copy.deepcopy(stack)
        for parameter in probe.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        seen = observations[:3].repeat(stack.members, *(1 for _ in observations.shape[1:]))
        seen = seen + 0.1 * torch.randn_like(seen)
    names = list(probe._parameters_of)
    try:
        together = acting(system, probe)(seen).unflatten(0, (stack.members, -1))
    except RuntimeError:
        return False
    for i in range(stack.members):
        member = {name: probe._parameters_of[name][i] for name in names}
        act = acting(system, partial(_called, controller, member))
        alone = act(seen.unflatten(0, (stack.members, -1))[i])
        if not torch.allclose(together[i], alone, rtol=1e-3, atol=1e-4):
            return False
    return True


def _called(controller: nn.Module, parameters: Mapping[str, Tensor], *given: Tensor) -> Any:
    """What a controller answers with other parameters."""
    return functional_call(controller, dict(parameters), given)
