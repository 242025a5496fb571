"""Values as JSON gives them back, and digests of what JSON cannot hold."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs.checks import as_array

OBJECT = "object"  # the name under which config.json names what it cannot hold
EVAL = " in eval mode"  # said of a part that is
LARGE = 2**18  # numbers of an array up to which config.json holds them

_INTERNAL = frozenset(vars(nn.Module()))


def plain(value: Any) -> Any:
    """The value as config.json gives it back.

    NumPy's numbers as Python's, tuples, arrays and tensors as lists, paths as strings. Anything else, such as a
    network or a function, as {"object": its qualified name, "digest": of what it holds}.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.floating):
        return float(str(value)) if value.itemsize < 8 else float(value)  # float32(0.001) is 0.001
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        kind = value.dtype.kind if isinstance(value, (np.generic, np.ndarray)) else "f"
        small = isinstance(value, np.generic) or np.prod(value.shape) <= LARGE
        if kind in "biufU" and small and not (isinstance(value, Tensor) and value.is_complex()):
            return value.tolist()
        return _named(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, Mapping) and all(type(name) is str for name in value):
        return {name: plain(part) for name, part in value.items()}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):  # a subclass, such as an Enum of strings
            return kind(value)
    return _named(value)


def objects_in(value: Any) -> list[str]:
    """The qualified names of what JSON could not hold in a value that `plain` gave."""
    if isinstance(value, Mapping):
        if OBJECT in value and "digest" in value:
            return [str(value[OBJECT])]
        return [name for part in value.values() for name in objects_in(part)]
    return [name for part in value for name in objects_in(part)] if isinstance(value, list) else []


def content(thing: Any, apart: Iterable[str] = ()) -> dict[str, str]:
    """What an object holds besides plain values: its class, and for each attribute a line in words with a digest.

    Args:
        thing: the object.
        apart: attributes to leave out.
    """
    caches = {name for base in type(thing).__mro__ for name, one in vars(base).items() if _is_cache(one)}
    found = {"class": qualified(type(thing))}
    if isinstance(thing, nn.Module):
        found |= parts(thing)
    for name, one in vars(thing).items():
        if name in caches or name in apart or (isinstance(thing, nn.Module) and name in _INTERNAL):
            continue
        if isinstance(one, nn.Module):
            found |= {f"{name}.{part}".rstrip("."): line for part, line in parts(one).items()}
        elif not _is_scalar(one):
            found[name] = f"{qualified(type(one))} {digest(one)}"
    return found


def parts(module: nn.Module, apart: Iterable[Tensor] = ()) -> dict[str, str]:
    """Each part of a module by its name: its class, its layer's settings, and a digest of its own attributes.

    Args:
        module: "" is the module itself.
        apart: tensors of which but the shape counts, such as those that are trained.
    """
    without = [id(one) for one in apart]
    lines = {}
    for name, part in module.named_modules():
        walk = _Digest(without)
        walk.own(part)
        shown = part.extra_repr().replace("\n", " ")
        lines[name] = f"{qualified(type(part))}({shown}){'' if part.training else EVAL} {walk.hex()}"
    return lines


def tensors(module: nn.Module) -> dict[str, str]:
    """Buffers, and parameters that are not trained, by name: form and digest of the values."""
    fixed = [*module.named_buffers(), *((n, p) for n, p in module.named_parameters() if not p.requires_grad)]
    return {name: tensor_line(tensor) for name, tensor in fixed}


def tensor_line(tensor: Tensor) -> str:
    """A tensor's dtype, shape and a digest of its values."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} {digest(tensor)}"


def digest(*things: Any) -> str:
    """A digest of what things are and hold: equal in every process as long as they are."""
    walk = _Digest()
    for thing in things:
        walk.add(thing)
    return walk.hex()


def qualified(kind: Any) -> str:
    """The name of a class or function with its module; a script's is the name of its file."""
    module = getattr(kind, "__module__", None) or ""
    if module == "__main__":
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or module).stem
    return f"{module}.{getattr(kind, '__qualname__', type(kind).__qualname__)}".lstrip(".")


