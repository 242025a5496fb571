"""Figures and animations of trajectories and of training."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bptt_envs import System
from bptt_envs.charts import Chart, Curves, Field, NamedCurves, Paths
from bptt_envs.systems import CartPole, Integrator, MultiPole, QuantumControl
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.figures.animation import save_animation
from bptt_trainers.figures.style import save_figure
from bptt_trainers.figures.trajectory import learning_curves_figure, trajectory_figure

pytestmark = pytest.mark.usefixtures("drawn")


def pushed(system: System, batch: int, force: float = 20.0) -> Trajectory:
    """Episodes under a constant action."""
    states = system.initial_states(batch, torch.Generator().manual_seed(0))
    return rollout(system, lambda observation: torch.full((len(observation), *system.action_shape), force), states)


def frames(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """The frames of a GIF and how long each stands, in ms."""
    pictures, durations = [], []
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")))
            durations.append(gif.info["duration"])
    return pictures, durations


# Figures


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_a_trajectory_figure_shows_every_component_and_the_applied_action(batch: int) -> None:
    system = MultiPole(n_poles=2, max_force=5.0)
    trajectory = pushed(system, batch)
    figure = trajectory_figure(system, trajectory)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:3] == ["x [m]", "x' [m/s]", r"$\theta_1$ [rad]"]
    assert labels[-1] == "force [N]"
    assert len(labels) == 7
    assert f"{losses(system, trajectory).mean():.3g}" in figure.get_suptitle()
    for axes in figure.axes:
        assert len(axes.lines) == min(batch, 8)
        assert len(axes.collections) == (1 if batch > 8 else 0)  # the band of all episodes
    times, values = figure.axes[0].lines[0].get_data()
    assert times[-1] == pytest.approx(1.0)
    assert any(np.allclose(values, trajectory.states[:, i, 0]) for i in range(batch))
    assert np.all(figure.axes[-1].lines[0].get_ydata() == 5.0)


def test_a_trajectory_that_leaves_the_numbers_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    trajectory = pushed(CartPole(), 9)
    trajectory.states[50:] = math.nan
    trajectory.states[49, 0] = math.inf
    save_figure(trajectory_figure(CartPole(), trajectory), tmp_path / "figure.png")


def test_a_large_system_shows_its_first_components() -> None:
    figure = trajectory_figure(MultiPole(n_poles=9), pushed(MultiPole(n_poles=9), 2))
    assert len(figure.axes) == 12 + 1


@pytest.mark.parametrize("batch", [1, 12])
def test_a_figure_shows_the_charts_of_the_system(batch: int) -> None:
    system = QuantumControl(target=3, max_control=7.0)
    trajectory = pushed(system, batch)
    figure = trajectory_figure(system, trajectory)
    density, control, populations = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "control u", "population"]
    (image,) = density.images
    assert image.get_array().shape == (34, 129)
    (scale,) = density.child_axes
    assert scale.get_ylabel() == "density"
    assert len(control.lines) == min(batch, 8)
    assert np.all(control.lines[0].get_ydata() == 7.0)
    names = [text.get_text() for text in populations.get_legend().get_texts()]
    assert names == [r"$\phi_1$", r"$\phi_2$", r"$\phi_3$ (target)", r"$\phi_4$", r"$\phi_5$"]
    assert np.allclose(sum(line.get_ydata()[0] for line in populations.lines), 1.0)
    first = f"the first episode, loss {losses(system, trajectory)[0]:.3g}" if batch > 1 else ""
    assert [axes.get_title(loc="left") for axes in figure.axes] == [first, "", first]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "time"]
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xlim() == (0.0, 8.0)
        assert axes.get_position().intervalx == pytest.approx(density.get_position().intervalx)


class Charted(Integrator):
    """Shows the charts it is given."""

    def __init__(self, charts: list[Chart]) -> None:
        super().__init__(horizon=3)
        self._charts = charts

    def charts(self, states: torch.Tensor, actions: torch.Tensor) -> list[Chart]:
        return self._charts


def test_paths_show_where_bodies_start_and_end_in_the_color_of_their_group() -> None:
    ways = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    chart = Paths("x, y [m]", ways, [("dogs", 1), ("sheep", 2)], target=(5.0, -5.0))
    system = Charted([chart, Curves("u", torch.zeros(3, 1))])
    figure = trajectory_figure(system, pushed(system, 1))
    plane, control = figure.axes
    assert [text.get_text() for text in plane.get_legend().get_texts()] == ["dogs", "sheep", "target"]
    assert plane.get_aspect() == 1.0
    assert (plane.get_xlabel(), control.get_xlabel()) == ("", "time")
    lines = [np.transpose(line.get_data()) for line in plane.lines]
    for body in range(3):
        way, start, end = lines[3 * body : 3 * body + 3]
        assert np.allclose(way, ways[:, body])
        assert np.allclose(start, ways[:1, body])
        assert np.allclose(end, ways[-1:, body])
    assert np.allclose(lines[-1], [(5.0, -5.0)])
    colors = [plane.lines[3 * body].get_color() for body in range(3)]
    assert colors[0] != colors[1] == colors[2]


def test_a_field_has_its_points_at_their_coordinates() -> None:
    system = Charted([Field("density", torch.arange(12.0).view(4, 3), "x [m]", -1.0, 1.0)])
    (axes,) = trajectory_figure(system, pushed(system, 1)).axes
    (image,) = axes.images
    assert image.get_extent() == pytest.approx([-0.5, 3.5, -1.5, 1.5])
    assert axes.get_ylim() == (-1.0, 1.0)
    assert np.array_equal(image.get_array(), np.arange(12.0).reshape(4, 3).T)


def test_a_field_of_both_signs_has_0_in_the_middle_of_its_colors() -> None:
    values = torch.tensor([[-1.0, math.nan], [3.0, 0.0]])
    (axes,) = trajectory_figure(Charted([Field("u", values, "x", 0.0, 1.0)]), pushed(Charted([]), 1)).axes
    (image,) = axes.images
    assert image.get_clim() == (-3.0, 3.0)


@pytest.mark.parametrize("bad", [slice(2, None), slice(None)], ids=["the end", "everything"])
def test_charts_that_leave_the_numbers_are_drawn_as_far_as_they_go(bad: slice, tmp_path: Path) -> None:
    values = torch.ones(4, 2)
    values[bad] = math.nan
    values[bad, 1] = math.inf
    charts = [
        Field("density", values, "x", 0.0, 1.0),
        NamedCurves("size", values, ["one", "two"]),
        Paths("x, y", values.unsqueeze(1), [("dogs", 1)]),
    ]
    system = Charted(charts)
    save_figure(trajectory_figure(system, pushed(system, 2)), tmp_path / "figure.png")


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_many_curves_stand_in_two_columns(count: int, columns: int) -> None:
    system = Charted([Curves(str(i), torch.zeros(4, 1)) for i in range(count)])
    figure = trajectory_figure(system, pushed(system, 1))
    assert len({axes.get_subplotspec().colspan.start for axes in figure.axes}) == columns


def test_more_named_curves_than_colors_are_told_apart() -> None:
    system = Charted([NamedCurves("value", torch.zeros(4, 14), [f"value_{i}" for i in range(14)])])
    (axes,) = trajectory_figure(system, pushed(system, 1)).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 14


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("theta' [rad]", r"$\theta'$ [rad]"),
        ("Re psi_12", r"Re $\psi_{12}$"),
        ("alphabet", "alphabet"),
        ("value_12 [m]", "value_12 [m]"),
    ],
)
def test_greek_letters_in_labels_are_mathematics(label: str, shown: str) -> None:
    system = Charted([Curves(label, torch.zeros(4, 1))])
    (axes,) = trajectory_figure(system, pushed(system, 1)).axes
    assert axes.get_ylabel() == shown


def test_learning_curves_are_on_a_log_scale_and_mark_the_best_epoch(tmp_path: Path) -> None:
    figure = learning_curves_figure([0, 1, 2, 3], [1.0, 0.01, 0.1, math.nan], [2.0, 0.5, 0.03, 0.0])
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    marks = [
        tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in axes.lines if len(line.get_xdata()) == 1
    ]
    assert marks == [(1.0, 0.01), (1.0, 0.5)]
    save_figure(figure, tmp_path / "curves.png")


@pytest.mark.parametrize("loss", [[], [0.5], [math.nan, math.nan], [0.0, -1.0]])
def test_learning_curves_of_little_or_nothing_are_drawn(loss: Sequence[float], tmp_path: Path) -> None:
    save_figure(learning_curves_figure(range(len(loss)), loss, loss), tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_a_figure_is_saved_in_the_format_of_its_suffix(suffix: str, magic: bytes, tmp_path: Path) -> None:
    save_figure(learning_curves_figure([0, 1], [1.0, 0.1], [1.0, 0.2]), tmp_path / f"curves.{suffix}")
    assert (tmp_path / f"curves.{suffix}").read_bytes().startswith(magic)
    assert len(list(tmp_path.iterdir())) == 1


def test_figures_leave_pyplot_and_its_windows_alone() -> None:
    program = """
