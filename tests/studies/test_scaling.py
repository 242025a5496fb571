"""How a task grows: peak memory of a process, points that are measured once, slopes and limits."""

import csv
import dataclasses
import math
import re
import shlex
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from bptt_studies.benchmarks.memory import MIB, MemoryExceeded, MemoryMeasurementError, peak_memory
from bptt_studies.scaling import run as scaling_run
from bptt_studies.scaling.config import AXES, Axis, Growth, ScalingConfig
from bptt_studies.scaling.figure import scaling_figure
from bptt_studies.scaling.file import COLUMNS, read_measurements
from bptt_studies.scaling.run import scale
from bptt_studies.scaling.tables import by_axis, limits, reach, report, slopes
from bptt_trainers import TrainConfig, Trainer
from bptt_trainers.cli import main
from bptt_trainers.records.files import RunFolderError

DOCS = Path(__file__).parents[2] / "docs"

PROGRAMS = """
import os
import torch

def fill(mib):
    torch.ones(8 * 2**18)
    return lambda: torch.ones(mib * 2**18)

def prepared(mib):
    kept = torch.ones(mib * 2**18)
    return lambda: kept.sum()

def fails():
    return lambda: 1 / 0

def ends(signal):
    return lambda: os.kill(os.getpid(), signal)

def quits():
    return lambda: os._exit(3)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A module that a new process can import, too."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "programs_to_measure.py").write_text(PROGRAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import programs_to_measure

        yield programs_to_measure


# Peak memory


def test_peak_memory_is_what_a_program_touches(programs):  # and one of 200 MiB below
    assert peak_memory(programs.fill, mib=10) / MIB == pytest.approx(10, rel=0.03)


def test_what_was_prepared_does_not_count(programs):
    assert peak_memory(programs.prepared, mib=200) < 5 * MIB


def test_a_program_within_its_limit_is_measured_and_one_beyond_it_stopped(programs):
    assert peak_memory(programs.fill, limit=300 * MIB, mib=200) / MIB == pytest.approx(200, rel=0.03)
    with pytest.raises(MemoryExceeded, match=r"fill needs more memory than the 100 MiB allowed"):
        peak_memory(programs.fill, limit=100 * MIB, mib=200)


def test_an_error_in_the_process_is_told_with_its_traceback(programs):
    with pytest.raises(MemoryMeasurementError, match=r"(?s)fails failed in its process.*ZeroDivisionError") as error:
        peak_memory(programs.fails)
    assert not isinstance(error.value, MemoryExceeded)


def test_a_process_that_is_killed_is_told_as_for_want_of_memory(programs):
    with pytest.raises(MemoryExceeded, match=r"ended by SIGKILL, as happens where there is no more memory"):
        peak_memory(programs.ends, signal=9)


def test_a_process_that_ends_otherwise_is_told_so(programs):
    with pytest.raises(MemoryMeasurementError, match=r"ends was ended by SIGTERM") as error:
        peak_memory(programs.ends, signal=15)
    assert not isinstance(error.value, MemoryExceeded)
    with pytest.raises(MemoryMeasurementError, match=r"exit code 3 and no result"):
        peak_memory(programs.quits)


def test_what_no_process_could_run_is_refused(programs):
    with pytest.raises(ValueError, match="target must be a function at the top of a module"):
        peak_memory(lambda: print)
    with pytest.raises(ValueError, match="limit must be an integer of at least 1; got 0"):
        peak_memory(programs.fill, limit=0, mib=1)


# The axes


@pytest.mark.parametrize("name", AXES)
def test_every_axis_grows_and_its_environments_can_be_made(name):
    axis = AXES[name]
    points = axis.points(name)
    assert [point.size for point in points] == sorted({point.size for point in points})
    for point in points[:1] + points[-1:]:
        system = gym.make(point.env, **point.options).unwrapped.system
        for option, value in point.options.items():
            assert getattr(system, option) == value
    assert axis.time.slope > 0
    assert axis.memory.slope > 0


def test_all_but_the_axis_is_as_in_the_paper():
    by_name = {name: axis.points(name) for name, axis in AXES.items()}
    assert {p.batch for name, points in by_name.items() for p in points if name != "batch"} == {8}
    assert {p.hidden for name, points in by_name.items() for p in points if name != "hidden"} == {None}
    assert [p.batch for p in by_name["batch"]] == [1, 4, 16, 64, 256, 1024, 4096]
    assert by_name["hidden"][-1].hidden == (1024, 1024)
    assert by_name["agents"][0].options == {"n_drivers": 2, "n_evaders": 4}
    assert (by_name["agents"][0].value, by_name["agents"][0].size) == ("2+4", 6)


# Measuring


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Axes of tasks that take no time, and a folder."""
    before = dict(AXES)
    AXES.clear()
    growth = Growth(1, "it does")
    AXES["short"] = Axis("steps", "DiffIntegrator-v0", ("horizon",), ((2,), (4,)), growth, growth)
    AXES["wide"] = Axis("units", "DiffCartPole-v0", ("hidden",), ((4,), (8,)), growth, growth, {"horizon": 40})
    monkeypatch.setattr(scaling_run, "peak_memory", lambda target, limit, point, config: 2**20 * point.size)
    monkeypatch.chdir(tmp_path)
    yield ScalingConfig(axes=("short", "wide"), repeats=2, updates=2, test_states=4, out=tmp_path / "out")
    AXES.clear()
    AXES.update(before)  # in the order in which they were, which monkeypatch would turn round


