"""A comparison compares like with like, says what happened, and computes nothing twice."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import tyro

from bptt_trainers import Ensemble, NonFiniteError, RunFolderError, held_out_states, losses, plan, rollout
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.comparison.methods import BPTT, METHODS, Baseline, Budget, get_method
from bptt_trainers.comparison.notes import unequal_actions, unequal_steps
from bptt_trainers.comparison.runs import member_folder
from bptt_trainers.comparison.summary import method_rows, run_rows, summarize, to_markdown
from bptt_trainers.comparison.sweep import SweepConfig
from bptt_trainers.controllers.baselines import ZeroController
from bptt_trainers.figures.style import save_figure
from bptt_trainers.records.curve import CurvePoint, curve_to_csv, read_curve
from bptt_trainers.training.run_folder import RunFolder

TINY_PPO = {"num_envs": 4, "n_steps": 8, "batch_size": 32, "n_epochs": 1, "hidden": (8,)}
TINY_BPTT = {"train_states": 16, "hidden": (8,)}


def tiny(out, **changes):
    settings = {
        "env": "DiffIntegrator-v0",
        "methods": ("C", "PPO", "zero", "random"),
        "seeds": (0, 1),
        "steps": 128,
        "evaluations": 2,
        "test_states": 16,
        "overrides": {"PPO": TINY_PPO, "C": TINY_BPTT, "R": TINY_BPTT},
        "out": out,
    }
    return ComparisonConfig(**(settings | changes))


def times(folder):
    """When each file of the runs was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("comparison") / "all")
    return config, compare(config, progress=False)


@pytest.fixture
def finished(original, tmp_path):
    """A copy of a finished comparison, and what it found."""
    config, comparison = original
    shutil.copytree(config.out, tmp_path / "all")
    return replace(config, out=tmp_path / "all"), comparison


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# The table, against numbers worked out by hand


def curve(*losses):
    return [CurvePoint(100 * i, 2.0 * i, loss) for i, loss in enumerate(losses)]


def test_a_run_in_numbers():
    run = summarize("C", 3, curve(2.0, 0.5, 0.05, 0.2, 0.08), [1.0, 0.1, 0.01])
    assert (run.simulator_steps, run.seconds, run.final_loss, run.best_loss) == (400, 8.0, 0.08, 0.05)
    assert run.steps_to == {1.0: 100, 0.1: 200, 0.01: math.inf}
    assert run.seconds_to == {1.0: 2.0, 0.1: 4.0, 0.01: math.inf}
    assert not run.climbed_back


@pytest.mark.parametrize(("last", "climbed"), [(0.15, False), (0.16, True), (math.nan, True)])
def test_a_run_that_climbs_back_is_reported(last, climbed):
    assert summarize("C", 0, curve(2.0, 0.05, last), [0.1]).climbed_back is climbed


def test_a_loss_that_is_no_number_counts_as_infinite():
    run = summarize("R", 0, curve(2.0, math.nan), [0.1])
    assert run.final_loss == math.inf
    assert run.best_loss == 2.0
    assert run.steps_to[0.1] == math.inf


def test_a_method_in_numbers():
    curves = [curve(2.0, 0.5, 0.05), curve(2.0, 0.08, 0.9), curve(2.0, 1.0, 0.3)]
    runs = [summarize("C", seed, one, [0.1, 0.01]) for seed, one in enumerate(curves)]
    (row,) = method_rows(runs)
    expected = {
        "method": "C",
        "runs": 3,
        "simulator_steps": 200,
        "seconds": 4.0,
        "final_loss": 0.3,
        "final_loss_min": 0.05,
        "final_loss_max": 0.9,
        "best_loss": 0.08,
        "best_loss_min": 0.05,
        "best_loss_max": 0.3,
        "climbed_back": 1,
        "reached_0.1": 2,
        "steps_to_0.1": 200,  # of 100, 200, never
        "seconds_to_0.1": 4.0,
        "reached_0.01": 0,
        "steps_to_0.01": math.inf,
        "seconds_to_0.01": math.inf,
    }
    assert row == expected
    line = to_markdown([row], [0.1, 0.01]).splitlines()[2]
    assert line == "| C | 3 | 200 | 4.0 | 0.3 (0.05 to 0.9) | 0.08 (0.05 to 0.3) | 1/3 | 200, 4.0 s (2/3 runs) | – |"
    assert run_rows(runs)[1]["climbed_back"] == 1