import sys
import bptt_trainers.figures.animation
from bptt_trainers.figures.trajectory import learning_curves_figure
learning_curves_figure([0, 1], [1.0, 0.1], [1.0, 0.2])
assert "matplotlib.pyplot" not in sys.modules
assert "pygame" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Animations


def test_a_gif_runs_in_real_time_and_holds_its_end(tmp_path: Path) -> None:
    path = tmp_path / "episode.gif"
    save_animation(CartPole(), pushed(CartPole(), 1), path, width=320, hold=0.5)
    pictures, durations = frames(path)
    assert len(pictures) == 34
    assert pictures[0].shape == (200, 320, 3)
    assert sum(durations) == 1000 + 500
    assert durations[-1] == 500
    assert min(durations) >= 20
    assert len({picture.tobytes() for picture in pictures}) == 34


@pytest.mark.parametrize(("dt", "speed"), [(0.01, 0.5), (0.01, 3.0), (0.0667, 1.0), (0.003, 1.0), (1e-3, 1.0)])
def test_a_gif_keeps_the_time_of_any_step_and_speed(dt: float, speed: float, tmp_path: Path) -> None:
    system = CartPole(dt=dt, horizon=round(0.6 / dt))
    save_animation(system, pushed(system, 1), tmp_path / "episode.gif", width=80, speed=speed, hold=1.0)
    _, durations = frames(tmp_path / "episode.gif")
    assert sum(durations[:-1]) == pytest.approx(1000 * system.horizon * dt / speed, abs=10)
    assert min(durations) >= 20


