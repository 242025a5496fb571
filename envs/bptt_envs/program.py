"""Functions of tensors made one program for the shapes they meet: compiled and kept on disk, on a GPU a CUDA graph."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from bptt_envs.recorder import read_back, recorded, written

Tensors = tuple[Tensor, ...]
Run = Callable[[list[Tensor]], list[Tensor]]
Entry = Callable[[list[Any]], list[Any]]

CACHE_VARIABLE = "BPTT_CACHE"  # names the folder of the compiled programs

COMPILER_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

# How torch's inductor compiles: kernels, vectorized, and apart from them what calls them, hardly optimized. Precompiled
# headers take longer than they save. That the compiler knows the vector instructions that torch works with is taken for
# granted: to compile a check for each set of them took 5 s.
COMPILER_SETTINGS = {
    "cpp_wrapper": True,
    "cpp_wrapper_build_separate": True,
    "cpp_cache_precompile_headers": False,
    "cpp.vec_isa_ok": True,
    "size_asserts": False,  # `Program` looks at its inputs
    "fx_graph_cache": False,
    "compile_threads": 1,
}

# The way from a recorded function to a library goes through what torch keeps to itself, as it is from this version on;
# what runs uncompiled, or as a CUDA graph, needs none of it.
OLDEST_TORCH = (2, 13)

ENTRY = "inductor_entry_cpp"  # the function of a compiled library
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[-1]  # of its file

OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
    inductor compiles to C++. The library is kept on disk under a digest of the list, the shapes, the versions of torch
    and of the compiler, the processor and the number of threads: it is compiled once, whoever asks. It is loaded from
    a folder that nobody else can enter, else refused; what is damaged there is compiled anew.

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
        order = Order(function, inputs)
        entry = _found(order.folder, order.name)
        self.compiled = entry is None
        if entry is None:
            entry = _loaded(order.make())
        self._run = functools.partial(_call, entry, order.constants)

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


class Order:
    """A program before it is compiled: a function as recorded, where its library is to be, and under which name.

    Another process can make it: an order can be pickled, without the values of its constants.

    Args: as those of `Program`.

    Attributes:
        constants: further inputs of the recorded graph.

    Raises:
        CompilerError: if torch is too old, it cannot be recorded, or somebody else could put code into the folder.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> None:
        _check_torch()
        self.folder = cache_folder()
        _make_own(self.folder)
        inputs = [one.detach().clone() for one in inputs]  # without gaps, as a program has them laid out
        with torch.no_grad():
            self.graph, self.constants = _recorded(function, inputs)
        self.forms = [(one.shape, one.stride(), one.dtype) for one in (*inputs, *self.constants)]
        self.threads = torch.get_num_threads()
        self.name = _digest(self.graph, self.forms, self.threads)

    def made(self) -> bool:
        """Whether there is a library of that name."""
        return any(self.folder.glob(f"{self.name}-*{SUFFIX}"))

    def make(self) -> Path:
        """Compile it, with as many threads as there were when it was recorded, and return where the library is.

        Raises:
            CompilerError: if it cannot be compiled.
        """
        return _compiled(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "constants": None, "graph": written(self.graph.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, graph=read_back(state["graph"]))


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


def _check_torch() -> None:
    """Raise CompilerError if this torch is older than what compiling was written for."""
    found = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))
    if found < OLDEST_TORCH:
        raise CompilerError(
            f"compile=True needs torch {'.'.join(map(str, OLDEST_TORCH))} or a later one; this is torch "
            f"{torch.__version__}. Install a newer one, or use compile=False."
        )


def _make_own(path: Path) -> None:
    """Make a folder that nobody else can enter; one that is there must be such a folder."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompilerError(
            f"the folder of compiled programs, {path}, cannot be made ({error.strerror}); name another one in "
            f"{CACHE_VARIABLE}."
        ) from error
    _check_own(path, stat.S_ISDIR, "a folder")


def _check_own(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise CompilerError unless a path is of a kind, and the user's alone."""
    status = path.lstat()
    owner = getattr(os, "geteuid", lambda: status.st_uid)()
    if not is_kind(status.st_mode):
        fault, remedy = f"is not {kind}", "remove it"
    elif status.st_uid != owner:
        fault, remedy = f"belongs to user {status.st_uid}, not to you (user {owner})", "remove it"
    elif status.st_mode & OTHERS and sys.platform != "win32":
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        fault, remedy = f"is open to others (mode {stat.S_IMODE(status.st_mode):o})", f"chmod {mode} {path}"
    else:
        return
    raise CompilerError(
        f"compiled programs are run as they are found, and {path} {fault}; {remedy}, or name a folder of your own in "
        f"{CACHE_VARIABLE}."
    )


