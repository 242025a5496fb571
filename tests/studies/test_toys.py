"""The two toy examples of the paper, and `bptt toys`."""

import csv
import math
import shlex

import numpy as np
import pytest
import torch
from torch import nn

import bptt_studies.toys.command
from bptt_envs.systems import Integrator
from bptt_studies.toys.toys import (
    HORIZON,
    TARGET,
    X_0,
    Descent,
    Quadratic,
    descents,
    drawn_starts,
    integrator_sample,
    magnitude_rows,
    minima_rows,
    residual,
    rotation_rows,
    rotation_sample,
    square_grid,
    toy_fields,
    turns,
    zero_loss_points,
)
from bptt_trainers import policy_gradient
from bptt_trainers.analysis.fields import SHOWN_RULES
from bptt_trainers.cli import main

THETA = 4.0 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2.0


def by_hand(theta):
    """x_4 - y, R and M of the integrator, written out for one theta."""
    x, slope, visited = X_0, np.zeros(2), np.zeros(2)
    for _ in range(HORIZON):
        by_theta = np.array([x * x, x])
        visited = visited + by_theta  # M takes each x_t as given
        slope = (1.0 + 2.0 * theta[0] * x + theta[1]) * slope + by_theta
        x = x + theta[0] * x * x + theta[1] * x
    return x - TARGET, (x - TARGET) * slope, (x - TARGET) * visited


