"""The benchmark: peers compute the same, files hold what was measured, the page and the targets follow from them."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recorded import Recorded

from bptt_studies.benchmarks import limit, peers, rl, run, stepping, targets, update_memory
from bptt_studies.benchmarks.config import PART_NAMES, BenchmarkConfig, file_of
from bptt_studies.benchmarks.document import TARGETS, tables
from bptt_studies.benchmarks.parts import PARTS
from bptt_studies.benchmarks.peers import PEERS, LeftOut, autograd_bytes
from bptt_studies.benchmarks.timing import LEAST_REPEATS, in_turns_within
from bptt_studies.benchmarks.updates import make_task
from bptt_studies.benchmarks.worker import measure_apart
from bptt_trainers import policy_gradient
from bptt_trainers.cli import main
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.rules import PAPER_RULES, REGULAR
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.options import read_options, write_options
from bptt_trainers.records.page import PLACE, filled
from bptt_trainers.records.tables import markdown, number, read_lines, to_csv

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_task(env="DiffCartPole-v0", batch=4, config=None, **options):
    cell = {"env": env, "options": write_options(options), "device": "cpu", "threads": 1, "batch": batch}
    return make_task(config or BenchmarkConfig(env=env, unrolled_batches=(batch,)), cell)


# Peers

JAX = """
import torch
from bptt_trainers import policy_gradient
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.peers import PEERS
from bptt_studies.benchmarks.updates import make_task

