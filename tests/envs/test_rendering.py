"""Pictures of states, as arrays and in windows."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import RecordVideo

import bptt_envs
from bptt_envs.canvas import ACTION, BACKGROUND, CYCLE, INK
from bptt_envs.rendering import Viewer, picture
from bptt_envs.systems import CartPole, Integrator, MultiPole


def cart_pole_state(x: float = 0.0, *thetas: float) -> torch.Tensor:
    return torch.tensor([x, 0.0, *(value for theta in thetas for value in (theta, 0.0))])


def where(image: np.ndarray, color: tuple[int, int, int], tolerance: int = 3) -> np.ndarray:
    """Columns of the pixels that have `color`; antialiasing rounds colors by up to 2."""
    return np.nonzero((np.abs(image.astype(int) - color) <= tolerance).all(axis=-1))[1]


def test_render_returns_an_image_of_its_own(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert isinstance(before, np.ndarray)
    assert before.shape == (400, 640, 3)
    assert before.dtype == np.uint8
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 10
    copy = before.copy()
    env.step(env.action_space.sample())
    after = env.render()
    assert not np.array_equal(after, before)
    assert np.array_equal(before, copy)
    before[:] = 0  # the caller may write to it
    env.close()


def test_the_same_state_gives_the_same_picture() -> None:
    first, second = (picture(MultiPole(n_poles=2), cart_pole_state(0.1, 2.0, 3.0), torch.tensor([5.0])) for _ in "ab")
    assert np.array_equal(first, second)


@pytest.mark.parametrize("angle", [None, 0.0, math.pi])
@pytest.mark.parametrize("n_poles", [1, 2, 3, 4])
def test_every_pole_is_visible_in_its_color(n_poles: int, angle: float | None) -> None:
    thetas = [angle if angle is not None else 1.0 + i for i in range(n_poles)]
    image = picture(MultiPole(n_poles=n_poles), cart_pole_state(0.0, *thetas))
    for color in CYCLE[:n_poles]:
        assert len(where(image, color, tolerance=40)) > 50
    for color in CYCLE[n_poles:]:
        assert len(where(image, color)) == 0


def test_a_pole_points_where_its_angle_says() -> None:
    right = where(picture(CartPole(), cart_pole_state(0.0, math.pi / 2)), CYCLE[0])
    left = where(picture(CartPole(), cart_pole_state(0.0, -math.pi / 2)), CYCLE[0])
    assert right.min() > 310
    assert left.max() < 330
    assert right.max() == pytest.approx(320 + 400 / 3.1, abs=8)
    assert left.min() == pytest.approx(320 - 400 / 3.1, abs=8)


def test_the_force_arrow_has_the_sign_of_the_force_and_grows_with_it() -> None:
    def arrow(force: float) -> np.ndarray:
        return where(picture(CartPole(), cart_pole_state(0.0, 0.0), torch.tensor([force])), ACTION)

    assert len(arrow(0.0)) == 0
    assert arrow(20.0).min() > 320
    assert arrow(-20.0).max() < 320
    reach = [arrow(force).max() for force in (2.0, 10.0, 30.0, 60.0, 1e9)]
    assert reach == sorted(reach)
    assert reach[0] < reach[1] < reach[2] < reach[3]
    assert reach[-1] < 640 - 20


@pytest.mark.parametrize("x", [-1234.5, 3.0, 1e6])
def test_a_cart_that_is_far_away_stays_in_the_picture(x: float) -> None:
    image = picture(CartPole(), cart_pole_state(x, 3.0), torch.tensor([1e9]))
    near = picture(CartPole(), cart_pole_state(0.0, 3.0), torch.tensor([1e9]))
    assert len(where(image, INK)) > 0.8 * len(where(near, INK))
    assert len(where(image, CYCLE[0])) == pytest.approx(len(where(near, CYCLE[0])), rel=0.1)


def test_a_cart_beyond_the_precision_of_numbers_is_drawn_without_an_error() -> None:
    for system in (CartPole(), Integrator()):
        state = torch.full(system.state_shape, -3e38)
        assert picture(system, state, torch.tensor([3e38])).shape == (400, 640, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_said_to_be(value: float) -> None:
    image = picture(CartPole(), cart_pole_state(value, value))
    assert len(where(image, INK)) > 100
    assert len(where(image, CYCLE[0])) == 0


def test_the_integrator_shows_its_point_and_its_action() -> None:
    at = [where(picture(Integrator(), torch.tensor([x])), CYCLE[0]).mean() for x in (-1.0, 0.0, 1.0)]
    assert at[1] == pytest.approx(320, abs=1)
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=1)
    image = picture(Integrator(), torch.tensor([0.0]), torch.tensor([0.5]))
    assert where(image, ACTION).max() <= 320


def test_a_system_without_a_picture_of_its_own_gets_bars() -> None:
    class Plain(Integrator):
        state_shape = (2, 2)
        draw = bptt_envs.System.draw

    image = picture(Plain(), torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    assert (image != np.array(BACKGROUND, dtype=np.uint8)).any()
    assert not np.array_equal(image, picture(Plain(), torch.zeros(2, 2)))


def test_a_window_shows_an_episode_and_closes_twice() -> None:
    env = gym.make("DiffCartPole-v0", render_mode="human", horizon=3)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(1, dtype=np.float32))
    assert env.render() is None
    env.close()
    env.unwrapped.close()
    env.unwrapped.close()


def test_viewers_close_without_harm_to_others() -> None:
    import pygame

    system, state = CartPole(), cart_pole_state(0.0, 3.0)
    windows = [Viewer("human", 1000) for _ in range(2)]
    array = Viewer("rgb_array", 100)
    for viewer in windows:
        viewer.show(system, state, None, "")
    windows[0].close()
    windows[1].show(system, state, None, "")
    expected = array.show(system, state, None, "")
    pygame.quit()  # as the environments of Gymnasium do when they close
    windows[1].show(system, state, None, "")
    windows[0].show(system, state, None, "")
    assert np.array_equal(array.show(system, state, None, ""), expected)
    pygame.quit()
    for viewer in [*windows, array]:
        viewer.close()


def test_an_unknown_render_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"render_mode must be one of 'rgb_array', 'human'; got 'rgb'"):
        bptt_envs.DifferentiableEnv(CartPole(), render_mode="rgb")


def test_missing_pygame_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = gym.make("DiffCartPole-v0", render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(DependencyNotInstalled, match=r'pip install "stable-bptt\[render\]"'):
        env.render()


def test_pygame_is_not_imported_before_something_is_drawn() -> None:
    program = """
