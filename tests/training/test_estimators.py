"""Training by estimators of a stochastic controller's gradient: as methods, resumed, refused in words."""

import math
from dataclasses import replace

import pytest
import torch

from bptt_envs.systems import CartPole, Integrator
from bptt_trainers import RunFolder, TrainConfig, Trainer, from_preset, policy_gradient
from bptt_trainers.cli import main, read_command
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.methods import BY_ESTIMATOR, METHODS, Budget
from bptt_trainers.directions.estimators import ESTIMATORS
from bptt_trainers.presets.presets import tuned_row
from bptt_trainers.training.ensemble import CannotStackError, Ensemble, variations
from bptt_trainers.tuning.space import TUNABLE, search_of
from bptt_trainers.tuning.trials import learn

TINY = TrainConfig(
    rule="R",
    deviation="constant",
    estimator="likelihood_ratio",
    epochs=2,
    train_states=8,
    batch_size=4,
    test_states=8,
    hidden=(4,),
    record=(),
)


def weights(trainer):
    return torch.cat([one.detach().flatten() for one in trainer.controller.parameters()])


@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_an_update_is_a_step_along_the_estimate(estimator):
    system = CartPole(horizon=6)
    config = replace(TINY, estimator=estimator, optimizer="SGD", learning_rate=0.5, epochs=1, train_states=4)
    trainer = Trainer(system, config=config)
    before = weights(trainer)
    query = trainer.learner._direction_query(trainer.train_states, 0, compare=False)
    expected = policy_gradient(
        system, trainer.controller, trainer.train_states, "R", noise=query.noise, estimator=estimator
    ).directions
    metrics = trainer.fit()[-1]
    step = torch.cat([one.flatten() for one in expected.values()])
    torch.testing.assert_close(weights(trainer), before - 0.5 * step)
    assert math.isfinite(metrics.cosine)  # of R and M, as with any rule


@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_a_run_goes_on_bit_for_bit_and_acts_by_its_mean(tmp_path, estimator, capsys):
    sizes = "--preset paper --env-option horizon=6 --train-states 8 --test-states 8 --hidden 4 --record csv"
    options = f"--rule R --deviation state --estimator {estimator}"
    assert main(f"train --epochs 1 {sizes} {options} --out {tmp_path / 'run'}".split()) == 0
    assert main(f"resume {tmp_path / 'run'} --epochs 2 --record csv".split()) == 0
    assert main(f"train --epochs 2 {sizes} {options} --out {tmp_path / 'whole'}".split()) == 0
    parts, whole = (RunFolder(tmp_path / name).load("last")["controller"] for name in ("run", "whole"))
    assert all(torch.equal(parts[name], one) for name, one in whole.items())
    assert main(f"evaluate {tmp_path / 'run'} --states 8".split()) == 0


def test_a_folder_of_another_estimator_is_refused(tmp_path):
    Trainer(CartPole(horizon=4), config=replace(TINY, epochs=1, out=tmp_path / "run")).fit()
    other = replace(TINY, epochs=2, estimator="total_propagation", out=tmp_path / "run")
    with pytest.raises(Exception, match="estimator"):
        Trainer(CartPole(horizon=4), config=other).fit()


@pytest.mark.parametrize("method", BY_ESTIMATOR)
def test_each_is_a_method_that_learns(method, tmp_path):

    budget = Budget("DiffLQR-v0", {"horizon": 5}, 6000, 1, 64)
    overrides = {"hidden": (8,), "learning_rate": 0.03, "batch_size": 32, "initial_deviation": 0.2}
    curve = METHODS[method].run(budget, overrides, 0, tmp_path / "run", None)
    assert curve[-1].test_loss < 0.7 * curve[0].test_loss


def test_a_comparison_trains_them_one_by_one_with_the_others(tmp_path):
    config = ComparisonConfig(
        env="DiffCartPole-v0",
        env_options={"horizon": 4},
        methods=("R", *BY_ESTIMATOR),
        seeds=(0, 1),
        steps=256,
        test_states=8,
        out=tmp_path,
    )
    result = compare(config)
    assert set(result.curves) == {(method, seed) for method in config.methods for seed in (0, 1)}


@pytest.mark.parametrize("method", BY_ESTIMATOR)
def test_each_has_settings_to_be_tuned(method):
    assert method in TUNABLE
    search = search_of(method, Budget("DiffCartPole-v0", {}, 10_000, 1, 8), {}, {})
    assert {"initial_deviation", "batch_size", "learning_rate"} <= set(search.free)
    curve = learn(
        method, Budget("DiffCartPole-v0", {"horizon": 3}, 64 * 3, 1, 8), search.first(), 0, print, compile=True
    )
    assert len(curve) == 2, "uncompiled, as nothing compiles them"
    assert search.first()["estimator"] == METHODS[method].changes["estimator"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "REINFORCE"}, "estimator must be one of"),
        (
            {"deviation": "none"},
            "'likelihood_ratio' needs noise in the actions: set deviation to 'constant' or 'state'",
        ),
        ({"rule": "C"}, "rule must be 'R'; got 'C'"),
        ({"compile": True}, "is not compiled: leave compile at False"),
        ({"batch_size": 1}, "batch_size must be at least 2 .* got 1"),
        ({"batch_size": 7}, r"leave none of train_states \(8\) alone; got 7"),
        ({"bias_bound": 1.0}, "bias_bound has no effect where estimator is 'likelihood_ratio'"),
        ({"bias_bound": 0.0, "estimator": "alpha_order"}, "bias_bound must be a finite number above 0; got 0.0"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_an_ensemble_says_that_they_are_trained_alone():
    with pytest.raises(CannotStackError, match="pathwise; got estimator='likelihood_ratio'"):
        Ensemble(Integrator(horizon=3), variations(TINY, seeds=(0, 1)))


def test_what_makes_a_method_is_not_overridden():
    for method, name, value in (("TP", "estimator", "pathwise"), ("C-turned", "combine", "regular")):
        with pytest.raises(ValueError, match=f"{name} .* is what makes the method {method}"):
            ComparisonConfig(methods=(method,), overrides={method: {name: value}})
    ComparisonConfig(methods=("TP",), overrides={"TP": {"deviation": "state"}})


def test_an_estimator_begins_with_the_settings_that_were_tuned_for_it():
    row = dict(tuned_row("TP", "DiffCartPole-v0").settings)
    _, config = from_preset("DiffCartPole-v0", "R", estimator="total_propagation", deviation="constant")
    assert (config.learning_rate, config.initial_deviation) == (row["learning_rate"], row["initial_deviation"])
    words = ["--rule", "R", "--estimator", "total_propagation", "--deviation", "constant"]
    assert read_command("train", words).training.learning_rate == row["learning_rate"]