def test_a_planner_says_how_far_above_its_best_plan_each_method_ends():
    ends = {"C": (0.3, 0.5), "iLQR": (0.1, 0.2)}
    runs = [summarize(method, i, curve(one), [0.15]) for method, two in ends.items() for i, one in enumerate(two)]
    rows_ = {row["method"]: row for row in method_rows(runs, ["iLQR"])}
    assert rows_["C"]["above_best"] == pytest.approx(0.4 - 0.1)
    assert rows_["iLQR"]["above_best"] == pytest.approx(0.15 - 0.1)
    table = to_markdown(list(rows_.values()), [0.15])
    assert "| above the best plan |" in table
    assert "| 0.4 (0.3 to 0.5) | 0.4 (0.3 to 0.5) | 0.3 | 0/2 | – |" in table
    assert "Planners learn nothing" in table
    assert "above" not in to_markdown(method_rows(runs), [0.15])


def test_planners_are_rows_that_plan_the_held_out_states_once(tmp_path):
    config = tiny(
        tmp_path / "planned",
        methods=("zero", "iLQR", "GRAPE"),
        seeds=(0,),
        test_states=3,
        overrides={"iLQR": {"restarts": 0}, "GRAPE": {"iterations": 2, "restarts": 1}},
    )
    comparison = compare(config, progress=False)
    system = config.budget.make_env().system
    ends = {run.method: run.final_loss for run in comparison.runs}
    found = plan(system, held_out_states(system, 3), "iLQR", restarts=0).losses
    assert ends["iLQR"] == pytest.approx(float(found.mean()))
    assert ends["iLQR"] <= ends["GRAPE"] < ends["zero"]
    above = {row["method"]: float(row["above_best"]) for row in rows(config.out / "methods.csv")}
    assert above == pytest.approx({method: end - ends["iLQR"] for method, end in ends.items()})
    stored = times(config.out)
    compare(config, progress=False)
    assert times(config.out) == stored, "a rerun plans nothing again"
    with pytest.raises(RunFolderError, match=r"iLQR restarts: 0 in the folder, 1 asked for"):
        compare(replace(config, overrides={"iLQR": {"restarts": 1}}), progress=False)


def test_a_curve_survives_its_file(tmp_path):
    points = curve(2.0, 0.1, math.inf)
    (tmp_path / "curve.csv").write_text(curve_to_csv(points))
    assert read_curve(tmp_path / "curve.csv") == points
    (tmp_path / "broken.csv").write_text("seconds,test_loss\n1,2\n")
    with pytest.raises(RunFolderError, match="no column 'simulator_steps'"):
        read_curve(tmp_path / "broken.csv")


# The comparison


def test_every_method_is_judged_on_the_same_states(finished):
    config, comparison = finished
    system = config.budget.make_env().system
    states = held_out_states(system, 16)
    zero = float(losses(system, rollout(system, ZeroController(system), states)).mean())
    assert comparison.curves["zero", 0][-1].test_loss == comparison.curves["zero", 1][-1].test_loss == zero
    folder = RunFolder(member_folder(config.out, "C", 1))
    controller, _ = folder.load_controller(system, "last")
    loss = float(losses(system, rollout(system, controller, states)).mean())
    assert comparison.curves["C", 1][-1].test_loss == pytest.approx(loss, rel=1e-6)
    for method in ("C", "PPO"):
        assert [point.simulator_steps for point in comparison.curves[method, 0]] == [0, 64, 128]
    assert {cell.method: cell.steps for cell in config.cells} == {"C": 128, "PPO": 128, "zero": 0, "random": 0}
    assert not unequal_steps(config.cells)


