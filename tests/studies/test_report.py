"""The report says what the runs show: too few runs, infinite losses, gaps; and is made from the CSV files alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

from bptt_studies.paper.budget_tables import kinds_table
from bptt_studies.paper.experiments import EXPERIMENTS, Amount, Experiment, Task, Variant
from bptt_studies.paper.figures import (
    ablation_figure,
    budget_figure,
    continued_figure,
    improvement_figure,
    overview_figure,
    reinforcement_figure,
    rules_figure,
    sensitivity_figure,
    stability_figure,
)
from bptt_studies.paper.report import report, report_studies, tables_of, with_rules
from bptt_studies.paper.results import Member, Point, result_of, write
from bptt_studies.paper.statistics import measured
from bptt_studies.paper.study import TaskResults, change, plain
from bptt_studies.paper.tables import (
    Family,
    ablation_table,
    comparison_table,
    continued_table,
    method_table,
    overview_table,
    reinforcement_table,
    sensitivity_table,
    stability_table,
)
from bptt_trainers.figures.bands import SMALLEST, draw_band, drawable, series_of
from bptt_trainers.figures.style import DPI, WIDTH, Look

RL = ("PPO", "SAC")
FINAL = {"R": 0.2, "M": 0.4, "S": 1.5, "C": 0.05, "PPO": 0.01, "SAC": 0.1}


def run(label, seed, final=None, rule="", clip="none", rate=1e-3, best=None, together=4, experiment="rules-toy"):
    """A run whose loss falls from 2 to `best` and ends at `final`."""
    rule = rule or label.split()[0]
    learns = rule in RL
    final = FINAL[rule] * (1 + 0.1 * seed) if final is None else final
    losses = [2.0, 1.0, final if best is None else best, final]
    member = Member(
        experiment,
        *("DiffIntegrator-v0", "", label, rule, "" if learns else clip, rate, "", seed),
        *((0, 4000, 0, 256) if learns else (3, 4000, 64, 256)),
    )
    curve = [
        Point(0 if learns else i, 1000 * i, 2.0 * i, math.nan if learns else loss, loss, 1.0, 0.7, 0.5, int(i == 1))
        for i, loss in enumerate(losses)
    ]
    return result_of(member, curve, together, ""), curve


def task(*runs, name="toy", thresholds=(0.1,)):
    curves = {result.member.name: curve for result, curve in runs}
    return TaskResults(name, f"the {name}", [result for result, _ in runs], curves, thresholds)


def seeds(label, count=5, **settings):
    return [run(label, seed, **settings) for seed in range(count)]


def rules(count=5, clips=("none",), names="RMSC", **settings):
    return [one for clip in clips for rule in names for one in seeds(plain(rule, clip), count, clip=clip, **settings)]


def continued():
    """Runs that start at 0.1, some of which rise to 0.4, some of which fall to 0.01."""
    runs = []
    for label, rule, rate, final in (("R", "R", 1e-3, 0.4), ("C keeping R", "C", 1e-4, 0.01)):
        for result, curve in seeds(f"from C: {label} lr={rate:g}", rule=rule, rate=rate, final=final):
            runs.append((replace(result, untrained_loss=0.1), [replace(curve[0], test_loss=0.1), *curve[-2:]]))
    return task(*runs)


def shown(table):
    """The Markdown of a table whose claims are all that are made."""
    return table.text(Family(table.claims()))


def lines(text):
    """The rows of a Markdown table, by its first column, each by column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


# Tables


def test_a_row_says_where_the_runs_of_a_method_ended():
    table = shown(method_table(task(*rules())))
    row = lines(table)["C"]
    assert row["runs"] == "5"
    assert row["final"] == "0.060 [0.055 to 0.065]"
    assert row["mean final"].startswith("0.060 (0.05")
    assert row["last 30"] == "0.37 [0.37 to 0.38]"  # all three epochs: 1, 0.06 and 0.06
    assert (row["at most 0.1"], lines(table)["R"]["at most 0.1"]) == ("100 %", "0 %")
    assert (row["climbed back"], row["updates skipped"], row["seconds a run"]) == ("0/5", "5", "6.00")
    assert "3 epochs, 64 training states, 256 held-out states, 5 seeds a method." in table
    assert "share of one of 4 runs that were trained together" in table
    assert "Every run was trained alone" in shown(method_table(task(*rules(together=1))))


def test_climbing_back_is_seen_in_the_best_on_the_training_states():
    row = lines(shown(method_table(task(*seeds("C", 2, final=0.4, best=0.1), *seeds("R", 2, final=0.2, best=0.1)))))
    assert (row["C"]["climbed back"], row["R"]["climbed back"]) == ("2/2", "0/2")
    assert row["C"]["best"] == "0.10 [0.10 to 0.10]"


