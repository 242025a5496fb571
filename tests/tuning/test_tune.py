"""The search gives every method the same, judges on states that nothing else sees, and loses and repeats nothing."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bptt_envs.registration import ENTRIES, Entry
from bptt_trainers import RunFolderError, held_out_states, training_states
from bptt_trainers.cli import main, read_command
from bptt_trainers.commands.environment import parse_options
from bptt_trainers.commands.tune import in_words
from bptt_trainers.comparison.compare import ComparisonConfig
from bptt_trainers.comparison.methods import BPTT, BY_ESTIMATOR, METHODS, get_method
from bptt_trainers.presets.presets import parse_overrides
from bptt_trainers.records.claim import locked
from bptt_trainers.records.curve import CurvePoint
from bptt_trainers.records.plain import plain
from bptt_trainers.rl.sb3 import RLConfig, train_rl
from bptt_trainers.training.start_states import validation_states
from bptt_trainers.tuning import store as storing
from bptt_trainers.tuning import study as studying
from bptt_trainers.tuning import trials as making
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.outcome import Best, Study, command
from bptt_trainers.tuning.score import LIMIT, area, at, best_possible, final, log_loss, score
from bptt_trainers.tuning.space import TUNABLE, Choice, Range, read_entry, read_searches
from bptt_trainers.tuning.store import Store, beating
from bptt_trainers.tuning.study import tune
from bptt_trainers.tuning.trials import RefusedError, learn

TINY = {
    "C": {"train_states": 16, "hidden": (8,), "batch_size": 8},
    "PPO": {"num_envs": 4, "n_steps": 8, "batch_size": 32, "n_epochs": 1, "hidden": (8,)},
}
TINY_LINE = " ".join(f"--fix '{method}.{name}={value}'" for method, row in TINY.items() for name, value in row.items())
LINE = (
    "tune --env DiffIntegrator-v0 --steps 128 --seeds 2 --evaluations 2 --validation-states 8 --confirm 0 " + TINY_LINE
)


def tiny(out, **changes):
    settings = {
        "env": "DiffIntegrator-v0",
        "methods": ("C",),
        "trials": 3,
        "steps": 128,
        "seeds": 2,
        "evaluations": 2,
        "validation_states": 8,
        "confirm": 0,
        "out": out,
    }
    settings |= changes
    fix = {method: row for method, row in TINY.items() if method in settings["methods"]}
    return TuneConfig(**({"fix": fix} | settings))


def table(out):
    with (out / "study.csv").open() as file:
        return list(csv.DictReader(file))


def start(line, place):
    """`bptt` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "bptt_trainers.cli", *shlex.split(line)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )


