"""Compiled programs: what is run is the user's own, whole, and made for the layout that it is given."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bptt_envs import program
from bptt_envs.program import CACHE_VARIABLE, CompilerError, Program, cache_folder

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
posix = pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")

INPUTS = [torch.arange(6.0).view(2, 3), torch.ones(2, 3)]


def function(x, y):
    return (x * 2.0 + y.cumsum(0),)


IN_ANOTHER_PROCESS = """
import time
import torch
torch.set_num_threads(1)
from bptt_envs.maker import Maker
from bptt_envs.program import Order
inputs = [torch.arange(6.0).view(2, 3), torch.ones(2, 3)]
maker = Maker()
maker.make([Order(lambda x, y: (x * 2.0 + y.cumsum(0),), inputs)])
while not maker.finished():
    time.sleep(0.1)
maker.close()
"""


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """A common temporary folder in which somebody else has taken the name of torch's folder."""
    folder = tmp_path_factory.mktemp("common")
    (folder / "torchinductor_victim").write_text("not a folder, so that whoever would use it fails")
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, common):
    """A folder that holds the program of `function`, compiled by the second process of another one."""
    folder = tmp_path_factory.mktemp("compiled") / "my programs"  # torch does not quote what it hands the compiler
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TORCHINDUCTOR", "TRITON"))
    }
    environment |= {"TMPDIR": str(common), "USER": "victim", "LOGNAME": "victim", CACHE_VARIABLE: str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(compiled, tmp_path, monkeypatch):
    """A copy of it, in which nothing is really compiled: the program is copied once more."""
    copy = shutil.copytree(compiled, tmp_path / "programs")
    good = only(compiled)

    def copied(order):
        assert good.name.startswith(order.name)
        return Path(shutil.copy(good, order.folder))

    monkeypatch.setattr(program, "_compiled", copied)
    monkeypatch.setenv(CACHE_VARIABLE, str(copy))
    return copy


def only(folder):
    (path,) = folder.iterdir()
    return path


def assert_right(made, x=INPUTS[0], y=INPUTS[1]):
    torch.testing.assert_close(made(x, y)[0], function(x, y)[0])


@posix
def test_the_folder_and_the_program_are_the_users_alone(compiled):
    assert {path.stat().st_mode & 0o077 for path in (compiled, only(compiled))} == {0}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "one bit": flip,
    "something else": lambda path: path.write_text("no program\n" * 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_program_is_named_and_compiled_anew(damage, folder):
    DAMAGE[damage](only(folder))
    with pytest.warns(UserWarning, match=rf"{re.escape(str(only(folder)))} is damaged; it is compiled anew"):
        made = Program(function, INPUTS)
    assert made.compiled
    assert_right(made)
    assert not Program(function, INPUTS).compiled


def link(path, to):
    path.rename(to)
    path.symlink_to(to)


FOREIGN = {
    "folder others write to": (
        lambda folder: folder.chmod(0o777),
        r"programs is open to others \(mode 777\); chmod 700 .*programs, or name a folder of your own in BPTT_CACHE",
    ),
    "folder a group reads": (lambda folder: folder.chmod(0o750), r"programs is open to others \(mode 750\); chmod 700"),
    "program others write to": (lambda folder: only(folder).chmod(0o666), r"is open to others \(mode 666\); chmod 600"),
    "linked program": (
        lambda folder: link(only(folder), folder.parent / "other"),
        "is not a plain file; remove it",
    ),
    "linked folder": (lambda folder: link(folder, folder.parent / "other"), "programs is not a folder; remove it"),
}


@posix
@pytest.mark.parametrize("name", FOREIGN)
def test_what_somebody_else_could_have_written_is_refused(name, folder):
    plant, message = FOREIGN[name]
    plant(folder)
    with pytest.raises(CompilerError, match=message):
        Program(function, INPUTS)


@posix
def test_what_belongs_to_somebody_else_is_refused(folder, monkeypatch):
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(
        CompilerError,
        match=rf"programs belongs to user {owner}, not to you \(user {owner + 1}\); remove it, or name a folder of",
    ):
        Program(function, INPUTS)


def test_a_whole_program_is_found_beside_a_damaged_one(folder):
    path = only(folder)
    name, _, rest = path.name.partition("-")
    damaged = path.with_name(f"{name}-{'0' * len(rest.partition('.')[0])}{path.suffix}")
    shutil.copy(path, damaged)
    with pytest.warns(UserWarning, match="is damaged"):
        made = Program(function, INPUTS)
    assert not made.compiled
    assert not damaged.exists()
    assert_right(made)


OTHERWISE = {
    "torch": (torch, "__version__", "9.9"),
    "threads": (torch, "get_num_threads", lambda: 17),
    "the processor": (torch.cpu, "get_capabilities", lambda: {"avx9": True}),
    "the compiler": (program, "_compiler_version", lambda: "g++ 99"),
    "how it is compiled": (program, "COMPILER_SETTINGS", {"cpp_wrapper": True}),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_was_compiled_by_or_for_another_is_not_taken(what, folder, monkeypatch):
    assert not Program(function, INPUTS).compiled
    monkeypatch.setattr(*OTHERWISE[what])
    assert not program.Order(function, INPUTS).made()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "programs"))
    with pytest.raises(CompilerError, match=r"file/programs, cannot be made .*; name another one in BPTT_CACHE"):
        Program(function, INPUTS)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    def no_room(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "programs"))
    monkeypatch.setattr(program.tempfile, "TemporaryDirectory", no_room)
    with pytest.raises(
        CompilerError, match=r"programs, cannot be written to \(No space .*; name another one in BPTT_CACHE"
    ):
        Program(function, INPUTS)