import sys, gymnasium, bptt_envs
env = gymnasium.make("DiffCartPole-v0", render_mode="rgb_array")
env.reset()
assert "pygame" not in sys.modules
env.render()
assert "pygame" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # no banner either


def test_a_vector_environment_draws_each_of_its_environments() -> None:
    states = torch.stack([cart_pole_state(x, 3.0) for x in (-1.0, 0.0, 1.0)])
    envs = gym.make_vec("DiffCartPole-v0", num_envs=3, render_mode="rgb_array")
    envs.reset(options={"state": states})
    images = envs.render()
    assert isinstance(images, tuple)
    assert [image.shape for image in images] == [(400, 640, 3)] * 3
    centers = [where(image, CYCLE[0]).mean() for image in images]
    assert centers[0] < centers[1] < centers[2]
    envs.close()


def test_record_video_writes_a_film_of_the_episode(tmp_path: Path) -> None:
    import imageio_ffmpeg

    env = gym.make("DiffMultiPole-v0", render_mode="rgb_array", horizon=10)
    env = RecordVideo(env, str(tmp_path / "films"), disable_logger=True)
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.action_space.sample())
    env.close()
    (film,) = tmp_path.glob("films/*.mp4")
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert frames in (10, 11)  # 11 pictures; the encoder may round the last one off
    assert seconds == pytest.approx(11 * 0.01, abs=0.02)
