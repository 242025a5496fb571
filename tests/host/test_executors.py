"""Executors: who trains does not change what comes of it, and a worker that dies costs its run's current epoch."""

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import cloudpickle
import gymnasium as gym
import pytest
from gymnasium.error import DependencyNotInstalled

from bptt_envs.registration import ENTRIES
from bptt_studies.paper.experiments import Amount, Experiment, Task, Variant
from bptt_studies.paper.results import read_curves
from bptt_studies.paper.work import runs_of, train_missing
from bptt_trainers.cli import main
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.methods import BPTT
from bptt_trainers.comparison.runs import member_folder
from bptt_trainers.host import processes, slurm_jobs, user_code
from bptt_trainers.host.executors import executor_name, opened
from bptt_trainers.host.work import Job
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.study import tune

SMALL = {"train_states": 16, "batch_size": 8, "hidden": (8,)}

# A system whose first process to have taken so many steps sends itself a signal, and keeps what was written until then
SYSTEM = """
import multiprocessing, os, shutil, sys
from pathlib import Path
import bptt_envs
from bptt_envs.systems import Integrator

taken = 0

class Hit(Integrator):
    def __init__(self, *, number: int = 9, horizon: int = 4):
        super().__init__(horizon=horizon)
        self.number = number

    def step(self, state, action):
        global taken
        taken += 1
        worker = multiprocessing.parent_process() is not None or "submitit.core._submit" in sys.orig_argv
        if worker and taken > 400 and not Path("hit.csv").exists():
            (books,) = Path("out").glob("runs/C-seed0/metrics.csv")
            shutil.copy(books, "hit.csv")
            os.kill(os.getpid(), self.number)
        return state + action


bptt_envs.register("Hit-v0", "hit_envs:Hit", "one that is hit")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hit_envs", raising=False)
    Path("hit_envs.py").write_text(SYSTEM)
    yield tmp_path
    ENTRIES.pop("Hit-v0", None)
    gym.registry.pop("Hit-v0", None)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def comparison(out, executor="local", number=signal.SIGKILL, **changes):
    settings = {
        "env": "hit_envs:Hit-v0",
        "env_options": {"number": int(number)},
        "methods": ("C", "R", "zero"),
        "seeds": (0,),
        "steps": 16 * 4 * 20,
        "test_states": 8,
        "overrides": {"C": SMALL, "R": SMALL},
        "together": False,
        "record": (),
        "executor": executor,
        "out": Path(out),
    }
    return compare(ComparisonConfig(**(settings | changes)), progress=False)


def numbers(comparison):
    return {key: [(p.simulator_steps, p.test_loss) for p in curve] for key, curve in comparison.curves.items()}


def goes_on_from_what_was_kept(out):
    """Whether the run that was hit kept its lines, with the seconds that they took, and added others."""
    before, after = Path("hit.csv").read_text(), (member_folder(Path(out), "C", 0) / "metrics.csv").read_text()
    assert before.count("\n") > 3
    return after.startswith(before) and after != before


def test_the_run_of_a_dask_worker_that_is_killed_goes_on_elsewhere_and_ends_alike(place, cluster):
    learned = {
        "methods": ("C", "zero")
    }  # another that learns might be done before by the worker that is hit, and count
    made = comparison("out", f"dask:{cluster.scheduler_address}", **learned)
    assert goes_on_from_what_was_kept("out")
    assert numbers(made) == numbers(comparison("alone", **learned))
    assert (Path("out") / "methods.md").exists()


def test_experiments_and_studies_of_settings_are_made_by_dask_workers_alike(place, cluster, monkeypatch):
    executor = f"dask:{cluster.scheduler_address}"
    task = Task("tiny", "a few steps", "DiffIntegrator-v0", {"horizon": 3}, (0.1,))
    tiny = Experiment("rules", task, (Variant("R", BPTT("R")),), Amount(2, 2, train_states=16, test_states=8))
    curves = []
    for folder, how in (("there", {"executor": executor}), ("here", {"jobs": 1})):
        runs = runs_of(tiny, "standard", Path(folder))
        train_missing(runs, Path(folder) / "results", folder=Path(folder), together=2, progress=False, **how)
        found = read_curves(Path(folder) / "results", tiny.name)
        curves.append({name: [point.test_loss for point in curve] for name, curve in found.items()})
    assert len(curves[0]) == 2
    assert curves[0] == curves[1]

    pinned = {"C": SMALL | {"learning_rate": 0.01}}
    settings = {"env": "DiffIntegrator-v0", "methods": ("C",), "trials": 2, "steps": 128, "seeds": 1, "confirm": 0}
    study = tune(TuneConfig(**settings, fix=pinned, jobs=2, executor=executor, out=Path("study")), progress=False)
    assert [one["state"] for one in study.trials] == ["complete"] * 2

    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with opened(executor, 1, place) as workers:
        answer = workers.submit(Job("C seed 3", os._exit, 1))
        with pytest.raises(ChildProcessError, match="C seed 3: its worker died"):
            answer.result()


def test_a_cluster_that_does_not_answer_is_told_in_words(place, monkeypatch, capsys):
    dask_workers = pytest.importorskip("bptt_trainers.host.dask_workers")
    monkeypatch.setattr(dask_workers, "PATIENCE", 0.2)
    command = "compare --methods zero --seeds 0 --steps 32 --test-states 8 --out out --executor dask:tcp://127.0.0.1:9"
    assert main(command.split()) == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err


def test_a_job_that_has_used_up_its_time_is_queued_again_and_ends_alike(place):
    pytest.importorskip("submitit")
    # Slurm, and submitit's own controller, tell a job that its time is up by this signal
    made = comparison("out", "submitit-local", signal.SIGUSR2, methods=("C",))
    assert goes_on_from_what_was_kept("out")
    assert numbers(made) == numbers(comparison("alone", number=signal.SIGUSR2, methods=("C",)))


def test_a_process_that_is_killed_is_replaced_and_its_work_begun_again(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "TRIES", 2)  # each starts a process
    kill = tmp_path / "kill"
    kill.touch()
    once = f"import os; os.path.exists({str(kill)!r}) and (os.remove({str(kill)!r}), os._exit(1))"
    with opened("local", 1, tmp_path) as workers:
        assert workers.submit(Job("once", exec, once)).result() is None
        with pytest.raises(ChildProcessError, match=r"C seed 3: its process was ended .*; the same command"):
            workers.submit(Job("C seed 3", os._exit, 1)).result()
    assert not kill.exists()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_process_that_a_signal_lets_exit_has_died(error, monkeypatch, tmp_path):
    answer = Future()
    answer.set_exception(error())
    with opened("local", 1, tmp_path) as workers:
        monkeypatch.setattr(workers, "_begun", lambda work: answer)
        with pytest.raises(ChildProcessError, match=r"C seed 3: its process was ended from outside 3 times"):
            workers.submit(Job("C seed 3", print)).result()


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Two folders with a module of one name, which a process like a long-lived worker takes work of."""
    monkeypatch.setattr(user_code, "_taken", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "their_envs.py").write_text(THEIRS.format(name))
    yield tmp_path
    for registry in (ENTRIES, gym.registry):
        registry.pop("Their-v0", None)
    sys.modules.pop("their_envs", None)