def test_the_landscape_and_its_fields_are_those_of_the_formula():
    loss, directions = integrator_sample()({"theta": THETA})
    errors = residual(THETA)
    for i, theta in enumerate(THETA.numpy()):
        error, R, M = by_hand(theta)
        assert float(errors[i]) == pytest.approx(error, rel=1e-10)
        assert float(loss[i]) == pytest.approx(0.5 * error**2, rel=1e-10)
        np.testing.assert_allclose(directions["R"]["theta"][i], R, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(directions["M"]["theta"][i], M, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(directions["C"]["theta"][i], np.where(R * M > 0, M, 0), rtol=1e-9, atol=1e-12)


def test_coordinates_of_the_fields_are_theta():
    table = toy_fields(integrator_sample(), 5)
    loss, directions = integrator_sample()({"theta": square_grid(5)})
    np.testing.assert_allclose(np.stack([table["a"], table["b"]], 1), square_grid(5))
    np.testing.assert_allclose(table["loss"], loss)
    for rule in SHOWN_RULES:
        field = np.stack([table[f"{rule}_a"], table[f"{rule}_b"]], 1)
        np.testing.assert_allclose(field, directions[rule]["theta"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", SHOWN_RULES)
def test_adam_from_many_starts_takes_the_steps_that_it_takes_from_each_alone(rule):
    starts, rates = THETA[:4], (0.01, 0.1)
    together = descents(integrator_sample(), starts, rates, steps=20, keep_every=5)
    for rate in rates:
        for i, start in enumerate(starts):
            controller = Quadratic()
            nn.init.zeros_(controller.theta).data += start
            optimizer = torch.optim.Adam(controller.parameters(), lr=rate)
            for step in range(21):
                found = policy_gradient(
                    Integrator(), controller, torch.full((1, 1), X_0, dtype=torch.float64), rule, "autograd"
                )
                if step % 5 == 0:
                    np.testing.assert_allclose(together[rate][rule].paths[step // 5, i], controller.theta.detach())
                    assert together[rate][rule].losses[step // 5, i] == pytest.approx(float(found.loss))
                controller.theta.grad = found.directions["theta"]
                optimizer.step()
    assert together[0.01][rule].steps.tolist() == [0, 5, 10, 15, 20]


def test_a_descent_stands_where_the_direction_is_zero():
    signs_part = torch.tensor([[-2.0, -1.8], [2.0, 1.0]], dtype=torch.float64)
    found = descents(integrator_sample(), signs_part, (0.01,), steps=0)[0.01]
    assert [found[rule].stands.tolist() for rule in SHOWN_RULES] == [[False] * 2, [False] * 2, [True, False]]


def test_the_points_of_zero_loss_lie_where_x_4_changes_sign():
    points = zero_loss_points(201)
    assert len(points) > 200
    _, directions = integrator_sample()({"theta": points})
    slope = directions["R"]["theta"] / residual(points).unsqueeze(1)
    off = residual(points).abs() / slope.norm(dim=1)  # the distance to the curve, to first order
    assert float(off.max()) < 8.0 / 200
    assert float(off.median()) < 1e-3


def test_what_repels_leads_away_from_zero_loss():
    points = zero_loss_points(201)
    rows = {row["rule"]: row for row in minima_rows(points)}
    assert rows["R"]["attracts"] == 1.0
    assert rows["C"]["repels"] == 0.0
    assert all(row["attracts"] + row["repels"] + row["is_0"] == pytest.approx(1.0) for row in rows.values())
    beside = points + 1e-4
    error, (_, directions) = residual(beside), integrator_sample()({"theta": beside})
    for rule in SHOWN_RULES:
        step = 1e-7 * directions[rule]["theta"] / error.abs().unsqueeze(1)
        away = (residual(beside - step).abs() > error.abs()).double().mean()
        assert float(away) == pytest.approx(rows[rule]["repels"], abs=0.02)


def test_decades_of_a_magnitude_are_counted_between_percentiles():
    table = toy_fields(rotation_sample(1.0), 21)
    rows = {row["of"]: row for row in magnitude_rows(table)}
    lengths = np.sort(table["R_norm"][table["R_norm"] > 0])
    assert rows["R"]["decades"] == pytest.approx(math.log10(np.percentile(lengths, 99) / np.percentile(lengths, 1)))
    assert rows["M"]["median"] == pytest.approx(math.sqrt(2.0) * rows["R"]["median"])


def test_the_rotated_field_is_the_gradient_and_its_turn():
    losses, directions = rotation_sample(0.5)({"theta": torch.tensor([[2.0, 4.0], [4.0, 1.0]])})
    torch.testing.assert_close(losses, torch.tensor([20.0, 17.0]))
    torch.testing.assert_close(directions["R"]["theta"], torch.tensor([[4.0, 8.0], [8.0, 2.0]]))
    torch.testing.assert_close(directions["M"]["theta"], torch.tensor([[0.0, 10.0], [7.0, 6.0]]))
    torch.testing.assert_close(directions["C"]["theta"], torch.tensor([[0.0, 10.0], [7.0, 6.0]]))


def test_turns_count_rounds_anticlockwise():
    angle = np.linspace(0.3, 0.3 + 2 * np.pi * 2.5, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert turns(circle) == pytest.approx(2.5)
    assert turns(circle[::-1]) == pytest.approx(-2.5)


@pytest.mark.parametrize(
    ("losses", "first", "for_good"),
    [
        ([1.0, 1e-4, 1e-5], 1, 1),
        ([1.0, 1e-4, 1.0, 1e-5], 1, 3),
        ([1.0, 1e-4, 1.0], 1, math.inf),
        ([1.0, math.nan], math.inf, math.inf),
    ],
)
def test_when_the_minimum_is_reached_and_when_for_good(losses, first, for_good):
    losses = np.array(losses)[:, None]
    descent = Descent(np.arange(len(losses)), np.ones((len(losses), 1, 2)), losses, np.array([False]))
    (row,) = rotation_rows(1.0, 0.1, {"R": descent})
    assert (row["first"], row["for_good"]) == (first, for_good)


def test_the_command_leaves_figures_and_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bptt_studies.toys.command, "STEPS", 40)
    monkeypatch.setattr(bptt_studies.toys.command, "ROTATION_STEPS", 30)
    assert main(shlex.split("toys --out toys")) == 0
    said = capsys.readouterr().out
    named = [tmp_path / line.split()[0] for line in said.splitlines() if line.startswith("toys/")]
    assert sorted(named) == sorted((tmp_path / "toys").iterdir())
    assert max(map(len, said.splitlines())) <= 80
    with (tmp_path / "toys/integrator-paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(drawn_starts())
    starts = np.array([[float(row["M_1"]), float(row["M_2"])] for row in rows[::3]])
    np.testing.assert_allclose(starts, square_grid(9))
