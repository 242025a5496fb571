"""The presets: which row a method has, and that `bptt` and `from_preset` use it."""

import csv
from pathlib import Path

import pytest

from bptt_trainers import TrainConfig, from_preset
from bptt_trainers import presets as table
from bptt_trainers.cli import read_command
from bptt_trainers.comparison import ComparisonConfig
from bptt_trainers.methods import METHODS, Budget
from bptt_trainers.options import read_options
from bptt_trainers.tuned import ANYWHERE, TUNED, Row

ROOT = Path(__file__).parents[2]

ROWS = (
    Row("C", "DiffMultiPole-v0", {"n_poles": 2, "dynamics": "paper"}, 1000, {"learning_rate": 0.2}),
    Row("C", "DiffMultiPole-v0", {"n_poles": 4, "dynamics": "paper"}, 1000, {"learning_rate": 0.4}),
    Row("C", "DiffMultiPole-v0", {"n_poles": 2, "dynamics": "exact"}, 1000, {"learning_rate": 0.3}),
    Row("PPO", "DiffMultiPole-v0", {"n_poles": 2}, 1000, {"gamma": 0.5}),
    Row("C", "DiffCartPole-v0", {}, 40_000, {"learning_rate": 0.1, "train_states": 32, "observation": "cos_sin"}),
)


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(table, "TUNED", ROWS)


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0.2),
        ({"n_poles": 4}, 0.4),
        ({"dynamics": "exact"}, 0.3),
        ({"n_poles": 2, "max_force": 50.0}, 0.2),
    ],
)
def test_the_row_is_that_which_agrees_in_most_options(options, rate):
    assert table.rule_preset("C", "DiffMultiPole-v0", options=options)["learning_rate"] == rate
    assert table.rule_preset("C", "DiffMultiPole-v0", name="paper", options=options) == {}


def test_an_id_or_method_without_a_row_has_what_is_sensible_everywhere():
    assert table.rule_preset("C", "DiffLQR-v0") == dict(ANYWHERE["C"].settings)
    assert table.rule_preset("M", "DiffCartPole-v0") == dict(ANYWHERE["M"].settings)
    assert table.preset("SAC", "DiffMultiPole-v0", name="tuned") == table.preset("SAC", "DiffMultiPole-v0")


def test_overrides_count_before_the_tuned_row_and_that_before_the_papers():
    def gamma(**given):
        return table.preset("PPO", "DiffMultiPole-v0", **given)["gamma"]

    assert (gamma(), gamma(name="tuned"), gamma(name="tuned", overrides={"gamma": 0.25})) == (1.0, 0.5, 0.25)


def test_from_preset_makes_what_the_row_says_and_takes_changes():
    env, config = from_preset("DiffCartPole-v0", env_options={"max_force": 50.0}, batch_size=4)
    assert (config.rule, config.learning_rate, config.batch_size) == ("C", 0.1, 4)
    assert config.epochs == 40_000 // (32 * 100)
    assert env.system.observation == "cos_sin"
    assert env.system.max_action == 50.0
    env, config = from_preset("DiffCartPole-v0", preset="paper", env_options={"observation": "state"})
    assert config == TrainConfig()
    assert env.system.observation == "state"


def test_every_row_of_the_real_table_can_be_trained_with(monkeypatch):
    monkeypatch.setattr(table, "TUNED", TUNED)
    for row in TUNED:
        budget = Budget(row.env_id, row.options, row.steps, 1, 1, "tuned")
        settings = METHODS[row.method].settings(budget, {})
        assert all(settings[name] == value for name, value in row.settings.items())


def test_the_command_line_has_the_tuned_row_unless_told_otherwise():
    def rate(line):
        return read_command("train", line.split()).training.learning_rate

    poles = "--env DiffMultiPole-v0 --env-option n_poles=4"
    assert rate("") == 0.1
    assert rate(poles) == 0.4
    assert rate(f"{poles} --learning-rate 0.7") == 0.7
    assert rate(f"{poles} --preset paper") == TrainConfig.learning_rate
    assert rate(f"{poles} --rule M") == ANYWHERE["M"].settings["learning_rate"]


def test_a_comparison_has_the_tuned_rows_unless_told_otherwise():
    given = {"env": "DiffMultiPole-v0", "methods": ("C", "PPO")}
    tuned = ComparisonConfig(**given).settings()
    paper = ComparisonConfig(**given, preset="paper").settings()
    assert (tuned["C"]["learning_rate"], tuned["PPO"]["gamma"]) == (0.2, 0.5)
    assert (paper["C"]["learning_rate"], paper["PPO"]["gamma"]) == (TrainConfig.learning_rate, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("observe_time", 1, "observe_time must be"),
        ("observation", "everything", "observation must be one of"),
    ],
)
def test_what_a_controller_is_to_see_is_checked(name, value, said):
    with pytest.raises(ValueError, match=said):
        ComparisonConfig(methods=("C",), overrides={"C": {name: value}})


def test_an_observation_that_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="has no option 'observation'"):
        ComparisonConfig(env="DiffIntegrator-v0", methods=("C",), overrides={"C": {"observation": "cos_sin"}})


def trials_of(study):
    with (ROOT / f"results/tuning-{study}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", TUNED, ids=lambda row: f"{row.study}-{row.method}")
def test_a_tuned_row_is_the_best_trial_of_its_committed_study(row):
    trials = [one for one in trials_of(row.study) if one["method"] == row.method]
    assert len(trials) >= 30
    complete = [one for one in trials if one["state"] == "complete"]
    confirmed = [one for one in complete if one.get("confirmed")]
    if confirmed:
        best = min(confirmed, key=lambda one: float(one["confirmed"]))
    else:
        best = min(complete, key=lambda one: float(one["score"]))
    assert read_options(best["settings"]) == dict(row.settings)


@pytest.mark.parametrize("study", sorted({row.study for row in TUNED}))
def test_the_methods_of_a_study_are_tuned_alike(study):
    rows = [row for row in TUNED if row.study == study]
    assert {"R", "M", "S", "C", "C-turned", "PPO"} <= {row.method for row in rows}
    assert len({(row.env_id, repr(dict(row.options)), row.steps) for row in rows}) == 1
    counts = {row.method: sum(one["method"] == row.method for one in trials_of(study)) for row in rows}
    assert len(set(counts.values())) == 1