THEIRS = """
import bptt_envs
from bptt_envs.systems import Integrator

class Their(Integrator):
    says = {!r}

bptt_envs.register("Their-v0", "their_envs:Their", "one of theirs", reward_threshold=-0.5)
"""


def job(folder, monkeypatch):
    """What a process that reads the module of a folder for the first time hands out."""
    for registry in (ENTRIES, gym.registry):
        registry.pop("Their-v0", None)
    sys.modules.pop("their_envs", None)
    with monkeypatch.context() as here:
        here.setattr(sys, "path", [str(folder), *sys.path])
        importlib.invalidate_caches()
        importlib.import_module("their_envs")
        made = Job("theirs", says, env="Their-v0")
        sys.modules.pop("their_envs")
        return made


def says():
    return gym.make("Their-v0").unwrapped.system.says, gym.spec("Their-v0").reward_threshold


def test_a_process_takes_the_code_that_each_work_was_handed_out_with(theirs, monkeypatch):
    two = job(theirs / "two", monkeypatch)
    (theirs / "one" / "their_envs.py").write_text(THEIRS.format("edited"))
    edited = job(theirs / "one", monkeypatch)
    for registry in (ENTRIES, gym.registry):
        registry.pop("Their-v0", None)
    assert two() == ("two", -0.5)
    path = [*sys.path]
    assert edited() == ("edited", -0.5)
    assert sorted(sys.path) == sorted({*path, str(theirs / "one")})  # it does not grow with every work
    assert two() == ("two", -0.5)


def test_work_that_is_abandoned_leaves_the_processes_of_others_alone(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(30,))
    other.start()
    try:
        with opened("local", 1, tmp_path) as workers:
            assert workers.submit(Job("once", exec, "pass")).result() is None
            workers.abandon()  # as after Ctrl-C
        assert other.is_alive()
    finally:
        other.kill()


def test_a_file_of_a_scheduler_that_is_not_there_is_told_at_once(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(ConnectionError, match="there is no file nowhere"), opened("dask:nowhere.json", 1, tmp_path):
        pass


@pytest.mark.parametrize(("executor", "module"), [("dask:tcp://there:8786", "distributed"), ("slurm", "submitit")])
def test_an_executor_without_its_library_is_refused_with_the_extra(executor, module, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(DependencyNotInstalled, match=rf"{module}: pip install 'stable-bptt\[\w+\]'"),
        opened(executor, 1, tmp_path),
    ):
        pass
    command = f"compare --methods zero --seeds 0 --steps 32 --test-states 8 --out {tmp_path} --executor {executor}"
    assert main(command.split()) == 1
    assert "pip install 'stable-bptt[" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("srun"), reason="there is Slurm here")
