"""Multi-layer perceptrons in closed form: run by plain functions of their weights, their slopes from what layers gave.

A module of torch costs some microseconds a call and autograd keeps a graph, where a layer of a small batch takes as
long as that. What a perceptron does is known: h_i = tanh(W_i h_{i-1} + b_i), so that the slopes by what its layers gave
follow from the h_i alone, as products of W_i^T and of 1 - h_i^2.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import starmap
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bptt_envs import System
from bptt_trainers.directions.augmented import Act
from bptt_trainers.directions.controller_tape import Call, ControllerTape, RowOrder
from bptt_trainers.directions.linear_layer import LinearLayer, StackedLinear, is_linear, product

# Numbers that layers give in a rollout, up to which they are kept for the way back (256 MiB in float32); beyond it
# the controller runs again, segment by segment.
KEPT_NUMBERS = 2**26


class Activation(Protocol):
    """A function of each number between two layers whose slope follows from its value."""

    def scale(self, like: Tensor) -> int:
        """By what a layer multiplies what it gives for `settling`, a power of two."""

    def settling(self, like: Tensor) -> Callable[[Tensor], object]:
        """What puts the function of what a layer gave in the place of what it gave times `scale`."""

    def pull(self, vectors: Tensor, value: Tensor) -> Tensor:
        """Vectors times the slopes where the function has these values."""


class OfItself:
    """A function that torch has, with the slopes as functions of its value."""

    def __init__(self, settle: Callable[[Tensor], Tensor], pull: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._settle = settle
        self.pull = pull

    def scale(self, like: Tensor) -> int:
        """As that of `Activation`."""
        return 1

    def settling(self, like: Tensor) -> Callable[[Tensor], object]:
        """As that of `Activation`."""
        return self._settle


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: OfItself(torch.tanh_, torch.ops.aten.tanh_backward),
    nn.ReLU: OfItself(torch.relu_, lambda vectors, value: torch.where(value > 0, vectors, 0.0)),
}
"""Of torch's own modules; others hold theirs as an attribute `activation` of their class."""


class Parts(NamedTuple):
    """What a controller does one after the other, on flattened observations.

    A controller whose own class has a method `perceptron` that returns this is run by it; so is an `nn.Sequential`.
    """

    layers: nn.Sequential  # linear layers, and modules that have an `Activation` between them
    action_shape: tuple[int, ...]
    before: nn.Module | None = None  # a function of each number that is observed, (B, *observation_shape)
    squash: nn.Module | None = None  # a function of each number of the actions, (B, *action_shape)
    form: Callable[..., Perceptron] | None = None  # what runs them; None: a `Perceptron`


