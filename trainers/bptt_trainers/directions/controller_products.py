"""Products of vectors with the slopes of a controller, taken in the course of the recursion over time.

The recursion wants K_t^T v_t, with K_t the slope of the actions by the state, and the directions want the sum over time
of (dN/dtheta)^T v_t. Where `ControllerTape` takes K of all samples before any v is known, by a backward pass for each
action component, here one is taken for each vector when it is known, whatever the number of action components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap
from typing import Protocol

import torch
from torch import Tensor

from bptt_envs import Task
from bptt_trainers.directions.augmented import acting
from bptt_trainers.directions.controller_tape import ControllerTape
from bptt_trainers.directions.perceptron import PerceptronTape


class ControllerProducts(Protocol):
    """A controller that has run on N samples, met by vectors."""

    def pull(self, rows: slice, vectors: Tensor, asked: slice) -> Tensor:
        """Products with K.

        Args:
            rows: R of the samples.
            vectors: P vectors by the actions for each of them, (P, R, m).
            asked: those of the P vectors whose products are asked for.

        Returns:
            (asked, R, n).
        """

    def products(self, weights: Tensor, others: Sequence[str]) -> dict[str, Tensor]:
        """As those of `ControllerTape`; the vectors of all samples must be those that were pulled, if any were."""


# What a step of the recursion costs more by products, in rows of a backward pass through the controller: with the
# Jacobians of the physics at hand, where the recursion with K would be one product a step; with products of the
# physics; with slopes of the observation that are taken by autograd; with all of the controller's taken so.
# Measured on an MLP 100-100, docs/benchmarks.md has the table.
OVERHEAD_DENSE = 40
OVERHEAD = 20
OVERHEAD_OBSERVATION = 50
OVERHEAD_AUTOGRAD = 300

PASS = 0.6  # backward passes that the vectors of one pass of a rule cost, whatever the number of action components


def takes_products(actions: int, passes: int, batch: int, overhead: float) -> bool:
    """Whether products are the faster way to the slopes of a controller than its Jacobian.

    The Jacobian takes a backward pass for each action component, products take as much as PASS of one for each pass of
    the rule; but in small pieces, one a step, each of which has a cost of its own, however small the batch.

    Args:
        actions: components of an action, m.
        passes: of the rule, P.
        batch: samples of a step, B.
        overhead: what a step costs more, in rows of a backward pass; 0 where no pass goes through the controller.
    """
    return actions > 1 and (actions - PASS * passes) * batch > overhead


def overhead_of(tape: ControllerTape, *, chained: bool, dense: bool) -> int:
    """What a step of the recursion costs more by products, in rows of a backward pass.

    Args:
        tape: the controller's run.
        chained: whether it is met as a `Chain`.
        dense: whether the Jacobians of the physics are at hand.
    """
    if not chained:
        return OVERHEAD_AUTOGRAD
    physics, state = tape.system, tape.state.detach()
    if isinstance(tape.system, Task):  # whose own slopes are known
        physics, state = tape.system.system, tape.system.inner(state)
    seen = 0 if physics.observe(state) is state else OVERHEAD_OBSERVATION
    return seen + (OVERHEAD_DENSE if dense else OVERHEAD)


class ByAutograd:
    """The controller runs again at the samples that are asked for; a backward pass for each vector."""

    def __init__(self, tape: ControllerTape) -> None:
        self._tape = tape
        self._act = acting(tape.system, tape.controller)
        self._state = tape.order.by_time(tape.state.detach())

    def pull(self, rows: slice, vectors: Tensor, asked: slice) -> Tensor:
        """As that of `ControllerProducts`."""
        with torch.enable_grad():
            leaf = self._state[rows].requires_grad_()
            actions = self._act(self._tape.system.observe(leaf)).flatten(1)
            met = [(actions * vector).sum() for vector in vectors[asked]]  # apart torch would import sympy
        by_vector = [
            torch.autograd.grad(one, leaf, retain_graph=True, materialize_grads=True, allow_unused=True)[0]
            for one in met
        ]
        return torch.stack(by_vector).flatten(2).detach()

    def products(self, weights: Tensor, others: Sequence[str]) -> dict[str, Tensor]:
        """As those of `ControllerProducts`."""
        own = [name for layer in self._tape.layers for name in (layer.weight, layer.bias) if name is not None]
        return self._tape.products_by_pass(weights, [*own, *others])


class Chain:
    """A controller of linear layers, one after the other, and functions of each number alone between them.

    Its slopes are products of matrices and of the slopes of these functions, which are known for all samples at once.

    Args:
        tape: its run.
    """

    def __init__(self, tape: ControllerTape) -> None:
        self._tape = tape
        self._slopes = _between(tape)
        self._layers = [call.layer for call in tape.calls]
        self._met: list[list[Tensor]] = [[] for _ in self._layers]  # what has met the output of each, the last first
        self._observed = tape.system.observe_pullback(tape.order.by_time(tape.state.detach()))

    def pull(self, rows: slice, vectors: Tensor, asked: slice) -> Tensor:
        """As that of `ControllerProducts`."""
        vectors = self._layers[0].pulled(self._meet(rows, vectors)[asked], self._steps(vectors))
        vectors = _scaled(vectors, self._slopes[0], rows)
        return vectors if self._observed is None else self._observed(rows, vectors)

    def _meet(self, rows: slice, vectors: Tensor) -> Tensor:
        """Vectors by what the first layer gave; with what meets the others' outputs they are kept."""
        for i in reversed(range(len(self._layers))):
            vectors = _scaled(vectors, self._slopes[i + 1], rows)
            self._met[i].append(vectors)
            vectors = self._layers[i].pulled(vectors, self._steps(vectors)) if i else vectors
        return vectors

    def _steps(self, vectors: Tensor) -> int:
        """Steps of which vectors, (P, R, ...), are."""
        return vectors.shape[1] * self._tape.order.steps // len(self._tape.actions)

    def products(self, weights: Tensor, others: Sequence[str]) -> dict[str, Tensor]:
        """As those of `ControllerProducts`."""
        if not self._met[0]:
            self._meet(slice(None), weights.transpose(0, 1))
        by_layer = []
        for call, met in zip(self._tape.calls, self._met, strict=True):
            slopes = torch.cat(met[::-1], dim=1)
            slopes = self._tape.order.by_member(slopes.transpose(0, 1)).transpose(0, 1)
            by_layer.append((call.layer, *call.layer.products_of_slopes(call.inputs.detach(), slopes)))
        return self._tape.by_name(by_layer, weights, others)


