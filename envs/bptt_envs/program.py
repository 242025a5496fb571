"""Functions of tensors made one program for the shapes they meet: compiled and kept on disk, on a GPU a CUDA graph."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

Tensors = tuple[Tensor, ...]
Run = Callable[[list[Tensor]], list[Tensor]]

CACHE_VARIABLE = "BPTT_CACHE"  # names the folder of the compiled programs

COMPILER_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class CompilerError(RuntimeError):
    """What was to be compiled cannot be; the message says why and what to do."""


def cache_folder() -> Path:
    """The folder of the compiled programs: BPTT_CACHE, or stable-bptt in the user's cache folder.

    A user who has no home folder gets one that is gone when the process ends, and a warning.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    try:
        return _users_folder()
    except RuntimeError:  # no home folder
        return _passing_folder()


def _users_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stable-bptt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "stable-bptt" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stable-bptt"


@functools.cache
def _passing_folder() -> Path:
    warnings.warn(
        f"there is no home folder (HOME is not set), so compiled programs are lost when this process ends; name a "
        f"folder for them in {CACHE_VARIABLE}.",
        stacklevel=2,
    )
    folder = tempfile.mkdtemp(prefix="stable-bptt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class Program:
    """A function of tensors as compiled code.

    What the function does with tensors of these shapes is recorded as a list of operations, which torch's
    inductor compiles to C++. The code is kept on disk under a digest of the list, the shapes, the torch version, the
    processor and the number of threads: it is compiled once, whoever asks. It is loaded from a folder that nobody
    else can write to, else refused; what is damaged there is compiled anew.

    On a GPU the kernels that the function launches are recorded as a CUDA graph instead, in a fraction of a second and
    without a compiler: what costs time there is to launch thousands of small kernels, one after the other.

    Args:
        function: from tensors to a tuple of tensors; its control flow does not look at their values.
        inputs: what it will be called with, or others of the same shapes, dtypes and device.

    Attributes:
        compiled: whether it was made now, not found on disk.

    Raises:
        CompilerError: if it cannot be recorded or compiled, or somebody else could have put the code there.

    Warns:
        UserWarning: if a program on disk was damaged.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> None:
        inputs = [one.detach().clone() for one in inputs]  # without gaps, in the order of memory that they have
        self._forms = _forms(inputs)
        self._fits = False
        self._run: Run
        if any(one.is_cuda for one in inputs):
            self.compiled, self._run = True, _CudaGraph(function, inputs)
            return
        folder = _own_folder()
        with _compiler_works_in(_compiler_folder(folder)), torch.no_grad():
            graph = _recorded(function, inputs)
            path = folder / f"{_digest(graph, inputs)}.pt2"
            found = _found(path)
            self.compiled = found is None
            if found is None:
                _compile(graph, inputs, path)
                found = _loaded(path)
            self._run = found

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it, without gradients.

        Raises:
            ValueError: if the inputs have other shapes, dtypes or devices than those it was made with.
        """
        self._fits = _forms(inputs) == self._forms
        return self._run(list(inputs) if self._fits else self._laid_out(inputs))

    def again(self, *inputs: Tensor) -> list[Tensor]:
        """Run it on inputs that are laid out as those of the last call were: it is not looked at again."""
        return self._run(list(inputs)) if self._fits else self(*inputs)

    def _laid_out(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs in the layout that the program was made for, which it takes for granted."""
        forms = list(zip(*self._forms, strict=True))
        if len(inputs) != len(forms):
            raise ValueError(f"a program of {len(forms)} inputs got {len(inputs)}.")
        laid_out = []
        for i, (one, (shape, stride, dtype, device)) in enumerate(zip(inputs, forms, strict=True)):
            if (one.shape, one.dtype, one.device) != (shape, dtype, device):
                raise ValueError(
                    f"input {i} of a program must be of shape {tuple(shape)}, {dtype}, on {device}, like the one that "
                    f"it was made with; got shape {tuple(one.shape)}, {one.dtype}, on {one.device}."
                )
            laid_out.append(one.new_empty_strided(shape, stride).copy_(one.detach()))
        return laid_out


class _CudaGraph:
    """The kernels of a function, launched at once; what it reads and writes stays where it is.

    Raises:
        CompilerError: if the function waits for the GPU, as by looking at values, or launches what cannot be recorded.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)
        device = next(one.device for one in inputs if one.is_cuda)
        with torch.no_grad(), torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                function(*self._inputs)  # libraries get ready and constants are copied there: not part of the graph
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(self._graph):
                    self._outputs = function(*self._inputs)
            except RuntimeError as error:
                raise CompilerError(
                    f"compile=True cannot record the operations as a CUDA graph ({_first_line(error)}); use "
                    "compile=False."
                ) from error

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        return [one.clone() for one in self._outputs]


def _forms(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """Shapes, strides, dtypes and devices: a list of each is faster than a tuple for each tensor."""
    shapes, strides = [one.shape for one in tensors], [one.stride() for one in tensors]
    return shapes, strides, [one.dtype for one in tensors], [one.device for one in tensors]


def _own_folder() -> Path:
    """The folder of the compiled programs, which nobody else can write to."""
    path = cache_folder()
    _make_own(path)
    return path


def _compiler_folder(programs: Path) -> Path:
    """Where torch's compiler keeps what serves all programs: with the user's other caches, else beside the programs."""
    try:
        folder = _users_folder()
        _make_own(folder)
    except RuntimeError:
        folder = programs
    _make_own(folder / "torch")
    return folder / "torch"


def _make_own(path: Path) -> None:
    """Make a folder that nobody else can write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompilerError(
            f"the folder of compiled programs, {path}, cannot be made ({error.strerror}); name another one in "
            f"{CACHE_VARIABLE}."
        ) from error
    _check_own(path, stat.S_ISDIR, "a folder")


def _check_own(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise CompilerError unless a path is of a kind and nobody but the user could have written it."""
    status = path.lstat()
    owner = getattr(os, "geteuid", lambda: status.st_uid)()
    if not is_kind(status.st_mode):
        fault, remedy = f"is not {kind}", "remove it"
    elif status.st_uid != owner:
        fault, remedy = f"belongs to user {status.st_uid}", "remove it"
    elif status.st_mode & OTHERS_WRITE and sys.platform != "win32":
        fault, remedy = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})", f"chmod go-w {path}"
    else:
        return
    raise CompilerError(
        f"compiled programs are run as they are found, and {path} {fault}; {remedy}, or name a folder of your own in "
        f"{CACHE_VARIABLE}."
    )