def test_the_files_hold_what_the_result_says(finished):
    config, comparison = finished
    points = rows(config.out / "curves.csv")
    assert len(points) == sum(map(len, comparison.curves.values()))
    assert {(row["method"], row["seed"]) for row in points} == {(m, str(s)) for m, s in comparison.curves}
    assert len(rows(config.out / "runs.csv")) == 8
    assert [row["method"] for row in rows(config.out / "methods.csv")] == ["C", "PPO", "zero", "random"]
    assert (config.out / "methods.md").read_text() == comparison.table
    assert (config.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((config.out / "comparison.json").read_text())["settings"]
    assert settings["PPO"]["num_envs"] == 4
    assert settings["C"]["train_states"] == 16


def test_a_rerun_computes_nothing_again(finished):
    config, comparison = finished
    before = times(config.out)
    again = compare(config, progress=False)
    assert times(config.out) == before
    assert again.table == comparison.table


def test_a_rerun_computes_what_is_missing_and_only_that(finished):
    config, comparison = finished
    before = times(config.out)
    lost = member_folder(config.out, "PPO", 1)
    for path in lost.iterdir():
        path.unlink()
    (member_folder(config.out, "C", 0) / "curve.csv").unlink()  # as if killed right before the end of the run
    again = compare(config, progress=False)
    changed = {path for path, time in times(config.out).items() if before[path] != time}
    assert {path.parent for path in changed} == {lost, member_folder(config.out, "C", 0)}
    for key, points in comparison.curves.items():
        assert [p.test_loss for p in again.curves[key]] == [p.test_loss for p in points]


def test_methods_and_seeds_may_be_added(finished):
    config, _ = finished
    before = times(config.out)
    more = compare(replace(config, methods=("R", "C"), seeds=(0, 1, 2)), progress=False)
    assert set(more.curves) == {(method, seed) for method in ("R", "C") for seed in (0, 1, 2)}
    after = times(config.out)
    assert {path: after[path] for path in before} == before
    compare(config, progress=False)  # and taken away again
    assert times(config.out) == after


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": 256}, "steps: 128 in the folder, 256 asked for"),
        ({"env_options": {"horizon": 5}}, "env_options: {} in the folder, {'horizon': 5} asked for"),
        ({"overrides": {"PPO": TINY_PPO | {"gamma": 0.5}, "C": TINY_BPTT}}, "PPO gamma: 1.0 in the folder, 0.5"),
        ({"overrides": {"PPO": TINY_PPO, "C": TINY_BPTT | {"clip": "value"}}}, "C clip: 'norm' in the folder, 'value'"),
    ],
)
def test_a_folder_of_another_comparison_is_refused_with_the_difference(finished, changes, difference):
    config, _ = finished
    with pytest.raises(RunFolderError) as refused:
        compare(replace(config, **changes), progress=False)
    assert difference in str(refused.value)


def test_a_comparison_of_a_version_that_knew_fewer_settings_goes_on(tmp_path):
    config = tiny(tmp_path / "all", methods=("C",), seeds=(0,), overrides={"C": TINY_BPTT}, preset="paper")
    table = compare(config, progress=False).table
    claim = config.out / "comparison.json"
    said = json.loads(claim.read_text())
    del said["preset"]
    for name in ("observe_time", "squash", "start_states"):
        del said["settings"]["C"][name]
    claim.write_text(json.dumps(said))
    assert compare(config, progress=False).table == table
    claim.write_text(json.dumps(said))
    with pytest.raises(RunFolderError, match="C observe_time: False in the folder, True asked for"):
        compare(replace(config, overrides={"C": TINY_BPTT | {"observe_time": True}}), progress=False)


def test_a_comparison_of_a_version_that_had_a_flag_for_each_recorder_goes_on(finished):
    config, comparison = finished
    claim = config.out / "comparison.json"
    said = json.loads(claim.read_text())
    said["settings"]["C"]["diagnostics"] = False
    claim.write_text(json.dumps(said))
    assert compare(config, progress=False).table == comparison.table


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="holds other files and no comparison"):
        compare(tiny(tmp_path), progress=False)