def test_an_infinite_loss_is_shown_and_counted():
    row = lines(shown(method_table(task(run("R", 0, math.nan), *seeds("R")[1:]))))["R"]
    assert row["final"] == "0.26 [0.24 to 0.28]"
    assert row["mean final"].startswith("inf (")
    assert row["mean final"].endswith("to inf)")


def test_too_few_runs_are_said_and_have_no_verdict():
    three = task(*rules(3))
    assert lines(shown(method_table(three)))["C"]["runs"] == "3, too few"
    assert lines(shown(overview_table([three])))["the toy"]["C better than R"] == "too few: 1.00 (1.00 to 1.00)"


def test_a_verdict_says_on_how_few_runs_it_rests():
    claims = [lines(shown(overview_table([task(*rules(count))])))["the toy"] for count in (5, 10)]
    assert [one["C better than R"] for one in claims] == [
        "yes (5 a side): 1.00 (1.00 to 1.00)",
        "yes: 1.00 (1.00 to 1.00)",
    ]
    unlike = task(*rules(10, names="R"), *rules(6, names="C"))
    cell = lines(shown(overview_table([unlike])))["the toy"]["C better than R"]
    assert cell == "yes (6 and 10 a side): 1.00 (1.00 to 1.00)"


def test_the_overview_says_after_how_much_training():
    row = lines(shown(overview_table([task(*rules(5))])))["the toy"]
    assert row["as published, with"] == "3 epochs, 5 seeds"


def test_all_claims_of_a_report_are_corrected_together_each_once():
    one, other = {"rules": [task(*rules())]}, {"ablation": [task(*rules(names="RMC"), *seeds("C keeping R"))]}
    alone, among = tables_of(one), tables_of(one | other)
    assert "C better than R | 5 and 5 | too few: 1.00" in alone["rules-toy-claims"]  # with best and area nine are made
    assert "of all experiments: 9, 9 *too few*." in alone["reading"]  # those of the overview are among them
    assert "of all experiments: 18, 18 *too few*." in among["reading"]
    ten = tables_of({"rules": [task(*rules(10))], **other})
    assert ten["claims"].count("yes: 1.00") == 3
    assert "of all experiments: 18, 9 *yes*, 9 *too few*." in ten["reading"]


def test_a_part_of_a_report_has_the_verdicts_of_the_whole(tmp_path):
    def left(runs):
        write(tmp_path, [result for result, _ in runs], {result.member.name: curve for result, curve in runs})

    def cell():
        tables = report([EXPERIMENTS["sensitivity-cart-pole-1"]], tmp_path, tmp_path / "report")
        assert set(tables) == {"reading", "sensitivity-cart-pole-1"}
        return lines(tables["sensitivity-cart-pole-1"])["0.001"]["C better than R"]

    left([one for label in ("C lr=0.001", "R lr=0.001") for one in seeds(label, experiment="sensitivity-cart-pole-1")])
    assert cell() == "yes (5 a side): 1.00 (1.00 to 1.00)"
    left(rules(experiment="rules-cart-pole-2"))
    assert cell() == "too few: 1.00 (1.00 to 1.00)"


def test_curves_end_smoothed_where_those_of_the_paper_would():
    diverged = [run("R", seed, math.nan) for seed in range(3)]
    found = lines(shown(method_table(task(*diverged, *seeds("PPO", 1)))))
    assert found["R"]["last 30"] == "inf [inf to inf]"
    assert found["PPO"]["last 30"] == "–"  # it has no epochs


def test_a_claim_over_tasks_of_a_kind_is_told_at_the_end_and_smoothed():
    """C ends above R, but was below it for most of the smoothed epochs: the two ends say the opposite."""
    spiked = [*seeds("R", best=0.2, final=0.2), *seeds("C", best=1e-3, final=0.3)]
    tasks = [replace(task(*spiked, name=f"pole-{n}"), title=f"pole, {n}") for n in (1, 2)]
    tasks.append(replace(task(*rules(names="RC")), title="other, 1"))
    rows = {(row["tasks"], row["claim"]): row for row in kinds_table(tasks).rows}
    of_poles = rows["pole, 2", "C better than R"]
    assert of_poles["final"].found.probability == 0.0
    assert of_poles["last 30"].found.probability == 1.0
    assert of_poles["final"].found.runs == (10, 10)
    assert rows["other, 1", "C better than R"]["final"].found.probability == 1.0
    assert rows["pole, 0", "C better than M"]["final"] == "–"