def test_slurm_that_is_not_there_is_told_in_words(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(OSError, match="there is no Slurm here"), opened("slurm:partition=cpu", 1, tmp_path):
        pass


SLURM = {
    "sbatch": 'cp "$1" {place}/script; echo Submitted batch job 12',
    "scancel": "echo $1 >> {place}/gone",
    "srun": "",
    "sacct": "",
}


def slurm(tmp_path, monkeypatch, **programs):
    """Programs in the place of Slurm's."""
    pytest.importorskip("submitit")
    for name, text in (SLURM | programs).items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text.replace('{place}', str(tmp_path))}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_jobs, "EVERY", 0.05)


def waited_for(holds):
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def test_jobs_of_slurm_are_one_array_with_the_settings_that_were_given(tmp_path, monkeypatch):
    slurm(tmp_path, monkeypatch)
    executor = "slurm:partition=cpu,account=us,timeout_min=90,mem_gb=3,cpus_per_task=2,at_once=1"
    jobs = [Job(f"C seed {number}", print) for number in range(2)]
    with opened(executor, 1, tmp_path) as workers:
        for work in jobs:  # at once: what is handed in together is one array
            workers.submit(work)
        assert waited_for((tmp_path / "jobs" / "12_1_submitted.pkl").exists)
        workers.abandon()  # as after Ctrl-C
    script = (tmp_path / "script").read_text()
    given = ("partition=cpu", "account=us", "time=90", "mem=3GB", "cpus-per-task=2")
    for line in (*given, "array=0-1%1", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script
    assert (tmp_path / "gone").read_text().split() == ["12_0", "12_1"]


REFUSING = """
echo call >> {place}/calls
if [ -e {place}/full ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
echo Submitted batch job $(wc -l < {place}/calls)"""


def test_what_slurm_refuses_is_handed_in_again_and_costs_no_other_job(tmp_path, monkeypatch):
    slurm(tmp_path, monkeypatch, sbatch=REFUSING)
    monkeypatch.setattr(slurm_jobs, "WAIT", 0.05)
    calls, full, jobs = tmp_path / "calls", tmp_path / "full", tmp_path / "jobs"

    def called():
        return len(calls.read_text().split()) if calls.exists() else 0

    def answer(job, outcome):
        (jobs / f"{job}_0_result.pkl").write_bytes(outcome)

    with opened("slurm", 1, tmp_path) as workers:
        first = workers.submit(Job("C seed 0", print))
        assert waited_for((jobs / "1_submitted.pkl").exists)
        full.touch()
        second = workers.submit(Job("C seed 1", print))
        assert waited_for(lambda: called() >= 2)
        full.unlink()
        assert waited_for(lambda: len(list(jobs.glob("?_submitted.pkl"))) == 2)  # on another try
        (later,) = {path.name[0] for path in jobs.glob("?_submitted.pkl")} - {"1"}
        full.touch()
        before = called()
        third = workers.submit(Job("C seed 2", print))
        assert waited_for(lambda: called() == before + slurm_jobs.TRIES)
        answer(1, cloudpickle.dumps(("success", ("of the first", None))))
        assert first.result(timeout=60) == "of the first"
        assert not third.done()
        answer(later, b"no pickle")
        with pytest.raises(ChildProcessError, match="C seed 1: its answer cannot be read"):
            second.result(timeout=60)
        with pytest.raises(OSError, match="C seed 2: Slurm refused it 3 times: sbatch: error: QOSMaxSubmitJob"):
            third.result(timeout=60)
    assert called() == before + slurm_jobs.TRIES


def test_a_machine_without_the_folder_of_the_command_says_so(place):
    job = Job("C seed 3", print)
    place.rename(place.with_name("elsewhere"))
    os.chdir("/")
    with pytest.raises(ChildProcessError, match=rf"C seed 3: .* has no folder {place}"):
        job()
    place.with_name("elsewhere").rename(place)


@pytest.mark.parametrize(
    "name",
    ["Local", "dask", "dask:", "slurm:nodes=2", "slurm:timeout_min=0", "slurm:timeout_min=1h", "slurm:qos", 3, None],
)
def test_names_of_no_executor_are_refused_in_words(name):
    with pytest.raises(ValueError, match="executor"):
        executor_name("executor", name)


def test_names_of_executors_are_taken_as_they_are():
    for name in ("local", "dask:scheduler.json", "slurm", "slurm:partition=cpu,timeout_min=120", "submitit-local"):
        assert executor_name("executor", name) == name