def test_runs_of_the_update_rules_are_trained_together_and_end_where_they_end_alone(tmp_path, monkeypatch):
    sizes = []
    fit = Ensemble.fit
    monkeypatch.setattr(Ensemble, "fit", lambda self: (sizes.append(len(self.members)), fit(self))[1])
    monkeypatch.setitem(METHODS, "wide", BPTT("C", TINY_BPTT | {"hidden": (9,)}))
    monkeypatch.setitem(METHODS, "slow", BPTT("R", TINY_BPTT | {"engine": "autograd"}))
    changes = {"methods": ("C", "R", "wide", "slow", "zero"), "overrides": {"C": TINY_BPTT, "R": TINY_BPTT}}
    together = compare(tiny(tmp_path / "together", **changes), progress=False)
    assert sizes == [4, 2]  # C and R, the wide ones; what the adjoint engine does not compute is trained alone
    alone = compare(tiny(tmp_path / "alone", together=False, **changes), progress=False)
    assert sizes == [4, 2]
    for key, points in together.curves.items():
        assert [p.simulator_steps for p in points] == [p.simulator_steps for p in alone.curves[key]]
        expected = [p.test_loss for p in alone.curves[key]]
        assert [p.test_loss for p in points] == pytest.approx(expected, rel=1e-4)
    assert "are trained together" in together.table
    assert "are trained together" not in alone.table
    assert rows(tmp_path / "together" / "curves.csv")[0].keys() == rows(tmp_path / "alone" / "curves.csv")[0].keys()


def test_a_run_that_is_not_finite_ends_the_comparison_when_the_others_are_kept(tmp_path):
    bad = {"on_nonfinite": "stop", "learning_rate": 1e30}
    config = tiny(tmp_path, methods=("R", "C"), overrides={"C": TINY_BPTT | bad, "R": TINY_BPTT})
    with pytest.raises(NonFiniteError, match="in epoch 1, update 2 of 2"):
        compare(config, progress=False)
    assert [(member_folder(tmp_path, m, 0) / "curve.csv").exists() for m in ("R", "C")] == [True, False]


def test_a_method_of_ones_own_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "C, clipped", BPTT("C", TINY_BPTT | {"clip": "norm"}))
    monkeypatch.setitem(METHODS, "push", Baseline("pushes", lambda system, seed: lambda obs: torch.ones(len(obs), 1)))
    comparison = compare(tiny(tmp_path, methods=("C, clipped", "push"), seeds=(0,)), progress=False)
    assert comparison.curves["push", 0][0].test_loss == pytest.approx(2.0, abs=1.0)  # 4 steps of 1, from 0 to 2
    assert RunFolder(member_folder(tmp_path, "C, clipped", 0)).train_config().clip == "norm"
    assert METHODS["C, clipped"].summary.endswith("clip norm")