torch.set_num_threads(1)
cell = {"env": "DiffCartPole-v0", "options": "", "threads": len(__import__("os").sched_getaffinity(0)), "batch": 16}
task = make_task(BenchmarkConfig(), cell)
update = PEERS["jax"](task)
for rule in PAPER_RULES:
    update(rule)
    loss, directions = update.directions(rule)
    wanted = policy_gradient(task.system, task.controller, task.states, rule, "autograd")
    assert directions.keys() == wanted.directions.keys()
    print("loss", abs(loss / float(wanted.loss) - 1))
    for name, direction in wanted.directions.items():
        print(rule, name, float((directions[name] - direction).norm() / direction.norm()))
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is an extra")
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="binds no process to cores")
def test_jax_computes_the_same_loss_and_directions():
    """In a process of its own: once imported, JAX warns whenever the process forks."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", JAX],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )
    assert done.returncode == 0, done.stderr
    found = [line.rpartition(" ") for line in done.stdout.splitlines()]
    assert len(found) == len(PAPER_RULES) * (1 + 6)
    assert {what: float(value) for what, _, value in found if float(value) > 1e-4} == {}


@pytest.mark.parametrize("peer", ["adjoint", "autograd", "autograd-step-compiled", "autograd-loss-compiled"])
@pytest.mark.parametrize("env", ["DiffCartPole-v0", "DiffQuantumControl-v0", "DiffGuidance-v0"])
def test_every_peer_computes_the_update(peer, env, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # what it is given is what is tested here
    task = a_task(env, horizon=5)
    update = PEERS[peer](task)
    for rule in PAPER_RULES:
        loss, directions = update(rule)
        wanted = policy_gradient(task.system, task.controller, task.states, rule, "autograd")
        torch.testing.assert_close(loss, wanted.loss)
        for name, direction in wanted.directions.items():
            torch.testing.assert_close(directions[name], direction, rtol=1e-4, atol=1e-5)


def test_who_cannot_take_part_is_left_out_in_words(monkeypatch):
    with pytest.raises(LeftOut, match="--unrolled-batches"):
        PEERS["autograd-loss-compiled"](a_task(config=BenchmarkConfig(unrolled_batches=(64,))))
    small = BenchmarkConfig(memory_gib=1e-6)
    for peer in ("autograd", "autograd-step-compiled", "autograd-loss-compiled"):
        with pytest.raises(LeftOut, match=r"needs some \d.* GiB|--unrolled-batches"):
            PEERS[peer](a_task(config=small))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LeftOut, match=re.escape('pip install -e ".[bench]"')):
        PEERS["jax"](a_task())


@pytest.mark.parametrize(
    ("env", "options"),
    [("DiffGuidance-v0", {}), ("DiffMultiPole-v0", {}), ("DiffCartPole-v0", {"max_force": 50.0})],
)
def test_jax_is_left_out_of_what_it_was_not_written_for(env, options, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(LeftOut, match="written for DiffCartPole-v0"):
        PEERS["jax"](a_task(env, **options))


def test_a_failing_compiler_leaves_the_peer_out(monkeypatch):
    def fail(*arguments):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    with pytest.raises(LeftOut, match=r"TorchDynamoException: no compiler$"):
        PEERS["autograd-step-compiled"](a_task())("R")


def test_what_autograd_keeps_is_extrapolated_from_its_first_steps():
    task = a_task(batch=32, horizon=30)
    storages = {}

    def see(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        kept = AutogradEngine(task.system, task.controller).unrolled_losses(task.states, REGULAR)
    assert kept.requires_grad
    wanted = peers.RESIDENT * sum(storages.values())
    assert autograd_bytes(task.system, task.controller, task.states) == pytest.approx(wanted, rel=0.02)


# The limit


def test_the_products_of_a_controller_are_those_of_its_layers():
    task = a_task(batch=3, horizon=7)
    layers = [(4, 100), (100, 100), (100, 1)]
    products = [2 * 3 * 7 * inputs * outputs for inputs, outputs in layers]
    forward, by_weights, by_inputs = sum(products), sum(products), sum(products)
    above_the_first = by_inputs - products[0]
    found = {
        name: 1e9 * limit.controller_gflop(task.system, task.controller, task.states, rule.passes)
        for name, rule in PAPER_RULES.items()
    }
    assert found["S"] == found["M"] == pytest.approx(forward + by_weights + above_the_first)
    assert found["R"] == pytest.approx(forward + by_weights + by_inputs)
    assert found["C"] == pytest.approx(forward + 2 * by_weights + by_inputs)


def test_the_limit_is_that_of_the_fastest_size(monkeypatch):
    monkeypatch.setattr(limit, "SIZES", {"cpu": (16, 64)})
    rows = limit.measure(BenchmarkConfig(), {"device": "cpu", "threads": 1})
    assert [row["size"] for row in rows] == [16, 64]
    assert all(0 < row["least"] <= row["gflops"] <= row["largest"] for row in rows)
    speeds = {16: {"gflops": 2.0}, 64: {"gflops": 7.0}}
    monkeypatch.setattr(limit, "product_speeds", lambda device: speeds)
    assert limit.matrix_limit("cpu") == 7.0
    assert limit.share(gflop=3.5, limit=7.0, seconds=2.0) == 0.25


# Timing


def test_programs_take_turns_as_often_as_asked_for_at_most():
    calls = []
    timings, repeats = in_turns_within({name: lambda name=name: calls.append(name) for name in "ab"}, 1e9, 4)
    assert repeats == 4
    assert set(timings) == {"a", "b"}
    assert calls[:2] == ["a", "b"]  # the estimate
    runs = "".join(calls[2:])
    in_a_row = [len(block) for block in re.findall("a+|b+", runs)]
    assert len(in_a_row) == 2 * (1 + repeats)  # a warm-up, then the repeats
    assert len(set(in_a_row[::2])) == len(set(in_a_row[1::2])) == 1
    assert in_turns_within({"a": lambda: None}, 1e-9, 9)[1] == LEAST_REPEATS
    assert in_turns_within({}, 1.0, 9)[0] == {}


# Files


def test_options_are_read_as_they_were_written():
    options = {"objective": "final", "n_points": 64, "weighting": None, "A": [[1.0, 0.2], [0.0, 1.0]]}
    assert read_options(write_options(options)) == options
    assert read_options(write_options({})) == {}


@pytest.fixture
def measured(monkeypatch):
    """Measurements that take no time: every cell gives a row that says how many were asked for."""
    asked = []

    def measure(name, config, cell):
        asked.append((name, *cell.values()))
        return [cell | {"size": 2, "gflops": len(asked), "machine": "m", "versions": "v"}]

    monkeypatch.setattr(run, "measure_apart", measure)
    return asked


def lines_of(name):
    with Path("out", f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


ONE, BOTH = BenchmarkConfig(parts=("limit",), threads=(1,)), BenchmarkConfig(parts=("limit",), threads=(1, 2))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(run, "available_cores", lambda: (0, 1))


@pytest.mark.usefixtures("two_cores")
def test_what_is_there_is_not_measured_again(measured):
    run.run(BenchmarkConfig(parts=("limit",), threads=(2,)), Path("out"))
    before = lines_of("limit")
    run.run(BOTH, Path("out"))
    assert measured == [("limit", "cpu", 2), ("limit", "cpu", 1)]
    assert [line["threads"] for line in lines_of("limit")] == ["1", "2"]
    assert lines_of("limit")[1:] == before
    assert Path("out/limit.md").read_text() == PARTS["limit"].markdown(lines_of("limit")) + "\n"
    run.run(BOTH, Path("out"), redo=True)
    assert len(measured) == 4
    assert [line["gflops"] for line in lines_of("limit")] == ["3", "4"]


@pytest.mark.usefixtures("two_cores")
def test_the_settings_of_a_part_say_how_busy_the_machine_was_at_each_go(measured, monkeypatch):
    loads = iter([0.1, 1.2, 0.3, 2.4, 0.5, 1.6, 1.7])
    monkeypatch.setattr(run, "load_average", lambda: next(loads))

    def noted():
        return json.loads(Path("out/limit.json").read_text())["load_average"]

    run.run(ONE, Path("out"))
    assert noted() == [{"before": 0.1, "after": 1.2}]
    run.run(BOTH, Path("out"))
    assert noted() == [{"before": 0.1, "after": 1.2}, {"before": 0.3, "after": 2.4}]
    run.run(BOTH, Path("out"), redo=True)
    assert noted() == [{"before": 0.5, "after": 1.7}]


@pytest.mark.usefixtures("two_cores")
def test_numbers_of_another_machine_or_setting_are_not_mixed_in(measured, monkeypatch):
    run.run(ONE, Path("out"))
    written = Path("out/limit.csv").read_bytes()
    monkeypatch.setattr(run, "machine", lambda device: "another one")
    with pytest.raises(RunFolderError, match=r"(?s)machine: .* in the folder, 'another one' now.*--redo"):
        run.run(BOTH, Path("out"))
    assert Path("out/limit.csv").read_bytes() == written
    run.run(BOTH, Path("out"), redo=True)
    assert json.loads(Path("out/limit.json").read_text())["machine"] == "another one"


@pytest.mark.parametrize("part", PART_NAMES)
@pytest.mark.usefixtures("two_cores")
def test_every_setting_that_a_part_names_makes_other_numbers(part, measured, monkeypatch):
    assert set(PARTS[part].settings) <= set(BenchmarkConfig.__dataclass_fields__)
    for cell in PARTS[part].cells(BenchmarkConfig()):
        assert int(cell["threads"]) in BenchmarkConfig().threads
        assert cell["device"] == "cpu"
    assert len({tuple(cell.items()) for cell in PARTS[part].cells(BenchmarkConfig())}) == len(
        PARTS[part].cells(BenchmarkConfig())
    )


@pytest.mark.usefixtures("two_cores")
def test_ctrl_c_keeps_what_is_finished(measured, monkeypatch, capsys):
    measure = run.measure_apart

    def stopped(name, config, cell):
        if cell["threads"] == 2:
            raise KeyboardInterrupt
        return measure(name, config, cell)

    monkeypatch.setattr(run, "measure_apart", stopped)
    assert main(shlex.split("benchmark --parts limit --threads 1 2 --out out")) == 130
    assert "what is finished is kept" in capsys.readouterr().err
    assert [line["threads"] for line in lines_of("limit")] == ["1"]


def test_more_threads_than_cores_are_refused(capsys):
    assert main(shlex.split("benchmark --threads 10000 --out out")) == 2
    assert "threads must be at most the" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--parts update", "updates"),
        ("--batch-sizes 8 8", "batch_sizes must be at least one, each once; got (8, 8)"),
        ("--repeats 0", "repeats must be an integer of at least 1; got 0"),
        ("--seconds 0", "seconds must be a finite number above 0; got 0.0"),
        ("--env DiffCartpole-v0", "Did you mean 'DiffCartPole-v0'?"),
        ("--env-option horizont=3", "Did you mean 'horizon'?"),
    ],
)
def test_misuse_is_explained(arguments, said, capsys):
    assert main(shlex.split(f"benchmark {arguments}")) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure_on_one(capsys):
    assert main(shlex.split("benchmark --device cuda --threads 1 --out out")) == 0
    assert "no GPU" in capsys.readouterr().err
    assert not Path("out").exists()


# Real measurements, the smallest


def test_a_process_of_its_own_measures_on_so_many_cores():
    config = BenchmarkConfig(parts=("updates",), batch_sizes=(2,), threads=(1,), peers=("adjoint", "autograd", "jax"))
    config = BenchmarkConfig(**{**vars(config), "env_options": {"horizon": 3}, "repeats": 1, "seconds": 0.01})
    (cell,) = PARTS["updates"].cells(config)
    rows = measure_apart("updates", config, cell)
    assert {(row["peer"], row["rule"]) for row in rows if not row["left_out"]} >= {
        (peer, rule) for peer in ("adjoint", "autograd") for rule in PAPER_RULES
    }
    for row in rows:
        assert cell.items() <= row.items()
        if not row["left_out"]:
            assert 0 < row["least"] <= row["milliseconds"] <= row["largest"]
            assert row["share"] == pytest.approx(
                row["gflop"] / row["limit_gflops"] / (1e-3 * row["milliseconds"]), rel=0.02
            )
    assert all("JAX takes a thread for each core" not in str(row["left_out"]) for row in rows)


def test_a_measurement_that_fails_says_why():
    config = BenchmarkConfig(seconds=0.01, repeats=1)
    with pytest.raises(ChildProcessError, match=r"(?s)measuring stepping \(threads 1, envs 0\) failed:.*Traceback"):
        measure_apart("stepping", config, {"threads": 1, "envs": 0})


def test_memory_of_an_update_is_measured_or_left_out():
    config = BenchmarkConfig(threads=(1,), horizons=(3,))
    adjoint, autograd = PARTS["memory"].cells(config)
    (row,) = update_memory.measure(config, adjoint)
    assert row["peak_mib"] > 0
    assert row["states_mib"] == pytest.approx(256 * 4 * (4 * 4 + 3) / 2**20, rel=1e-3)
    (row,) = update_memory.measure(BenchmarkConfig(memory_gib=1e-6), autograd)
    assert row["peak_mib"] == ""
    assert "more than 1e-06 GiB" in row["left_out"]


# Tables, targets, the page


def test_ppo_is_timed_by_the_number_of_environments_beside_their_stepping(monkeypatch):
    monkeypatch.setattr(rl, "ENVS", (2, 64))
    monkeypatch.setattr(rl, "STEPS", 640)
    cell = {"device": "cpu", "threads": 1, "env": rl.ENV, "steps": rl.STEPS}
    rows = rl.measure(BenchmarkConfig(repeats=1, seconds=0.01), cell)
    assert [row["envs"] for row in rows] == [2, 64]
    assert all(0.0 < float(row["stepping"]) < float(row["least"]) <= float(row["microseconds"]) for row in rows)
    assert "| 1 | 64 | 10 | " in rl.to_markdown([{name: str(value) for name, value in row.items()} for row in rows])


def test_numbers_are_written_for_readers():
    assert [number(text) for text in ("0.04213", "1.5", "21.26", "345.678", "12345.6", "")] == [
        "0.0421",
        "1.50",
        "21.3",
        "346",
        "12,346",
        "–",
    ]
    table = markdown([{"peer": "a", "ms": "1.5"}, {"peer": "b", "ms": "–"}])
    assert table == "| peer | ms |\n| --- | ---: |\n| a | 1.5 |\n| b | – |"


CART_POLE = {"env": "DiffCartPole-v0", "options": "", "device": "cpu"}


def update_rows(threads, batch, peer, milliseconds):
    cell = {**CART_POLE, "threads": threads, "batch": batch, "peer": peer}
    timed = {"least": 1, "largest": 999, "share": 0.1, "first_seconds": 0.5, "left_out": ""}
    return [
        cell | {"rule": rule, "milliseconds": ms} | timed for rule, ms in zip(PAPER_RULES, milliseconds, strict=True)
    ]


def write(name, rows):
    path = file_of(Path("out"), name, "csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_csv(rows))


def judged():
    return {row["what"]: row for row in targets.judge(Path("out"))}


def test_the_worst_place_decides_a_target():
    rows = [
        *update_rows(1, 8, "adjoint", (10, 10, 10, 12)),
        *update_rows(1, 8, "autograd", (70, 70, 30, 90)),
        *update_rows(1, 8, "jax", (3, 3, 3, 4)),
        *update_rows(2, 8, "adjoint", (10, 10, 10, 11)),
        *update_rows(2, 8, "autograd", (70, 70, 30, 60)),
        *update_rows(2, 1024, "adjoint", (100, 100, 100, 130)),
    ]
    write("updates", rows)
    found = judged()
    assert found["C / R, adjoint engine"]["measured, where it is worst"] == "1.30 (threads 2, batch 1024)"
    assert found["C / R, adjoint engine"]["met"] == "no"
    faster = found["C, times as fast as autograd, batch 8"]
    assert (faster["measured, where it is worst"], faster["met"]) == ("5.45 (threads 2, batch 8)", "no")
    beside_jax = found["C, time over JAX's, batch 8"]
    assert (beside_jax["measured, where it is worst"], beside_jax["met"]) == ("3.00 (threads 1, batch 8)", "yes")
    assert found["C, time over JAX's, batch 1024"]["measured, where it is worst"] == "not measured"


def test_every_target_follows_from_the_files():
    write(
        "updates",
        [
            row
            for batch in (8, 64, 256, 1024)
            for peer in ("adjoint", "adjoint-compiled", "autograd", "jax")
            for row in update_rows(1, batch, peer, (1, 1, 1, 1))
        ],
    )
    quantum = {**CART_POLE, "env": "DiffQuantumControl-v0", "options": "n_points=32", "threads": 2, "batch": 8}
    write(
        "quantum",
        [quantum | {"peer": peer, "rule": "C", "milliseconds": 50} for peer in ("adjoint", "adjoint-compiled")],
    )
    member = {"threads": 2, "batch": 8}
    write(
        "ensembles",
        [
            member | {"engine": engine, "members": count, "milliseconds": 10 * count}
            for engine in ("adjoint", "adjoint-compiled")
            for count in (1, 8)
        ],
    )
    write("memory", [{"engine": "adjoint", "horizon": 10000, "threads": 1, "batch": 256, "peak_mib": 1000}])
    starts = {"eager": 2500, "compiled, first time": 15_001, "compiled, again": 1499}
    write("cold-start", [{"threads": 2, "batch": 8, "mode": mode, "milliseconds": ms} for mode, ms in starts.items()])
    way = {"threads": 1, "rule": "C", "states": 16, "batch": 64, "actions": 1}
    took = {"jacobian": ("yes", 15), "products": ("", 10), "autograd": ("", 1)}
    write("slopes", [way | {"way": one, "taken": taken, "milliseconds": ms} for one, (taken, ms) in took.items()])
    steps = {stepping.OURS: 1e6, stepping.COMPILED: 3e6, stepping.NUMPY: 2e6}
    write(
        "stepping",
        [
            {"device": "cpu", "threads": 1, "envs": 1024, "stepper": name, "steps_per_second": rate}
            for name, rate in steps.items()
        ],
    )
    found = judged()
    assert {row["met"] for row in found.values()} == {"yes", "no"}
    assert [what for what, row in found.items() if row["met"] == "no"] == [
        "C, times as fast as autograd, batch 8",
        "C, times as fast as autograd, batch 1024",
        "C, times as fast as autograd, batch 8, compiled",
        "C, times as fast as autograd, batch 1024, compiled",
        "eight members together, batch 8, time over one",
        "eight members together, batch 8, compiled, time over one",
        "quantum C, 32 points, batch 8",
        "quantum C, 32 points, batch 8, compiled",
        "from the imports to the first update, default settings, compiled, first time",
        "slopes of the controller, the form taken over the better one",
        "steps a second of 1,024 environments over Gymnasium's",
        "steps a second of 1,024 environments over Gymnasium's, compiled",
    ]
    slopes = found["slopes of the controller, the form taken over the better one"]["measured, where it is worst"]
    assert slopes == "1.50 (threads 1, rule C, states 16, batch 64, actions 1)"
    assert found["quantum C, 32 points, batch 8"]["measured, where it is worst"] == "50.0 ms (threads 2, batch 8)"
    assert found["steps a second of 1,024 environments over Gymnasium's"]["target"] == "at least 1.00"


def test_a_table_of_updates_says_who_was_left_out_and_why():
    left_out = dict.fromkeys(update_rows(1, 8, "adjoint", (1, 1, 1, 1))[0], "")
    left_out |= {**CART_POLE, "threads": 1, "batch": 8, "peer": "jax", "left_out": "not installed"}
    write("updates", [*update_rows(1, 8, "adjoint", (10, 10, 10, 12)), left_out])
    table, reasons = tables(Path("out"))["updates"].split("\n\nLeft out:\n\n")
    assert (
        table.splitlines()[2]
        == "| 1 | 8 | adjoint | 10.0 | 10.0 | 10.0 | 12.0 (1.00 to 999) | 1.20 | – | 10 % | 2.00 |"
    )
    assert reasons == "- jax (batch 8 threads 1): not installed."


def test_a_page_gets_the_tables_between_its_marks_and_nothing_else():
    write("limit", [{"device": "cpu", "threads": 1, "size": 2, "gflops": 7, "machine": "m", "versions": "v"}])
    page = "# A\n<!-- limit -->\nold\n<!-- end -->\nwords\n<!-- updates -->\nkept\n<!-- end -->\n"
    new = filled(page, tables(Path("out")))
    assert new == filled(new, tables(Path("out")))
    assert new.startswith("# A\n<!-- limit -->\n\nGFLOP/s")
    assert new.endswith("<!-- end -->\nwords\n<!-- updates -->\nkept\n<!-- end -->\n")


def test_a_page_without_a_place_is_refused(measured, capsys):
    Path("page.md").write_text("# A\n")
    command = "benchmark --parts limit --threads 1 --out out --document page.md"
    assert main(shlex.split(command)) == 1
    assert "page.md has no place for a table" in capsys.readouterr().err
    assert measured == []


def measured_parts():
    return [name for name in PARTS if file_of(RESULTS, name, "csv").exists()]


def test_the_page_of_the_documentation_shows_what_its_files_hold():
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text, tables(RESULTS)) == text
    assert sorted(place["name"] for place in PLACE.finditer(text)) == sorted([*measured_parts(), TARGETS])


def test_the_tables_beside_the_page_show_what_its_files_hold():
    shown = tables(RESULTS)
    assert shown.keys() == {*measured_parts(), TARGETS}
    for name, table in shown.items():
        assert file_of(RESULTS, name, "md").read_text(encoding="utf-8") == table + "\n"
    for name in measured_parts():
        assert read_lines(file_of(RESULTS, name, "csv"))
        assert file_of(RESULTS, name, "json").exists()


@pytest.mark.parametrize(
    "change", [(r"(adjoint,R,\d+),[^,]+", r"\1,many"), ("milliseconds", "minutes"), ("adjoint,R", "adjoint")]
)
def test_damaged_numbers_are_an_error_in_words(tmp_path, change):
    path = tmp_path / "updates.csv"
    shutil.copy(RESULTS / "updates.csv", path)
    tables(tmp_path)
    path.write_text(re.sub(*change, path.read_text()))
    with pytest.raises(RunFolderError, match=r"updates\.csv"):
        tables(tmp_path)


def test_the_command_writes_tables_numbers_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "measure_apart", lambda part, config, cell: PARTS[part].measure(config, cell))
    monkeypatch.setattr("bptt_envs.program.Program", Recorded)
    few = "--parts stepping --threads 1 --envs 1 --repeats 1 --seconds 0.01"
    assert main(shlex.split(f"benchmark {few} --out it")) == 0
    said = capsys.readouterr().out
    assert "| 1 | DiffCartPole-v0, one batch | " in said
    assert "| steps a second of 1,024 environments over Gymnasium's | at least 1.00 | not measured | – |" in said
    names = {f"stepping.{suffix}" for suffix in ("csv", "json", "md", "pdf", "png")}
    assert {path.name for path in Path("it").iterdir()} == {*names, "targets.md"}