class Perceptron:
    """Linear layers with a function of each number between them, as plain functions of the weights that they have now.

    Args:
        controller: that it is.
        modules: the layers, all nn.Linear or all of E members.
        activation: between them; None of a single layer.
        parts: that they are of.

    Attributes:
        is_chain: whether nothing but functions of each number are between the layers.
    """

    is_chain = True

    def __init__(
        self,
        controller: nn.Module,
        modules: Sequence[nn.Linear | StackedLinear],
        activation: Activation | None,
        parts: Parts,
    ) -> None:
        self.controller = controller
        self.modules = modules
        self.activation = activation
        self.before, self.squash, self.action_shape = parts.before, parts.squash, parts.action_shape
        self._take([self.weight_of(i) for i in range(len(modules))], _run_of)
        self._nowhere = [None] * len(modules)

    def _take(self, weights: list[Tensor], run_of: Callable[..., Callable[..., Tensor]]) -> None:
        """Run from now on by these weights, in the order in which they are met."""
        self.weights = weights
        self.members = weights[0].shape[:-2]  # (E,), or () of a single one
        activation = self.activation
        scale = 1 if activation is None else activation.scale(weights[0])
        settle = None if activation is None else activation.settling(weights[0])
        *inner, last = zip(self.modules, weights, strict=True)
        self._runs = [*((run_of(*one, scale), settle) for one in inner), (run_of(*last, 1), None)]

    def anew(self) -> Perceptron:
        """The same with the weights that its layers have now."""
        again = copy.copy(self)
        again._take([self.weight_of(i) for i in range(len(self.modules))], _run_of)
        return again

    def within_program(self) -> Perceptron:
        """The same where a program is recorded, on what then stands in the place of the layers' parameters.

        The weights among these are in the order in which they are met, as `weight_of` gives them.
        """
        within = copy.copy(self)
        weights = [module.weight.detach() for module in self.modules]
        within._take(weights, _run_of if weights[0].is_cuda else _fused_run_of)
        return within

    @classmethod
    def of(cls, controller: Any) -> Perceptron | None:
        """The controller as a perceptron; None unless it is known to be one and nothing is hooked into it."""
        parts = parts_of(controller)
        if parts is None or type(parts.layers) is not nn.Sequential or _is_changed(parts):
            return None
        layers, between = list(parts.layers)[::2], list(parts.layers)[1::2]
        modules = [module for module in layers if is_linear(module)]
        kinds = {_activation_of(module) for module in between}
        known = len(modules) == len(layers) == len(between) + 1 and len(kinds) <= 1 and None not in kinds
        form = cls if parts.form is None else parts.form
        return form(controller, modules, next(iter(kinds), None), parts) if known else None

    @property
    def widths(self) -> list[int]:
        """Numbers that each layer gives for a sample."""
        return [weight.shape[-2] for weight in self.weights]

    @property
    def state(self) -> tuple[object, ...]:
        """Equal as long as the weights have the values that they have now."""
        held = (one for module in self.modules for one in (module.weight, module.bias) if one is not None)
        return tuple((one.data_ptr(), one._version) for one in held)

    def run(self, observation: Tensor, places: Sequence[Tensor] | None = None) -> list[Tensor]:
        """What each layer gives, (*members, R, width), the activation included.

        Args:
            observation: (*members R, *observation_shape).
            places: where to write it; None: new tensors.
        """
        given = self.seen(observation)
        given = given.unflatten(0, (*self.members, -1)) if self.members else given
        outputs = []
        for (run, settle), place in zip(self._runs, places or self._nowhere, strict=True):
            given = run(given, out=place)
            if settle is not None:
                settle(given)
            outputs.append(given)
        return outputs

    def weight_of(self, layer: int) -> Tensor:
        """The weight of a layer, (*members, out, in), in the order in which it is met."""
        return self.modules[layer].weight.detach()

    def inputs(self, observation: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What each layer was given, (N, ..., in), with what the first one was, (N, o), and what `run` gave."""
        return [observation, *outputs[:-1]]

    def pulled(self, layer: int, vectors: Tensor) -> Tensor:
        """Vectors by what a layer gave, (..., *members, R, width), as vectors by what it was given."""
        return product(vectors, self.weights[layer])

    def unbent(self, layer: int, vectors: Tensor, value: Tensor) -> Tensor:
        """Vectors by what a layer gave, which is `value`, as vectors by what it gave before the activation."""
        assert self.activation is not None
        return self.activation.pull(vectors, value)

    def by_row(self, layer: int, slope: Tensor) -> Tensor:
        """Slopes by what a layer gave, (m, N, width), as its input is laid out."""
        return slope

    def restored(self, layer: int, products: Tensor) -> Tensor:
        """Products with the weight of a layer, (P, *members, out, in), in the order of the parameter."""
        return products

    def seen(self, observation: Tensor) -> Tensor:
        """What the first layer is given, (B, o), of observations (B, *observation_shape)."""
        given = observation if self.before is None else self.before(observation)
        return given.flatten(1) if given.dim() > 2 else given

    def seen_slope(self, observation: Tensor) -> Tensor | None:
        """The slope of what the first layer is given by what is observed, (B, o); None where they are the same."""
        return None if self.before is None else _slope_of_each(self.seen, observation).flatten(1)

    def act(self, outputs: Sequence[Tensor]) -> Tensor:
        """The actions, (B, *action_shape), that what `run` gave amounts to."""
        last = outputs[-1].flatten(0, 1) if self.members else outputs[-1]
        actions = last if len(self.action_shape) == 1 else last.view(-1, *self.action_shape)
        return actions if self.squash is None else self.squash(actions)

    def squash_slope(self, last: Tensor) -> Tensor | None:
        """The slope of the actions by what the last layer gave, (*members, R, m); None where they are the same."""
        return None if self.squash is None else _slope_of_each(lambda leaf: self.act([leaf]), last)


def _slope_of_each(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The slope of a function of each number alone, by autograd."""
    with torch.enable_grad():
        leaf = value.clone().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def _run_of(module: nn.Linear | StackedLinear, weight: Tensor, scale: int) -> Callable[..., Tensor]:
    """A layer as a function of its input and of where to write, times a power of two, which rounds nothing."""
    weight = weight.mT
    shift = None if module.bias is None else module.bias.detach()
    if isinstance(module, StackedLinear):
        start = weight.new_zeros(1, 1, 1) if shift is None else shift.unsqueeze(1)
        return partial(torch.baddbmm, start, batch2=weight, beta=0 if shift is None else scale, alpha=scale)
    start = weight.new_zeros(1, 1) if shift is None else shift
    return partial(torch.addmm, start, mat2=weight, beta=0 if shift is None else scale, alpha=scale)


def _fused_run_of(module: nn.Linear | StackedLinear, weight: Tensor, scale: int) -> Callable[..., Tensor]:
    """As `_run_of`, the bias among what a compiler does to each number; torch itself copies it for each row first.

    So is the product with the weights of a single number that is given.
    """
    shift = None if module.bias is None else scale * module.bias.detach().unsqueeze(-2)

    def run(given: Tensor, out: None) -> Tensor:
        met = (given * weight).sum(-1, keepdim=True) if weight.shape[-2] == 1 else given @ weight.mT
        met = met if scale == 1 else scale * met  # torch's compiler would drop an alpha
        return met if shift is None else met + shift

    return run


def parts_of(controller: Any) -> Parts | None:
    """What a controller says that it does; None if its class does not say so, or something is hooked into it."""
    if not isinstance(controller, nn.Module) or _is_hooked(controller):
        return None
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS):
        return None
    if type(controller) is nn.Sequential:
        last = controller[-1] if len(controller) else None
        return Parts(controller, (last.out_features,)) if isinstance(last, nn.Linear) else None
    own = vars(type(controller)).get("perceptron")  # a class derived from it may do something else
    parts: Parts | None = None if own is None else own(controller)
    return parts