def test_a_figure_of_the_budget_has_smoothed_losses_and_the_sizes_of_updates():
    losses, sizes = budget_figure(task(*rules(names="R"))).axes
    (curve, *_), (size, *_) = losses.get_lines(), sizes.get_lines()
    assert list(curve.get_ydata()[:2]) == pytest.approx([2.0, 1.0])  # the untrained loss is in no mean
    assert curve.get_ydata()[2] == pytest.approx((1.0 + 0.24) / 2)
    assert list(size.get_ydata()) == [1.0] * 3


def test_claims_compare_rules_of_the_same_clipping():
    table = shown(comparison_table(task(*rules(10, clips=("none", "norm"), names="RC"), *seeds("M", 10))))
    rows = [line for line in table.splitlines() if "better" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["none"] * 3 + ["norm"] * 3
    assert "yes: 1.00" in rows[0]  # C over R
    assert "yes: 1.00" in rows[2]  # R over M
    assert rows[4].count("–") == 3  # there is no M by norm


def test_variants_are_compared_with_the_rules_as_they_are():
    variants = [*seeds("C keeping R", 10), *seeds("M masked at random", 10, rule="C", final=0.3)]
    found = lines(shown(ablation_table(task(*rules(10, names="RMC"), *variants))))
    assert list(found) == [
        f"{one} better than {peer}" for one in ("C keeping R", "M masked at random") for peer in "RMC"
    ]
    assert found["M masked at random better than M"]["final"].startswith("yes")
    assert found["M masked at random better than C"]["final"].startswith("no")
    cures = [*seeds("C norm", clip="norm"), *seeds("C norm cosine", clip="norm"), *seeds("R cosine")]
    assert list(lines(shown(stability_table(task(*rules(names="RC"), *cures))))) == [
        "C norm better than C",
        "C norm cosine better than C",
        "R cosine better than R",
        "R cosine better than C",
    ]
    beside_norm = task(*rules(names="RC", clips=("none", "norm")), *seeds("R cosine"))
    peers = [one.removeprefix("R cosine better than ") for one in lines(shown(stability_table(beside_norm)))]
    assert peers[-3:] == ["R", "C", "R norm"]


def test_the_rules_by_norm_stand_where_they_were_not_run_without_clipping():
    own = task(*seeds("C cosine", clip="norm"))
    by_norm = with_rules(own, task(*rules(clips=("norm",))), "RMC", ("none",))
    assert list(by_norm.methods()) == ["R norm", "M norm", "C norm", "C cosine"]
    assert list(lines(shown(ablation_table(by_norm))))[-1] == "C cosine better than C norm"
    both = with_rules(own, task(*rules(clips=("none", "norm"))), "RMC", ("none",))
    assert list(both.methods()) == ["R", "M", "C", "C cosine"]
    assert set(both.curves) == {result.member.name for result in both.results}


def test_what_a_study_has_itself_is_not_taken_from_the_rules():
    own = task(*seeds("C", final=0.01), *seeds("C keeping R"))
    found = with_rules(own, task(*rules()), "RMC", ("none",)).methods()["C"]
    assert [result.final_loss for result in found] == [0.01] * 5


def test_reinforcement_learning_says_when_it_reached_a_loss():
    late = [run("PPO", seed, 0.01 if seed < 2 else 0.5) for seed in range(5)]
    row = lines(shown(reinforcement_table(task(*seeds("C", together=1), *late))))
    assert row["C"]["to 0.1: steps, seconds"] == "2,000, 4.0 s (5/5)"
    assert row["PPO"]["to 0.1: steps, seconds"] == "– (2/5)"
    assert (row["C"]["steps"], row["C"]["C better"]) == ("4,000", "–")
    assert row["PPO"]["C better"].startswith("open: 0.60")


def test_reinforcement_learning_has_no_best_on_training_states():
    assert measured([result for result, _ in seeds("PPO")], "best") is None
    assert lines(shown(method_table(task(*seeds("PPO")))))["PPO"]["best"] == "–"


def test_a_learning_rate_is_a_row_and_a_rule_not_run_with_it_a_dash():
    found = task(*seeds("R lr=0.01", rate=1e-2), *seeds("R lr=0.001", final=0.1), *seeds("C lr=0.001", final=0.05))
    table = shown(sensitivity_table(found))
    rows = lines(table)
    assert list(rows) == ["0.001", "0.01"]
    assert rows["0.001"]["C better than R"] == "yes (5 a side): 1.00 (1.00 to 1.00)"
    assert (rows["0.01"]["C"], rows["0.01"]["C better than R"]) == ("–", "–")
    assert "R 2.4, C 1.0" in table


def test_labels_say_what_is_changed():
    assert [change(seeds(label, 1)[0][0].member) for label in ("C", "C norm", "R betas 0.9 0.99")] == [
        "plain",
        "norm",
        "betas 0.9 0.99",
    ]


def test_what_goes_on_from_a_trained_controller_says_how_often_it_rose():
    table = shown(continued_table(continued()))
    row = lines(table)["from C: R lr=0.001"]
    assert (row["start"], row["final over start"], row["rose"]) == ("0.10", "4.0 [4.0 to 4.0]", "5/5")
    assert lines(table)["from C: C keeping R lr=0.0001"]["rose"] == "0/5"


# Figures


def test_infinite_losses_are_drawn_at_the_top():
    assert drawable([0.0, 0.5, math.inf, math.nan, 1e9], 20.0).tolist() == [SMALLEST, 0.5, 20.0, 20.0, 20.0]
    diverged = [run("R", seed, math.nan) for seed in range(5)]
    figure = rules_figure(task(*rules(names="C"), *diverged))
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "R"]
    assert line.get_ydata()[-1] == pytest.approx(20.0)  # 10 times the untrained loss
    assert figure.axes[0].get_ylim()[1] > 20.0
    assert "infinite" in figure.get_suptitle()
    assert "infinite" not in rules_figure(task(*rules())).get_suptitle()


