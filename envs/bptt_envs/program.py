"""Functions of tensors, compiled ahead of time for the shapes they meet and kept on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

Tensors = tuple[Tensor, ...]

CACHE_VARIABLE = "BPTT_CACHE"  # names the folder of the compiled programs


class CompilerError(RuntimeError):
    """What was to be compiled cannot be; the message says why and what to do."""


def cache_folder() -> Path:
    """The folder of the compiled programs: BPTT_CACHE, or stable-bptt in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stable-bptt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "stable-bptt" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stable-bptt"


class Program:
    """A function of tensors as compiled code.

    What the function does with tensors of these shapes is recorded as a list of operations, which torch's
    inductor compiles to C++ (or to kernels of the GPU). The code is kept on disk under a digest of the list, the
    shapes, the torch version, the processor and the number of threads: it is compiled once, whoever asks.

    Args:
        function: from tensors to a tuple of tensors; its control flow does not look at their values.
        inputs: what it will be called with, or others of the same shapes, dtypes and device.

    Raises:
        CompilerError: if it cannot be recorded or compiled.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> None:
        inputs = [one.detach() for one in inputs]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's compiler about itself
            try:
                graph: fx.GraphModule = make_fx(function)(*inputs)
            except RuntimeError as error:
                raise CompilerError(
                    f"compile=True cannot record the operations ({_first_line(error)}); use compile=False."
                ) from error
            path = cache_folder() / f"{_digest(graph, inputs)}.pt2"
            self.compiled = not path.exists()
            if self.compiled:
                _compile(graph, inputs, path)
            self._model = torch._inductor.aoti_load_package(str(path))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it, without gradients."""
        outputs: list[Tensor] = self._model.loader.run(list(inputs))
        return outputs


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise CompilerError(
            "compile=True needs a C++ compiler, and there is no g++ or clang++; install one or use compile=False."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            exported = torch.export.export(graph, tuple(inputs))
            made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / path.name))
        except Exception as error:  # the compiler has errors of many kinds
            raise CompilerError(f"compile=True failed ({_first_line(error)}); use compile=False.") from error
        Path(made).replace(path)


def _digest(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """A name for what is compiled: equal for equal operations on equal shapes, on the same kind of machine."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(repr(values).encode())

    add(torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), sys.platform)
    for one in inputs:
        add(one.shape, one.stride(), one.dtype, one.device)
        if one.device.type == "cuda":
            add(torch.cuda.get_device_name(one.device))
    add(graph.code)
    for node in graph.graph.find_nodes(op="get_attr"):
        constant = getattr(graph, str(node.target))
        add(node.target, constant.shape, constant.dtype, constant.device)
        digest.update(constant.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
