"""Fingerprints of what a judgement depends on: equal as long as nothing changed that could change the judgement."""

from __future__ import annotations

import array
import functools
import operator
import types
import weakref
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Token = tuple[Hashable, ...]

SMALL = 4096  # numbers of a tensor up to which its content is looked at; of a larger one, its place and version
# (of a large array, which has no version, so many of its numbers)

KINDS = 256  # classes of which is known what they hold

_PLAIN = (bool, int, str, bytes, type(None), complex, type, torch.dtype, torch.device, torch.Size, slice)
# What holds more than its attributes
_ELSEWHERE = (types.FunctionType, types.MethodType, types.ModuleType, nn.Module, list, dict, set, np.ndarray, deque)
_METHODS = (types.FunctionType, property, classmethod, staticmethod)
_INTERNAL = frozenset(vars(nn.Module()))
_HOOKS = tuple(sorted(name for name in _INTERNAL if name.endswith("_hooks")))
_GLOBAL_HOOKS = tuple(getattr(torch_module, name) for name in vars(torch_module) if name.endswith("_hooks"))


def fingerprint(*things: Any, identity: bool = True, buffers: bool = True) -> Token:
    """What the behaviour of `things` (modules, systems, values) depends on, in a hashable form.

    Of a module and its parts: types, modes, forwards and hooks; of its parameters everything but their values (shape,
    stride, dtype, device, requires_grad, hooks); of buffers and other tensors their values, too, and of the parameters
    of modules that it holds unregistered; of every other attribute its value, through containers, objects and closures,
    those of classes among them. Of a system and any other object the same. What is global, or behind what Python cannot
    look into, is not seen.

    Args:
        things: what is judged.
        identity: whether another part or parameter, equal in all of this, counts as a change, and hooks of parameters
            do. Without it, objects that do the same but for the values of the parameters that they train have equal
            fingerprints.
        buffers: whether the values of the modules' buffers count.
    """
    modules = [thing for thing in things if isinstance(thing, nn.Module)]
    own = {one for module in modules for one in _apart(module, identity, buffers)}
    walk = _Walk(identity, own)
    return (*(walk.token(thing) for thing in things), *(walk.hooks(hooks) for hooks in _GLOBAL_HOOKS))


class Watch:
    """Tells whether a thing, such as a system, is as it was when this was made, by as little as that takes.

    Numbers and texts cannot change without others in their place, which is seen by what is held where; of tensors the
    version is looked at, too. A thing that holds anything else is seen by its fingerprint. Of the classes, which
    change more rarely, only `unchanged(thoroughly=True)` takes notice.

    Args:
        thing: what is watched.
    """

    def __init__(self, thing: Any) -> None:
        self._thing = thing
        self._token = fingerprint(thing)
        self._held: list[tuple[Any, tuple[Any, ...]]] = []
        self._tensors: list[Tensor] = []
        self._simple = self._collect(vars(thing), set())
        self._versions = [one._version for one in self._tensors]

    def unchanged(self, *, thoroughly: bool = False) -> bool:
        """Whether it is as it was.

        Args:
            thoroughly: by its fingerprint in any case.
        """
        if thoroughly or not self._simple:
            return fingerprint(self._thing) == self._token
        for now, before in self._held:
            if len(now) != len(before) or not all(map(operator.is_, now.values(), before)):
                return False
        return not self._tensors or [one._version for one in self._tensors] == self._versions

    def _collect(self, held: dict[Any, Any], seen: set[int]) -> bool:
        """Take note of what a dict holds; return whether that is enough."""
        if id(held) in seen:
            return True
        seen.add(id(held))
        self._held.append((held, tuple(held.values())))
        return all(self._is_simple(one, seen) for one in held.values())

    def _is_simple(self, value: Any, seen: set[int]) -> bool:
        if isinstance(value, Tensor):
            self._tensors.append(value)
            return type(value) is Tensor and not value.is_inference()
        if isinstance(value, tuple):
            return all(self._is_simple(one, seen) for one in value)
        if type(value) is dict:
            return self._collect(value, seen)
        if isinstance(value, (float, *_PLAIN)):
            return True
        kind: type = type(value)
        content = getattr(value, "__dict__", None)
        if isinstance(value, _ELSEWHERE) or type(content) is not dict or slot_names(kind):
            return False
        return self._collect(content, seen)


