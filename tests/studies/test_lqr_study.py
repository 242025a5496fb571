"""Which rules reach the known optimum of a linear quadratic regulator, and where the others rest."""

import copy
import math

import numpy as np
import pytest
import torch

from bptt_envs.systems import LQR
from bptt_studies.lqr.counterexamples import COUNTEREXAMPLES, study_example, toy_integrator, unstable_scalar
from bptt_studies.lqr.descents import StudyConfig, Task
from bptt_studies.lqr.figure import LARGEST, SMALLEST, Curves
from bptt_studies.lqr.linear_gains import LinearQuadratic
from bptt_studies.lqr.study import study_block
from bptt_trainers import policy_gradient
from bptt_trainers.directions.rules import PAPER_RULES

OBJECTIVES = ("continuous", "final")
RANDOM = torch.Generator().manual_seed(1)
MATRICES = {
    "block": {},
    "scalar": {"A": [[1.1]], "B": [[0.5]], "Q": [[1.0]], "R": [[0.3]], "Q_T": [[2.0]], "horizon": 6},
    "two actions": {
        "A": 0.6 * torch.randn(3, 3, generator=RANDOM, dtype=torch.float64),
        "B": torch.randn(3, 2, generator=RANDOM, dtype=torch.float64),
        "horizon": 7,
    },
}


def index(rule):
    return list(PAPER_RULES).index(rule)


# The closed forms


