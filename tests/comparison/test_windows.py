"""Methods that learn in short windows, beside the others: rows of a comparison, presets, the command line."""

from typing import get_args

import pytest

from bptt_trainers import RunFolder, SAPOConfig, SHACConfig, from_preset
from bptt_trainers.cli import main, read_command
from bptt_trainers.commands.train import LearnerName
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.methods import BPTT, METHODS, Budget, by_rule, get_method, method_name
from bptt_trainers.comparison.runs import member_folder
from bptt_trainers.presets.presets import row_name, tuned_row
from bptt_trainers.training.run_folder import CONFIGS
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.outcome import command
from bptt_trainers.tuning.space import search_of

METHODS_IN_WINDOWS = ("SHAC", "SHAC-M", "SHAC-C", "SAPO")
TINY = {"train_states": 16, "batch_size": 8, "hidden": (4,), "critic_hidden": (4,), "critic_iterations": 1}


def test_they_are_compared_by_the_same_steps_and_on_the_same_states(tmp_path):
    config = ComparisonConfig(
        env="DiffIntegrator-v0",
        methods=("C", *METHODS_IN_WINDOWS),
        seeds=(0,),
        steps=256,
        test_states=8,
        record=("csv", "diagnostics"),
        overrides={"C": {"train_states": 16, "hidden": (4,)}, **dict.fromkeys(METHODS_IN_WINDOWS, TINY)},
        out=tmp_path,
    )
    comparison = compare(config, progress=False)
    horizon = config.budget.horizon
    taken = {cell.method: cell.steps for cell in config.cells}
    for name in METHODS_IN_WINDOWS:
        curve = comparison.curves[name, 0]
        assert curve[-1].simulator_steps == taken[name]
        assert curve[-1].simulator_steps == pytest.approx(256 + 8 * horizon, rel=0.2)  # 8 episodes to begin with
        folder = RunFolder(member_folder(tmp_path, name, 0))
        stored = folder.train_config()
        assert type(stored) is (SAPOConfig if name == "SAPO" else SHACConfig)
        assert (stored.rule, stored.on_nonfinite) == ({"SHAC-M": "M", "SHAC-C": "C"}.get(name, "R"), "skip")
    again = compare(config, progress=False)
    assert again.table == comparison.table


def test_their_names_follow_from_learner_and_rule():
    names = [row_name("SHAC", rule) for rule in ("R", "M", "C", "S")]
    assert names == ["SHAC", "SHAC-M", "SHAC-C", "SHAC-S"]
    assert row_name("SHAC", "C", "turned") == "SHAC-C-turned"
    assert row_name("BPTT", "C", "turned") == "C-turned"
    for name, method in METHODS.items():
        if name in METHODS_IN_WINDOWS:
            assert method.name == name


def test_a_learner_by_any_rule_is_a_method():
    names = ("SAPO-C", "SHAC-C every 4", "SHAC decay 0.5", "SAPO-C-turned every 4", "C-turned decay 0.9")
    for name in names:
        assert (method_name("methods", name), get_method(name).name) == (name, name)
        assert by_rule(name)
    config = ComparisonConfig(env="DiffLQR-v0", methods=("SHAC-C every 4", "SHAC-R decay 0.50"))
    assert config.methods == ("SHAC-C every 4", "SHAC decay 0.5")
    made = get_method("SHAC-C every 4").config(Budget("DiffLQR-v0", {}, 6400, 1, 4), {})
    assert (type(made), made.rule) == (SHACConfig, "C every 4")
    assert get_method("C-turned decay 0.9") == BPTT("C decay 0.9", {"combine": "turned"})
    # what is tuned is what it is made of
    poles = ("DiffCartPole-v0", {"max_force": 50.0})
    assert tuned_row("SHAC-C every 4", *poles) == tuned_row("SHAC-C", *poles)
    assert tuned_row("SHAC decay 0.5", *poles) == tuned_row(row_name("SHAC", "R decay 0.5"), *poles)
    assert tuned_row("SHAC decay 0.5", *poles) == tuned_row("SHAC", *poles)
    study = TuneConfig(env="DiffLQR-v0", methods=("SHAC-C every 4",), fix={"SHAC-C every 4": {"hidden": (8,)}})
    assert "window" in search_of(study.methods[0], study.budget, {}, {}).free
    assert '--learner SHAC --rule "C every 4" '.replace('"', "'") in command(study, study.methods[0], {})


@pytest.mark.parametrize(
    "name", ["SHAC-LR", "LR decay 0.9", "SHAC-SHAC", "SHAC-", "R-turned", "SAC every 4", "SHAC-S every 4"]
)
def test_a_learner_by_what_is_no_rule_is_no_method(name):
    with pytest.raises(ValueError, match="methods must be"):
        method_name("methods", name)
    assert not by_rule("SHAC-LR")


def test_presets_and_the_command_line_have_their_settings():
    env, config = from_preset("DiffLQR-v0", "M", learner="SHAC", epochs=3)
    assert (type(config), config.rule, config.epochs, config.batch_size) == (SHACConfig, "M", 3, 16)
    assert env.system.horizon == 20
    command = read_command("train", ["--learner", "SAPO", "--rule", "C", "--window", "8"])
    assert (type(command.training), command.training.rule, command.training.window) == (SAPOConfig, "C", 8)
    budget = Budget("DiffLQR-v0", {}, 6400, 1, 4, "paper")
    published = METHODS["SHAC"].settings(budget, {})
    assert (published["batch_size"], published["window"], published["critic_iterations"]) == (64, 32, 16)
    with pytest.raises(ValueError, match="has no setting 'windows'"):
        METHODS["SHAC"].settings(budget, {"windows": 8})


def test_what_a_learner_has_not_got_is_refused(capsys):
    assert main(["train", "--window", "8"]) == 2
    assert "--window" in capsys.readouterr().err
    assert main(["train", "--learner", "SHAKE"]) == 2
    assert "SHAKE" in capsys.readouterr().err
    assert get_args(LearnerName) == tuple(CONFIGS)