def test_single_runs_that_diverged_are_triangles_not_left_out():
    runs = [*rules(names="RM"), *seeds("C")[1:], run("C", 9, math.inf)]
    for figure, axis in ((ablation_figure(task(*runs)), 0), (sensitivity_figure([task(*runs)]), 1)):
        dots = [dot for axes in figure.axes for dot in axes.collections if isinstance(dot, PathCollection)]
        assert sum(len(of_method.get_offsets()) for of_method in dots) == 15
        (triangle,) = [of_method for of_method in dots if len(of_method.get_paths()[0].vertices) == 4]
        losses = np.concatenate([of_method.get_offsets()[:, axis] for of_method in dots])
        assert triangle.get_offsets()[:, axis].tolist() == [losses.max()]


def test_a_band_is_that_of_the_quartiles_between_the_medians_of_starts_and_ends():
    figure = rules_figure(task(*rules(names="C")))
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "C"]
    assert line.get_ydata() == pytest.approx([2.0, 1.0, 0.06, 0.06])
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().y0 == pytest.approx(0.055, rel=1e-2)
    axes = rules_figure(task(*rules(names="C"))).axes[0]
    draw_band(axes, [(np.array([0.0, 4.0]), np.ones(2)), (np.array([1.0, 2.0]), np.ones(2))], Look("black", "-"), "two")
    places = axes.lines[-1].get_xdata()
    assert (places[0], places[-1]) == (0.5, 3.0)


def test_a_run_that_comes_late_counts_by_its_first_value_until_then():
    axes = rules_figure(task(*rules(names="C"))).axes[0]
    late = [(np.array([4.0, 5.0]), np.array([9.0, 0.1]))]
    draw_band(axes, [*[(np.array([1.0, 2.0]), np.ones(2))] * 2, *late], Look("black", "-"), "three")
    places = axes.lines[-1].get_xdata()
    assert (places[0], places[-1]) == (1.0, 2.0)
    assert axes.lines[-1].get_ydata() == pytest.approx(1.0)
    (band,) = axes.collections[-1:]
    assert band.get_paths()[0].get_extents().y1 > 1.0


def test_runs_of_single_places_are_drawn_one_by_one():
    axes = rules_figure(task(*rules(names="C"))).axes[0]
    drawn = len(axes.lines)
    draw_band(axes, [(np.array([1.0]), np.ones(1)), (np.array([3.0]), np.ones(1))], Look("black", "-"), "two")
    assert [line.get_xdata().tolist() for line in axes.lines[drawn:]] == [[1.0], [3.0]]
    assert [line.get_label() for line in axes.lines].count("two") == 1


def test_curves_without_an_evaluation_in_training_are_left_out():
    _, curve = run("C", 0)
    assert series_of([curve[:1]], "simulator_steps") == []
    ((places, _),) = series_of([curve], "simulator_steps")
    assert places.tolist() == [1000.0, 2000.0, 3000.0]
    assert len(series_of([curve], "seconds")[0][0]) == 3
    ((places, _),) = series_of([curve], "epoch", start=True)
    assert places.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_titles_say_how_many_seeds_and_panels_which_clipping():
    figure = rules_figure(task(*rules(3, clips=("none", "norm"))))
    assert figure.get_suptitle().startswith("the toy: 3 seeds (fewer than 4: no claim)")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no clipping", "clipped by norm"]