def test_without_a_home_programs_last_as_long_as_the_process(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    program._passing_folder.cache_clear()
    with pytest.warns(UserWarning, match="there is no home folder .*name a folder for them in BPTT_CACHE"):
        made = cache_folder()
    assert made.is_dir()
    assert cache_folder() == made
    program._passing_folder.cache_clear()
    made.rmdir()


def test_inputs_of_another_layout_are_laid_out_anew(folder):
    made = Program(function, INPUTS)
    x = torch.randn(3, 2).T
    assert_right(made, x)
    assert_right(made, torch.randn(2, 6)[:, ::2], torch.randn(1, 1).expand(2, 3))
    assert_right(made, x.clone().requires_grad_().detach())
    assert_right(Program(function, [torch.randn(2, 6)[:, ::2], torch.ones(2, 3)]))  # made without the gaps


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.ones(2, 4), torch.ones(2, 3)], r"input 0 of a program must be of shape \(2, 3\).*got shape \(2, 4\)"),
        (
            [torch.ones(2, 3), torch.ones(2, 3).double()],
            "input 1 of a program must be of .*torch.float32.*torch.float64",
        ),
        ([torch.ones(2, 3)], "a program of 2 inputs got 1"),
    ],
)
def test_other_inputs_are_refused(folder, inputs, message):
    with pytest.raises(ValueError, match=message):
        Program(function, INPUTS)(*inputs)


def test_constants_are_inputs_that_nobody_has_to_give():
    def scaled(factors):
        return lambda x: (x * torch.tensor(factors),)

    orders = [program.Order(scaled(factors), INPUTS[:1]) for factors in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])]
    assert orders[0].name == orders[1].name
    graph, constants = orders[0].graph, orders[0].constants
    torch.testing.assert_close(graph(INPUTS[0], *constants)[0], INPUTS[0] * torch.tensor([1.0, 2.0, 3.0]))


def test_another_process_makes_what_was_ordered():
    """Operations on no tensor, too, of which torch's own pickling makes inputs; and those that give several."""

    def eyes(x, y):
        first, *_ = torch.split(x.clone().add_(1.0), 1)
        return first @ torch.eye(3, dtype=torch.float32) + torch.tensor([1.0, 2.0, 3.0]), y.to(torch.float64)

    order = program.Order(eyes, INPUTS)
    again = pickle.loads(pickle.dumps(order))
    assert again.graph.code == order.graph.code
    assert not dict(again.graph.named_buffers())
    for found, expected in zip(again.graph(*INPUTS, *order.constants), eyes(*INPUTS), strict=True):
        assert torch.equal(found, expected)


def test_the_common_temporary_folder_is_not_used(compiled, common):
    """Whoever made torch's folder there first could have his library run."""
    assert [path.name for path in common.iterdir()] == ["torchinductor_victim"]


def test_a_program_of_another_process_is_taken(folder):
    made = Program(function, INPUTS)
    assert not made.compiled
    assert_right(made)
