"""Fingerprints of what a judgement depends on: equal as long as nothing changed that could change the judgement."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Token = tuple[Hashable, ...]

SMALL = 4096  # numbers of a tensor up to which its content is looked at; of a larger one, its place and version

_PLAIN = (bool, int, str, bytes, type(None), complex, type, torch.dtype, torch.device, torch.Size, slice)
_PHYSICS = ("step", "linearize", "pullback", "observe", "state_cost", "running_cost", "final_cost")  # of a system
_INTERNAL = frozenset(vars(nn.Module()))
_HOOKS = tuple(sorted(name for name in _INTERNAL if name.endswith("_hooks")))
_GLOBAL_HOOKS = tuple(getattr(torch_module, name) for name in vars(torch_module) if name.endswith("_hooks"))


def fingerprint(*things: Any, identity: bool = True) -> Token:
    """What the behaviour of `things` (modules, systems, values) depends on, in a hashable form.

    Of a module and its parts: types, modes, forwards and hooks; of parameters everything but their values (shape,
    stride, dtype, device, requires_grad, hooks); of buffers and other tensors their values, too; of every other
    attribute its value, through containers, objects and closures. Of a system and any other object the same.
    What is global, or behind what Python cannot look into, is not seen.

    Args:
        things: what is judged.
        identity: whether another parameter, equal in all of this, counts as a change, and hooks of parameters do.
            Without it, objects that do the same but for the values of their parameters have equal fingerprints.
    """
    walk = _Walk(identity)
    return (*(walk.token(thing) for thing in things), *(tuple(map(id, hooks.values())) for hooks in _GLOBAL_HOOKS))


class _Walk:
    """One pass over things, which visits each object once."""

    def __init__(self, identity: bool) -> None:
        self.identity = identity
        self.seen: dict[int, int] = {}

    def token(self, value: Any) -> Hashable:
        kind = type(value)
        if kind is float:
            return value if value == value else "nan"
        if kind in _PLAIN or isinstance(value, _PLAIN):
            return kind, value if kind is not slice else (value.start, value.stop, value.step)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if id(value) in self.seen:
            return "seen", self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, np.ndarray):
            return value.shape, value.dtype.str, hash(value.tobytes())
        if isinstance(value, dict):
            return kind, *((self.token(key), self.token(one)) for key, one in list(value.items()))
        if isinstance(value, (list, tuple, deque)):
            return kind, *map(self.token, list(value))
        if isinstance(value, (set, frozenset)):
            return kind, frozenset(map(self.token, value))
        if isinstance(value, types.FunctionType):
            cells = value.__closure__ or ()
            return id(value.__code__), self.token(value.__defaults__), *(self._cell(cell) for cell in cells)
        if isinstance(value, types.MethodType):
            return self.token(value.__func__), self.token(value.__self__)
        if isinstance(value, functools.partial):
            return kind, self.token(value.func), self.token(value.args), self.token(value.keywords)
        return self._object(value)

    def _object(self, value: Any) -> Token:
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, (types.ModuleType, types.BuiltinFunctionType)) or not isinstance(attributes, dict):
            if isinstance(value, np.generic):
                return value.dtype.str, value.tobytes()
            named = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
            slots = ((name, self.token(getattr(value, name, None))) for name in named if isinstance(name, str))
            return type(value), *(slots if named else (id(value),))
        kind = type(value)
        of_class = (id(getattr(kind, name, None)) for name in _PHYSICS) if hasattr(kind, "initial_states") else ()
        return kind, *of_class, *((name, self.token(one)) for name, one in list(attributes.items()))

    def _cell(self, cell: types.CellType) -> Hashable:
        try:
            return self.token(cell.cell_contents)
        except ValueError:  # empty
            return None

    def _module(self, module: nn.Module) -> Token:
        held = vars(module)
        kind = type(module)
        return (
            kind,
            id(kind.forward),
            held["training"],
            *((name, *map(id, held[name].values())) for name in _HOOKS if held[name]),
            *((name, p if p is None else self._parameter(p)) for name, p in held["_parameters"].items()),
            *((name, b if b is None else self._tensor(b)) for name, b in held["_buffers"].items()),
            *((name, self.token(one)) for name, one in held.items() if name not in _INTERNAL),
            *((name, self.token(part)) for name, part in held["_modules"].items()),
        )

    def _parameter(self, parameter: Tensor) -> Token:
        # An equal place among what was seen: which modules share the parameter counts even where it could be another
        place = id(parameter) if self.identity else self.seen.setdefault(id(parameter), len(self.seen))
        if type(parameter) in _UNBORN:
            return type(parameter), place
        return (place, *_form(parameter), *_hooks(parameter)) if self.identity else (place, *_form(parameter))

    def _tensor(self, tensor: Tensor) -> Token:
        if isinstance(tensor, nn.Parameter):
            return self._parameter(tensor)
        return *_form(tensor), *_hooks(tensor), _content(tensor, self.identity)


_UNBORN = (nn.UninitializedParameter, nn.UninitializedBuffer)


def _form(tensor: Tensor) -> Token:
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return type(tensor), tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad


def _hooks(tensor: Tensor) -> Token:
    hooks = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
    return tuple(tuple(map(id, of.values())) for of in hooks if of)


def _content(tensor: Tensor, by_place: bool) -> Hashable:
    """The values of a tensor; of a large one, or one on another device, its place and version if that will do."""
    if type(tensor) in _UNBORN or tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return id(tensor)
    small = tensor.numel() <= SMALL and tensor.device.type == "cpu"
    if by_place and not small:
        return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hash(values.numpy().tobytes())