@pytest.fixture
def curves(monkeypatch):
    """Let runs be curves: a straight line of log10 loss down to `level` of the settings and the seed."""
    made = []

    def choose(level):
        def learn(method, budget, settings, seed, report, *, compile):
            curve = []
            for i in range(17):
                loss = 10 ** (level(settings, seed) * i / 16)
                curve.append(CurvePoint(i * budget.steps // 16, 0.0, loss))
                if not report(curve[-1]):
                    break
            made.append((seed, len(curve)))
            return curve

        monkeypatch.setattr(studying, "learn", learn)
        return made

    return choose


# From the command line


def test_the_command_searches_rules_and_reinforcement_learning_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(f"{LINE} --trials 2 --methods C PPO --out study")) == 0
    captured = capsys.readouterr()
    lines = table(Path("study"))
    assert [(one["method"], one["trial"]) for one in lines] == [("C", "0"), ("C", "1"), ("PPO", "0"), ("PPO", "1")]
    for one in lines:
        whole = (
            float(one["final_1000"]) + float(one["final_1001"]) + float(one["area_1000"]) + float(one["area_1001"])
        ) / 4
        assert one["state"] == "pruned" or float(one["score"]) == pytest.approx(whole)
    rows = json.loads(Path("study/preset.json").read_text())["rows"]
    assert list(rows) == ["C", "PPO"]
    assert rows["C"]["row"]["hidden"] == [8]
    assert "PPO trial 1: " in captured.err
    assert "new study" not in captured.err
    told = captured.out.splitlines()
    (train, compare_one, compare_all) = (shlex.split(one)[1:] for one in told if one.startswith("  bptt "))
    for name, *arguments in (train, compare_one):  # what it prints can be run
        read_command(name, arguments)
    assert main([*compare_all, "--seeds", "0", "--evaluations", "1", "--test-states", "8", "--out", "versus"]) == 0
    assert "the best rows of study, tuned for DiffIntegrator-v0, 128 simulator" in capsys.readouterr().out
    settings = json.loads(Path("versus/comparison.json").read_text())["settings"]
    for method, one in rows.items():
        assert {name: settings[method][name] for name in one["row"]} == one["row"]
    paper = ComparisonConfig(env="DiffIntegrator-v0", methods=("C",), preset="paper").settings()["C"]
    left = {name: value for name, value in plain(paper).items() if name not in rows["C"]["row"]}
    assert {name: settings["C"][name] for name in left} == left
    capsys.readouterr()
    assert main(shlex.split("compare --tuning study --env DiffIntegrator-v0 --methods R C")) == 2
    assert "study has no row of R: it has those of C, PPO" in capsys.readouterr().err
    assert main(shlex.split("compare --tuning study --methods C")) == 2
    assert "study is a study of DiffIntegrator-v0; got DiffCartPole-v0" in capsys.readouterr().err
    book = json.loads(Path("study/preset.json").read_text())
    book["rows"]["C"]["row"]["observe_time"] = True
    Path("study/preset.json").write_text(json.dumps(book))
    seen = "--env-option observe_time=false --seeds 0 --steps 16 --test-states 8 --out seen"
    assert main(shlex.split(f"compare --tuning study --env DiffIntegrator-v0 --methods C {seen}")) == 0
    capsys.readouterr()
    assert main(shlex.split("sweep --tuning nowhere --env DiffIntegrator-v0 --grid clip=none,norm")) == 1
    assert "nowhere is not a tuning folder: it has no preset.json" in capsys.readouterr().err


def test_the_printed_command_names_the_options_of_an_optimizer_one_by_one(tmp_path):
    fixed = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9, "nesterov": True}, "adam_betas": (0.9, 0.999)}
    config = TuneConfig(methods=("C",), fix={"C": fixed}, out=tmp_path)
    told = read_command("train", shlex.split(command(config, "C", fixed))[2:])
    assert told.training.optimizer == "SGD"
    assert told.optimizer_option == ("momentum=0.9", "nesterov=True")


def test_the_first_trial_is_of_the_settings_as_they_stand(tmp_path):
    config = tiny(tmp_path / "study", methods=("C", "PPO"), trials=1)
    tune(config, progress=False)
    store = Store(config)
    for method in config.methods:
        (trial,) = store.trials(method)
        search = store.searches[method]
        assert search.first() == search.row | TINY[method]
        assert trial.user_attrs["settings"] == json.loads(json.dumps(search.named(search.first())))
    assert table(config.out)[0]["settings"].startswith(
        "train_states=16; hidden=(8,); batch_size=8; learning_rate=0.005"
    )


def test_a_rerun_makes_the_table_anew_and_no_trial(tmp_path, monkeypatch):
    config = tiny(tmp_path / "study")
    before = tune(config, progress=False)
    texts = [(config.out / name).read_bytes() for name in ("study.csv", "preset.json")]
    (config.out / "study.csv").unlink()
    monkeypatch.setattr(studying, "learn", None)
    after = tune(replace(config, jobs=1), progress=False)
    assert [(config.out / name).read_bytes() for name in ("study.csv", "preset.json")] == texts
    assert after.best == before.best