def code_line(code: Any) -> str:
    """A class, a function or another callable, also in `partial`, in a line: its name, a digest of what it holds."""
    named = code
    while isinstance(named, partial):
        named = named.func
    is_code = isinstance(named, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType))
    return f"{qualified(named if is_code else type(named))} {digest(code)}"


def _named(value: Any) -> dict[str, str]:
    is_code = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    return {OBJECT: qualified(value if is_code else type(value)), "digest": digest(value)}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None)))


def _is_cache(attribute: Any) -> bool:
    return isinstance(attribute, cached_property)


class _Digest:
    """One walk over things, which meets each object once."""

    def __init__(self, apart: Iterable[int] = ()) -> None:
        self._sum = hashlib.sha256()
        self._apart = frozenset(apart)  # ids of tensors whose values do not count
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is given twice

    def hex(self) -> str:
        return self._sum.hexdigest()[:16]

    def _say(self, *words: Any) -> None:
        self._sum.update(f"{words!r};".encode("utf-8", "surrogatepass"))

    def add(self, value: Any) -> None:
        if isinstance(value, np.generic):
            value = value.item() if value.dtype.kind in "biufU" else value.tobytes()
        kind = type(value)
        if value is None or kind in (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size):
            return self._say(kind.__name__, value)
        if id(value) in self._seen:
            return self._say("seen", self._seen[id(value)])
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._say("module", qualified(kind), value.training)
            self.own(value)
            self._each(value._modules)
        elif isinstance(value, np.ndarray):
            self._say("array", value.dtype.str, value.shape)
            if value.dtype.hasobject:
                self._each(dict(enumerate(value.ravel().tolist())))
            else:
                self._sum.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            self._say(qualified(kind), len(value))
            for name, one in list(value.items()):
                self.add(name)
                self.add(one)
        elif isinstance(value, (list, tuple)):
            self._say(kind.__name__, len(value))
            for one in value:
                self.add(one)
        elif isinstance(value, (set, frozenset)):
            self._say(kind.__name__, sorted(digest(one) for one in value))
        elif isinstance(value, type):
            self._say("class", qualified(value))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, partial):
            self.add((value.func, value.args, value.keywords))
        elif hasattr(kind, "__array__") and (array := as_array(value)) is not None:  # such as JAX's
            self._say(qualified(kind))
            self.add(array)
        else:
            self._say(qualified(value if isinstance(value, types.BuiltinFunctionType) else kind))
            held = getattr(value, "__dict__", None)
            if isinstance(held, dict) and not isinstance(value, types.ModuleType):
                self._each(held)
            slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ()) if isinstance(name, str)]
            filled = {}
            for name in slots:
                with suppress(AttributeError, TypeError):  # empty, or another class's
                    filled[name] = getattr(value, name)
            self._each(filled)
        return None

    def own(self, module: nn.Module) -> None:
        """A module without its parts."""
        self._each({name: one for name, one in vars(module).items() if name not in _INTERNAL})
        for kind in sorted(name for name in _INTERNAL if name.endswith("_hooks")):
            for hook in vars(module)[kind].values():
                self._say(kind, qualified(hook))
        for held in (module._parameters, module._buffers):
            self._each(held)

    def _each(self, named: Mapping[Any, Any]) -> None:
        for name, one in list(named.items()):
            self._say(name)
            self.add(one)

    def _tensor(self, tensor: Tensor) -> None:
        if id(tensor) in self._apart:
            return self._say("tensor", tuple(tensor.shape))
        self._say("tensor", str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
        if tensor.layout is torch.strided and tensor.device.type != "meta":
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._sum.update(values.numpy().tobytes())
        return None

    def _function(self, function: types.FunctionType) -> None:
        self._say("function", qualified(function))
        self.add((function.__defaults__, function.__kwdefaults__))
        if "<" in function.__qualname__:  # a lambda, or made by a function: its name says little
            self._code(function.__code__)
            for cell in function.__closure__ or ():
                try:
                    self.add(cell.cell_contents)
                except ValueError:  # empty
                    self._say("empty")

    def _code(self, code: types.CodeType) -> None:
        self._say(code.co_code, code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.add(constant)