def _found(folder: Path, name: str) -> Entry | None:
    """The function of the library of that name; None if there is none, or, with a warning, if it is damaged.

    The name of a file ends in a digest of what is in it: nothing of it is run before it is found whole.
    """
    for path in sorted(folder.glob(f"{name}-*{SUFFIX}")):
        _check_own(path, stat.S_ISREG, "a plain file")
        if path.stem == f"{name}-{_content(path)}":
            return _loaded(path)
        warnings.warn(f"the compiled program {path} is damaged; it is compiled anew.", stacklevel=3)
        path.unlink(missing_ok=True)
    return None


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _recorded(function: Callable[..., Tensors], inputs: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The operations of a function as a graph, and the constants among them, which are its further inputs."""
    try:
        return recorded(function, inputs)
    except RuntimeError as error:
        raise CompilerError(
            f"compile=True cannot record the operations ({_first_line(error)}); use compile=False."
        ) from error


def _compiled(order: Order) -> Path:
    """Compile an order into a library.

    Raises:
        CompilerError: if that fails, or nothing can be written into the folder.
    """
    folder = order.folder
    workplace = None if any(map(str.isspace, str(folder))) else folder  # torch hands g++ its path without quotes
    try:
        with _quiet(), tempfile.TemporaryDirectory(dir=workplace) as passing, _compiler_works_in(Path(passing)):
            made = _library(order, Path(passing))
            made.chmod(0o600)
            whole = Path(shutil.move(made, (folder / Path(passing).name).with_suffix(".made")))
        # Only now, as who waits for it may end this process as soon as it is there
        return whole.replace(folder / f"{order.name}-{_content(whole)}{SUFFIX}")
    except OSError as error:
        raise CompilerError(
            f"the folder of compiled programs, {folder}, cannot be written to ({error.strerror}); name another one in "
            f"{CACHE_VARIABLE}, or use compile=False."
        ) from error


def _library(order: Order, folder: Path) -> Path:
    """Have torch compile an order, in a folder of its own, where it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(order.threads)
    try:
        from torch._inductor.codecache import CppWrapperCodeCache
        from torch._inductor.compile_fx import compile_fx  # takes a second, which what is found need not

        CppWrapperCodeCache.cache_clear()  # else what this process compiled before, or failed to, is not again
        inputs = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in order.forms]
        with torch.no_grad():
            compile_fx(order.graph, inputs, config_patches=COMPILER_SETTINGS)
        (made,) = folder.rglob(f"*.main{SUFFIX}")
        return made
    except Exception as error:  # the compiler has errors of many kinds
        raise CompilerError(f"compile=True failed ({_first_line(error)}); use compile=False.") from error
    finally:
        torch.set_num_threads(threads)


def _loaded(path: Path) -> Entry:
    """The function of a library, from handles of tensors to such handles."""
    guards: Any = torch._C._dynamo.guards
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(guards._torchinductor_pyobject_tensor_data_ptr)
    try:
        spec = importlib.util.spec_from_file_location(f"{path.stem}.{ENTRY}", path)
        assert spec is not None
        entry: Entry = getattr(importlib.util.module_from_spec(spec), ENTRY)
    except Exception as error:
        raise CompilerError(f"the compiled program {path} cannot be loaded ({_first_line(error)}).") from error
    return entry


def _call(entry: Entry, constants: Sequence[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([*inputs, *constants])
    outputs: list[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(entry(handles))
    return outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch's compiler about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _compiler_works_in(folder: Path) -> Iterator[None]:
    """Torch's compiler works in a folder of ours, whatever the environment names.

    By itself it works in the common temporary folder, where whoever made its folder first could put code of his.
    """
    before = {name: os.environ.get(name) for name in COMPILER_CACHES}
    os.environ.update({name: str(folder / name.lower()) for name in COMPILER_CACHES})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _digest(graph: fx.GraphModule, forms: Sequence[Any], threads: int) -> str:
    """A name for what is compiled: equal for equal operations on equal shapes, by one compiler for one processor."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(repr(values).encode())

    add(torch.__version__, sys.version_info[:2], COMPILER_SETTINGS, _compiler_version(), threads)
    add(sys.platform, torch.backends.cpu.get_cpu_capability(), sorted(torch.cpu.get_capabilities().items()))
    add(*forms)
    add(graph.code)
    return digest.hexdigest()[:32]


@functools.cache
def _compiler_version() -> str:
    """What the compiler that torch calls says of itself.

    Raises:
        CompilerError: if there is none.
    """
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(name)
    if path is None:
        raise CompilerError(
            f"compile=True needs a C++ compiler, and there is no {name}; install it, name another one in the "
            "environment variable CXX, or use compile=False."
        )
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
