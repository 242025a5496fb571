"""Errors in code of the user's own keep their type, file and line; his ids have two spellings wherever there is one."""

import dataclasses
import importlib
import os
import re
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from bptt_envs.registration import ENTRIES
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.worker import measure_apart
from bptt_trainers import RunFolder
from bptt_trainers.cli import COMMANDS, main
from bptt_trainers.comparison.compare import ComparisonConfig
from bptt_trainers.host.user_code import raised_by_user
from bptt_trainers.host.work import Job

SMALL = "--train-states 8 --test-states 8 --record pictures --epochs 1"

SYSTEM = """
import bptt_envs.systems


class Own(bptt_envs.systems.Integrator):
    def __init__(self, *, fault: str = "none", horizon: int = 4):
        self.fault = fault
        self.fail("value")
        self.fail("file")
        self.fail("exit")
        self.fail("stop")
        super().__init__(horizon=horizon)

    def step(self, state, action):
        self.fail("step")
        return state + action

    def fail(self, fault):
        if fault != self.fault:
            return
        if fault == "file":
            open("no/such/table.csv")  # a line of its own
        if fault == "exit":
            raise SystemExit("no licence")  # a line of its own
        if fault == "stop":
            raise KeyboardInterrupt  # a line of its own
        raise ValueError("a fault of mine")  # a line of its own


bptt_envs.register("Own-v0", "own_envs:Own", "one of my own")
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module is written anew within the second
    Path("own_envs.py").write_text(SYSTEM)
    yield
    forget("own_envs", "broken")


def forget(*modules):
    """As in a process that has not imported them."""
    for env_id in set(ENTRIES) & {"Own-v0", "Other-v0"}:
        del ENTRIES[env_id]
        del gym.registry[env_id]
    for name in modules:
        sys.modules.pop(name, None)


@pytest.fixture
def bptt(capsys):
    def run(line, code=0):
        assert main(shlex.split(line)) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def line_of(text, source):
    return next(i for i, line in enumerate(source.splitlines(), start=1) if text in line)


@pytest.mark.parametrize(
    "command",
    [
        f"train --module broken {SMALL}",
        f"train --env broken:Own-v0 {SMALL}",
        "compare --module broken",
        "compare --env broken:Own-v0",
        "benchmark --env broken:Own-v0",
        "envs broken:Own-v0",
        "evaluate runs/one --module broken",
    ],
)
def test_an_error_at_import_is_shown_with_type_file_and_line(bptt, command):
    Path("broken.py").write_text("x = 1\nraise ValueError('no luck')\n")
    said = bptt(command, code=1)
    assert re.search(r'broken.py", line 2, in <module>.*\nValueError: no luck', said, re.S)
    assert "user_code.py" not in said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:\n", r'broken.py", line 1\b.*SyntaxError'),
        ("import no_such_library\n", r'broken.py", line 1, .*ModuleNotFoundError'),
        ("import sys\nsys.exit('needs a GPU')\n", r'broken.py", line 2, .*SystemExit: needs a GPU'),
        (
            "import bptt_envs\nbptt_envs.register('A-v0', 'nonsense', 'a')\n",
            r'broken.py", line 2, .*ValueError: system',
        ),
    ],
)
def test_whatever_a_module_raises_at_import_is_its_own(bptt, source, said):
    Path("broken.py").write_text(source)
    assert re.search(said, bptt(f"train --module broken {SMALL}", code=1), re.S)


@pytest.mark.parametrize("name", ["", "a b", "../own_envs", "no_such_module", "own_envs.py"])
def test_what_is_no_module_is_misuse(bptt, name):
    assert "module" in bptt(f"train --module '{name}' {SMALL}", code=2)


@pytest.mark.parametrize(
    ("fault", "line", "said"),
    [
        ("value", "raise ValueError", "ValueError: a fault of mine"),
        ("step", "raise ValueError", "ValueError: a fault of mine"),
        ("file", 'open("no', "FileNotFoundError: "),
        ("exit", "raise SystemExit", "SystemExit: no licence"),
    ],
)
def test_an_error_in_a_system_is_no_misuse(bptt, fault, line, said):
    text = bptt(f"train --env own_envs:Own-v0 --env-option fault={fault} {SMALL}", code=1)
    assert f'own_envs.py", line {line_of(line, SYSTEM)}, in fail' in text
    assert said in text


def test_a_check_has_an_error_of_the_users_as_a_finding(capsys):
    assert main(shlex.split("check own_envs:Own-v0 --env-option fault=step")) == 1
    report = " ".join(capsys.readouterr().out.split())
    line = line_of("raise ValueError", SYSTEM)
    assert f"ERROR Own.step raised ValueError: a fault of mine (own_envs.py:{line})." in report


def test_a_check_of_ours_is_misuse_by_way_of_the_users_code_too(bptt):
    assert "horizon must be an integer" in bptt(
        f"train --module own_envs --env Own-v0 --env-option horizon=0 {SMALL}", code=2
    )


def test_an_error_met_while_a_run_is_opened_is_no_damaged_folder(bptt):
    bptt(f"train --env own_envs:Own-v0 {SMALL} --out run")
    forget("own_envs")
    Path("own_envs.py").write_text(SYSTEM.replace("        self.fault = fault\n", '        {}["key"]\n'))
    importlib.invalidate_caches()
    said = bptt("evaluate run --module own_envs", code=1)
    assert "KeyError: 'key'" in said
    assert f'own_envs.py", line {line_of("self.fault = fault", SYSTEM)}, in __init__' in said
    assert "damaged" not in said


def test_an_error_in_a_library_is_that_of_who_called_it():
    import own_envs

    with pytest.raises(RuntimeError) as caught:
        own_envs.Own().step(torch.zeros(2, 1), torch.zeros(3, 1))
    assert raised_by_user(caught.value)
    with pytest.raises(ValueError, match="horizon") as caught:
        own_envs.Own(horizon=0)
    assert not raised_by_user(caught.value)


def test_a_worker_knows_the_users_ids_and_shows_his_line(bptt):
    config = BenchmarkConfig(env="own_envs:Own-v0", env_options={"fault": "step"})
    cell = {"env": "Own-v0", "options": "fault='step'", "device": "cpu", "threads": 1, "batch": 8}
    with pytest.raises(ChildProcessError) as caught:
        measure_apart("updates", config, cell)
    assert f'own_envs.py", line {line_of("raise ValueError", SYSTEM)}, in fail' in str(caught.value)


@pytest.mark.parametrize(("fault", "line"), [("exit", "raise SystemExit"), ("stop", "raise KeyboardInterrupt")])
def test_work_whose_code_exits_is_an_error_that_names_it(fault, line):
    work = Job("C seed 3", partial(gym.make, "own_envs:Own-v0", fault=fault))
    with pytest.raises(ChildProcessError, match=r"^C seed 3: an error in code that is not of bptt") as caught:
        work()
    assert f'own_envs.py", line {line_of(line, SYSTEM)}, in fail' in str(caught.value)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
@pytest.mark.parametrize("error", [SystemExit, TimeoutError])
def test_an_exit_by_the_handler_of_a_signal_is_not_that_of_the_code_it_met(error, monkeypatch):
    import own_envs

    def end(number, frame):
        raise error

    monkeypatch.setattr(own_envs.Own, "fail", lambda self, fault: os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, end)
    try:
        with pytest.raises(error):
            Job("C seed 3", gym.make, "own_envs:Own-v0")()
    finally:
        signal.signal(signal.SIGUSR1, before)


# Two spellings


def test_every_command_that_takes_an_id_or_a_run_takes_a_module(bptt):
    for name, entry in COMMANDS.items():
        module, _, class_name = entry.path.partition(":")
        command = getattr(importlib.import_module(module), class_name)
        own = [field.name for field in dataclasses.fields(command)]
        if {"env", "env_option", "run_folder", "runs"} & set(own):
            assert "module" in own, name


@pytest.mark.parametrize("spelling", ["--module own_envs --env Own-v0", "--env own_envs:Own-v0"])
def test_both_spellings_name_the_same(bptt, spelling):
    said = bptt(f"train {spelling} {SMALL} --seeds 0 1 --out several")
    assert "bptt evaluate several/* --module own_envs\n" in said
    said = bptt(f"train {spelling} {SMALL} --out run")
    assert "  bptt evaluate run --module own_envs\n" in said
    assert RunFolder(Path("run")).read_config()["environment"]["id"] == "Own-v0"
    small = "--methods zero --seeds 0 --steps 32 --test-states 8"
    assert "zero on Own-v0" in bptt(f"compare {spelling} {small}")
    assert "one of my own" in bptt(f"envs {spelling.replace('--env ', '')}")


def test_the_form_of_gymnasium_works_in_python():
    assert gym.make("own_envs:Own-v0").spec.id == "Own-v0"
    assert gym.make_vec("own_envs:Own-v0", num_envs=2).spec.id == "Own-v0"
    assert ComparisonConfig(env="own_envs:Own-v0").env == "Own-v0"
    assert BenchmarkConfig(env="own_envs:Own-v0").env == "Own-v0"


def test_an_id_registered_with_what_is_no_system_is_refused_in_words(bptt):
    Path("broken.py").write_text("import bptt_envs\nbptt_envs.register('Other-v0', 'own_envs:None_such', 'a')\n")
    assert "own_envs:None_such, which is no System" in bptt(f"train --env broken:Other-v0 {SMALL}", code=2)