@pytest.mark.parametrize("gains", ["constant", "time-varying"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("matrices", MATRICES.values(), ids=MATRICES)
def test_closed_forms_are_the_loss_and_the_directions_of_the_engines(matrices, objective, gains):
    varying = gains == "time-varying"
    system = LQR(objective=objective, clock=varying, **matrices)
    n = len(system.A)
    states = system.initial_states(20, torch.Generator().manual_seed(0), torch.float64)
    x = states[:, :n]
    problem = LinearQuadratic.of(system)
    problem = LinearQuadratic(**{**vars(problem), "moment": x.T @ x / len(x)})
    task = Task.varying(system, states) if varying else Task.constant(system, states)
    K = torch.randn(task.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    controller = copy.deepcopy(task.controller)
    with torch.no_grad():
        controller.get_parameter(task.parameter).copy_(task.sign * K)
    for rule in "RMS":
        for engine in ("autograd", "adjoint"):
            found = policy_gradient(system, controller, states, rule, engine)
            direction = task.sign * found.directions[task.parameter]
            expected = problem.direction(K, rule)
            torch.testing.assert_close(direction, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
            assert float(found.loss) == pytest.approx(float(problem.loss(K)), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("matrices", MATRICES.values(), ids=MATRICES)
def test_with_a_gain_for_each_step_R_and_M_rest_at_the_optimum_and_S_at_the_greedy_gains(matrices, objective):
    system = LQR(objective=objective, **matrices)
    problem = LinearQuadratic.of(system)
    for rule in "RMS":
        gains = problem.resting_gains(rule)
        assert float(problem.direction(gains, rule).abs().max()) < 1e-13
        if rule != "S":
            torch.testing.assert_close(gains, system.optimal_gains())
    next_cost = [problem.Q] * (system.horizon - 1) + [system.Q_T]
    for K, W in zip(gains, next_cost, strict=True):  # argmin over u of u' R u + x'' W x', where x' is the next state
        torch.testing.assert_close((system.R + system.B.T @ W @ system.B) @ K, system.B.T @ W @ system.A)
    assert float(problem.direction(system.optimal_gains(), "S").abs().max()) > 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_optimum_is_stable_under_M_with_the_eigenvalues_of_the_hessian_though_M_is_no_gradient(objective):
    system = LQR(objective=objective)
    problem = LinearQuadratic.of(system)
    R, M = (problem.slope(system.optimal_gains(), rule) for rule in "RM")
    torch.testing.assert_close(R, R.T)
    assert float((M - M.T).norm()) > 0.1 * float(M.norm())
    eigenvalues = torch.linalg.eigvals(M)
    assert float(eigenvalues.imag.abs().max()) == 0.0
    torch.testing.assert_close(eigenvalues.real.sort().values, torch.linalg.eigvalsh(R), rtol=1e-5, atol=1e-12)
    assert float(eigenvalues.real.min()) > 0.0


@pytest.mark.parametrize(
    ("objective", "optimum", "resting"),
    [
        (
            "continuous",
            1.804795,
            {"R": (2.7117, 3.5194, 1.19), "M": (2.6556, 4.1191, 2.63), "S": (0.0750, 0.9251, 162)},
        ),
        ("final", 0.291448, {"R": (1.8531, 2.0743, 20.6), "M": (1.6485, 2.4371, 28.6), "S": (0.1614, 0.1518, 1018)}),
    ],
)
def test_with_one_gain_for_all_steps_each_rule_rests_at_its_own(objective, optimum, resting):
    system = LQR(objective=objective)
    problem = LinearQuadratic.of(system)
    assert float(problem.loss(system.optimal_gains())) == pytest.approx(optimum, abs=1e-6)
    for rule, (k_1, k_2, percent) in resting.items():
        K = problem.resting_gain(rule, torch.zeros(1, 2, dtype=torch.float64))
        assert K.flatten().tolist() == pytest.approx([k_1, k_2], abs=1e-4)
        assert 100.0 * (float(problem.loss(K)) / optimum - 1.0) == pytest.approx(percent, rel=5e-3)
        eigenvalues = torch.linalg.eigvals(problem.slope(K, rule))
        assert float(eigenvalues.real.min()) > 0.0
        assert float(eigenvalues.imag.abs().max()) == 0.0


def test_a_search_that_finds_no_rest_point_says_so():
    with pytest.raises(RuntimeError, match="no rest point of M"):
        unstable_scalar().problem.resting_gain("M", torch.full((1, 1), 1e3, dtype=torch.float64))


# The descents


@pytest.fixture(scope="module")
def found():
    """Descents from 6 starts each, by objective and class; computed when first asked for."""
    config = StudyConfig(starts=6, steps=300, spread=1.0)
    kept = {}

    def find(objective, gains):
        if (objective, gains) not in kept:
            kept[objective, gains] = study_block(objective, gains, config)
        return kept[objective, gains]

    return find


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_a_gain_for_each_step_M_and_C_reach_the_optimum(found, objective):
    study = found(objective, "time-varying")
    assert (study.found.losses[0] > 2.0 * study.optimum).all()
    for rule in "RMC":
        np.testing.assert_allclose(study.ends[index(rule)], study.optimum, rtol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_a_gain_for_each_step_S_ends_at_the_greedy_gains(found, objective):
    study = found(objective, "time-varying")
    greedy = study.resting("S")
    np.testing.assert_allclose(study.ends[index("S")], float(study.problem.loss(greedy)), rtol=1e-4)
    assert float(study.problem.loss(greedy)) > 2.0 * study.optimum


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_one_gain_for_all_steps_R_M_and_S_end_where_the_closed_forms_say(found, objective):
    study = found(objective, "constant")
    for rule in "RMS":
        ends = study.found.gains[index(rule)]
        torch.testing.assert_close(ends, study.resting(rule).expand_as(ends), rtol=0.0, atol=1e-3)
    assert study.ends[index("M")].min() > 1.01 * study.ends[index("R")].max()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_one_gain_for_all_steps_C_stops_where_R_does_not(found, objective):
    study = found(objective, "constant")
    assert study.found.stuck[index("C")].all()
    assert (study.ends[index("C")] > study.ends[index("R")].max()).all()
    assert np.ptp(study.ends[index("C")]) > 1e-3 * study.optimum
    assert not study.found.stuck[index("R")].any()


def test_rows_say_what_the_descents_came_to(found):
    study = found("final", "constant")
    rows = {row["rule"]: row for row in study.summary_rows()}
    best, direction = "within 1 % of the class's best", "direction 0 where R is not"
    assert [rows[rule][best] for rule in "RMS"] == ["6/6", "0/6", "0/6"]
    assert [rows[rule][direction] for rule in "RC"] == ["0/6", "6/6"]
    assert {row["diverged"] for row in rows.values()} == {"0/6"}
    assert [row["over the optimum"] for row in study.rest_rows()] == ["20.60 %", "28.57 %", "1017.99 %"]
    runs = study.run_rows()
    assert len(runs) == 24
    assert runs[0]["loss"] == pytest.approx(study.ends[0, 0], rel=1e-5)
    assert runs[0]["over_optimum_percent"] == pytest.approx(20.6, abs=0.05)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 7.0])
def test_no_number_and_more_than_no_control_costs_count_as_diverged(found, loss):
    study = copy.deepcopy(found("final", "constant"))  # without control it costs 6
    study.found.losses[-1, 1, 2] = loss
    assert study.diverged.nonzero()[0].tolist() == [1]
    assert study.diverged.nonzero()[1].tolist() == [2]


# Counterexamples


@pytest.mark.parametrize(
    ("example", "k", "loss", "R"),
    [(unstable_scalar(), 2.7477, 344.0, 4479.0), (toy_integrator(), 2.0, 1.0 / 6.0, 4.0 / 3.0)],
    ids=["unstable scalar", "integrator"],
)
def test_M_rests_stably_where_the_gradient_does_not(example, k, loss, R):
    gain = example.resting()
    assert float(gain) == pytest.approx(k, abs=5e-5)
    here = example.directions(gain)
    assert abs(here["M"]) < 1e-8
    assert here["R"] == pytest.approx(R, rel=1e-3)
    assert here["loss"] == pytest.approx(loss, rel=1e-3)
    assert here["loss"] > 100.0 * example.least
    below, above = (example.directions(gain + away)["M"] for away in (-1e-3, 1e-3))
    assert below < 0.0 < above
    assert float(example.problem.slope(gain, "M")) == pytest.approx((above - below) / 2e-3, rel=0.01)


def test_the_rest_point_of_the_integrator_costs_what_doing_nothing_costs():
    example = toy_integrator()
    nothing = example.directions(torch.zeros(1, 1, dtype=torch.float64))
    assert nothing["loss"] == pytest.approx(example.directions(example.resting())["loss"], rel=1e-9)


@pytest.mark.parametrize("make", COUNTEREXAMPLES)
def test_descents_end_there_under_M_and_never_under_R(make):
    example = make()
    study = study_example(example, 0.1, StudyConfig(starts=9, steps=400))
    ends = study.found.gains.flatten(2)[..., 0]
    there = (ends - example.resting()).abs() < 0.01
    assert there[index("M")].sum() >= 3
    assert not there[index("R")].any()
    losses = study.found.losses[-1]
    assert losses[index("R")].max() < 0.1 * losses[index("M"), there[index("M")]].min()
    assert study.summary_rows()[index("M")]["end where M rests"] == f"{int(there[index('M')].sum())}/9"


# Data


def test_curves_keep_what_is_no_number_or_beyond_in_the_figure():
    percent = np.full((31, 4, 3), 5.0)
    percent[:, 1], percent[:, 2], percent[:, 3] = math.nan, -1e-14, math.inf
    curves = Curves.of("final", "constant", percent)
    assert curves.steps[0] == 10
    assert curves.steps[-1] == 30
    assert curves.median[-1].tolist() == [5.0, LARGEST, SMALLEST, LARGEST]
    assert len(curves.rows()) == 4 * len(curves.steps)


@pytest.mark.parametrize("setting", [{"starts": 0}, {"steps": 0}, {"learning_rate": 0.0}, {"spread": -1.0}])
def test_settings_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name} must be"):
        StudyConfig(**setting)
