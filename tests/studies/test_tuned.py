"""The tables and figures of the tuned study."""

import math
from pathlib import Path

import pytest

from bptt_studies.paper.experiments import EXPERIMENTS, SMOKE
from bptt_studies.paper.figures import profiles_figure, tuned_figure
from bptt_studies.paper.report import report_studies, tables_of
from bptt_studies.paper.results import Member, Point, result_of
from bptt_studies.paper.study import TaskResults
from bptt_studies.paper.tuned_tables import (
    COMPARED,
    RULES,
    TARGETS,
    headline_table,
    scores_of,
    summary_table,
    targets_table,
    whole_tasks,
)
from bptt_studies.paper.work import runs_of
from bptt_trainers.cli import main

NAN = float("nan")
STEP = 1000


def runs(label, rule, when, losses, seconds=0.01):
    """Runs of a method, one for each of `losses`: 2 untrained, 0.001 from evaluation `when` on, the loss at last."""
    made = []
    for seed, loss in enumerate(losses):
        member = Member(
            experiment="tuned-cart-pole-1",
            env_id="DiffCartPole-v0",
            options="",
            method=label,
            rule=rule,
            clip="" if rule == "PPO" else "norm",
            learning_rate=0.01,
            settings="",
            seed=seed,
            epochs=0 if rule == "PPO" else 10,
            steps=10 * STEP,
            train_states=0 if rule == "PPO" else 64,
            test_states=16,
        )
        values = [2.0 if i < when else 0.001 for i in range(10)] + [loss]
        train = NAN if rule == "PPO" else 1.0
        curve = [
            Point(i, i * STEP, i * STEP * seconds, train, value, NAN, NAN, NAN, 0) for i, value in enumerate(values)
        ]
        made.append((result_of(member, curve, 1, "none"), curve))
    return made


def task_of(*methods):
    made = [one for of_one in methods for one in of_one]
    curves = {result.member.name: curve for result, curve in made}
    return TaskResults("cart-pole-1", "one pole", [result for result, _ in made], curves, (0.001,))


def every_method(c_when=2, ppo_when=5, ppo_seconds=0.1):
    rules = [runs(rule, rule[0], 3, [0.01] * 10) for rule in RULES if rule != "C"]
    return task_of(
        *rules,
        runs("C", "C", c_when, [1e-5] * 10),
        runs("PPO", "PPO", ppo_when, [1e-4] * 10, ppo_seconds),
        runs("PPO by hand", "PPO", 6, [1e-3] * 10, 0.02),
    )


def test_targets_compare_with_the_better_of_both_ppos():
    row, *others = targets_table([every_method()]).rows
    assert not others  # C is the first there
    assert (row["method"], row["steps"], row["PPO's steps"]) == ("C", "2,000", "5,000")
    assert row["aim"] == "≤ 0.6, met"
    assert (row["seconds"], row["PPO's seconds"]) == ("20", "120")  # of the one by hand: 6,000 steps at 0.02 s
    assert row["aim "] == "≤ 0.2, met"
    assert row["loss at the end over PPO's"] == "0.10, met"


def test_targets_name_the_first_rule_beside_c_and_say_what_is_missed():
    rows = targets_table([every_method(c_when=8)]).rows
    assert [row["method"] for row in rows] == ["C", "R"]
    assert rows[0]["aim"] == "≤ 0.6, missed"


def test_a_run_that_never_gets_there_counts_as_infinite():
    mostly_stuck = [*runs("C", "C", 2, [1e-5] * 4), *runs("C", "C", 99, [2.0] * 10)[4:]]
    ppo = runs("PPO", "PPO", 5, [1e-4] * 10)
    row = targets_table([task_of(mostly_stuck, ppo)]).rows[0]
    assert (row["steps"], row["aim"]) == ("–", "≤ 0.6, missed")


def test_the_headline_counts_runs_that_are_stuck():
    some_stuck = runs("C", "C", 2, [1e-5] * 8 + [1.5] * 2)
    (row,) = headline_table([task_of(some_stuck)]).rows
    assert (row["method"], row["runs"], row["stuck"]) == ("C", 10, 2)
    assert row["to the level: steps, seconds (runs)"] == "2,000, 20 s (10/10)"


def test_scores_are_0_untrained_and_1_at_the_best_median():
    task = every_method()
    scored = scores_of([task], COMPARED, 10)
    assert scored["C"] == pytest.approx(1.0)
    assert scored["R"] == pytest.approx(math.log(2 / 0.01) / math.log(2 / 1e-5))
    summary = {row["method"]: row for row in summary_table([task]).rows}
    assert summary["PPO"]["C better"] == "1.00 (1.00 to 1.00)"


def test_tasks_that_lack_a_method_are_left_out_of_the_summary():
    assert whole_tasks([task_of(runs("C", "C", 2, [1e-5] * 10))]) == ([], 0)
    assert summary_table([task_of(runs("C", "C", 2, [1e-5] * 10))]).rows == []


@pytest.mark.usefixtures("drawn")
def test_the_report_has_every_table_and_figure_of_the_study(tmp_path):
    studies = {"tuned": [every_method()]}
    tables = report_studies(studies, tmp_path)
    names = {"tuned-cart-pole-1", "tuned-headline", "tuned-targets", "tuned-summary", "tuned-ablations"}
    assert names <= tables.keys() == {"reading", *names}
    assert "yes: 1.00" in tables["tuned-cart-pole-1"]
    for name in ("tuned-cart-pole-1", "tuned", "tuned-profiles"):
        assert (tmp_path / f"{name}.png").exists()
        assert (tmp_path / f"{name}.pdf").exists()


def test_figures_of_a_study_with_nothing_of_some_methods_are_drawn():
    partial = task_of(runs("C", "C", 2, [1e-5] * 2))
    assert tuned_figure([partial]).axes
    assert profiles_figure([partial]).axes


def test_every_target_is_of_a_task_of_the_study():
    tasks = {one.task.name for one in EXPERIMENTS.values() if one.study == "tuned"}
    assert tasks >= TARGETS.keys()


def test_ten_seeds_of_every_variant_are_asked_for_with_the_tuned_settings():
    experiment = EXPERIMENTS["tuned-cart-pole-1"]
    members = [run.member for run in runs_of(experiment, "standard", Path("nowhere"))]
    assert {sum(one.method == label for one in members) for label in {one.method for one in members}} == {10}
    (first,) = (one for one in members if (one.method, one.seed) == ("C", 0))
    assert "start_states='fresh'" in first.settings
    (ppo,) = (one for one in members if (one.method, one.seed) == ("PPO by hand", 0))
    assert ppo.settings == ""
    assert experiment.amount("smoke") == SMOKE
    assert experiment.amount("full") == experiment.standard


def test_tables_of_no_runs_are_none():
    assert tables_of({"tuned": [TaskResults("cart-pole-1", "one pole", [])]}).keys() == {"reading"}


@pytest.mark.usefixtures("in_this_process")
def test_the_smoke_tier_of_the_study_runs_reports_and_fills_a_gap(tmp_path, capsys):
    command = [
        "reproduce",
        "--tier",
        "smoke",
        "--experiments",
        "tuned-cart-pole-1",
        "--jobs",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    path = tmp_path / "results/tuned-cart-pole-1.csv"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 2 * len(EXPERIMENTS["tuned-cart-pole-1"].variants)
    assert (tmp_path / "report/tuned.png").exists()
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert main(command) == 0
    assert path.read_text().splitlines()[:-1] == lines[:-1]
    assert len(path.read_text().splitlines()) == len(lines)
