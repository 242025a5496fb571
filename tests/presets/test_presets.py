"""The presets: which row a method has, and that `bptt` and `from_preset` use it."""

import csv
import re
from pathlib import Path

import pytest
import torch

from bptt_envs import System
from bptt_envs.registration import ENTRIES, Entry, register
from bptt_trainers import TrainConfig, from_preset
from bptt_trainers.cli import read_command
from bptt_trainers.commands.train import Train
from bptt_trainers.comparison.compare import ComparisonConfig
from bptt_trainers.comparison.methods import METHODS, Budget, get_method
from bptt_trainers.presets import presets as table
from bptt_trainers.presets.tuned import ANYWHERE, TUNED, Row
from bptt_trainers.records.options import read_options
from bptt_trainers.rl.sb3 import RLConfig

ROOT = Path(__file__).parents[2]

ROWS = (
    Row("C", "DiffMultiPole-v0", {"n_poles": 2, "dynamics": "paper"}, 1000, {"learning_rate": 0.2}),
    Row("C", "DiffMultiPole-v0", {"n_poles": 4, "dynamics": "paper"}, 1000, {"learning_rate": 0.4}),
    Row("C", "DiffMultiPole-v0", {"n_poles": 2, "dynamics": "exact"}, 1000, {"learning_rate": 0.3}),
    Row("PPO", "DiffMultiPole-v0", {"n_poles": 2}, 1000, {"gamma": 0.5}),
    Row("C", "DiffCartPole-v0", {}, 40_000, {"learning_rate": 0.1, "train_states": 32, "observation": "cos_sin"}),
    Row("C-turned", "DiffCartPole-v0", {}, 40_000, {"learning_rate": 0.3, "adam_betas": (0.9, 0.95)}),
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
    assert table.preset("SAC", "DiffMultiPole-v0") == table.preset("SAC", "DiffMultiPole-v0", name="paper")


def test_a_rule_that_decays_or_is_cut_has_the_row_of_its_rule_unless_it_has_one_of_its_own(monkeypatch):
    def rate(method, env_id="DiffMultiPole-v0", **options):
        return table.rule_preset(method, env_id, options=options).get("learning_rate")

    assert rate("C decay 0.9") == rate("C every 16") == rate("C") == 0.2
    assert rate("C decay 0.9", n_poles=4) == 0.4
    assert rate("R every 3", "DiffLQR-v0") == ANYWHERE["R"].settings["learning_rate"]
    monkeypatch.setattr(table, "TUNED", (*ROWS, Row("C decay 0.9", "DiffMultiPole-v0", {}, 1, {"learning_rate": 0.7})))
    assert (rate("C decay 0.9"), rate("C decay 0.9", n_poles=4), rate("C decay 0.8")) == (0.7, 0.7, 0.2)


def test_overrides_count_before_the_tuned_row_and_that_before_the_papers():
    def gamma(**given):
        return table.preset("PPO", "DiffMultiPole-v0", **given)["gamma"]

    assert (gamma(name="paper"), gamma(), gamma(overrides={"gamma": 0.25})) == (1.0, 0.5, 0.25)


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
        settings = get_method(row.method).settings(budget, {})
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
    decayed = read_command("train", [*poles.split(), "--rule", "C decay .90"]).training
    assert (decayed.rule, decayed.learning_rate) == ("C decay 0.9", 0.4)


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
    if name == "observation":
        with pytest.raises(ValueError, match=said):
            ComparisonConfig(methods=("PPO",), overrides={"PPO": {name: value}})


def test_an_observation_that_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="has no option 'observation'"):
        ComparisonConfig(env="DiffIntegrator-v0", methods=("C",), overrides={"C": {"observation": "cos_sin"}})


def trials_of(study):
    """All trials of a study, and of those that repeat it with another seed of the search."""
    files = [ROOT / f"results/tuning-{study}.csv", *sorted(ROOT.glob(f"results/tuning-{study}.seed*.csv"))]
    return [line for file in files for line in csv.DictReader(file.read_text().splitlines())]


@pytest.mark.parametrize("row", TUNED, ids=lambda row: f"{row.study}-{row.method}")
def test_a_tuned_row_is_the_best_trial_of_its_committed_study(row):
    trials = [one for one in trials_of(row.study) if one["method"] == row.method]
    page = (ROOT / "docs/tuning.md").read_text()
    (said,) = re.findall(rf"^\| {re.escape(row.study)} \|.* (\d+) \|$", page, re.MULTILINE)
    assert len(trials) == int(said)
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
    wanted = (
        {"SHAC", "SHAC-M", "SHAC-C"} if study.startswith("algorithms-") else {"R", "M", "S", "C", "C-turned", "PPO"}
    )
    assert wanted <= {row.method for row in rows}
    assert len({(row.env_id, repr(dict(row.options)), row.steps) for row in rows}) == 1
    counts = {row.method: sum(one["method"] == row.method for one in trials_of(study)) for row in rows}
    assert len(set(counts.values())) == 1


