"""The tables and figures of the study of algorithms."""

import math
from pathlib import Path

import pytest

from bptt_studies.paper.algorithm_tables import (
    algorithm_table,
    choice_table,
    on_all,
    questions_table,
    scores_table,
)
from bptt_studies.paper.figures import algorithm_figure, algorithms_figure
from bptt_studies.paper.report import report_studies
from bptt_studies.paper.results import Member, Point, result_of
from bptt_studies.paper.study import TaskResults
from bptt_studies.paper.tables import NONE, Claim

NAN = float("nan")
STEP = 1000
RULES = ("R", "C", "C every 16", "SHAC", "SHAC-M")


def task_of(name, ends):
    """A task on which each method has four runs: 2 untrained, 0.1 in between, at the end about what `ends` says."""
    results, curves = [], {}
    for label, end in ends.items():
        learns = label != "PPO"
        for seed in range(4):
            member = Member(
                experiment=f"algorithms-{name}",
                env_id="DiffCartPole-v0",
                options="",
                method=label,
                rule=label,
                clip="norm" if learns else "",
                learning_rate=0.01,
                settings="",
                seed=seed,
                epochs=2 if learns else 0,
                steps=2 * STEP,
                train_states=64,
                test_states=16,
            )
            losses = (2.0, 0.1, end * (1 + 0.01 * seed))
            seconds = 0.5 if label == "C" else 1.0
            points = [Point(i, i * STEP, i * seconds, 1.0, one, NAN, NAN, NAN, 0) for i, one in enumerate(losses)]
            results.append(result_of(member, points, 1, "none"))
            curves[member.name] = points
    return TaskResults(name, name.title(), results, curves, (0.5, 0.01))


def two_tasks():
    first = dict.fromkeys((*RULES, "PPO"), 0.05) | {"C": 0.004, "R": 0.005}
    second = dict.fromkeys((*RULES, "PPO"), 0.05) | {"SHAC-M": 0.02}
    return [task_of("poles", first), task_of("chain", second)]


def test_the_choice_names_who_ends_lowest_who_is_near_and_who_is_first():
    poles, chain = choice_table(two_tasks()).rows
    assert poles["ends lowest"].startswith("C, 0.0041 [")
    assert poles["likewise"] == "R"
    assert (poles["first at level 2, steps"], poles["first at level 1, seconds"]) == ("R", "C")
    assert chain["ends lowest"].startswith("SHAC-M, 0.020")
    assert (chain["likewise"], chain["first at level 2, steps"]) == (NONE, NONE)


def test_every_question_is_a_claim_where_both_were_run():
    rows = {row["claim"]: row for row in questions_table(two_tasks()).rows}
    assert set(rows) == {
        "C better than R",
        "C every 16 better than C",
        "SHAC better than R",
        "SHAC-M better than SHAC",
        "C better than PPO",
        "SHAC better than PPO",
    }
    assert all(isinstance(row[title], Claim) for row in rows.values() for title in ("Poles", "Chain"))
    assert rows["SHAC-M better than SHAC"]["Chain"].found.probability == 1.0
    assert rows["SHAC-M better than SHAC"]["all tasks"].found.probability == 0.75  # 0.5 on poles, where they are alike
    assert questions_table(two_tasks()[:1]).rows[0]["all tasks"] == NONE


def test_scores_are_1_at_the_lowest_median_and_leave_out_what_was_not_run_everywhere():
    tasks = two_tasks()
    del tasks[1].results[-4:]  # PPO's
    assert on_all(tasks) == (list(RULES), 4)
    rows = {row["algorithm"]: row for row in scores_table(tasks).rows}
    assert set(rows) == set(RULES)
    log = math.log
    expected = (1 + log(2 / 0.05075) / log(2 / 0.0203)) / 2  # of C: the lowest on one task, not on the other
    assert abs(float(rows["C"]["interquartile mean"].split()[0]) - expected) < 0.02
    assert rows["R"]["better than R"] == NONE
    assert scores_table([]).rows == []
    windows_only = task_of("hopper", dict.fromkeys(("SHAC", "SHAC-M", "PPO"), 0.05))
    assert scores_table([*tasks, windows_only]).rows == scores_table(tasks).rows


def test_a_task_s_table_makes_no_claims():
    table = algorithm_table(two_tasks()[0])
    assert [row["method"] for row in table.rows] == [*RULES, "PPO"]
    assert not table.claims()


@pytest.mark.usefixtures("drawn")
def test_the_report_has_every_table_and_figure_of_the_study(tmp_path):
    tables = report_studies({"algorithms": two_tasks()}, tmp_path)
    names = {"algorithms-poles", "algorithms-chain", "algorithms-choice", "algorithms-scores", "algorithms-questions"}
    assert set(tables) == {"reading", *names}
    drawn = {Path(path).stem for path in tmp_path.glob("*.png")}
    assert drawn == {"algorithms", "algorithms-poles", "algorithms-chain"}


def test_figures_have_a_column_for_each_family_and_a_row_for_each_algorithm():
    tasks = two_tasks()
    figure = algorithm_figure(tasks[0])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["through the whole episode", "windows and a critic"]
    strips = algorithms_figure(tasks).axes
    assert [text.get_text() for text in strips[0].get_yticklabels()] == [*RULES, "PPO"]