def test_a_gif_of_one_step_shows_its_start_and_its_end(tmp_path: Path) -> None:
    system = CartPole(horizon=1)
    save_animation(system, pushed(system, 1, force=500.0), tmp_path / "episode.gif", width=320)
    assert len(frames(tmp_path / "episode.gif")[0]) == 2


@pytest.mark.parametrize(
    ("names", "episodes", "shape"), [(1, 1, (1, 1)), (1, 4, (2, 2)), (1, 5, (2, 3)), (2, 1, (1, 2)), (3, 2, (2, 3))]
)
def test_trajectories_stand_side_by_side(names: int, episodes: int, shape: tuple[int, int], tmp_path: Path) -> None:
    system = CartPole(horizon=2)
    trajectories = {f"force {i}": pushed(system, 5, force=float(i)) for i in range(names)}
    save_animation(system, trajectories, tmp_path / "episodes.gif", episodes=episodes, width=480)
    (height, width, _), *_ = [picture.shape for picture in frames(tmp_path / "episodes.gif")[0]]
    assert width == pytest.approx(480, abs=4)
    assert height / width == pytest.approx(0.625 * shape[0] / shape[1], rel=0.02)


def test_an_animation_as_png_shows_moments(tmp_path: Path) -> None:
    save_animation(CartPole(), pushed(CartPole(), 1), tmp_path / "episode.png", width=600)
    save_animation(CartPole(), pushed(CartPole(), 3), tmp_path / "episodes.png", width=600, episodes=3)
    with Image.open(tmp_path / "episode.png") as one, Image.open(tmp_path / "episodes.png") as three:
        assert one.height / one.width == pytest.approx(0.625 * 2 / 3, rel=0.03)
        assert three.height / three.width == pytest.approx(0.625 * 3 / 4, rel=0.03)


@pytest.mark.parametrize(
    "save", [save_figure, lambda figure, path: save_animation(Integrator(), pushed(Integrator(), 1), path)]
)
def test_an_unknown_suffix_is_named(save, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .*\.png.*; got '.*picture\.jpg'"):
        save(learning_curves_figure([0], [1.0], [1.0]), tmp_path / "picture.jpg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 3}, "episodes must be at most 2, .*; got 3"),
        ({"episodes": 0}, "episodes must be an integer of at least 1; got 0"),
        ({"speed": 0.0}, "speed must be a finite number above 0; got 0.0"),
        ({"hold": -1.0}, "hold must be a finite number above 0; got -1.0"),
        ({"width": 100, "episodes": 2}, "width must leave 80 pixels to each of 2 panels .*; got 100"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_animation(Integrator(), pushed(Integrator(), 2), tmp_path / "episode.gif", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    class Undrawable(Integrator):
        def draw(self, *_: object) -> None:
            raise RuntimeError("no picture")

    path = tmp_path / "episode.gif"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no picture"):
        save_animation(Undrawable(), pushed(Undrawable(), 1), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["episode.gif"]
