"""What running a module changes, put back: buffers, attributes, modes and random numbers."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs.fingerprint import slot_names

Undo = Callable[[], object]


@contextmanager
def left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Undo, at the end, what running a module does to its state and to random numbers.

    Its state is all that it and its parts hold, in place or by assignment: buffers, modes, plain values, tensors and
    arrays, through containers and objects. Not the values of parameters: running a module does not train it. Random
    numbers are those of torch on the CPU and the module's devices, of NumPy, of Python and of generators that it
    holds.
    """
    undo = _Held().of(module)
    with forked_rng(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for one in reversed(undo):
                    one()


@contextmanager
def evaluating(controller: nn.Module) -> Iterator[None]:
    """Put a controller into eval mode, without dropout and the like, and leave it as it was."""
    with left_as_it_was(controller):
        controller.eval()
        yield


@contextmanager
def forked_rng(module: nn.Module) -> Iterator[None]:
    """Undo, at the end, what is drawn of torch's, NumPy's and Python's random numbers."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002, the global ones are meant
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def random_state() -> tuple[Any, ...]:
    """The state of the random numbers on the CPU: torch's, NumPy's, Python's."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (
        hash(torch.get_rng_state().numpy().tobytes()),
        kind,
        hash(np.asarray(keys).tobytes()),
        *rest,
        random.getstate(),
    )


_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, str, bytes)


class _Held:
    """Collects, for everything that an object holds, a function that puts it back."""

    def __init__(self) -> None:
        self.undo: list[Undo] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no id is given twice

    def of(self, value: Any) -> list[Undo]:
        self._keep(value)
        return self.undo

    def _keep(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, *_OPAQUE)) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and value.layout is torch.strided and value.device.type != "meta":
                with torch.no_grad():
                    self.undo.append(_content(value, value.clone()))
        elif isinstance(value, np.ndarray):
            self.undo.append(_array(value, value.copy()))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self.undo.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            bits, numbers = value.bit_generator, value.bit_generator.state
            self.undo.append(lambda: setattr(bits, "state", numbers))
        elif isinstance(value, (np.random.RandomState, random.Random)):
            self._by_methods(value)
        elif isinstance(value, (dict, set, deque, list)):
            self.undo.append(_container(value, value.copy()))
            for one in [*value.values()] if isinstance(value, dict) else [*value]:
                self._keep(one)
        elif isinstance(value, tuple):
            for one in value:
                self._keep(one)
        else:
            if isinstance(attributes := getattr(value, "__dict__", None), dict):
                self._keep(attributes)  # of a module its parameters, buffers and parts among them
            kind: Any = type(value)
            if slots := {name: getattr(value, name) for name in slot_names(kind) if hasattr(value, name)}:
                self.undo.append(_slots(value, slots))
                self._keep([*slots.values()])

    def _by_methods(self, value: Any) -> None:
        get, put = ("getstate", "setstate") if isinstance(value, random.Random) else ("get_state", "set_state")
        state = getattr(value, get)()
        self.undo.append(lambda: getattr(value, put)(state))


def _content(tensor: Tensor, before: Tensor) -> Undo:
    def undo() -> None:
        if tensor.shape != before.shape or not _same(tensor, before):
            tensor.set_(before) if tensor.shape != before.shape else tensor.copy_(before)  # type: ignore[call-overload]

    return undo


def _same(tensor: Tensor, before: Tensor) -> bool:
    return torch.equal(tensor, before) or bool(((tensor == before) | ((tensor != tensor) & (before != before))).all())


def _array(array: np.ndarray, before: np.ndarray) -> Undo:
    def undo() -> None:
        if array.flags.writeable:
            array[...] = before

    return undo


def _slots(value: Any, before: dict[str, Any]) -> Undo:
    def undo() -> None:
        for name, held in before.items():
            if getattr(value, name, undo) is not held:
                object.__setattr__(value, name, held)

    return undo


def _container(container: Any, before: Any) -> Undo:
    def undo() -> None:
        if isinstance(container, dict):
            if len(container) != len(before) or any(container.get(k, undo) is not v for k, v in before.items()):
                container.clear()
                container.update(before)
        elif isinstance(container, list):
            container[:] = before
        else:
            container.clear()
            (container.update if isinstance(container, set) else container.extend)(before)

    return undo
