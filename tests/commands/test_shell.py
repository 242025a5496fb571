"""The shell around a command: output that nobody reads, signals, locales, and processes that end with their parent."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bptt_trainers.cli import main
from bptt_trainers.commands.shell import Sink, ended_in_order, safe_output, wide_enough

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, closes streams as its shells do")

LONG = pytest.mark.skipif(not os.environ.get("BPTT_TEST_LONG"), reason="set BPTT_TEST_LONG=1 for the long tests")
TRAIN = ["train", "--env", "DiffIntegrator-v0", "--train-states", "8", "--test-states", "8", "--record", "pictures"]
TRAIN += ["--epochs", "20", "--out", "run"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(arguments, closed=(), **options):
    def prepare():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
        for descriptor in closed:
            os.close(descriptor)

    variables = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("variables", {})}
    command = [sys.executable, "-m", "bptt_trainers.cli", *arguments]
    return subprocess.Popen(command, env=variables, preexec_fn=prepare, **options)


def epochs_done(run):
    with (Path(run) / "metrics.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


# Output


def test_closed_streams_do_not_end_a_run():
    assert start(TRAIN, closed=(0, 1, 2)).wait(60) == 0
    assert epochs_done("run") == list(range(21))


def test_a_reader_that_is_gone_does_not_end_a_run():
    process = start(TRAIN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline().startswith(b"run: starting")
    process.stdout.close()
    assert process.wait(60) == 0
    assert epochs_done("run") == list(range(21))


def test_results_that_cannot_be_written_are_an_error_in_words():
    with Path("/dev/full").open("w") as full:
        process = start(["envs"], stdout=full, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "bptt: cannot write the standard output: No space left on device.\n")


def test_any_locale_any_width_and_any_name_will_do():
    """One process for all: C locale, no home, a name that is no text and would be a formula, a narrow screen."""
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    program = (
        "import os, sys\n"
        "from bptt_trainers.cli import main\n"
        "train = sys.argv[1:]\n"
        "assert main([*train, '--record', 'diagnostics']) == 0\n"
        "assert main(['diagnose', train[-1]]) == 0\n"
        "assert main(['evaluate', train[-1]]) == 0\n"
        "assert main(['train', '--env', train[-1]]) == 2\n"
        "assert main(['envs', 'DiffQuantumControl-v0']) == 0\n"
        "os.environ['COLUMNS'] = '1'\n"
        "assert main(['train', '--help']) == 0\n"
        "assert main(['train', '--epoch', '3']) == 2\n"
    )
    name = b"run \xff $x_{$"
    environment = {key: value for key, value in os.environ.items() if key != "HOME"} | variables
    done = subprocess.run(
        [sys.executable, "-c", program, *TRAIN[:-1], name], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"run \\udcff $x_{$" in done.stdout
    assert (Path(os.fsdecode(name)) / "diagnostics.png").exists()
    assert b"Traceback" not in done.stderr


def test_what_a_stream_loses_is_kept_in_mind():
    reader, writer = os.pipe()
    os.close(reader)
    broken, full = Sink(writer), Sink(os.open("/dev/full", os.O_WRONLY))
    assert broken.write(b"seen enough") == 11
    assert broken.lost is None
    assert full.write(b"lost") == 4
    assert full.lost is not None
    for sink in (broken, full):
        os.close(sink.fileno())


def test_a_stream_that_does_not_block_gets_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = f"import os, time; time.sleep(0.3); os.read({reader}, 1 << 20)"
    sink, size = Sink(writer), 0
    while size < 1 << 16:
        size += sink.write(b"x" * 4096)  # as much as a pipe holds
    process = subprocess.Popen([sys.executable, "-c", program], pass_fds=[reader])
    assert sink.write(b"more") == 4
    process.wait()
    os.close(reader)
    os.close(writer)


def test_streams_are_as_they_were_afterwards(capfd):
    before = sys.stdout, sys.stderr
    with safe_output():
        print("\udcff")
    assert (sys.stdout, sys.stderr) == before


def test_the_width_of_the_screen_is_as_it_was_afterwards(monkeypatch):
    for before in ("1", None, "120"):
        monkeypatch.delenv("COLUMNS", raising=False)
        if before is not None:
            monkeypatch.setenv("COLUMNS", before)
        with wide_enough():
            assert int(os.environ["COLUMNS"]) >= 40
        assert os.environ.get("COLUMNS") == before


# Signals


@pytest.fixture
def signals():
    """Signals as in a terminal: the job of a shell in the background ignores Ctrl-C, one under nohup SIGHUP."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.usefixtures("signals")
def test_a_signal_ends_in_order_and_only_once(number, code):
    before = signal.getsignal(signal.SIGTERM)
    with ended_in_order() as ended:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        if number != signal.SIGINT:
            signal.raise_signal(number)  # as timeout sends it: to the process, and to its group
        assert ended.exit_code == code
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with ended_in_order():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_that_is_stopped_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(
        "bptt_trainers.training.trainer.Trainer.evaluate", lambda *_: signal.raise_signal(signal.SIGTERM)
    )
    assert main(TRAIN) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "  bptt resume run"


# Processes


def processes():
    """Of each process its parent and its command line; those that have ended and were not waited for are left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(folder.name)] = int(parent), (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def descendants(pid):
    found = processes()
    family = {pid}
    while grown := {one for one, (parent, _) in found.items() if parent in family} - family:
        family |= grown
    return {one: found[one][1] for one in family - {pid}}


def stopped_with_children(arguments, number, count, group, wait=0.0):
    """Start a command, send it a signal once so many processes work for it; what it ended with, who is left of them."""
    process = start(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        children = {}
        while len([line for line in children.values() if "bptt" in line or "spawn_main" in line]) < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
            children = descendants(process.pid)
        time.sleep(wait)
        children = descendants(process.pid)
        (os.killpg if group else os.kill)(process.pid, number)
        process.wait(60)
        deadline = time.monotonic() + 30  # where they still import, on a busy machine
        while time.monotonic() < deadline and children.keys() & processes().keys():
            time.sleep(0.05)
        return process.returncode, children.keys() & processes().keys()
    finally:
        process.kill()
        process.wait()


REPRODUCE = ["reproduce", "--tier", "smoke", "--experiments", "rules-cart-pole-1", "--jobs", "2"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_workers_end_with_their_parent(number, code):
    assert stopped_with_children(REPRODUCE, number, 2, group=False) == (code, set())


@LONG
@pytest.mark.parametrize("wait", [0.0, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_workers_end_with_their_parent_at_any_time(number, group, wait):
    code, left = stopped_with_children(REPRODUCE, number, 2, group, wait)
    assert code in (-signal.SIGKILL, 128 + number, 1)
    assert not left


@LONG
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "command", ["benchmark --parts cold-start --threads 1 --out out", "scale --axes horizon --out out"]
)
def test_measurements_end_with_their_parent(command, number):
    assert stopped_with_children(command.split(), number, 1, group=False, wait=5.0)[1] == set()
