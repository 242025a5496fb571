"""The Kuramoto-Sivashinsky equation: a trajectory of another program, order, symmetries, chaos, sensors, options."""

import itertools
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import check_system
from bptt_envs.canvas import ACTION, CYCLE
from bptt_envs.charts import Curves, Field
from bptt_envs.rendering import picture
from bptt_envs.systems import KuramotoSivashinsky

REFERENCE = Path(__file__).parent.parent / "reference" / "kuramoto_sivashinsky.npz"


def start(system, batch=4, seed=0):
    return system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)


def rest(system, batch):
    return torch.zeros(batch, *system.action_shape, dtype=torch.float64)


@pytest.mark.parametrize(("parts", "error"), [(1, 1e-2), (4, 1e-4), (16, 1e-6)])
def test_a_trajectory_is_that_of_another_program(parts, error):
    reference = np.load(REFERENCE)
    actions, expected = torch.from_numpy(reference["actions"]), torch.from_numpy(reference["states"])
    system = KuramotoSivashinsky(length=float(reference["length"]), dt=float(reference["dt"]) / parts)
    states, seen = expected[0], [expected[0]]
    for action in actions:
        for _ in range(parts):
            states = system.step(states, action)
        seen.append(states)
    found = torch.stack(seen)[torch.from_numpy(reference["steps"])]
    assert float((found - expected).abs().max()) < error


def test_the_error_falls_with_the_third_to_fourth_power_of_the_step():
    states = start(KuramotoSivashinsky())

    def after(dt):
        system, found = KuramotoSivashinsky(dt=dt), states
        for _ in range(round(1.0 / dt)):
            found = system.step(found, torch.full((4, 4), 0.3, dtype=torch.float64))
        return found

    exact = after(1 / 512)
    errors = [float((after(dt) - exact).abs().max()) for dt in (1 / 4, 1 / 8, 1 / 16, 1 / 32)]
    orders = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert 2.8 < orders[0] < orders[-1] < 4.2, "4 only where the step resolves the fastest waves, which are stiff"


def test_more_points_are_the_same_flow():
    coarse, fine = KuramotoSivashinsky(n_points=32), KuramotoSivashinsky(n_points=96)
    states = start(coarse)
    waves = torch.fft.rfft(states, norm="forward")
    shift = torch.exp(1j * 2 * math.pi / 22.0 * torch.arange(17).double() * (fine.line.x[0] - coarse.line.x[0]))
    finer = torch.fft.irfft(waves * shift, n=96, norm="forward")
    torch.testing.assert_close(finer[:, 1::3], states, rtol=0.0, atol=1e-9)  # the same places
    for _ in range(20):
        states, finer = coarse.step(states, rest(coarse, 4)), fine.step(finer, rest(fine, 4))
    torch.testing.assert_close(finer[:, 1::3], states, rtol=0.0, atol=0.05)


def test_waves_by_themselves_grow_and_decay_as_their_length_says():
    system = KuramotoSivashinsky()
    q = 2 * math.pi / system.length * torch.arange(1, 22, dtype=torch.float64).unsqueeze(-1)
    states = 1e-8 * torch.cos(q * system.line.x)
    found = system.step(states, rest(system, 21))
    torch.testing.assert_close(found, states * ((q**2 - q**4) * system.dt).exp(), rtol=0.0, atol=1e-15)


def test_u_keeps_its_mean_whatever_is_pushed():
    system = KuramotoSivashinsky(n_actuators=3)
    states = start(system)
    assert states.mean(-1).abs().max() < 1e-12
    for _ in range(5):
        states = system.step(states, torch.randn(4, 3, dtype=torch.float64))
    assert states.mean(-1).abs().max() < 1e-12
    pushed = system.step(torch.zeros(1, 64, dtype=torch.float64), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    assert pushed[0].argmax() in (10, 11), "and it moves where the actuator is, at 22 / 6"


def test_the_ring_looks_alike_from_everywhere_and_in_a_mirror():
    system = KuramotoSivashinsky(n_points=32)
    states = start(system)
    following = system.step(states, rest(system, 4))
    torch.testing.assert_close(system.step(states.roll(5, -1), rest(system, 4)), following.roll(5, -1))
    torch.testing.assert_close(system.step(-states.flip(-1), rest(system, 4)), -following.flip(-1))


def test_starts_are_on_the_attractor_and_differ():
    system = KuramotoSivashinsky()
    states = start(system, 256)
    before = float(system.state_cost(states).mean())
    for _ in range(100):
        states = system.step(states, rest(system, 256))
    after = system.state_cost(states)
    assert 1.0 < before < 2.0
    assert float(after.mean()) == pytest.approx(before, rel=0.25), "it neither grows nor calms down"
    assert float(after.min()) > 0.2
    assert float(torch.pdist(start(system, 64)).min()) > 0.1
    assert (start(system, 256).mean(0).abs() < 0.4).all(), "no place of the ring is another than any other"


def test_neighbours_part_as_the_largest_lyapunov_exponent_says():
    system = KuramotoSivashinsky(n_points=32)
    states = start(system, 64)
    difference = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grown = torch.zeros(64, 1, dtype=torch.float64)
    for t in range(400):
        difference = 1e-6 * difference / difference.norm(dim=-1, keepdim=True)
        neighbours, states = system.step(states + difference, rest(system, 64)), system.step(states, rest(system, 64))
        difference = neighbours - states
        if t >= 100:
            grown += (difference.norm(dim=-1, keepdim=True) / 1e-6).log()
    assert 0.03 < float(grown.mean()) / (300 * system.dt) < 0.07, "0.043 to 0.048 is known of a length of 22"


def test_sensors_see_some_points():
    system = KuramotoSivashinsky(n_sensors=8)
    states = start(system)
    assert system.observation_shape == (8,)
    assert torch.equal(system.observe(states), states[:, 4::8])
    assert torch.equal(KuramotoSivashinsky().observe(states), states)


def test_other_rings_keep_the_contract():
    for options in ({"n_points": 9, "length": 5.0}, {"n_points": 96, "length": 100.0, "horizon": 20}):
        check_system(KuramotoSivashinsky(**options, n_actuators=2))


def test_charts_and_picture_show_the_profile_and_the_push():
    system = KuramotoSivashinsky(n_actuators=None, n_points=16)
    charts = system.charts(torch.randn(4, 2, 16), torch.randn(3, 2, 16))
    assert [type(chart) for chart in charts] == [Field, Field, Curves]
    image = picture(system, torch.randn(16), torch.ones(16))
    for color in (CYCLE[0], ACTION):
        assert (abs(image.astype(int) - color) <= 3).all(axis=-1).sum() > 50


BAD_OPTIONS = [
    ({"n_points": 7}, r"n_points must be an integer of at least 8; got 7\."),
    ({"n_points": 14}, r"n_points must be at least 15 to resolve length=22\.0; got 14\."),
    ({"length": 100.0}, r"n_points must be at least 69 to resolve length=100\.0; got 64\."),
    ({"n_sensors": 5}, r"n_sensors must divide n_points = 64, or be None; got 5\."),
    ({"n_actuators": 0}, r"n_actuators must be an integer of at least 1; got 0\."),
    ({"length": 0.0}, r"length must be a finite number above 0; got 0\.0\."),
    ({"length": 1e-37}, r"length=1e-37 and dt=0\.25 cannot be stepped with n_points=64: they overflow\."),
    ({"dt": 5.0}, r"dt must be at most 2, or episodes overflow; got 5\.0\."),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(row[0]) for row in BAD_OPTIONS])
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffKuramotoSivashinsky-v0", **options)
