"""The command `bptt`: what it says, what it refuses, what a run goes through from train to render."""

import csv
import dataclasses
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import gymnasium as gym
import pytest
import torch
from PIL import Image

import bptt_envs
from bptt_envs.registration import ENTRIES
from bptt_trainers import RunFolder
from bptt_trainers.cli import COMMANDS, main, read_command
from bptt_trainers.commands.evaluate import Evaluate
from bptt_trainers.commands.hints import known_options
from bptt_trainers.rl.config import RLConfig
from bptt_trainers.rl.sb3 import train_rl

ROOT = Path(__file__).parents[2]
TINY = (
    "--preset paper --env-option horizon=10 --env-option max_force=50 --train-states 16 --test-states 16 --hidden 8 "
    "--record pictures"
)
INTEGRATOR = "--preset paper --env DiffIntegrator-v0 --train-states 8 --test-states 8 --record pictures"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def bptt(capsys):
    """Run a command line as it would be typed; return what it says, to stderr if it should fail."""

    def run(line, code=0):
        assert main(shlex.split(line)) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.err if code else captured.out

    return run


def start(line):
    """The same in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bptt_trainers.cli", *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )


def wait_for_epochs(run, epochs, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > 1 + epochs:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {epochs} epochs: {process.communicate()}")


def epochs_done(run):
    with (run / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else []
    return [tensor for value in values for tensor in tensors(value)]


# What it says


@pytest.mark.parametrize("arguments", ["", "--help", "-h", "help"])
def test_alone_it_names_every_command(bptt, arguments):
    text = bptt(arguments)
    for name, entry in COMMANDS.items():
        assert f"  {name}" in text
        assert entry.summary in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(bptt):
    assert bptt("--version") == f"bptt {bptt_envs.__version__}\n"


def flags(command):
    """Every option of a command, those of the settings in it included."""
    kinds, annotations = get_type_hints(command), get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from flags(kinds[field.name])
        elif not {"Suppress", "Positional"} & {
            str(extra).rpartition(".")[2] for extra in get_args(annotations[field.name])
        }:
            yield f"--{field.name.replace('_', '-')}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_within_80_columns(bptt, name):
    module, _, class_name = COMMANDS[name].path.partition(":")
    command = getattr(importlib.import_module(module), class_name)
    text = bptt(f"{name} --help")
    for flag in flags(command):
        assert f" {flag}" in text
    assert {option for option, _ in known_options(command)} == set(flags(command))  # those that hints know
    assert f"example: bptt {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert bptt(f"help {name}") == text


def test_it_starts_without_the_slow_libraries(place):
    code = (
        "import sys, contextlib, io\n"
        "from bptt_trainers.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for arguments in ('--help', 'envs', 'envs --verbose', 'train --help', 'render --help'):\n"
        "        assert main(arguments.split()) == 0\n"
        "print([name for name in ('matplotlib', 'stable_baselines3', 'tensorboard', 'pygame', 'pandas')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_envs_lists_every_id(bptt):
    text = bptt("envs")
    for env_id, entry in ENTRIES.items():
        assert env_id in text
        assert entry.summary in text


@pytest.mark.parametrize("env_id", ENTRIES)
def test_envs_explains_every_option_with_type_and_default(bptt, env_id):
    text = bptt(f"envs {env_id}")
    for option, default in bptt_envs.registration.system_class(env_id).env_options().items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {option}: "))
        assert line.endswith(f"default {'none' if default is None else default}")
    assert "not documented" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.strip() in bptt("envs --verbose")


DOCUMENTED = [
    line.removeprefix("bptt ")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith("bptt ") and "--module" not in line  # which imports what only the page has
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_the_commands_in_the_documentation_can_be_read(line):
    name, *arguments = shlex.split(line, comments=True)
    if not name.startswith("-"):
        read_command(name, arguments)


@pytest.mark.parametrize(
    ("line", "compile"),
    [
        ("train", False),
        ("train --compile", True),
        ("train --compile --rule C", True),
        ("train --learner SHAC --compile auto", "auto"),
        ("train --compile False", False),
        ("resume runs/one", None),
        ("resume runs/one --compile", True),
        ("resume runs/one --compile auto", "auto"),
    ],
)
def test_compile_stands_alone_or_says_when(line, compile):
    name, *arguments = line.split()
    command = read_command(name, arguments)
    assert getattr(command, "training", command).compile == compile


# What it refuses: exit code 2, in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian", "Did you mean 'train'?"),
        ("train --epoch 3", "--epochs"),
        ("train --compile soon", "--compile takes nothing, True, False or auto; got soon"),
        ("train --epochs many", "--epochs"),
        ("train --epochs 0", "epochs must be an integer of at least 1; got 0"),
        ("train --rule Q", "'R', 'M', 'S', 'C'"),
        ("train --engine adjont", "adjoint"),
        ("train --learning-rate -1", "learning_rate must be a finite number above 0; got -1.0"),
        ("train --batch-size 512", "batch_size must be at most train_states (64); got 512"),
        ("train stray", "stray"),
        ("train --env DiffCartpole-v0", "Did you mean 'DiffCartPole-v0'?"),
        ("train --env no_such_module:Mine-v0", "no module 'no_such_module'"),
        ("train --env DiffMultiPole-v0 --env-option n_pole=2", "Did you mean 'n_poles'?"),
        ("train --env DiffMultiPole-v0 --env-option n_poles=two", "n_poles must be of type int; got 'two'"),
        ("train --env DiffMultiPole-v0 --env-option n_poles=0", "n_poles must be an integer of at least 1; got 0"),
        ("train --env-option horizon", "NAME=VALUE"),
        ("train --env-option objective=continous", "Did you mean 'continuous'?"),
        ("train --env-option max_force=-5", "max_force must be a finite number above 0; got -5.0"),
        ("resume", "RUN"),
        ("compare --methods C PP", "Did you mean 'PPO'?"),
        ("compare --seeds 0 0", "seeds must be at least one, each once"),
        ("compare --override C.clip", "METHOD.NAME=VALUE"),
        ("compare --override C.clap=norm", "Did you mean 'clip'?"),
        ("compare --env-option horizont=3", "Did you mean 'horizon'?"),
        ("compare --module no_such_module", "no module 'no_such_module'"),
        ("check", "ID"),
        ("check DiffCartpole-v0", "Did you mean 'DiffCartPole-v0'?"),
        ("check DiffCartPole-v0 --env-option horizon=0", "horizon must be an integer of at least 1; got 0"),
        ("demo --share 0", "share must be a finite number above 0; got 0.0"),
        ("evaluate", "at least one run"),
        ("evaluate runs/one --states 0", "--states must be an integer of at least 1; got 0"),
        ("render runs/one --episodes 0", "--episodes must be an integer of at least 1; got 0"),
        ("envs DiffMultipole-v0", "Did you mean 'DiffMultiPole-v0'?"),
        ("check my_env.py", "my_module:MyEnv-v0, or --module my_module"),
        ("check my_env.py:MyEnv-v0", "a module must be named as import does"),
        ("train --lr 0.1", "--lr is no option. Did you mean '--learning-rate'?"),
        ("train --epoch=3", "--epoch is no option. Did you mean '--epochs'?"),
        ("train --no-squish", "--no-squish is no option. Did you mean '--no-squash'?"),
        ("compare --env-options max_force=50", "--env-options is no option. Did you mean '--env-option'?"),
        ("compare --override ppo.num_envs=3", "--override must be one of 'R', 'M'"),
        ("compare --methods C --override R.clip=norm", "the method of --override must be one of 'C'; got 'R'"),
        ("compare --methods zero random --env-option horizon=-1", "horizon must be an integer of at least 1; got -1"),
        ("train --rule c", "Did you mean 'C'?"),
        ("train --rules r,C", "These are several in one: 'R', 'C'."),
        ("train --hidden 64,64", "Values have spaces between them: --hidden 64 64."),
        ("compare --methods ppo", "Did you mean 'PPO'?"),
        ("compare --seeds 0,1", "Values have spaces between them: --seeds 0 1."),
        ("compare --override PPO.net_arch=3", "Did you mean 'hidden'?"),
        ("compare --override C.clip=norm R.clip=norm", "repeated: --override C.clip=norm --override R.clip=norm."),
    ],
)
def test_misuse_is_explained(bptt, place, arguments, said):
    message = " ".join(bptt(arguments, code=2).replace("│", " ").split())
    assert said in message
    assert not list(place.iterdir())


def test_render_refuses_a_file_of_another_kind(bptt):
    bptt(f"train {INTEGRATOR} --epochs 1 --out run")
    assert ".gif or .png" in bptt("render run --out film.mp4", code=2)
    assert not Path("film.mp4").exists()


def test_option_values_have_the_type_of_the_option(bptt):
    texts = ["objective=continuous", "max_force=50", "horizon=7", "n_poles=3"]
    options = " ".join(f"--env-option {text}" for text in texts)
    sizes = "--preset paper --epochs 1 --train-states 8 --test-states 8 --record pictures"
    command = f"train --env DiffMultiPole-v0 {sizes} {options}"
    bptt(f"{command} --out bounded")
    made = RunFolder(Path("bounded")).make_env().system
    assert (made.objective, made.max_action, made.horizon, made.n_poles) == ("continuous", 50.0, 7, 3)
    bptt(f"{command} --env-option max_force=none --out free")
    assert RunFolder(Path("free")).make_env().system.max_action is None


def test_a_matrix_is_given_as_python_writes_it(bptt):
    sizes = "--epochs 1 --train-states 8 --test-states 8 --record pictures"
    bptt(f"train --env DiffLQR-v0 --env-option A=[[1,0.2],[0,1]] --env-option Q=none {sizes} --out run")
    assert RunFolder(Path("run")).make_env().system.A.tolist() == [[1.0, 0.2], [0.0, 1.0]]


@pytest.mark.usefixtures("drawn")
def test_a_run_with_diagnostics_is_drawn_and_told(bptt):
    said = bptt(f"train {TINY} --epochs 2 --record diagnostics --keep-every 1 --out run")
    assert {"diagnose", "fields"} <= {line.split()[1] for line in said.splitlines() if line.startswith("  bptt ")}
    table = bptt("diagnose run --out run/seen.png").splitlines()
    assert Path("run/seen.png").read_bytes().startswith(b"\x89PNG")
    assert table[0].split()[0] == "epoch"
    assert [line.split()[0] for line in table[1:4]] == ["0", "1", "2"]
    assert all(len(line) <= 80 for line in table)


def test_a_long_option_value_makes_no_long_folder_name(bptt):
    matrix = "A=[[1,0.2],[0,1]]"
    bptt(f"train --env DiffLQR-v0 --env-option {matrix} --epochs 1 --train-states 8 --test-states 8 --record pictures")
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"DiffLQR-v0_A=[0-9a-f]{8}_C_seed0", folder.name)


# What fails: exit code 1, in words


def test_a_run_without_diagnostics_says_how_to_have_them(bptt):
    bptt(f"train {TINY} --epochs 1 --out run")
    assert "--record" in bptt("diagnose run", code=1)


def test_a_folder_of_something_else_is_refused(bptt):
    Path("config.json").write_text('{"name": "else"}')
    assert "not a run folder of the trainer" in bptt("resume .", code=1)
    assert "not a run folder of the trainer" in bptt("evaluate .", code=1)
    Path("config.json").write_text('{"method": "PPO"}')  # of reinforcement learning, without the rest
    for command in ("resume .", "evaluate .", "render ."):
        assert "cannot use config.json: it is damaged" in bptt(command, code=1)


@pytest.mark.parametrize("arguments", ["resume nowhere", "evaluate nowhere", "render nowhere"])
def test_a_folder_without_a_run_is_named(bptt, arguments):
    assert "nowhere is not a run folder" in bptt(arguments, code=1)


def test_a_folder_of_runs_is_judged_run_by_run(bptt, capsys):
    bptt(f"train {TINY} --epochs 1 --seeds 0 1 --out grid")
    Path("versus/runs").mkdir(parents=True)
    for seed, run in enumerate(sorted(Path("grid").iterdir())):
        shutil.move(run, f"versus/runs/C-seed{9 + seed}")
    Path("versus/runs/zero-seed9").mkdir()
    Path("versus/runs/zero-seed9/curve.csv").write_text("epoch\n")
    rows = [line.split() for line in bptt("evaluate versus").splitlines()[1:]]
    assert [row[0] for row in rows] == ["versus/runs/C-seed9", "versus/runs/C-seed10"]
    folders = " ".join(str(path) for path in sorted(Path("versus/runs").iterdir()))
    capsys.readouterr()
    assert len(bptt(f"evaluate {folders}").splitlines()) == 3
    Path("versus/runs/C-seed9/best.pt").unlink()
    said = bptt("evaluate versus", code=1)
    assert "1 of 2 runs cannot be judged" in said
    assert "versus/runs/C-seed9" in said


def test_links_and_bad_neighbours_take_no_run_away(bptt, tmp_path, monkeypatch):
    bptt(f"train {INTEGRATOR} --epochs 1 --out runs/versus/runs/C-seed0")
    shutil.copytree("runs/versus/runs/C-seed0", "runs/one")
    Path("runs/latest").symlink_to("one")
    Path("runs/self").symlink_to(".")
    Path("runs/nowhere").symlink_to("missing")
    Path("runs/e\033[31mvil").mkdir()
    Path("runs/e\033[31mvil/config.json").write_text("{}")
    is_dir = Path.is_dir

    def looked_into(path):
        if path.name == "nowhere":
            raise PermissionError
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", looked_into)
    said = bptt("evaluate runs runs/one", code=1)
    assert "1 of 3 runs cannot be judged" in said
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("runs/e\033[31mvil")
    rows = bptt("evaluate runs runs/one").splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["runs/latest", "runs/versus/runs/C-seed0"]
    Path("alone/runs/zero-seed0").mkdir(parents=True)
    Path("alone/runs/zero-seed0/curve.csv").write_text("epoch\n")
    assert "leaves a learning curve and no controller" in bptt("evaluate alone/runs/zero-seed0", code=1)


def test_what_is_judged_is_printed_before_a_users_system_fails(bptt, capsys, monkeypatch):
    for name in ("a", "b"):
        bptt(f"train {INTEGRATOR} --epochs 1 --out runs/{name}")
    row = Evaluate._row
    monkeypatch.setattr(Evaluate, "_row", lambda self, run: 1 / 0 if run.name == "b" else row(self, run))
    assert main(["evaluate", "runs"]) == 1
    assert "runs/a" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["resume", "render", "diagnose", "fields", "share --out shared"])
def test_a_folder_of_several_runs_says_which_there_are(bptt, command):
    for name in ("one", "two"):
        Path("grid", name).mkdir(parents=True)
        Path("grid", name, "config.json").write_text("{}")
    said = bptt(f"{command} grid", code=1)
    assert "grid is not a run folder: it has no config.json. Those in it that have one: grid/one, grid/two." in said


@pytest.mark.parametrize("command", ["render", "diagnose"])
def test_a_picture_of_an_unknown_format_is_refused_before_anything_is_read(bptt, command):
    assert "--out must end in ." in bptt(f"{command} nowhere --out picture.jpg", code=2)


def test_a_folder_with_another_run_is_refused_with_the_difference(bptt):
    bptt(f"train {TINY} --epochs 1 --out run")
    before = Path("run/last.pt").read_bytes()
    message = bptt(f"train {TINY} --epochs 1 --out run --rule M", code=1)
    assert "training.rule: 'C' in the folder, 'M' asked for" in message
    assert Path("run/last.pt").read_bytes() == before


def test_a_place_that_cannot_be_written_is_an_error_in_words(bptt):
    Path("file").write_text("")
    assert "cannot write" in bptt(f"train {TINY} --epochs 1 --out file/run", code=1)


def test_a_run_that_blows_up_says_where_and_can_be_resumed_skipping(bptt):
    message = bptt(f"train {INTEGRATOR} --epochs 2 --learning-rate 1e30 --out run", code=1)
    assert "epoch 1" in message
    assert "bptt resume run --on-nonfinite skip" in message
    bptt("resume run --on-nonfinite skip")
    assert epochs_done(Path("run")) == [0, 1, 2]


# From train to render


@pytest.mark.parametrize(("settings", "states"), [(TINY, 16), (INTEGRATOR, 8)])
def test_train_resume_evaluate_render(bptt, settings, states):
    said = bptt(f"train {settings} --epochs 2 --out runs/one --record tensorboard pictures")
    run = Path("runs/one")
    assert {"config.json", "metrics.csv", "last.pt", "best.pt", "learning_curve.png"} <= {
        path.name for path in run.iterdir()
    }
    assert list(run.glob("events.out.tfevents.*"))
    assert "engine: adjoint (" in said
    assert "  bptt evaluate runs/one\n" in said
    assert "all 2 epochs are done" in bptt("resume runs/one")
    assert "continuing after epoch 2 of 3" in bptt("resume runs/one --epochs 3")
    assert epochs_done(run) == [0, 1, 2, 3]
    assert "asks for fewer" in bptt("resume runs/one --epochs 2", code=1)

    with (run / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    head, row = (line.split() for line in bptt("evaluate runs/one --which last").splitlines())
    found = dict(zip(head, row, strict=False))
    assert (found["run"], found["method"], found["epoch"], found["states"]) == ("runs/one", "C", "3", str(states))
    assert float(found["mean"]) == pytest.approx(float(last["test_loss"]), rel=5e-3)
    both = bptt("evaluate runs/one runs/one --objective continuous --states 5").splitlines()
    assert len(both) == 2  # it is one run
    assert (both[1].split()[2], both[1].split()[4]) == ("continuous", "5")

    bptt("render runs/one --out film.gif --width 160")
    bptt("render runs/one --out picture.png --width 400 --episodes 2")
    with Image.open("film.gif") as film, Image.open("picture.png") as picture:
        assert film.n_frames >= 2
        assert film.width == 160
        assert abs(picture.width - 400) < 8


FEW = {"num_envs": 8, "n_steps": 8, "batch_size": 64, "n_epochs": 1, "hidden": (8,)}


def test_a_run_of_reinforcement_learning_is_taken_up_by_the_same_commands(bptt):
    config = RLConfig(env="DiffIntegrator-v0", steps=128, evaluations=2, test_states=8, overrides=FEW, record=())
    curve = train_rl(config, Path("ppo"), progress=False).curve
    head, *rows = (line.split() for line in bptt("evaluate ppo --which last").splitlines())
    (found,) = (dict(zip(head, row, strict=False)) for row in rows)
    assert (found["method"], found["epoch"], found["states"]) == ("PPO", "2", "8")
    assert float(found["mean"]) == pytest.approx(curve[-1].test_loss, rel=5e-3)
    assert float(bptt("evaluate ppo --objective final --states 3").split()[-4]) > 0
    assert bptt("evaluate ppo").split()[-6] in ("0", "1", "2")  # the best on the training states
    bptt("render ppo --out picture.png --width 400 --episodes 2")
    assert f"128 steps, held-out loss {curve[-1].test_loss:.4g}" in bptt("resume ppo")
    assert "goes on as it began: leave out --epochs" in bptt("resume ppo --epochs 9", code=2)


def test_what_cannot_be_trained_together_is_trained_one_by_one(bptt):
    few = "--env DiffIntegrator-v0 --epochs 1 --train-states 8 --batch-size 4 --test-states 8 --hidden 8 --record csv"
    said = bptt(f"train --learner SHAC --window 2 {few} --seeds 0 1 --out windows")
    assert said.count("held-out states") == 2
    bptt(f"train --rule R --estimator total_propagation --deviation constant {few} --seeds 0 1 --out mixed")
    folders = [str(path.parent) for name in ("windows", "mixed") for path in sorted(Path(name).rglob("last.pt"))]
    rows = [line.split() for line in bptt(f"evaluate {' '.join(folders)}").splitlines()[1:]]
    assert [row[1] for row in rows] == ["SHAC", "SHAC", "TP", "TP"]


def test_a_run_with_tuned_settings_is_taken_up_by_every_command_that_reads_a_run(bptt):
    seen = "--env-option observe_time=true --squash --start-states fresh --final-learning-rate 0"
    bptt(f"train {TINY} {seen} --epochs 1 --keep-every 1 --record diagnostics --out run")
    assert "all 1 epochs are done" in bptt("resume run")
    assert len(bptt("evaluate run").splitlines()) == 2
    bptt("render run --out picture.png --width 400")
    bptt("diagnose run")
    bptt("fields run --size 3 --directions random --radius 0.1")


def test_the_commands_that_train_names_run_as_they_stand(bptt):
    said = bptt(f"train {TINY} --epochs 1")
    run = Path("runs/DiffCartPole-v0_horizon=10_max_force=50.0_C_seed0")
    assert run.is_dir()
    commands = [line for line in said.splitlines() if line.startswith("  bptt ")]
    assert len(commands) == 2
    for command in commands:
        bptt(command.removeprefix("  bptt ") + (" --width 160" if "render" in command else ""))
    assert (run / "animation.gif").exists()


def test_an_environment_of_the_users_own(bptt, place, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_envs.py").write_text(
        "import bptt_envs\n"
        "class Slow(bptt_envs.systems.Integrator):\n"
        '    """Halves the action.\n\n    Args:\n        gain: what multiplies it, without unit.\n    """\n'
        "    def __init__(self, *, gain: float = 0.5, horizon=4, max_push=None):\n"
        "        super().__init__(horizon=horizon, max_action=max_push)\n"
        "        self.gain = gain\n"
        "    def step(self, state, action):\n"
        "        return state + self.gain * action\n"
        'bptt_envs.register("Slow-v0", "my_envs:Slow", "a slow one")\n'
    )
    try:
        said = bptt(
            "train --env my_envs:Slow-v0 --env-option gain=0.25 --env-option horizon=3 --env-option max_push=2 "
            "--epochs 1 --train-states 8 --record pictures --preset paper"
        )
        assert "  bptt evaluate runs/Slow-v0_gain=0.25_horizon=3_max_push=2_C_seed0 --module my_envs\n" in said
        assert "gain: float, default 0.5\n      what multiplies it, without unit." in bptt("envs my_envs:Slow-v0")
        run = "runs/Slow-v0_gain=0.25_horizon=3_max_push=2_C_seed0"
        assert "continuing after epoch 1 of 2" in bptt(f"resume {run} --epochs 2 --module my_envs")
        compared = bptt(
            "compare --module my_envs --env Slow-v0 --methods C zero --seeds 0 --steps 1024 --test-states 8"
        )
        assert "C, zero on Slow-v0" in compared
        monkeypatch.delitem(gym.registry, "Slow-v0")
        assert "--module" in bptt(f"resume {run}", code=1)
    finally:
        ENTRIES.pop("Slow-v0", None)
        sys.modules.pop("my_envs", None)


# A check of gradients


@pytest.mark.usefixtures("drawn")
def test_check_writes_its_report_numbers_and_figure(bptt):
    said = bptt("check DiffIntegrator-v0 --env-option horizon=3 --out checked")
    assert "Nothing is wrong." in said
    assert max(map(len, said.splitlines())) <= 80
    assert said.startswith(Path("checked/check.txt").read_text())
    assert len(Path("checked/steps.csv").read_text().splitlines()) == 5
    with Image.open("checked/check.png") as figure:
        assert figure.width > 1000
    assert f"{Path('checked/check.png')}  the figure" in said


def test_check_names_what_is_wrong_with_a_system_of_the_users_and_fails(bptt, place, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_envs.py").write_text(
        "import bptt_envs\n"
        "class Bad(bptt_envs.systems.Integrator):\n"
        "    def observe(self, state):\n"
        "        return state - state.mean(0)\n"
        "class Cut(bptt_envs.systems.Integrator):\n"
        "    def step(self, state, action):\n"
        "        return state + action.detach()\n"
        'bptt_envs.register("Bad-v0", "my_envs:Bad", "mixes samples")\n'
        'bptt_envs.register("Cut-v0", "my_envs:Cut", "cuts gradients")\n'
    )
    try:
        assert bptt("check my_envs:Bad-v0", code=1) == "bptt check: Bad-v0: 1 error.\n"
        main(["check", "--module", "my_envs", "Bad-v0"])
        assert "ERROR    Bad.observe must treat samples apart" in capsys.readouterr().out
        main(["check", "Cut-v0"])
        assert "ERROR    Cut.step depends on component 0 of its action" in capsys.readouterr().out
        refused = {
            "train --env Cut-v0": 2,
            "compare --env Cut-v0 --methods C M --seeds 0 1 --steps 64 --jobs 1": 1,
            "tune --env Cut-v0 --module my_envs --methods C --trials 1 --steps 64 --jobs 1": 1,
        }
        for line, code in refused.items():
            assert "Cut.step depends on component 0 of its action, and its gradient does not" in bptt(line, code=code)
    finally:
        for env_id in ("Bad-v0", "Cut-v0"):
            ENTRIES.pop(env_id, None)
            gym.registry.pop(env_id, None)
        sys.modules.pop("my_envs", None)


# Comparisons

COMPARE = (
    "compare --steps 1600 --test-states 8 --env-option horizon=10 --override C.train_states=16 "
    "--override C.hidden=(8,) --out runs/comparison"
)


def test_compare_leaves_tables_and_a_figure_and_computes_only_what_is_missing(bptt):
    said = bptt(f"{COMPARE} --methods C zero --seeds 0")
    out = Path("runs/comparison")
    assert said.splitlines()[2].split() == ["method", "C", "zero"]
    assert max(map(len, said.splitlines())) <= 80
    for name in ("methods.md", "methods.csv", "runs.csv", "curves.csv", "curves.png"):
        assert (out / name).exists()
        assert f"{out / name}  " in said
    first = (out / "runs/C-seed0/last.pt").stat().st_mtime_ns
    said = bptt(f"{COMPARE} --methods C R M S zero random --seeds 0 1 --override R.hidden=(8,)")
    assert (out / "runs/C-seed0/last.pt").stat().st_mtime_ns == first
    assert (out / "runs/C-seed1/last.pt").exists()
    assert max(map(len, said.splitlines())) <= 80
    refused = bptt(f"{COMPARE} --methods C --seeds 0 --override C.clip=value", code=1)
    assert "C clip: 'none' in the folder, 'value' asked for" in refused


def test_demo_compares_and_animates(bptt, monkeypatch):
    monkeypatch.setattr("bptt_trainers.commands.compare.available_cores", lambda: [0])  # which takes no processes
    said = bptt("demo --seeds 0 --share 0.02 --out runs/demo")
    assert [line.split() for line in said.splitlines()].count(["method", "C", "PPO", "zero"]) == 2
    for task in ("one-pole", "two-poles"):
        with Image.open(f"runs/demo/{task}/swing-up.gif") as film:
            assert film.n_frames >= 10
        named = [Path(line.split()[0]) for line in said.splitlines() if line.startswith(f"runs/demo/{task}/")]
        assert len(named) == 8
        assert all(path.exists() for path in named)


# Ctrl-C and kill


def test_ctrl_c_in_a_comparison_names_the_same_command(bptt, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bptt_trainers.training.ensemble.Ensemble.fit", interrupted)
    command = f"{COMPARE} --methods C --seeds 0"
    said = bptt(command, code=130)
    assert shlex.split(said.splitlines()[-1]) == ["bptt", *shlex.split(command)]


def test_ctrl_c_names_the_command_that_goes_on(bptt):
    run = Path("runs/two halves")
    process = start(f"train {TINY} --epochs 5000 --out '{run}'")
    wait_for_epochs(run, 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "bptt resume 'runs/two halves'" in said
    assert "bptt train: stopped after epoch " in said
    done = torch.load(run / "last.pt", weights_only=True)["epoch"]
    bptt(f"resume '{run}' --epochs {done + 1}")
    assert epochs_done(run) == list(range(done + 2))


def test_a_killed_run_ends_bit_for_bit_where_an_undisturbed_one_does(bptt):
    process = start(f"train {TINY} --epochs 5000 --out killed")
    wait_for_epochs(Path("killed"), 3, process)
    process.kill()
    process.communicate()
    epochs = epochs_done(Path("killed"))[-1] + 3
    bptt(f"resume killed --epochs {epochs}")
    bptt(f"train {TINY} --epochs {epochs} --out whole")
    for name in ("last.pt", "best.pt"):
        whole, killed = (torch.load(Path(run) / name, weights_only=True) for run in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        pairs = list(zip(tensors(whole), tensors(killed), strict=True))
        assert len(pairs) >= 4
        assert all(torch.equal(first, second) for first, second in pairs)
        assert all(whole[key] == killed[key] for key in whole if isinstance(whole[key], (int, float)))
    whole, killed = (Path(run, "metrics.csv").read_text().splitlines() for run in ("whole", "killed"))
    assert [line.rpartition(",")[0] for line in whole] == [line.rpartition(",")[0] for line in killed]  # not seconds


# The studies, which a wheel leaves out


def test_studies_are_listed_apart(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    commands, studies = said.split("studies, in a clone of the repository:")
    assert re.search(r"^  train +train a controller$", commands, re.M)
    assert re.search(r"^  benchmark +time updates, steps and starts, beside peers$", studies, re.M)
    assert re.search(r"^  estimators +measure", studies, re.M)  # the longest name
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize("name", ["toys", "reproduce", "scale", "benchmark"])
def test_a_study_that_is_not_installed_says_where_it_is(name, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    assert main([name, "--help"]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"bptt {name}: the studies, of which {name} is one, are not installed: they come with a clone of the "
        "repository and pip install -e . there.\n"
    )


def test_an_option_that_is_a_function_is_refused_in_words(capsys):
    assert main(["train", "--env", "DiffCartPole-v0", "--env-option", "final_cost=my:cost"]) == 2
    assert "final_cost: it is a function, which is given in Python only" in capsys.readouterr().err