def _scaled(vectors: Tensor, slope: Tensor | None, rows: slice) -> Tensor:
    return vectors if slope is None else vectors * slope[rows]


def is_chain(tape: ControllerTape) -> bool:
    """Whether the layers of a controller are called one after the other, and nothing else goes by.

    What is between two layers must depend on nothing but what the earlier one gave, which is seen in the graph, and act
    on each number alone, which a probe finds out.
    """
    return isinstance(tape, PerceptronTape) or (
        bool(tape.calls)
        and all(
            earlier.shape == later.shape
            and earlier.dim() == 2
            and (_passed_on(earlier, later) or _depends_on_nothing_but(later, earlier))
            for earlier, later in _links(tape)
        )
    )


def _links(tape: ControllerTape) -> Iterator[tuple[Tensor, Tensor]]:
    """What is seen and the first layer's input, the output of each layer and the next one's input, ..., the actions."""
    observation = tape.observation if tape.observation.dim() == 2 else tape.observation.flatten(1)
    points = [observation, *(one for call in tape.calls for one in (call.inputs, call.output)), tape.given]
    return zip(points[::2], points[1::2], strict=True)


def _between(tape: ControllerTape) -> list[Tensor | None]:
    """The slopes of each link, (N, width) by time; None where what is passed on stays as it is."""
    if isinstance(tape, PerceptronTape):
        return tape.between
    return [None if one is None else tape.order.by_time(one) for one in starmap(_slope, _links(tape))]


def _slope(earlier: Tensor, later: Tensor) -> Tensor | None:
    """The slope of each number of the one by that of the other; None where they are passed on as they are."""
    if _passed_on(earlier, later):
        return None
    with torch.enable_grad():
        total = later.sum()
    return torch.autograd.grad(total, earlier, retain_graph=True)[0].detach()


def _passed_on(earlier: Tensor, later: Tensor) -> bool:
    """Whether the numbers of the one are those of the other, in the same order."""
    if later is earlier:
        return True
    root = later if later._base is None else later._base
    views = (root, earlier, later)
    same = root is (earlier if earlier._base is None else earlier._base) and later.requires_grad
    return same and all(one.is_contiguous() and one.numel() == root.numel() for one in views)


def _depends_on_nothing_but(later: Tensor, earlier: Tensor) -> bool:
    """Whether every way back from `later` through the graph leads to `earlier`, and one does."""
    if not (later.requires_grad and earlier.requires_grad):
        return False
    start, end = (torch.autograd.graph.get_gradient_edge(one).node for one in (later, earlier))
    waiting, seen, found = [start], {start}, False
    while waiting:
        node = waiting.pop()
        if node is end:
            found = True
        elif not node.next_functions:
            return False  # a leaf: the state, or a parameter
        else:
            ways = {way for way, _ in node.next_functions if way is not None} - seen
            seen |= ways
            waiting += ways
    return found