def test_the_epochs_of_a_tuned_run_come_to_the_steps_of_its_row_whatever_start_states_it_has():
    def epochs(*words):
        return read_command("train", list(words)).training.epochs

    assert epochs() == 40_000 // (32 * 100)
    assert epochs("--train-states", "100") == epochs("--train_states=100") == 40_000 // (100 * 100)
    assert epochs("--train-states", "100", "--epochs", "7") == 7
    assert epochs("--env-option", "horizon=50") == 40_000 // (32 * 50)
    assert from_preset("DiffCartPole-v0", train_states=100)[1].epochs == 4


@pytest.mark.parametrize("count", ["a", 0, None, 2.5])
def test_a_wrong_number_of_start_states_is_refused_in_words(count):
    with pytest.raises(ValueError, match="train_states must be an integer of at least 1"):
        from_preset("DiffCartPole-v0", train_states=count)


@pytest.mark.parametrize(
    "line",
    [
        "--rule Q",
        "--env nope",
        "--preset best",
        "--env-option horizon=abc",
        "--train-states many",
        "--env-option",
        "--rule",
    ],
)
def test_arguments_that_cannot_be_read_leave_the_defaults_to_who_says_what_is_wrong(line):
    assert Train.with_defaults(line.split()) is None


def test_another_optimizer_leaves_out_what_a_row_says_of_the_built_in_one(monkeypatch):
    row = Row("C", "DiffCartPole-v0", {}, 1000, {"adam_betas": (0.9, 0.95), "amsgrad": True, "learning_rate": 0.1})
    monkeypatch.setattr(table, "TUNED", (row,))
    _, config = from_preset("DiffCartPole-v0", optimizer="SGD")
    told = read_command("train", ["--optimizer", "SGD"]).training
    compared = ComparisonConfig(methods=("C",), overrides={"C": {"optimizer": "SGD"}}).settings()["C"]
    for settings in (vars(config), vars(told), compared):
        assert (settings["optimizer"], settings["learning_rate"]) == ("SGD", 0.1)
        assert (settings["adam_betas"], settings["amsgrad"]) == (TrainConfig.adam_betas, False)
    with pytest.raises(ValueError, match="adam_betas has no effect"):
        from_preset("DiffCartPole-v0", optimizer="SGD", adam_betas=(0.5, 0.5))


def test_what_turns_the_direction_is_rule_c_with_a_row_of_its_own():
    turned = METHODS["C-turned"]
    assert turned.name == "C-turned"
    settings = ComparisonConfig(methods=("C", "C-turned")).settings()
    assert [settings[name]["rule"] for name in settings] == ["C", "C"]
    assert [settings[name]["combine"] for name in settings] == ["modified", "turned"]
    assert [settings[name]["learning_rate"] for name in settings] == [0.1, 0.3]
    paper = ComparisonConfig(methods=("C", "C-turned"), preset="paper").settings()
    assert paper["C-turned"] == paper["C"] | {"combine": "turned"}


class Watched(System):
    """A system of a user's own, with an option `observation` of other values than those of this package."""

    state_shape = action_shape = (1,)

    def __init__(self, *, mass, observation="all", horizon=2, dt=0.1):
        if observation not in ("all", "some"):
            raise ValueError(f"observation must be all or some; got {observation}.")
        super().__init__(horizon=horizon, dt=dt)
        self.observation = observation

    def step(self, state, action):
        return state + action

    def state_cost(self, state):
        return state.square().sum(-1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.rand(batch, 1, generator=generator, dtype=dtype)


def test_a_system_whose_observations_have_other_names_is_seen_as_it_says(monkeypatch):
    monkeypatch.setitem(ENTRIES, "Watched-v0", Entry(f"{__name__}:Watched", "watched"))  # taken out again
    register("Watched-v0", f"{__name__}:Watched", "watched")
    mass = {"mass": 1.0}
    env, config = from_preset("Watched-v0", env_options=mass)
    assert (env.system.observation, config.start_states) == ("all", "fresh")
    settings = ComparisonConfig(env="Watched-v0", env_options=mass, methods=("C", "PPO")).settings()
    assert [settings[name]["observation"] for name in ("C", "PPO")] == ["all", "all"]
    some = {"observation": "some"}
    overridden = ComparisonConfig(
        env="Watched-v0", env_options=mass, methods=("C", "PPO"), overrides={"C": some, "PPO": some}
    ).settings()
    assert [overridden[name]["observation"] for name in ("C", "PPO")] == ["some", "some"]
    assert RLConfig(env="Watched-v0", env_options=mass, overrides=some).judged_system().observation == "some"


def test_what_the_options_say_for_all_methods_is_no_setting_of_one():
    with pytest.raises(ValueError, match="observation is 'state' for all methods"):
        ComparisonConfig(
            methods=("C",), env_options={"observation": "state"}, overrides={"C": {"observation": "cos_sin"}}
        )


@pytest.mark.parametrize(
    ("name", "where"), [("PPO", "bptt compare trains it"), ("SHAC", "--learner SHAC"), ("SAPO", "--learner SAPO")]
)
def test_a_method_or_a_learner_that_is_given_as_the_rule_is_said_to_be_one(name, where, capsys):
    with pytest.raises(ValueError, match=f"rule must be one of 'R', .*; got '{name}'. {name} .*{where}"):
        from_preset("DiffCartPole-v0", rule=name)
    with pytest.raises(SystemExit):
        read_command("train", ["--rule", name])
    assert f"got '{name}'" in capsys.readouterr().err