def _found(path: Path) -> Run | None:
    """The program at `path`; None if there is none, or, with a warning, if it is damaged."""
    if not os.path.lexists(path):
        return None
    _check_own(path, stat.S_ISREG, "a plain file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # by the checksums, before anything of it is run
        if damaged is None:
            return _loaded(path)
    except Exception as error:  # noqa: BLE001, damage has many forms
        damaged = _first_line(error)
    warnings.warn(f"the compiled program {path} is damaged ({damaged}); it is compiled anew.", stacklevel=3)
    return None


def _recorded(function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> fx.GraphModule:
    with _quiet():
        try:
            graph: fx.GraphModule = make_fx(function)(*inputs)
        except RuntimeError as error:
            raise CompilerError(
                f"compile=True cannot record the operations ({_first_line(error)}); use compile=False."
            ) from error
    return graph


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise CompilerError(
            "compile=True needs a C++ compiler, and there is no g++ or clang++; install one or use compile=False."
        )
    with _quiet():
        try:
            from torch._inductor.cpu_vec_isa import pick_vec_isa

            pick_vec_isa()  # what the processor can do is found out once, in the folder that is kept
            with (
                tempfile.TemporaryDirectory(dir=path.parent) as folder,
                _compiler_works_in(Path(folder), headers=False),
            ):
                exported = torch.export.export(graph, tuple(inputs))
                made = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / path.name))
                Path(made).chmod(0o600)
                Path(made).replace(path)
        except Exception as error:  # the compiler has errors of many kinds
            raise CompilerError(f"compile=True failed ({_first_line(error)}); use compile=False.") from error


def _loaded(path: Path) -> Run:
    with _quiet():
        try:
            run: Run = torch._inductor.aoti_load_package(str(path)).loader.run
        except Exception as error:
            raise CompilerError(f"the compiled program {path} cannot be loaded ({_first_line(error)}).") from error
    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch's compiler about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _compiler_works_in(folder: Path, *, headers: bool = True) -> Iterator[None]:
    """Torch's compiler works in a folder of ours, whatever the environment names.

    By itself it works in the common temporary folder, where whoever made its folder first could put code of his.

    Args:
        folder: where it puts what it compiles.
        headers: whether it also keeps there the headers that it precompiles.
    """
    before = {name: os.environ.get(name) for name in COMPILER_CACHES}
    os.environ.update({name: str(folder / name.lower()) for name in COMPILER_CACHES})
    from torch._inductor import codecache  # looks into its folder when it is imported

    kept = codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR
    if headers:
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(folder / "headers"), str(folder / "headers" / "locks")
        codecache._precompile_header.cache_clear()  # it remembers where headers are
    try:
        yield
    finally:
        codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = kept
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _digest(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """A name for what is compiled: equal for equal operations on equal shapes, on the same kind of machine."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(repr(values).encode())

    add(torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), sys.platform)
    for one in inputs:
        add(one.shape, one.stride(), one.dtype, one.device)
    add(graph.code)
    for node in graph.graph.find_nodes(op="get_attr"):
        constant = getattr(graph, str(node.target))
        add(node.target, constant.shape, constant.dtype, constant.device)
        digest.update(constant.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