class Onlooker:
    """What only looks at things, and holds fingerprints of its own: no fingerprint looks into it."""


@functools.lru_cache(maxsize=KINDS)
def slot_names(kind: type) -> list[str]:
    """The names in which an object of a class holds something outside of its `__dict__`."""
    named = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    slots = [one for names in named for one in ((names,) if isinstance(names, str) else names)]
    return [one for one in slots if one not in ("__dict__", "__weakref__")]


class _Walk:
    """One pass over things, which visits each object once.

    Args:
        identity: as that of `fingerprint`.
        own: the ids of the parameters and buffers whose values do not count.
    """

    def __init__(self, identity: bool, own: set[int]) -> None:
        self.identity = identity
        self.own = own
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
        if kind in weakref.ProxyTypes or isinstance(value, Onlooker):
            return kind, id(value)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, (dict, types.MappingProxyType)):
            return kind, *((self.token(key), self.token(one)) for key, one in list(value.items()))
        if isinstance(value, (list, tuple, deque)):
            return kind, *map(self.token, list(value))
        if isinstance(value, (set, frozenset)):
            return kind, frozenset(map(self.token, value))
        if isinstance(value, types.FunctionType):
            return value.__code__, *map(self.token, _held_by(value)), *map(self._cell, value.__closure__ or ())
        if isinstance(value, types.MethodType):
            return self.token(value.__func__), self.token(value.__self__)
        if isinstance(value, functools.partial):
            return kind, self.token(value.func), self.token(value.args), self.token(value.keywords)
        if isinstance(value, weakref.ReferenceType):
            return kind, self.token(value())
        if isinstance(value, (bytearray, array.array)):
            return kind, bytes(value)
        return self._object(value)

    def hooks(self, hooks: Mapping[int, Any]) -> Token:
        """What is called, in order; each has a number of its own."""
        return tuple((number if self.identity else None, self.token(hook)) for number, hook in hooks.items())

    def _object(self, value: Any) -> Token:
        if isinstance(value, np.generic):
            return value.dtype.str, value.tobytes()
        kind: type = type(value)
        attributes = getattr(value, "__dict__", None)
        slots = slot_names(kind)
        opaque = isinstance(value, (types.ModuleType, types.BuiltinFunctionType))
        if opaque or not (slots or isinstance(attributes, dict)):
            hashed: Any = kind.__hash__
            by_value = not opaque and hashed not in (None, object.__hash__)  # such as a range: equal ones do the same
            content: Hashable = value if by_value else id(value)
            return kind, content
        held = list(attributes.items()) if isinstance(attributes, dict) else []
        held += [(name, getattr(value, name, None)) for name in slots]
        return kind, *self._class(kind), *((name, self.token(one)) for name, one in held)

    def _class(self, kind: type) -> Token:
        """What a class holds, but for one of torch's or Python's own, of which it is the forward."""
        if id(kind) in self.seen:
            return ()
        self.seen[id(kind)] = len(self.seen)
        known = _classes.get(kind)
        if known is not None and known[0] == _members(kind):
            return known[1]
        held, plain = [], True
        for base in kind.__mro__:
            if _is_others(base):
                held.append(vars(base).get("forward"))
                continue
            for name, one in list(vars(base).items()):
                if isinstance(one, _METHODS):
                    held.append(one)
                elif not name.startswith(("__", "_abc_")) and _is_plain(one):
                    held.append((name, type(one), one))
                elif not name.startswith(("__", "_abc_")):
                    held.append((name, self.token(one)))
                    plain = False
        token = tuple(held)
        if plain:  # else what a member holds may change, and the member stay
            if len(_classes) >= KINDS:
                _classes.clear()
            _classes[kind] = _members(kind), token
        return token

    def _cell(self, cell: types.CellType) -> Hashable:
        try:
            return self.token(cell.cell_contents)
        except ValueError:  # empty
            return None

    def _module(self, module: nn.Module) -> Token:
        held = vars(module)
        kind: type = type(module)
        return (
            kind,
            id(module) if self.identity else None,
            *self._class(kind),
            module.training,
            *((name, self.hooks(held[name])) for name in _HOOKS if held.get(name)),
            *((name, p if p is None else self._parameter(p)) for name, p in module._parameters.items()),
            *((name, b if b is None else self._tensor(b)) for name, b in module._buffers.items()),
            *((name, self.token(one)) for name, one in held.items() if name not in _INTERNAL),
            *((name, self.token(part)) for name, part in module._modules.items()),
        )

    def _parameter(self, parameter: Tensor) -> Token:
        # An equal place among what was seen: which modules share the parameter counts even where it could be another
        place = id(parameter) if self.identity else self.seen.setdefault(id(parameter), len(self.seen))
        if type(parameter) in _UNBORN:
            return type(parameter), place
        values = None if id(parameter) in self.own else _content(parameter, self.identity)
        return place, *_form(parameter), *(_hooks(parameter) if self.identity else ()), values

    def _tensor(self, tensor: Tensor) -> Token:
        if isinstance(tensor, nn.Parameter):
            return self._parameter(tensor)
        values = None if id(tensor) in self.own else _content(tensor, self.identity)
        return *_form(tensor), *_hooks(tensor), values

    def _array(self, array: np.ndarray) -> Token:
        form = array.shape, array.strides, array.dtype.str
        if array.dtype.hasobject:
            return *form, *map(self.token, array.reshape(-1).tolist())
        if not self.identity or array.size <= SMALL:
            return *form, hash(array.tobytes())
        return *form, array.ctypes.data, hash(array.flat[:: array.size // SMALL].tobytes())


_OTHERS = ("torch", "builtins", "abc", "typing", "collections", "enum", "numpy")

_classes: dict[type, tuple[list[int], Token]] = {}


@functools.lru_cache(maxsize=KINDS)
def _is_others(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _OTHERS


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return isinstance(value, (float, *_PLAIN)) and not isinstance(value, slice)  # which has no hash


def _members(kind: type) -> list[int]:
    """The ids of what a class holds."""
    members: list[int] = []
    for base in kind.__mro__:
        if _is_others(base):
            members.append(id(vars(base).get("forward")))
        else:
            members += map(id, vars(base).values())
    return members


def _apart(module: nn.Module, identity: bool, buffers: bool) -> set[int]:
    """The ids of the tensors that are registered in a module and its parts, and whose values do not count."""
    found: set[int] = set()
    parts, seen = [module], {id(module)}
    while parts:
        part = parts.pop()
        found.update(id(p) for p in part._parameters.values() if p is not None and (identity or p.requires_grad))
        if not buffers:
            found.update(map(id, part._buffers.values()))
        for one in part._modules.values():
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                parts.append(one)
    return found


def _held_by(function: types.FunctionType) -> tuple[Any, ...]:
    return function.__defaults__, function.__kwdefaults__, vars(function) or None


_UNBORN = (nn.UninitializedParameter, nn.UninitializedBuffer)


def _form(tensor: Tensor) -> Token:
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return type(tensor), tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad


def _hooks(tensor: Tensor) -> Token:
    hooks = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
    return tuple(tuple(of) for of in hooks if of)  # each has a number of its own


def _content(tensor: Tensor, by_place: bool) -> Hashable:
    """The values of a tensor; of a large one, or one on another device, its place and version if that will do."""
    if type(tensor) in _UNBORN or tensor.device.type == "meta" or tensor.layout is not torch.strided:
        return id(tensor)
    small = tensor.numel() <= SMALL and tensor.device.type == "cpu"
    if by_place and not small:
        return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hash(values.numpy().tobytes())
