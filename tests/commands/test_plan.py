"""`bptt plan`: a table of planners, a line a start state, and refusals in words."""

import csv

import pytest
import torch

from bptt_envs import make_env
from bptt_trainers import TrainConfig, Trainer, held_out_states, plan
from bptt_trainers.cli import main


def test_it_writes_the_loss_of_each_held_out_state(tmp_path, capsys):
    out = tmp_path / "plans.csv"
    arguments = ["DiffLQR-v0", "--methods", "MPPI", "iLQR", "--states", "3", "--set", "MPPI.iterations=2"]
    assert main(["plan", *arguments, "--env-option", "horizon=6", "--out", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["method", "mean", "median", "largest", "iterations", "seconds"]
    assert [lines[1][0], lines[2][0]] == ["MPPI", "iLQR"]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    system = make_env("DiffLQR-v0", horizon=6).system
    best = system.optimal_cost(held_out_states(system, 256)[:3].double())
    assert [row["state"] for row in rows] == ["0", "1", "2"]
    assert [float(row["iLQR"]) for row in rows] == pytest.approx(best.tolist(), rel=1e-6)
    assert all(float(row["MPPI"]) >= float(row["iLQR"]) for row in rows)


def test_a_trained_controller_is_judged_and_started_from(tmp_path, capsys):
    env = make_env("DiffIntegrator-v0", observe_time=True)
    config = TrainConfig(epochs=1, train_states=4, test_states=4, batch_size=4, hidden=(4,), out=tmp_path / "run")
    Trainer(env, config=config).fit()
    out = tmp_path / "plans.csv"
    arguments = ["--methods", "GRAPE", "--set", "GRAPE.iterations=1", "--set", "GRAPE.restarts=0", "--states", "2"]
    files = ["--run-folder", str(tmp_path / "run"), "--out", str(out)]
    assert main(["plan", "DiffIntegrator-v0", *arguments, *files]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "run"
    with out.open() as file:
        assert all(float(row["GRAPE"]) <= float(row["run"]) + 1e-6 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DiffLQR-v0"], "id: 'DiffIntegrator-v0' in the folder, 'DiffLQR-v0' to plan for"),
        (["DiffIntegrator-v0", "--env-option", "horizon=6"], "horizon: 5 in the folder, 6 to plan for"),
    ],
    ids=str,
)
def test_a_run_on_another_environment_is_refused(arguments, message, tmp_path, capsys):
    env = make_env("DiffIntegrator-v0", horizon=5)
    config = TrainConfig(epochs=1, train_states=4, test_states=4, batch_size=4, hidden=(4,), out=tmp_path / "run")
    Trainer(env, config=config).fit()
    assert main(["plan", *arguments, "--states", "1", "--run-folder", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "--run-folder must be of the same environment and options" in told
    assert message in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "LQR"], "--methods must be one of 'iLQR', 'MPPI', 'GRAPE'; got 'LQR'. Did you mean 'iLQR'?"),
        (["--methods", "iLQR", "iLQR"], "--methods"),
        (["--states", "0"], "--states must be an integer of at least 1; got 0"),
        (["--set", "MPPI.samples=4"], "--set is for MPPI, which is not among the --methods"),
        (["--set", "iLQR.learning_rate=4"], "iLQR has no setting 'learning_rate'. Its settings: restarts, iterations."),
        (["--env-option", "horizons=4"], "has no option 'horizons'"),
        (["--states", "1", "--set", "iLQR.restarts=100000000000"], "restarts must be at most"),
    ],
    ids=str,
)
def test_misuse_is_refused_in_words(arguments, message, capsys):
    assert main(["plan", "DiffIntegrator-v0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_plans_of_several_methods_go_on_from_one_another():
    from bptt_trainers.planning.plan import plan_in_turn

    system = make_env("DiffCartPole-v0", horizon=10, dt=0.05, max_force=50.0).system
    states = held_out_states(system, 2)
    first = plan(system, states, "iLQR", iterations=5)
    plans = plan_in_turn(system, states, {"iLQR": {"iterations": 5}, "MPPI": {"iterations": 1, "restarts": 0}})
    torch.testing.assert_close(plans["iLQR"].losses, first.losses)
    assert (plans["MPPI"].losses <= first.losses).all()