def test_a_point_is_written_as_soon_as_it_is_finished_and_measured_once(tiny, monkeypatch):
    real, calls = scaling_run._losses, []

    def interrupted(system, controller, point, config):
        calls.append(point.value)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(system, controller, point, config)

    monkeypatch.setattr(scaling_run, "_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scale(tiny)
    (kept,) = read_measurements(tiny.out / "scaling.csv")
    assert (kept.axis, kept.value) == ("short", "2")
    rows = scale(tiny)
    assert calls == ["2", "4", "4", "4", "8"]
    assert rows[0] == kept
    assert [(row.axis, row.value) for row in rows] == [("short", "2"), ("short", "4"), ("wide", "4"), ("wide", "8")]
    assert rows == read_measurements(tiny.out / "scaling.csv")


def test_a_line_says_what_was_measured(tiny):
    row = scale(tiny)[-1]
    assert (row.env, row.options, row.batch, row.horizon, row.hidden) == ("DiffCartPole-v0", "horizon=40", 8, 40, "8 8")
    assert (row.rule, row.engine, row.threads, row.device, row.repeats) == ("C", "adjoint", 1, "cpu", 2)
    assert 0 < row.least <= row.milliseconds <= row.largest
    assert (row.peak_mib, row.updates, row.skipped) == (8.0, 2, 0)
    assert torch.__version__ in row.versions


def test_the_losses_are_those_of_the_trainer(tiny):
    config = dataclasses.replace(tiny, axes=("wide",), updates=3)
    system = gym.make("DiffCartPole-v0", horizon=40).unwrapped.system
    training = TrainConfig(epochs=1, train_states=24, test_states=4, hidden=(8, 8))
    before, after = Trainer(system, config=training).fit()
    row = scale(config)[-1]
    assert row.untrained_loss == pytest.approx(before.test_loss, rel=1e-5)
    assert row.loss_after == pytest.approx(after.test_loss, rel=1e-5)
    assert row.loss_after != row.untrained_loss


def test_an_update_that_needs_too_much_memory_is_neither_timed_nor_trained(tiny, monkeypatch):
    def peak(target, limit, point, config):
        if point.size > 4:
            raise MemoryExceeded
        return 2**20

    monkeypatch.setattr(scaling_run, "peak_memory", peak)
    fitting, large = scale(dataclasses.replace(tiny, axes=("wide",)))
    assert math.isfinite(fitting.milliseconds)
    assert math.isinf(large.peak_mib)
    assert all(math.isnan(value) for value in (large.milliseconds, large.untrained_loss, large.loss_after))
    assert "| 8 | 8 | 40 | 8 8 | – | above 8,192 | – | – |" in report([fitting, large])


def test_peak_memory_of_an_update_is_measured_in_a_process_of_its_own():
    """A hidden layer of 1024 units: its weights' directions under R, M and C alone are 12 MiB."""
    point = AXES["hidden"].points("hidden")[-1]
    small = dataclasses.replace(point, options={"horizon": 3})
    peak = scaling_run._peak(small, ScalingConfig())
    assert 12 < peak / MIB < 100


def test_measurements_of_other_settings_are_refused_in_words(tiny):
    scale(dataclasses.replace(tiny, axes=("short",)))
    before = (tiny.out / "scaling.csv").read_bytes()
    with pytest.raises(RunFolderError, match=r"(?s)use another folder.*rule: 'C' in the file, 'R' asked for"):
        scale(dataclasses.replace(tiny, rule="R"))
    AXES["short"] = dataclasses.replace(AXES["short"], values=((3,),))
    with pytest.raises(RunFolderError, match="short 2: in the file, and no point of any axis"):
        scale(tiny)
    assert (tiny.out / "scaling.csv").read_bytes() == before


def test_a_damaged_file_is_refused(tiny):
    tiny.out.mkdir()
    (tiny.out / "scaling.csv").write_text("axis,value\nshort,2\n")
    with pytest.raises(RunFolderError, match="its columns are axis, value, not axis, value, size"):
        scale(tiny)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"axes": ("pole",)}, "Did you mean 'poles'?"),
        ({"axes": ()}, "axes must be at least one, each once"),
        ({"rule": "Q"}, "rule must be one of"),
        ({"repeats": 0}, "repeats must be an integer of at least 1; got 0"),
        ({"device": "tpu9"}, "device must be 'cpu', 'cuda' or one such as 'cuda:1'; got 'tpu9'"),
        ({"device": "cuda:99"}, "device must be one that torch finds here"),
        ({"engine": "autograd", "compile": True}, "engine must be 'adjoint' or 'auto'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        ScalingConfig(**settings)


# Slopes and limits


def test_the_slope_of_a_power_law_is_its_exponent():
    sizes = [1, 2, 4, 8, 16]
    found = slopes(sizes, [3 * x**1.5 for x in sizes])
    assert (found.upper_half, found.last) == pytest.approx((1.5, 1.5))
    assert (found.first, found.end) == (4, 16)
    assert found.fitted(torch.tensor([8.0]).numpy()) == pytest.approx(3 * 8**1.5)


def test_overhead_at_the_small_end_is_left_out_of_the_fit():
    assert slopes([1, 2, 4, 8], [100, 100, 5, 10]).upper_half == pytest.approx(1.0)
    assert slopes([1, 2, 4, 8], [1, 1, math.nan, 8]) is None


def test_a_limit_is_interpolated_within_and_extrapolated_beyond():
    sizes, values = [1, 10, 100], [1.0, 10.0, 1000.0]
    assert reach(sizes, values, 100.0, 2.0) == (pytest.approx(10 * 10**0.5), False)
    assert reach(sizes, values, 0.5, 2.0) == (1, False)
    assert reach(sizes, values, 100_000.0, 2.0) == (pytest.approx(1000.0), True)
    assert reach(sizes, [1.0, math.inf, math.inf], 100.0, 2.0) == (10, False)
    assert reach(sizes, [math.nan] * 3, 100.0, 2.0) is None


def test_the_limits_are_told_in_words(tiny):
    row = scale(dataclasses.replace(tiny, axes=("short",)))[0]
    changes = [
        {"size": 10, "value": "10", "milliseconds": 10.0, "peak_mib": 1.0, "loss_after": 0.5 * row.untrained_loss},
        {"size": 100, "value": "100", "milliseconds": 100.0, "peak_mib": 8.0, "loss_after": row.untrained_loss},
    ]
    said = limits(AXES["short"], [dataclasses.replace(row, **change) for change in changes])
    assert said == (
        "An update takes 1 s at about 1,000 steps, extrapolated. It needs 8 GiB at about 100,000 steps, extrapolated. "
        "Time is the first limit. After 2 updates the held-out loss is below 90% of that of the untrained controller "
        "everywhere but at 100."
    )


# The command


def test_the_command_leaves_tables_and_figures_and_goes_on_where_it_was_stopped(tiny, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    line = f"scale --axes short --repeats 2 --updates 2 --test-states 4 --out {tiny.out}"
    with monkeypatch.context() as patch:
        patch.setattr(scaling_run, "_losses", stopped)
        assert main(shlex.split(line)) == 130
    assert f"to go on:\n  bptt {line}" in capsys.readouterr().err
    assert main(shlex.split(line)) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.split("\n\n")[0].splitlines())) <= 80
    assert {path.name for path in tiny.out.iterdir()} == {"scaling.csv", "tables.md", "short.png", "short.pdf"}
    assert (tiny.out / "short.png").read_bytes().startswith(b"\x89PNG")
    assert main(shlex.split(line.replace("short", "wide"))) == 0
    assert "short.png" in (tiny.out / "tables.md").read_text()


# The documentation


def test_the_tables_of_the_documentation_are_those_of_its_data():
    measurements = read_measurements(DOCS / "scaling" / "scaling.csv")
    assert (DOCS / "scaling" / "tables.md").read_text() == report(measurements)
    with (DOCS / "scaling" / "scaling.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    places = [(name, point.value) for name, axis in AXES.items() for point in axis.points(name)]
    assert [(row.axis, row.value) for row in measurements] == places
    page = (DOCS / "scaling.md").read_text()
    for name, rows in by_axis(measurements).items():
        assert f"(scaling/{name}.png)" in page
        assert f"| `{name}` |" in page
        assert scaling_figure(rows).axes[0].get_xscale() == "log"
