"""One run of a controller on many samples at once, its Jacobian, and the products of vectors with its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.directions.augmented import acting
from bptt_trainers.directions.linear_layer import LinearLayer


class NotServedError(RuntimeError):
    """The adjoint engine cannot serve the controller; the message says why."""


@dataclass(frozen=True)
class RowOrder:
    """The rows of S steps of a batch of E equal parts, for each of which the controller has parameters of its own.

    The recursion has them by time, (S E B, ...); a controller of E members takes (E S B, ...).
    """

    steps: int
    members: int = 1

    def by_member(self, rows: Tensor) -> Tensor:
        """Rows by time in the order that the controller takes."""
        return (
            rows
            if self.members == 1
            else rows.unflatten(0, (self.steps, self.members, -1)).transpose(0, 1).flatten(0, 2)
        )

    def by_time(self, rows: Tensor) -> Tensor:
        """The opposite of `by_member`."""
        return (
            rows
            if self.members == 1
            else rows.unflatten(0, (self.members, self.steps, -1)).transpose(0, 1).flatten(0, 2)
        )


class ControllerTape:
    """One batched run of the controller, and what a backward pass through it gives.

    What goes in and comes out is in the order of time, see `RowOrder`.

    Args:
        controller: from observations to actions.
        system: what it observes and acts on.
        state: (N, *state_shape).
        layers: linear layers of the controller whose calls are kept.
        order: of the rows; None: they are of one step and one member.

    Attributes:
        actions: what the controller gave, flattened, (N, m).

    Raises:
        NotServedError: if what a layer took or gave is changed in place, so that its slopes are not those of the
            layer; from what needs the slopes, if it has none.
    """

    def __init__(
        self,
        controller: nn.Module,
        system: System,
        state: Tensor,
        layers: Sequence[LinearLayer] = (),
        order: RowOrder | None = None,
    ) -> None:
        self.controller = controller
        self.system = system
        self.order = RowOrder(1) if order is None else order
        self.layers = layers
        with torch.enable_grad():
            self.state = self.order.by_member(state).detach().requires_grad_()
            self.observation = system.observe(self.state)
            with _recorded(layers) as (calls, versions):
                self.given = acting(system, controller)(self.observation).flatten(1)
        self.calls = calls
        if any(one._version != version for one, version in versions):
            raise NotServedError("what a layer took or gave is changed in place")
        self.actions = self.order.by_time(self.given.detach())

    @property
    def jacobian(self) -> Tensor:
        """The slopes of the actions by the state, K, (N, m, n)."""
        return self.order.by_time(self._slopes[0])

    @property
    def layer_slopes(self) -> list[Sequence[Tensor]]:
        """The slopes of each action component by what each call of a layer gave, m of (N, ..., width) for each."""
        return self._slopes[1]

    @cached_property
    def _slopes(self) -> tuple[Tensor, list[Sequence[Tensor]]]:
        """K, and the slopes of each action component by what each call of a layer gave: a backward pass for each."""
        targets = [self.state, *(call.output for call in self.calls)]
        try:
            with torch.enable_grad():
                totals = [self.given[:, j].sum() for j in range(self.given.shape[1])]
            slopes = [
                torch.autograd.grad(one, targets, retain_graph=True, allow_unused=True, materialize_grads=True)
                for one in totals
            ]
        except RuntimeError as error:  # such as of a layer that is run without gradients
            first_line = str(error).partition("\n")[0]
            raise NotServedError(f"its layers cannot be differentiated on their own ({first_line})") from error
        # Detached, as the zeros in the place of slopes that there are none of require gradients
        jacobian = torch.stack([row[0].flatten(1) for row in slopes], dim=1).detach()
        return jacobian, [[row[1 + i].detach() for row in slopes] for i in range(len(self.calls))]

    def products(self, weights: Tensor, others: Sequence[str]) -> dict[str, Tensor]:
        """The product of the vectors `weights`, (N, P, m), with each parameter, (P, *shape) by name.

        From the slopes that came with the Jacobian: with the input h of a layer and its slopes delta_j, any vectors c
        meet its weights as sum_j (c_j delta_j)^T h, without another backward pass.

        Args:
            weights: a vector for each sample and each of P passes.
            others: names of the parameters that no layer serves.
        """
        by_member = self.order.by_member(weights)
        by_layer = (
            (call.layer, *call.layer.products(call.inputs.detach(), slopes, by_member))
            for call, slopes in zip(self.calls, self.layer_slopes, strict=True)
        )
        return self.by_name(by_layer, weights, others)

    def by_name(
        self, by_layer: Iterable[tuple[LinearLayer, Tensor, Tensor]], weights: Tensor, others: Sequence[str]
    ) -> dict[str, Tensor]:
        """Products with the weight and the bias of the layer of each call, as `products` gives them."""
        totals: dict[str, Tensor] = {}
        for layer, by_weight, by_bias in by_layer:
            for name, product in ((layer.weight, by_weight), (layer.bias, by_bias)):
                if name is not None:
                    totals[name] = totals[name] + product if name in totals else product
        own = (name for layer in self.layers for name in (layer.weight, layer.bias) if name is not None)
        uncalled = [name for name in own if name not in totals]
        parameters = dict(self.controller.named_parameters()) if uncalled else {}
        for name in uncalled:
            totals[name] = weights.new_zeros(weights.shape[1], *parameters[name].shape)
        return totals | self.products_by_pass(weights, others)

    def products_by_pass(self, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The same as `products` for any parameters, by a backward pass for each vector of a sample.

        Args:
            weights: a vector for each sample and each of P passes, (N, P, m).
            names: of parameters.
        """
        if not names:
            return {}
        parameters = dict(self.controller.named_parameters())
        targets = [parameters[name] for name in names]
        with torch.enable_grad():  # vectors apart from what they meet would have torch import sympy
            met = [(self.given * weight).sum() for weight in self.order.by_member(weights).unbind(1)]
        by_pass = [
            torch.autograd.grad(one, targets, retain_graph=True, allow_unused=True, materialize_grads=True)
            for one in met
        ]
        stacks = (torch.stack(one).detach() for one in zip(*by_pass, strict=True))
        return dict(zip(names, stacks, strict=True))


class Call(NamedTuple):
    """One call of a linear layer."""

    layer: LinearLayer
    inputs: Tensor
    output: Tensor


@contextmanager
def _recorded(layers: Sequence[LinearLayer]) -> Iterator[tuple[list[Call], list[tuple[Tensor, int]]]]:
    """Collect every call of `layers`, with what they give before any other hook changes it, and versions of these."""
    calls: list[Call] = []
    versions: list[tuple[Tensor, int]] = []

    def keep(layer: LinearLayer) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def note(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            calls.append(Call(layer, args[0] if args else named["input"], output))
            versions.extend((one, one._version) for one in calls[-1][1:])

        return note

    handles = [layer.module.register_forward_hook(keep(layer), prepend=True, with_kwargs=True) for layer in layers]
    try:
        yield calls, versions
    finally:
        for handle in handles:
            handle.remove()
