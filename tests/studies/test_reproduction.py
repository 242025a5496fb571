"""The experiments: what their files hold, and that a rerun trains exactly what they lack."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bptt_studies.paper import work
from bptt_studies.paper.command import choose
from bptt_studies.paper.experiments import EXPERIMENTS, TIERS, Amount, Experiment, Task, Variant
from bptt_studies.paper.report import read_studies, read_task, tables_of
from bptt_studies.paper.results import (
    Member,
    Point,
    curves_path,
    read_books,
    read_curves,
    read_results,
    result_of,
    results_path,
    write,
)
from bptt_studies.paper.work import missing, runs_of, train_missing
from bptt_trainers.cli import main
from bptt_trainers.comparison.methods import BPTT, RL
from bptt_trainers.records.claim import locked
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.page import PLACE, filled
from bptt_trainers.training.metrics import to_csv

NAN = float("nan")
TASK = Task("tiny", "a few steps of one pole", "DiffCartPole-v0", {"horizon": 3}, (0.1,))
TINY = Experiment(
    "rules",
    TASK,
    (Variant("R", BPTT("R")), Variant("C norm", BPTT("C", {"clip": "norm"})), Variant("M", BPTT("M"), alone=True)),
    Amount(epochs=2, seeds=2, train_states=16, test_states=8),
)
RESULTS, RUNS = Path("results"), Path("runs")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tiny_runs(experiment=TINY):
    return runs_of(experiment, "standard", RUNS)


def train(experiment=TINY, jobs=1, together=4):
    train_missing(tiny_runs(experiment), RESULTS, folder=RUNS, jobs=jobs, together=together, progress=False)


def files():
    return [path.read_text() for path in (results_path(RESULTS, TINY.name), curves_path(RESULTS, TINY.name))]


@pytest.mark.parametrize(
    ("experiment", "tier"),
    [
        *((experiment, "standard") for experiment in EXPERIMENTS.values()),
        *((next(iter(EXPERIMENTS.values())), tier) for tier in TIERS if tier != "standard"),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_every_run_has_a_name_and_a_folder_of_its_own(experiment, tier):
    runs = runs_of(experiment, tier, RUNS)
    assert len({run.member.name for run in runs}) == len({run.folder for run in runs}) == len(runs)
    assert len(runs) == experiment.amount(tier).seeds * len(experiment.variants)


def test_every_claim_has_five_seeds_at_least():
    assert all(one.amount(tier).seeds >= 5 for one in EXPERIMENTS.values() for tier in ("standard", "full"))


def test_a_member_says_what_was_run():
    run = tiny_runs()[1]
    assert run.member == Member(
        experiment="rules-tiny",
        env_id="DiffCartPole-v0",
        options="horizon=3",
        method="C norm",
        rule="C",
        clip="norm",
        learning_rate=1e-3,
        settings="",
        seed=0,
        epochs=2,
        steps=2 * 16 * 3,
        train_states=16,
        test_states=8,
    )
    assert (run.config.rule, run.config.clip, run.config.epochs, run.config.train_states) == ("C", "norm", 2, 16)


def test_what_differs_from_the_defaults_is_said():
    variant = Variant("C keeping R", BPTT("C", {"combine": "regular", "learning_rate": 0.01}), {"dynamics": "exact"})
    task = replace(TASK, env_id="DiffMultiPole-v0", options={"n_poles": 2, "horizon": 3})
    member = tiny_runs(replace(TINY, task=task, variants=(variant,)))[0].member
    assert (member.options, member.settings) == ("n_poles=2; horizon=3; dynamics='exact'", "combine='regular'")
    assert member.learning_rate == 0.01


@pytest.mark.usefixtures("in_this_process")
def test_finished_runs_are_lines_and_a_rerun_trains_exactly_what_is_missing(monkeypatch):
    train()
    results, curves = files()
    stored = read_results(RESULTS, TINY.name)
    assert list(stored) == [run.member for run in tiny_runs()]
    assert {name: len(curve) for name, curve in read_curves(RESULTS, TINY.name).items()} == {
        run.member.name: 3 for run in tiny_runs()
    }
    assert {member.method: result.together for member, result in stored.items()} == {"R": 4, "C norm": 4, "M": 1}

    lines = results.splitlines(keepends=True)
    assert "C norm,C,norm,0.001,,1," in lines[5]
    results_path(RESULTS, TINY.name).write_text("".join(lines[:5] + lines[6:]))
    assert [run.member.name for run in missing(tiny_runs(), RESULTS)] == ["C norm seed 1"]
    train()
    again, curves_again = files()
    assert curves_again == curves
    assert [*again.splitlines()[:5], *again.splitlines()[6:]] == [*results.splitlines()[:5], *results.splitlines()[6:]]
    assert "C norm,C,norm,0.001,,1," in again.splitlines()[5]

    monkeypatch.setattr(work, "opened", None)  # nothing is left to be done by anyone
    train()


def test_a_member_is_trained_as_it_is_alone(in_this_process, monkeypatch):
    train(together=4)
    monkeypatch.setattr(work, "opened", in_this_process)
    together = read_curves(RESULTS, TINY.name)
    for path in (results_path(RESULTS, TINY.name), curves_path(RESULTS, TINY.name)):
        path.unlink()
    train_missing(tiny_runs(), RESULTS, folder=Path("others"), jobs=2, together=1, progress=False)
    for name, curve in read_curves(RESULTS, TINY.name).items():
        assert [point.test_loss for point in curve] == pytest.approx([p.test_loss for p in together[name]], rel=1e-3)


@pytest.mark.usefixtures("in_this_process")
def test_reinforcement_learning_leaves_the_same_files():
    settings = {"num_envs": 4, "n_steps": 3, "batch_size": 12, "n_epochs": 1}
    train(replace(TINY, variants=(Variant("PPO", RL("PPO", settings)),), standard=replace(TINY.standard, seeds=1)))
    ((member, result),) = read_results(RESULTS, TINY.name).items()
    assert (member.rule, member.clip, member.epochs, member.steps) == ("PPO", "", 0, 96)
    assert math.isfinite(result.final_loss)
    assert math.isnan(result.best_loss)
    assert math.isnan(result.final_train_loss)
    curve = read_curves(RESULTS, TINY.name)["PPO seed 0"]
    assert [point.epoch for point in curve] == list(range(len(curve)))
    assert curve[-1].simulator_steps >= 96


@pytest.mark.usefixtures("in_this_process")
def test_a_file_of_other_settings_is_refused_before_anything_is_trained():
    train()
    longer = replace(TINY, standard=replace(TINY.standard, epochs=3))
    with pytest.raises(RunFolderError, match=r"(?s)rules-tiny.csv holds another 'R seed 0':.*epochs: 2 in the file, 3"):
        train(longer)


@pytest.mark.usefixtures("in_this_process")
def test_a_damaged_file_is_refused():
    train()
    path = results_path(RESULTS, TINY.name)
    path.write_text(path.read_text().replace("experiment,", "task,"))
    with pytest.raises(RunFolderError, match="its columns are task"):
        train()


def point(epoch, train_loss, test_loss, skipped=0):
    return Point(epoch, 100 * epoch, 2.0 * epoch, train_loss, test_loss, 1.0, 0.5, 0.5, skipped)


MEMBER = tiny_runs()[0].member


def test_the_best_is_chosen_by_the_training_states():
    curve = [point(0, 2.0, 2.0), point(1, 0.1, 0.4), point(2, 0.2, 0.1, 1), point(3, 0.3, 0.9, 2)]
    result = result_of(MEMBER, curve, 4, "v")
    assert (result.untrained_loss, result.final_loss, result.best_loss) == (2.0, 0.9, 0.4)
    assert (result.final_train_loss, result.best_train_loss, result.skipped) == (0.3, 0.1, 3)
    assert result.mean_loss == pytest.approx((0.4 * 0.1 * 0.9) ** (1 / 3), rel=1e-4)
    assert result.seconds == 6.0


def test_a_loss_that_is_no_number_is_infinite():
    result = result_of(MEMBER, [point(0, 2.0, 2.0), point(1, 0.1, 0.4), point(2, NAN, NAN)], 1, "v")
    assert (result.final_loss, result.final_train_loss, result.mean_loss) == (math.inf, math.inf, math.inf)
    assert (result.best_loss, result.best_train_loss) == (0.4, 0.1)


# Books that disagree


@pytest.fixture
def books():
    """Both files of two finished runs, as lists of lines."""
    curves = {one.member.name: [point(0, 2.0, 2.0), point(1, 0.3, 0.4), point(2, 0.2, 0.1)] for one in tiny_runs()[:2]}
    write(RESULTS, [result_of(one.member, curves[one.member.name], 1, "v") for one in tiny_runs()[:2]], curves)
    return [path.read_text().splitlines(keepends=True) for path in PATHS]


PATHS = (results_path(RESULTS, TINY.name), curves_path(RESULTS, TINY.name))


def rewrite(results, curves):
    for path, lines in zip(PATHS, (results, curves), strict=True):
        path.write_text("".join(lines))


def test_books_that_agree_are_read(books):
    results, curves = read_books(RESULTS, TINY.name)
    assert [member.name for member in results] == list(curves) == ["R seed 0", "C norm seed 0"]
    assert [run.member.name for run in missing(tiny_runs()[:3], RESULTS)] == ["M seed 0"]


@pytest.mark.parametrize("read", [lambda: missing(tiny_runs(), RESULTS), lambda: read_task(RESULTS, "rules", TASK)])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda results, curves: (results, curves[:4]), "disagree about 'C norm seed 0': its curve has 0 points"),
        (lambda results, curves: (results, curves[:1]), "disagree about 'R seed 0': its curve has 0 points"),
        (lambda results, curves: (results, curves[:-1]), "it has 2 epochs, and its curve ends after 1"),
        (
            lambda results, curves: (results, [line.replace(",0.1,", ",0.7,") for line in curves]),
            "final_loss is 0.1, and 0.7 by its curve",
        ),
        (lambda results, curves: ([*results, results[1]], curves), "has 'R seed 0' in 2 lines; leave one"),
        (lambda results, curves: ([*results[:2], results[2][:40]], curves), "line 3 has not"),
        (lambda results, curves: ([*results[:2], results[2].rpartition(",")[0] + "\n"], curves), "line 3 has not"),
        (
            lambda results, curves: ([results[0], results[1].replace(",1,v", ",many,v"), *results[2:]], curves),
            "line 2:",
        ),
        (lambda results, curves: (results, [*curves[:2], "9" * 5000 + "," * 9 + "\n"]), "line 3:"),
        (lambda results, curves: ([], curves), "its columns are"),
        (lambda results, curves: (["\x00\x1b"], curves), "its columns are"),
    ],
)
def test_books_that_disagree_are_an_error_in_words(books, read, change, said):
    rewrite(*change(*books))
    with pytest.raises(RunFolderError) as caught:
        read()
    assert said in str(caught.value)


def test_a_curve_without_a_line_is_of_a_run_that_is_taken_up_again(books):
    results, curves = books
    rewrite([results[0], results[2]], curves)
    assert [run.member.name for run in missing(tiny_runs()[:2], RESULTS)] == ["R seed 0"]
    assert list(read_task(RESULTS, "rules", TASK).curves) == ["C norm seed 0"]


@pytest.mark.parametrize("text", ["", "epoch,train_loss\n", to_csv([]), to_csv([]) + "1,2\n", "\x00"])
def test_a_start_run_whose_metrics_say_nothing_is_not_trained(text):
    run = tiny_runs()[0]
    assert not run.trained
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.csv").write_text(text)
    assert not run.trained


@pytest.mark.skipif(os.name != "posix", reason="locks are of POSIX")
def test_two_commands_do_not_write_into_one_folder_of_results(books):
    before = files()
    with locked(RESULTS), pytest.raises(RunFolderError, match="results is in use by another process"):
        train_missing(tiny_runs(), RESULTS, folder=Path("others"), jobs=1, together=1, progress=False)
    assert files() == before


def test_unknown_names_are_refused_in_words(capsys):
    assert main(["reproduce", "--experiments", "rules-cart-pole-3"]) == 2
    said = capsys.readouterr().err
    assert "experiments must be among" in said
    assert "Did you mean 'rules-cart-pole-" in said


def test_experiments_are_run_in_the_order_in_which_they_are_named():
    named = ["rl-quantum-3", "continued", "rules-cart-pole-2", "rl-quantum-3"]
    assert [one.name for one in choose(tuple(named))] == ["rl-quantum-3", "continued-cart-pole-1", "rules-cart-pole-2"]
    assert choose(()) == list(EXPERIMENTS.values())


def test_what_nothing_was_tuned_for_is_left_out_unless_it_is_named(monkeypatch, capsys):
    trained = []
    monkeypatch.setattr("bptt_studies.paper.command.train_missing", lambda runs, *_, **__: trained.extend(runs))
    monkeypatch.setattr("bptt_studies.paper.command.report", lambda *_: {})
    unready = [name for name, one in EXPERIMENTS.items() if not one.ready]
    assert {EXPERIMENTS[name].preset for name in unready} <= {"tuned"}
    monkeypatch.setattr("bptt_studies.paper.experiments.TUNED", ())
    assert main(["reproduce"]) == 0
    assert {EXPERIMENTS[run.member.experiment].preset for run in trained} == {"paper"}
    assert "left out, as nothing is tuned there yet: tuned-cart-pole-1, " in capsys.readouterr().err
    trained.clear()
    assert main(["reproduce", "--experiments", "tuned-cart-pole-1"]) == 0
    assert {run.member.experiment for run in trained} == {"tuned-cart-pole-1"}


def test_the_list_says_what_is_missing(capsys):
    assert main(["reproduce", "--tier", "smoke", "--experiments", "rules", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["experiment", "task", "variants", "runs", "missing"]
    assert lines[1].split() == ["rules-cart-pole-1", "cart-pole,", "1", "pole", "12", "24", "24"]


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
def test_interrupted_it_goes_on_where_it_was():
    command = [sys.executable, "-m", "bptt_trainers.cli", "reproduce", "--tier", "standard", "--jobs", "1"]
    command += ["--experiments", "ablation-cart-pole-1"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    folder = Path("runs/reproduce/runs/ablation-cart-pole-1/C-keeping-R-seed0/metrics.csv")
    deadline = time.monotonic() + 120
    while not (folder.exists() and len(folder.read_text().splitlines()) > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "every finished run and epoch is kept; to go on:" in said
    assert "Traceback" not in said
    epochs = len(folder.read_text().splitlines())
    assert epochs > 2


# What is committed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables():
    return tables_of(read_studies(EXPERIMENTS.values(), ROOT / "results"))


def test_the_pages_of_the_documentation_show_what_their_files_hold(tables):
    shown = set()
    for page in ("results.md", "which-algorithm.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert filled(text, tables) == text
        shown |= {place["name"] for place in PLACE.finditer(text)}
    assert shown == set(tables)
    for name, table in tables.items():
        assert (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8") == table + "\n"


def test_committed_results_are_of_the_experiments_as_they_stand():
    for experiment in EXPERIMENTS.values():
        missing(runs_of(experiment, "standard", RUNS), ROOT / "results")  # refuses what is of other settings


def test_every_result_has_its_curve():
    for experiment in EXPERIMENTS.values():
        curves = read_curves(ROOT / "results", experiment.name)
        results = read_results(ROOT / "results", experiment.name)
        assert {member.name for member in results} == set(curves)
        for member, result in results.items():
            again = result_of(member, curves[member.name], result.together, result.versions)
            for name, value in vars(again).items():
                if isinstance(value, float):
                    assert value == pytest.approx(getattr(result, name), rel=1e-4, nan_ok=True), (member.name, name)
