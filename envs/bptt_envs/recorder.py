"""What a function does with tensors, as a graph of torch's own operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
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