@pytest.mark.usefixtures("drawn")
def test_curves_on_from_a_trained_controller_are_drawn_as_far_as_they_rise():
    figure = continued_figure(continued())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["learning rate 0.001", "learning rate 0.0001"]
    (rising,) = [line for line in figure.axes[0].lines if line.get_label() == "R"]
    assert rising.get_ydata()[-1] == pytest.approx(0.4)
    figure.draw_without_rendering()


def test_a_task_without_runs_leaves_an_empty_panel():
    figure = overview_figure([task(*rules()), task(name="other")])
    assert [text.get_text() for text in figure.axes[1].texts] == ["no runs"]


def test_the_forest_is_colored_by_the_better_rule_and_hollow_for_few_runs():
    figure = improvement_figure([task(*rules(10)), task(*rules(9), name="few"), task(*seeds("C"), name="only C")])
    markers = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in markers] == [(1.0, 0), (1.0, 1)]
    assert [line.get_markerfacecolor() for line in markers] == ["#D55E00", "white"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "draw",
    [rules_figure, reinforcement_figure, ablation_figure, stability_figure, lambda one: sensitivity_figure([one])],
)
def test_single_runs_and_missing_curves_are_drawn(draw):
    one = task(*seeds("C", 1), *seeds("R", 1, final=math.inf))
    draw(one).draw_without_rendering()
    draw(replace(one, curves={})).draw_without_rendering()


# The report


def studies():
    return {
        "rules": [task(*rules(clips=("none", "norm"))), task(name="nothing")],
        "sensitivity": [task(*seeds("R lr=0.01", rate=1e-2), *seeds("C lr=0.001"))],
        "ablation": [task(*rules(names="RMC"), *seeds("C keeping R"))],
        "stability": [task(*rules(names="RC"), *seeds("C cosine"), *seeds("R cosine", final=math.inf))],
        "continued": [continued()],
        "rl": [task(*seeds("C"), *seeds("PPO"), *seeds("PPO dense"), *seeds("SAC"))],
        "budget": [task(*rules(names="RMC", clips=("none", "norm")))],
    }


@pytest.mark.usefixtures("drawn")
def test_a_report_has_every_table_and_figure(tmp_path):
    tables = report_studies(studies(), tmp_path)
    names = {"reading", "claims", "rules-toy", "rules-toy-claims", "sensitivity-toy", "ablation-toy"}
    names |= {"ablation-toy-claims", "stability-toy", "stability-toy-claims", "continued-toy", "rl-toy"}
    names |= {"budget-toy", "budget-toy-claims", "budget-tasks", "budget-kinds"}
    assert set(tables) == names
    assert {path.stem: path.read_text().rstrip("\n") for path in tmp_path.glob("*.md")} == tables
    figures = {
        "rules",
        "claims",
        "rules-toy",
        "sensitivity",
        "ablation-toy",
        "stability-toy",
        "continued-toy",
        "rl-toy",
        "budget-toy",
    }
    for suffix in ("png", "pdf"):
        assert {path.stem for path in tmp_path.glob(f"*.{suffix}")} == figures
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width <= DPI * WIDTH


def test_the_same_results_give_the_same_report(tmp_path):
    for folder in ("one", "two"):
        report_studies(studies(), tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_unknown_study_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"studies must be one of 'rules', .*; got 'rule'\. Did you mean 'rules'"):
        report_studies({"rule": []}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_experiment_is_reported_from_its_files_and_those_of_the_rules(tmp_path):
    toy = Task("toy", "the toy", "DiffIntegrator-v0", {}, (0.1,))
    for runs in (rules(), seeds("C keeping R", experiment="ablation-toy")):
        write(tmp_path, [result for result, _ in runs], {result.member.name: curve for result, curve in runs})
    ablation = Experiment("ablation", toy, (Variant("C keeping R", None),), Amount(3, 5))
    missing = Experiment("rl", toy, (), Amount(3, 5))
    tables = report([ablation, missing], tmp_path, tmp_path / "report")
    assert set(tables) == {"reading", "ablation-toy", "ablation-toy-claims"}
    assert list(lines(tables["ablation-toy"])) == ["R", "M", "C", "C keeping R"]
    assert lines(tables["ablation-toy-claims"])["C keeping R better than C"]["final"].startswith("too few: 0.50")