def test_a_study_goes_on_with_more_trials_and_methods_as_if_it_had_not_stopped(tmp_path, curves):
    curves(lambda settings, seed: -abs(np.log10(settings["learning_rate"]) + 2))
    first = tiny(tmp_path / "in parts")
    tune(first, progress=False)
    more = tiny(tmp_path / "in parts", methods=("C", "PPO"), trials=6, fix=first.fix | {"PPO": TINY["PPO"]})
    tune(more, progress=False)
    tune(replace(more, out=tmp_path / "at once"), progress=False)
    settings = [
        [(one["method"], one["settings"]) for one in table(tmp_path / name)] for name in ("in parts", "at once")
    ]
    assert settings[0] == settings[1]
    assert len(settings[0]) == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 256}, "steps: 128 in the folder, 256 asked for"),
        ({"seeds": 3}, "seeds: 2"),
        ({"env": "DiffLQR-v0"}, "env: 'DiffIntegrator-v0'"),
        ({"search": {"C": {"learning_rate": Range(1e-3, 1e-2)}}}, "search of C"),
    ],
)
def test_a_folder_of_another_study_is_refused(tmp_path, curves, changes, named):
    curves(lambda settings, seed: -1)
    tune(tiny(tmp_path / "study", trials=1), progress=False)
    with pytest.raises(RunFolderError, match=named):
        tune(tiny(tmp_path / "study", trials=1, **changes), progress=False)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--search C.learning_rate=1:0.1", "the lower one first"),
        ("--search C.learning_rate=0.1:0.1", "the lower one first"),
        ("--search C.learning_rate=0:1:log", "positive"),
        ("--search C.learning_rate=-1:1", "learning_rate"),
        ("--search C.learning_rate=1e-3:1e-2:lin", "log"),
        ("--search C.learning_rate=a:b", "numbers"),
        ("--search C.learning_rate=1e-3:nan", "finite"),
        ("--search C.learning_rate=7", "LOW:HIGH"),
        ("--search C.learning_rate", "METHOD.NAME"),
        ("--search 'C.batch_size={}'", "at least one value"),
        ("--search 'C.batch_size={4, 4}'", "once"),
        ("--search 'C.batch_size={4, x()}'", "plain values"),
        ("--search 'C.batch_size={4, 1000}'", "batch_size 1000: batch_size must be at most train_states"),
        ("--search 'C.learning_rates={1, 2}'", "Did you mean 'learning_rate'"),
        ("--search 'PPO.gamma={0.9, 2.0}'", "gamma"),
        ("--search 'M.clip={none}'", "the method of search"),
        ("--fix C.hidden=0", "hidden"),
        ("--fix C.epochs=3", "epochs"),
        ("--fix PPO.batch_size=7", "batch_size must divide"),
        ("--fix C.clip=norm --search 'C.clip={none, norm}'", "pinned by fix and searched"),
        ("--methods zero", "methods"),
        ("--methods C C", "methods"),
        ("--trials 0", "trials"),
        ("--timeout 0", "timeout"),
        ("--env-option force=3", "force"),
    ],
)
def test_nonsense_is_refused_in_words(tmp_path, monkeypatch, capsys, option, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    methods = "" if "--methods" in option else "--methods C PPO"
    assert main(shlex.split(f"tune {methods} {option}")) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune"]) == 1
    assert "pip install 'stable-bptt[tune]'" in capsys.readouterr().err


# What is judged


def test_training_validation_and_held_out_states_are_disjoint():
    system = TuneConfig().budget.make_env().system
    sets = [validation_states(system, 512), held_out_states(system, 512)]
    sets += [training_states(system, 512, seed) for seed in (0, 1, 1000, 1001)]
    every = torch.cat(sets)
    assert len(torch.unique(every, dim=0)) == len(every)
    torch.testing.assert_close(validation_states(system, 512), sets[0], rtol=0, atol=0)


def test_trials_never_see_the_held_out_states(tmp_path, monkeypatch):
    from bptt_trainers.rl.learner import SB3Learner
    from bptt_trainers.training import trainer

    seen = []
    monkeypatch.setattr(
        trainer.Trainer, "evaluate", lambda self, states: seen.append(states) or float(states.square().mean())
    )
    judged = SB3Learner.evaluate
    monkeypatch.setattr(SB3Learner, "evaluate", lambda self, states: seen.append(states) or judged(self, states))
    config = tiny(tmp_path / "study", methods=("C", "PPO"), trials=1)
    tune(config, progress=False)
    held_out = held_out_states(config.budget.make_env().system, 8)
    chosen = validation_states(config.budget.make_env().system, 8)
    assert sum(torch.equal(states, chosen) for states in seen) >= 8
    assert not any(torch.isin(states, held_out).any() for states in seen)


@pytest.mark.parametrize(
    ("seeds", "confirmed", "said"),
    [(1, None, "1 tuning seed is partly luck"), (3, None, "3 tuning seeds is partly luck"), (1, -0.5, None)],
)
def test_losses_of_the_tuning_seeds_alone_are_said_to_be_luck(tmp_path, seeds, confirmed, said):
    best = Best("C", 0, -1.0, -1.0, -1.0, confirmed, {}, "bptt train")
    words = in_words(tiny(tmp_path, seeds=seeds), Study(tmp_path, {"C": best}, ()))
    assert ("not run again with further seeds: C." in words) == (said is not None)
    assert (said or "10 further seeds") in words


def line(*levels, every=10):
    return [CurvePoint(every * i, 0.0, 10**level) for i, level in enumerate(levels)]


def test_curves_with_other_evaluations_score_alike():
    often = line(0, -1, -2, -3, -4)
    seldom = [often[0], often[2], often[4]]
    beyond = [*often, CurvePoint(60, 0.0, 1e-9)]
    for curve in (often, seldom):
        assert area(curve, 40) == pytest.approx(-2)
        assert at(curve, 15) == pytest.approx(-1.5)
        assert final(curve) == pytest.approx(-4)
    assert area(beyond, 40) == pytest.approx(-2)
    assert area(often, 80) == pytest.approx(-3)  # the last one held


def test_a_score_is_the_mean_of_two_medians():
    assert score([-4, -1, -2], [-1, -3, -2]) == -2
    assert best_possible([-1], [-1], 3) == -np.inf
    assert best_possible([-4, -1], [-1, -2], 3) == -3  # the medians lie between the two at best


def test_losses_that_are_nothing_or_no_number_count_as_finite_ones():
    assert log_loss(0.0) == -LIMIT
    assert log_loss(float("nan")) == log_loss(float("inf")) == log_loss(1e300) == LIMIT
    with pytest.raises(ValueError, match="must not be negative"):
        log_loss(-1.0)


def test_a_trial_that_fails_is_told_and_the_study_goes_on(tmp_path, monkeypatch, curves):
    curves(lambda settings, seed: -1)
    learn = studying.learn

    def refusing(method, budget, settings, seed, report, *, compile):
        if settings["learning_rate"] > 5e-3:
            raise RefusedError("the rate is too large")
        return learn(method, budget, settings, seed, report, compile=compile)

    monkeypatch.setattr(studying, "learn", refusing)
    study = tune(tiny(tmp_path / "study", trials=8), progress=False)
    failed = [one for one in study.trials if one["state"] == "failed"]
    assert failed
    assert {one["error"] for one in failed} == {"the rate is too large"}
    assert len(study.trials) == 8
    assert study.best["C"].row["learning_rate"] <= 5e-3


def test_compiled_are_all_that_can_be_when_asked_for(tmp_path, monkeypatch):
    compiled = {}

    def learned(trained, budget, settings, seed, report):
        compiled[trained.name] = settings["compile"]

    monkeypatch.setattr(making, "_learn_by_rule", learned)
    budget = tiny(tmp_path).budget
    for asked in (True, False):
        for name, method in METHODS.items():
            if isinstance(method, BPTT):
                learn(name, budget, {}, 0, print, compile=asked)
        assert {name for name, one in compiled.items() if one} == (
            set(compiled) - set(BY_ESTIMATOR) if asked else set()
        )


def test_runs_that_are_not_finite_lose(tmp_path):
    search = {"C": {"learning_rate": Range(1e18, 1e20, log=True)}}
    study = tune(tiny(tmp_path / "study", trials=2, search=search), progress=False)
    last = study.trials[1]
    assert last["state"] in ("pruned", "complete")
    assert last["final_1000"] > study.best["C"].final
    assert study.best["C"].trial == 0


# Pruning


def test_trials_that_fall_behind_are_pruned_in_their_first_run(tmp_path, curves):
    made = curves(lambda settings, seed: -2 - abs(np.log10(settings["learning_rate"]) + 2))
    study = tune(tiny(tmp_path / "study", trials=20), progress=False)
    short = [length for seed, length in made if length < 17]
    assert len(study.trials) == 20
    assert len(short) >= 4
    assert min(short) > 17 * 2 // 8  # not before a quarter of the budget
    assert {seed for seed, length in made if length < 17} == {1000}
    assert study.trials[0]["state"] == "complete"


def test_a_trial_ends_between_runs_where_it_cannot_be_the_best(tmp_path, curves):
    made = curves(lambda settings, seed: -2 if settings["learning_rate"] == 5e-3 else -1)
    study = tune(tiny(tmp_path / "study", trials=2, seeds=3), progress=False)
    assert [one["state"] for one in study.trials] == ["complete", "pruned"]
    assert [seed for seed, _ in made] == [1000, 1001, 1002, 1000, 1001]
    assert study.best["C"].trial == 0


def test_trials_that_end_between_runs_count_among_those_that_others_are_compared_with(tmp_path, curves):
    made = curves(lambda settings, seed: -2 if settings["learning_rate"] == 5e-3 else -settings["learning_rate"] / 0.1)
    tune(tiny(tmp_path / "study", trials=12, seeds=3), progress=False)
    assert any(length < 17 for _, length in made)  # though a single trial is whole


# Running the best again


def brittle(settings, seed):
    """A large step size learns most, but for one confirming seed in five, where it learns nothing."""
    rate = settings["learning_rate"]
    return 0.0 if rate > 5e-3 and seed >= 2000 and seed % 5 == 0 else -400 * rate


def test_the_row_is_the_trial_that_is_best_when_run_again(tmp_path, curves):
    made = curves(brittle)
    search = {"C": {"learning_rate": Choice((1e-3, 5e-3, 5.5e-3))}}
    study = tune(tiny(tmp_path / "study", trials=8, confirm=8, search=search), progress=False)
    lines = {one["trial"]: one for one in study.trials}
    again = {number: one for number, one in lines.items() if one["confirmed"] != ""}
    assert again.keys() == {number for number, one in lines.items() if one["state"] == "complete"}
    assert sorted(seed for seed, _ in made if seed >= 2000) == sorted([*range(2000, 2010)] * len(again))
    best = study.best["C"]
    assert best.confirmed == min(one["confirmed"] for one in again.values())
    assert best.row["learning_rate"] == 5e-3
    assert best.score > min(one["score"] for one in again.values())
    for one in again.values():
        ends, areas = (list(map(float, one[f"confirming_{name}"].split())) for name in ("finals", "areas"))
        assert one["confirmed"] == pytest.approx((np.mean(ends) + np.mean(areas)) / 2, abs=1e-3)


def test_what_was_run_again_is_not_run_once_more(tmp_path, curves):
    made = curves(brittle)
    before = tune(tiny(tmp_path / "study", confirm=2), progress=False)
    made.clear()
    after = tune(tiny(tmp_path / "study", confirm=2), progress=False)
    assert made == []
    assert after.trials == before.trials


def test_a_study_without_confirming_can_be_confirmed_later(tmp_path, curves):
    made = curves(brittle)
    assert tune(tiny(tmp_path / "study"), progress=False).best["C"].confirmed is None
    made.clear()
    assert tune(tiny(tmp_path / "study", confirm=1), progress=False).best["C"].confirmed is not None
    assert [seed for seed, _ in made] == list(range(2000, 2010))


def test_confirming_that_is_interrupted_goes_on(tmp_path, curves, monkeypatch):
    made = curves(brittle)
    tune(tiny(tmp_path / "study"), progress=False)
    made.clear()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(studying, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny(tmp_path / "study", confirm=1), progress=False)
    curves(brittle)
    assert tune(tiny(tmp_path / "study", confirm=1), progress=False).best["C"].confirmed is not None
    assert len(made) == 10


def test_reinforcement_learning_ends_where_its_report_says_so():
    config = RLConfig(env="DiffIntegrator-v0", steps=640, evaluations=20, overrides=TINY["PPO"])
    points = []
    run = train_rl(config, progress=False, report=lambda point: points.append(point) or len(points) < 3)
    assert list(run.curve)[:3] == points[:3]
    assert len(run.curve) <= 4
    assert run.curve[-1].simulator_steps < 640


def test_a_folder_of_reinforcement_learning_holds_whole_runs_on_the_held_out_states_only(tmp_path):
    config = RLConfig(env="DiffIntegrator-v0", steps=64, overrides=TINY["PPO"])
    states = validation_states(config.judged_system(), 4)
    for given in ({"judged_states": states}, {"report": lambda point: True}):
        with pytest.raises(ValueError, match="folder must be None"):
            train_rl(config, tmp_path / "run", **given)
    with pytest.raises(ValueError, match="judged_states"):
        train_rl(config, judged_states=torch.zeros(3, 7))
    assert not (tmp_path / "run").exists()


# Several processes


@pytest.mark.slow
def test_two_commands_share_a_folder_and_make_the_trials_once(tmp_path):
    words = f"{LINE} --trials 4 --methods C PPO --out study"
    processes = [start(words, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    lines = table(tmp_path / "study")
    assert [(one["method"], int(one["trial"])) for one in lines] == [(m, i) for m in ("C", "PPO") for i in range(4)]
    assert all(one["state"] != "failed" for one in lines)
    assert all(" trial " in err for _, err in said)  # both of them worked


@pytest.mark.slow
def test_what_a_killed_command_began_is_made_again(tmp_path):
    config = tiny(tmp_path / "study", steps=10**7, trials=2)
    words = LINE.replace("--steps 128", f"--steps {10**7}").replace(PPO_LINE, "")
    process = start(f"{words} --trials 2 --methods C --out study", tmp_path)
    deadline = time.monotonic() + 60
    while not ((config.out / "trials.journal").exists() and "owner" in (config.out / "trials.journal").read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    store = Store(config)
    method, _, trial = store.take()
    assert trial.number == 1
    assert trial.user_attrs["first"]
    assert [one.state.name for one in store.trials(method)] == ["FAIL", "RUNNING"]


PPO_LINE = " ".join(f"--fix 'PPO.{name}={value}'" for name, value in TINY["PPO"].items())


@pytest.mark.slow
def test_jobs_are_processes_that_know_the_users_system(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("tuned_envs.py").write_text(
        "from bptt_envs import register\n"
        "from bptt_envs.systems import Integrator\n\n\n"
        "class Tuned(Integrator):\n"
        "    def __init__(self, *, fault=False, **options):\n"
        "        super().__init__(**options)\n"
        "        self.fault = fault\n\n"
        "    def initial_states(self, *arguments):\n"
        "        if self.fault:\n"
        "            raise ArithmeticError('all is lost')\n"
        "        return super().initial_states(*arguments)\n\n\n"
        "register('Tuned-v0', 'tuned_envs:Tuned', 'one to be tuned')\n"
    )
    monkeypatch.setitem(ENTRIES, "Tuned-v0", Entry("tuned_envs:Tuned", "one to be tuned"))  # taken out again
    words = f"{LINE} --trials 2 --methods C --jobs 2 --out study".replace(PPO_LINE, "")
    words = words.replace("DiffIntegrator-v0", "tuned_envs:Tuned-v0")
    assert main(shlex.split(words)) == 0
    assert [one["state"] for one in table(Path("study"))] == ["complete"] * 2
    assert main(shlex.split(f"{words}-2 --env-option fault=true")) == 1
    said = capsys.readouterr().err
    assert "tuned_envs.py" in said
    assert said.endswith("ArithmeticError: all is lost\n")


def test_a_journal_that_is_none_is_refused_in_words(tmp_path, curves):
    curves(lambda settings, seed: -1)
    config = tiny(tmp_path / "study")
    tune(config, progress=False)
    for text in (b"so\nmuch\n", b'{"op_code": 9}\n[]\n'):
        (config.out / "trials.journal").write_bytes(text)
        with pytest.raises(RunFolderError, match=r"trials\.journal"):
            tune(config, progress=False)


def test_a_trial_of_a_process_that_is_silent_is_given_to_another(tmp_path, monkeypatch):
    config = tiny(tmp_path / "study", trials=1)
    store = Store(config)
    late = store.take()
    late.trial.set_user_attr("owner", {"host": "elsewhere", "process": 1})
    assert store.take() is None  # it is under way elsewhere
    late.trial.set_user_attr("beat", time.time() - storing.SILENCE - 1)
    again = Store(config).take()
    assert (again.trial.number, again.trial.params) == (1, late.trial.params)
    assert not store.finish(late, -1.0, {"finals": []})
    assert store.finish(again, -2.0, {"finals": [-2.0], "areas": [-2.0]})
    assert [one.value for one in store.done(again.method)] == [-2.0]


def test_a_trial_that_ends_its_process_again_and_again_fails(tmp_path):
    config = tiny(tmp_path / "study", trials=1)
    for _ in range(storing.TRIES):
        assert Store(config).take() is not None
    assert Store(config).take() is None
    study = tune(config, progress=False)
    assert [one["state"] for one in study.trials] == ["failed"]
    assert "memory" in study.trials[0]["error"]


def test_a_process_that_makes_a_trial_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "BEAT", 0.01)
    store = Store(tiny(tmp_path / "study"))
    method, _, trial = store.take()
    before = store.trials(method)[0].user_attrs["beat"]
    with beating(trial):
        time.sleep(0.2)
    assert store.trials(method)[0].user_attrs["beat"] > before


def test_a_journal_grows_by_its_trials_only(tmp_path, curves):
    curves(lambda settings, seed: -1)
    config = tiny(tmp_path / "study")
    tune(config, progress=False)
    before = (config.out / "trials.journal").read_bytes()
    tune(config, progress=False)
    assert (config.out / "trials.journal").read_bytes() == before
    assert sum(json.loads(one)["op_code"] == 0 for one in before.splitlines()) == 1  # the study is made once


def test_a_journal_that_was_cut_short_is_taken_up(tmp_path, curves):
    curves(lambda settings, seed: -1)
    config = tiny(tmp_path / "study")
    tune(config, progress=False)
    with (config.out / "trials.journal").open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker')
    assert len(tune(replace(config, trials=5), progress=False).trials) == 5


def test_after_ctrl_c_the_trial_under_way_is_made_again(tmp_path, monkeypatch, curves):
    curves(lambda settings, seed: -1)
    learn, calls = studying.learn, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return learn(*arguments, **options)

    monkeypatch.setattr(studying, "learn", interrupted)
    config = tiny(tmp_path / "study")
    with pytest.raises(KeyboardInterrupt):
        tune(config, progress=False)
    assert len(tune(config, progress=False).trials) == 3
    assert calls[2][2] == calls[3][2]  # with the same settings


def test_the_command_says_how_it_goes_on_after_ctrl_c(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studying, "learn", interrupted)
    assert main(shlex.split(f"{LINE} --methods C PPO --out study")) == 130
    said = capsys.readouterr().err
    assert "stopped; every finished trial is kept; to go on:\n  bptt tune --env DiffIntegrator-v0" in said


def test_a_folder_that_is_shared_waits_for_its_turn(tmp_path):
    has_it, let_go = threading.Event(), threading.Event()

    def other():
        with locked(tmp_path):
            has_it.set()
            let_go.wait(30.0)

    thread = threading.Thread(target=other)
    thread.start()
    assert has_it.wait(30.0)
    with pytest.raises(RunFolderError, match="in use"), locked(tmp_path):
        pass
    threading.Timer(0.1, let_go.set).start()
    with locked(tmp_path, wait=30.0):
        assert let_go.is_set()
    thread.join()


def test_a_study_of_a_version_that_had_a_flag_for_each_recorder_goes_on(tmp_path, curves):
    curves(lambda settings, seed: -1)
    tune(tiny(tmp_path / "study", trials=1), progress=False)
    claim = tmp_path / "study" / "study.json"
    said = json.loads(claim.read_text())
    said["rows"]["C"]["diagnostics"] = False
    claim.write_text(json.dumps(said))
    assert len(tune(tiny(tmp_path / "study", trials=2), progress=False).trials) == 2


def test_no_trial_is_begun_after_the_time(tmp_path, curves):
    curves(lambda settings, seed: -1)
    study = tune(tiny(tmp_path / "study", timeout=1e-9), progress=False)
    assert study.trials == ()
    assert study.best == {}


# What is searched


def methods_on(env):
    """All methods on the first id, elsewhere those whose preset is the id's, and one of each other kind in turn."""
    if env == "DiffCartPole-v0":
        return (*TUNABLE, "R decay 0.9")
    place = [*ENTRIES].index(env)
    kinds = ("LR", "TP", "AoBG"), ("SHAC", "SHAC-M", "SHAC-C", "SAPO")
    return ("R", "C", "PPO", "SAC", *(kind[place % len(kind)] for kind in kinds))


def test_every_method_is_searched_on_some_id():
    assert {method for env in ENTRIES if env != "DiffCartPole-v0" for method in methods_on(env)} >= set(TUNABLE) - {
        *("M", "S", "C-turned")  # R and C but for the rule
    }


@pytest.mark.parametrize("env", ENTRIES)
def test_a_method_can_be_searched_on_every_id_and_what_is_printed_trains_with_the_row(env):
    config = TuneConfig(env=env, methods=methods_on(env))
    published = replace(config.budget, preset="paper")
    for i, (method, search) in enumerate(config.searches({}).items()):
        values = {name: entry.encoded(entry.values[-1]) for name, entry in search.free.items()}
        both = (search.first(), search.settings(values))
        for settings in both if env == "DiffCartPole-v0" else both[i % 2 :][:1]:
            words = shlex.split(command(config, method, search.named(settings)))
            read, trained = read_command(words[1], words[2:]), get_method(method)
            if isinstance(trained, BPTT):
                whole = trained.config(config.budget, settings)
                assert replace(read.training, test_states=256, record=()) == whole
                seen = parse_options(env, read.env_option)
                assert {name: settings[name] for name in seen} == seen
            else:
                overrides = parse_overrides(read.override)[method]
                assert trained.settings(published, overrides) == trained.settings(config.budget, settings)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("1e-3:1e-1", Range(1e-3, 1e-1)),
        ("1e-3:1e-1:log", Range(1e-3, 1e-1, log=True)),
        ("2:8", Range(2, 8)),
        ("{2, 4,8}", Choice((2, 4, 8))),
        ("{none,norm}", Choice(("none", "norm"))),
        ("{(32, 32), (64,)}", Choice(((32, 32), (64,)))),
        ("{true, False}", Choice((True, False))),
    ],
)
def test_entries_are_read_and_said_alike(text, entry):
    assert read_entry(text) == entry
    assert read_entry(str(entry)) == entry
    assert read_searches([f"R decay 0.9.clip={text}"]) == {"R decay 0.9": {"clip": entry}}


def test_a_range_of_integers_gives_integers(tmp_path, curves):
    seen = []
    curves(lambda settings, seed: seen.append(settings["batch_size"]) or -1)
    fix = {"C": {"train_states": 16}}
    tune(tiny(tmp_path / "study", trials=6, fix=fix, search={"C": {"batch_size": Range(2, 8)}}), progress=False)
    assert {type(one) for one in seen} == {int}
    assert set(seen) <= set(range(2, 9))


def test_ppos_minibatches_divide_what_an_update_collects():
    config = TuneConfig(methods=("PPO",))
    search = config.searches({})["PPO"]
    for entry in search.space["minibatches"].values:
        settings = search.settings({**search.parameters(), "minibatches": repr(entry), "n_steps": "25"})
        assert settings["batch_size"] * entry == settings["num_envs"] * 25
        assert "minibatches" not in settings
