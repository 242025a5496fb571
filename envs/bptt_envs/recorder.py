"""What a function does with tensors, as a graph of torch's own operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

LOOKS_AT_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class LooksAtValuesError(RuntimeError):
    """A function's control flow, or the shape of what it gives, depends on the values of tensors."""


def recorded(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of a function, below autograd: those of its derivatives are among them.

    It is what torch's `make_fx` gives, without the second that it takes to import torch's compiler.

    Args:
        function: from tensors to a tuple of tensors.
        inputs: what it is called with.

    Returns:
        The graph, whose inputs are those of the function and then the constants, and the constants: all tensors that
        it was not given.

    Raises:
        LooksAtValuesError: if it looks at values.
    """
    recorder = _Recorder(inputs)
    with recorder:
        outputs = function(*inputs)
    recorder.graph.output(tuple(recorder.node_of(one) for one in outputs))
    return fx.GraphModule(nn.Module(), recorder.graph), recorder.constants


class _Recorder(TorchDispatchMode):
    """Writes down the operations that run within."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: list[Tensor] = []
        self._nodes = WeakTensorKeyDictionary()  # a tensor that is gone is asked for by nobody
        self._last: fx.Node | None = None
        for i, one in enumerate(inputs):
            self._add_input(one, f"input_{i}")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch would import its compiler to be told to leave this alone

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if LOOKS_AT_VALUES & set(func.tags):
            raise LooksAtValuesError(f"{func} depends on values")
        kwargs = dict(kwargs or {})
        given = tree_map_only(Tensor, self.node_of, (args, kwargs))
        outcome = func(*args, **kwargs)
        node = self.graph.call_function(func, *given)
        if isinstance(outcome, Tensor):
            self._nodes[outcome] = node
        elif isinstance(outcome, (tuple, list)):
            for i, one in enumerate(outcome):
                if isinstance(one, Tensor):
                    self._nodes[one] = self.graph.call_function(operator.getitem, (node, i))
        return outcome

    def node_of(self, tensor: Tensor) -> fx.Node:
        """What stands for a tensor in the graph: one that nothing gave is a constant."""
        if tensor not in self._nodes:
            self._add_input(tensor, f"constant_{len(self.constants)}")
            self.constants.append(tensor.detach())
        node: fx.Node = self._nodes[tensor]
        return node

    def _add_input(self, tensor: Tensor, name: str) -> None:
        """Add an input after those that there are."""
        if self._last is None:
            node = self.graph.placeholder(name)
        else:
            with self.graph.inserting_after(self._last):
                node = self.graph.placeholder(name)
        self._nodes[tensor] = self._last = node


@dataclass(frozen=True)
class _Reference:
    """Stands for a node in the arguments of another one."""

    name: str


def written(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """A graph that `recorded` gave, as what can be pickled.

    Torch's own way of pickling one runs what takes no tensor, such as to make an identity matrix, and takes the outcome
    for an input.
    """

    def refer(node: fx.Node) -> Any:
        return _Reference(node.name)

    return [
        (node.op, node.name, _name_of(node.target), fx.map_arg(node.args, refer), fx.map_arg(node.kwargs, refer))
        for node in graph.nodes
    ]


def read_back(rows: Sequence[tuple[Any, ...]]) -> fx.GraphModule:
    """The opposite of `written`."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in rows:
        args, kwargs = tree_map_only(_Reference, lambda one: nodes[one.name], (args, kwargs))
        called = _named(target) if op == "call_function" else target
        nodes[name] = graph.create_node(op, called, args, kwargs, name)
    return fx.GraphModule(nn.Module(), graph)


def _name_of(target: Any) -> str:
    return str(target) if isinstance(target, (str, torch._ops.OpOverload)) else GET_ITEM


def _named(name: str) -> Callable[..., Any]:
    """The operation of a name such as "aten.add.Tensor"."""
    if name == GET_ITEM:
        return operator.getitem
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    operation: Callable[..., Any] = found
    return operation


GET_ITEM = "getitem"