def test_a_rule_with_a_decay_or_a_window_is_a_method_by_its_name(tmp_path, monkeypatch):
    sizes = []
    fit = Ensemble.fit
    monkeypatch.setattr(Ensemble, "fit", lambda self: (sizes.append(len(self.members)), fit(self))[1])
    given = {"methods": ("R decay .50", "C every 2"), "overrides": {"R decay 0.5": TINY_BPTT, "C every 02": TINY_BPTT}}
    config = tiny(tmp_path / "some", seeds=(0,), **given)
    assert config.methods == ("R decay 0.5", "C every 2") == tuple(config.overrides)
    first = compare(config, progress=False)
    before = times(config.out)
    whole = tiny(
        tmp_path / "some", seeds=(0,), methods=(*given["methods"], "R"), overrides=config.overrides | {"R": TINY_BPTT}
    )
    found = compare(whole, progress=False)
    assert sizes == [2, 1]  # together, and of them nothing again
    assert times(config.out).items() >= before.items()
    assert found.curves.items() >= first.curves.items()
    for method, folder in (("R decay 0.5", "R-decay-0.5-seed0"), ("C every 2", "C-every-2-seed0")):
        assert member_folder(config.out, method, 0).name == folder
        assert RunFolder(config.out / "runs" / folder).train_config().rule == method
    assert [row["method"] for row in rows(config.out / "methods.csv")] == ["R decay 0.5", "C every 2", "R"]
    assert found.curves["R decay 0.5", 0][-1].test_loss != found.curves["R", 0][-1].test_loss
    assert "feedback times 0.5 a step" in get_method("R decay 0.5").summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("C", "PP0")}, "methods must be one of .*Did you mean 'PPO'"),
        ({"methods": ("C decay",)}, "methods must be one of .*, or a rule with a decay, a window or both, such as"),
        ({"methods": ("C decay 2",)}, "the decay of methods 'C decay 2' must be a number from 0 to 1; got 2"),
        ({"methods": ("S every 4",)}, "methods must be 'S' alone, which feeds nothing back"),
        ({"methods": ("R every 8", "R every 08")}, r"methods must be at least one, each once; got \('R every 8', 'R e"),
        ({"methods": ()}, "methods must be at least one"),
        ({"seeds": (1, 1)}, "seeds must be at least one, each once"),
        ({"seeds": (-1,)}, "seeds must be an integer of at least 0; got -1"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"losses": (0.0,)}, "losses must be a finite number above 0"),
        ({"env": "DiffIntegrater-v0"}, "Did you mean 'DiffIntegrator-v0'"),
        ({"env_options": {"horizn": 3}}, "no option 'horizn'. Did you mean 'horizon'"),
        ({"env_options": {"horizon": 0}}, "horizon must be an integer of at least 1"),
        ({"overrides": {"ppo": {}}}, "overrides must be one of"),
        ({"overrides": {"PPO": {"num_env": 3}}}, "PPO has no setting 'num_env'"),
        ({"overrides": {"C": {"learning_rat": 0.1}}}, "no setting 'learning_rat'.*Did you mean 'learning_rate'"),
        ({"overrides": {"C": {"epochs": 3}}}, "no setting 'epochs' to override"),
        ({"overrides": {"C": {"clip": "hard"}}}, "^C: clip must be one of"),
        (
            {"methods": ("SHAC",), "overrides": {"SHAC": {"train_states": 8}}},
            "^SHAC: batch_size must be at most",
        ),
        ({"overrides": {"zero": {"force": 3}}}, "learns nothing has no settings"),
        (
            {"methods": ("iLQR",), "overrides": {"iLQR": {"learning_rate": 0.1}}},
            "iLQR has no setting 'learning_rate'. Its settings: restarts, iterations.",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_the_rules_and_ppo_get_the_steps_asked_for_and_sac_at_most_its_own():
    budget = Budget("DiffCartPole-v0", {}, 2_560_000, 100, 256, "paper")
    assert METHODS["C"].settings(budget, {}) == METHODS["C"].settings(budget, {"clip": "none"})
    assert METHODS["PPO"].settings(budget, {})["max_steps"] > budget.steps
    assert METHODS["SAC"].settings(budget, {})["max_steps"] == 200_000


def test_threads_are_put_back(finished):
    config, _ = finished
    before = torch.get_num_threads()
    compare(replace(config, threads=1), progress=False)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("methods", "env", "options", "said"),
    [
        (
            ("R", "C", "PPO", "zero"),
            "DiffCartPole-v0",
            {},
            "PPO are from -50 to 50, those of R, C any; the option max",
        ),
        (
            ("iLQR", "random"),
            "DiffCartPole-v0",
            {"max_force": None},
            "random are from -50 to 50, those of iLQR any",
        ),
        (("R", "PPO"), "DiffCartPole-v0", {"max_force": 20.0}, ""),
        (("R", "C", "zero"), "DiffCartPole-v0", {}, ""),
        (("PPO", "random"), "DiffCartPole-v0", {}, ""),
    ],
)
def test_methods_that_act_in_ranges_beside_some_that_act_without_bounds_are_named(methods, env, options, said):
    found = unequal_actions(ComparisonConfig(env=env, env_options=options, methods=methods).cells)
    assert said in found
    assert bool(found) == bool(said)


@pytest.mark.parametrize(
    ("methods", "steps", "said"),
    [
        (("R", "C", "PPO", "zero"), 10_000, "not 10,000 but: R, C 12,800; PPO 10,240. Losses at the end are not after"),
        (("R", "C", "PPO", "SAC"), 500_000, "not 500,000 but: R, C 499,200; PPO 501,760; SAC 200,000. Losses"),
        (("C", "zero"), 2_000, "not 2,000 but: C 6,400."),
        (("C", "PPO"), 640_000, ""),
    ],
)
def test_a_budget_that_whole_epochs_and_updates_do_not_meet_is_said_with_what_they_take(methods, steps, said):
    own = {"R": {"train_states": 64}, "C": {"train_states": 64}}
    own["PPO"] = {"num_envs": 16, "n_steps": 160, "batch_size": 128}
    overrides = {name: own[name] for name in methods if name in own}
    config = ComparisonConfig(methods=methods, steps=steps, env_options={"horizon": 100}, overrides=overrides)
    found = unequal_steps(config.cells)
    assert said in found
    assert bool(found) == bool(said)
    assert found.endswith("compare the curves.") == ("Losses" in said)