def _activation_of(module: nn.Module) -> Activation | None:
    kind = type(module)
    return ACTIVATIONS.get(kind, vars(kind).get("activation"))


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_hooked(module: nn.Module) -> bool:
    """Whether something is hooked into a module, or it has a forward of its own."""
    held = vars(module)
    return "forward" in held or bool(
        held["_forward_hooks"] or held["_forward_pre_hooks"] or held["_backward_hooks"] or held["_backward_pre_hooks"]
    )


def _is_changed(parts: Parts) -> bool:
    """Whether something is hooked into the layers, or a parameter is none that has its values and their version."""
    ends = (end for end in (parts.before, parts.squash) if end is not None)
    for module in (parts.layers, *parts.layers, *ends):
        if _is_hooked(module):
            return True
        # Within torch.func.functional_call, as where a program is recorded, tensors are in the place of parameters
        for one in module._parameters.values():
            if one is not None and (type(one) is not nn.Parameter or one.is_inference()):
                return True
    return False


class Activations(threading.local):
    """What the layers of a perceptron gave in the last rollout of an engine; the next one is written over it.

    Memory is kept between rollouts, as to have it anew takes longer at large batches than to run the layers again. Each
    thread has its own, and a copy starts without. Weights that change between a rollout and the way back are noticed by
    torch's count of their versions, which a write through `.data` or NumPy goes around.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._of: object = None
        self._weights: object = None

    def __reduce__(self) -> tuple[type[Activations], tuple[()]]:
        return type(self), ()

    def room(self, perceptron: Perceptron, steps: int, states: Tensor, *, inference: bool = False) -> list[Tensor]:
        """Where to write what each layer gives, (*members, steps, B, width); nowhere if that were too much.

        Args:
            perceptron: that will act.
            steps: of the rollout.
            states: from which it starts, (B, *state_shape).
            inference: keep them by tensors of torch's inference mode.
        """
        self._of = None
        if not is_kept(perceptron, steps, len(states)):
            self._buffers = []
            return []
        batch = len(states) // math.prod(perceptron.members)
        wanted = [(*perceptron.members, steps, batch, width) for width in perceptron.widths]
        kind = states.dtype, states.device, inference
        if [(tuple(one.shape), one.dtype, one.device, one.is_inference()) for one in self._buffers] != [
            (shape, *kind) for shape in wanted
        ]:
            with torch.inference_mode(inference):
                self._buffers = [torch.empty(shape, dtype=states.dtype, device=states.device) for shape in wanted]
        return self._buffers

    def settle(self, perceptron: Perceptron, trajectory: object) -> None:
        """Say of which trajectory they are."""
        self._of, self._weights = trajectory, perceptron.state

    def of(self, perceptron: Perceptron, trajectory: object) -> list[Tensor] | None:
        """What each layer gave at the steps of a trajectory, as `room` has it; None if it is not kept."""
        known = bool(self._buffers) and self._of is trajectory and self._weights == perceptron.state
        return self._buffers if known else None


def is_kept(perceptron: Perceptron, steps: int, batch: int) -> bool:
    """Whether what the layers of a perceptron give in a rollout is not too much to be kept."""
    return steps * batch * sum(perceptron.widths) <= KEPT_NUMBERS


def keeping(perceptron: Perceptron, buffers: Sequence[Tensor], *, inference: bool = False) -> Act:
    """The perceptron from observations to actions, called once a step of a rollout.

    Args:
        perceptron: that acts.
        buffers: where to write what its layers give, as `Activations.room` has it; of none it is not kept.
        inference: whether these are tensors of torch's inference mode.
    """
    with torch.inference_mode(inference):
        places = iter(list(zip(*(one.unbind(-3) for one in buffers), strict=True)))

    def act(observation: Tensor) -> Tensor:
        if inference and not torch.is_inference_mode_enabled():  # as of the first step: it writes to such tensors
            with torch.inference_mode():
                return act(observation)
        return perceptron.act(perceptron.run(observation, next(places, None)))

    return act


def at(buffers: Sequence[Tensor], steps: slice) -> list[Tensor]:
    """Of what each layer gave, what it gave at some steps, as `Perceptron.run` does."""
    return [one[..., steps, :, :].flatten(-3, -2) for one in buffers]


class PerceptronTape(ControllerTape):
    """As `ControllerTape`, of a perceptron and without autograd.

    Args:
        perceptron: the controller.
        system: what it observes and acts on.
        state: (N, *state_shape), by time.
        layers: those of the perceptron, in any order.
        order: of the rows.
        kept: what its layers gave, if that is known; else they run.
    """

    def __init__(  # what ControllerTape's does is to record
        self,
        perceptron: Perceptron,
        system: System,
        state: Tensor,
        layers: Sequence[LinearLayer],
        order: RowOrder,
        kept: Sequence[Tensor] | None = None,
    ) -> None:
        self.controller = perceptron.controller
        self.system = system
        self.order = order
        self.layers = layers
        self.state = order.by_member(state)
        self._perceptron = perceptron
        self._observation = observation = system.observe(self.state)
        self._outputs = perceptron.run(observation) if kept is None else kept
        by_module = {layer.module: layer for layer in layers}
        inputs = perceptron.inputs(perceptron.seen(observation), self._outputs)
        called = (by_module[module] for module in perceptron.modules)
        self.calls = list(starmap(Call, zip(called, inputs, self._outputs, strict=True)))
        self.actions = order.by_time(perceptron.act(self._outputs).flatten(1))

    @cached_property
    def squash_slope(self) -> Tensor | None:
        """The slope of the actions by what the last layer gave, (*members, R, m); None where they are the same."""
        return self._perceptron.squash_slope(self._outputs[-1])

    @cached_property
    def between(self) -> list[Tensor | None]:
        """The slopes of what each layer is given by what the one before gave, and of the actions, (N, width) by time.

        None where they are passed on as they are.
        """
        perceptron, ones = self._perceptron, self._outputs[0].new_ones(())
        activation = perceptron.activation
        slopes = [] if activation is None else [activation.pull(ones, one) for one in self._outputs[:-1]]
        found = [perceptron.seen_slope(self._observation), *slopes, self.squash_slope]
        return [None if one is None else self.order.by_time(one.flatten(0, -2)) for one in found]

    @cached_property
    def layer_slopes(self) -> list[Sequence[Tensor]]:
        """The slopes of each action component by what each layer gave, m of (N, width) for each."""
        last = self._slopes_by_layer[-1].expand(-1, *self._outputs[-1].shape)
        found = [one.flatten(1, -2) for one in (*self._slopes_by_layer[:-1], last)]
        return [self._perceptron.by_row(i, one).unbind(0) for i, one in enumerate(found)]

    @cached_property
    def _slopes_by_layer(self) -> list[Tensor]:
        """The same as (m, *members, R, width) for each layer; of the last one R = 1 where all rows have the same."""
        perceptron, weights = self._perceptron, self._perceptron.weights
        m = weights[-1].shape[-2]
        slope = torch.eye(m, dtype=weights[-1].dtype, device=weights[-1].device).view(m, *(1,) * weights[-1].dim(), m)
        slope = slope.squeeze(1) if self.squash_slope is None else slope.squeeze(1) * self.squash_slope
        slopes = [slope]
        for i in range(len(weights) - 1, 0, -1):
            slope = perceptron.unbent(i - 1, perceptron.pulled(i, slope), self._outputs[i - 1])
            slopes.append(slope)
        return slopes[::-1]

    @cached_property
    def jacobian(self) -> Tensor:
        """The slopes of the actions by the state, K, (N, m, n)."""
        by_observation = self._perceptron.pulled(0, self._slopes_by_layer[0])  # (m, *members, R or 1, o)
        rows = by_observation.expand(-1, *self._outputs[-1].shape[:-1], -1).flatten(1, -2).transpose(0, 1)
        seen_slope = self._perceptron.seen_slope(self._observation)
        rows = self.order.by_time(rows if seen_slope is None else rows * seen_slope.unsqueeze(1))
        pull = self.system.observe_pullback(self.order.by_time(self.state))
        return rows if pull is None else pull(slice(None), rows.transpose(0, 1)).transpose(0, 1)