def test_methods_that_are_bounded_otherwise_are_not_said_to_act_freely():
    free = ComparisonConfig(methods=("C", "PPO"), overrides={"C": {"squash": True}})
    assert not unequal_actions(free.cells)
    assert not unequal_actions(ComparisonConfig(methods=("SAPO", "PPO")).cells)
    some = SweepConfig(methods=("C", "PPO"), env_grid={"max_force": (50.0, None)})
    assert "no bounds, those of PPO are from -50 to 50, those of C any" in unequal_actions(some.cells)


def test_the_table_says_that_actions_have_no_bounds(finished):
    config, comparison = finished
    said = unequal_actions(config.cells)
    assert said
    assert comparison.table.endswith(f"{said}\n")
    assert json.loads((config.out / "comparison.json").read_text())["notes"] == list(config.notes)
    points = SweepConfig(methods=("C", "PPO"), env_grid={"max_force": (None, 50.0)})
    assert "those of PPO are" in unequal_actions(points.cells)
    assert not unequal_actions(replace(points, env_grid={"max_force": (20.0, 50.0)}).cells)


def test_the_command_line_comes_from_the_configuration(capsys):
    config = tyro.cli(ComparisonConfig, args=["--methods", "C", "PPO", "--seeds", "3", "--steps", "500"])
    assert (config.methods, config.seeds, config.steps) == (("C", "PPO"), (3,), 500)
    with pytest.raises(SystemExit):
        tyro.cli(ComparisonConfig, args=["--help"])
    assert "Simulator steps a run trains on" in capsys.readouterr().out


@pytest.mark.usefixtures("drawn")
def test_the_figure_shows_a_band_a_single_run_a_baseline_and_a_run_that_diverged(tmp_path):
    curves = {("C", seed): curve(2.0, 0.5 + seed, 0.1) for seed in range(3)}
    curves |= {("PPO", 0): curve(2.0, 0.2, 0.01), ("R", 0): curve(2.0, math.inf, math.nan), ("zero", 0): curve(2.0)}
    figure = curves_figure(curves, "three kinds")
    steps, seconds = figure.axes
    assert [line.get_label() for line in steps.lines] == ["C", "PPO", "R", "zero"]
    assert len(steps.collections) == len(seconds.collections) == 1
    save_figure(figure, tmp_path / "figure.png")


def test_books_of_a_run_that_disagree_are_an_error_in_words(tmp_path):
    config = tiny(tmp_path, methods=("C",), seeds=(0,))
    compare(config, progress=False)
    path = member_folder(config.out, "C", 0) / "curve.csv"
    whole = path.read_text()
    for damaged in ("", whole.splitlines()[0] + "\n", whole.rpartition(",")[0], whole.rstrip("\n") + ",7\n"):
        path.write_text(damaged)
        with pytest.raises(RunFolderError, match=r"Deleted, it is made anew"):
            compare(config, progress=False)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(RunFolderError, match=r"curve.csv and metrics.csv disagree. Deleted, curve.csv is made anew"):
        compare(config, progress=False)
    path.unlink()
    compare(config, progress=False)
    assert path.read_text() == whole


@pytest.mark.slow
def test_several_processes_leave_what_one_does(tmp_path):
    def made(jobs):
        config = ComparisonConfig(
            env="DiffIntegrator-v0",
            methods=("C", "PPO", "zero"),
            seeds=(0, 1),
            steps=128,
            test_states=8,
            overrides={"C": TINY_BPTT, "PPO": TINY_PPO},
            together=False,
            jobs=jobs,
            out=tmp_path / str(jobs),
        )
        curves = compare(config, progress=False).curves
        return {key: [(one.simulator_steps, one.test_loss) for one in curve] for key, curve in curves.items()}

    assert made(1) == made(2)
