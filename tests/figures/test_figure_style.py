"""Figures can be read: unlike curves look unlike, log axes have numbers, no texts collide, none leaves the paper."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from bptt_envs.systems import CartPole, MultiPole, QuantumControl
from bptt_studies.benchmarks import figures as benchmarks
from bptt_studies.lqr.figure import Curves
from bptt_studies.lqr.figure import curves_figure as lqr_figure
from bptt_studies.paper.experiments import EXPERIMENTS
from bptt_studies.paper.report import FIGURES, OVERVIEWS, read_studies
from bptt_studies.scaling.figure import scaling_figure
from bptt_studies.scaling.file import read_measurements
from bptt_studies.scaling.tables import by_axis
from bptt_studies.toys.figure import adam_figure, integrator_figure, rotation_figure
from bptt_studies.toys.toys import STARTS, descents, integrator_sample, rotation_sample, square_grid, toy_fields
from bptt_trainers import default_controller, diagnose
from bptt_trainers.analysis.diagnostics_figure import diagnostics_figure
from bptt_trainers.comparison.figure import curves_figure
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.figures.bands import draw_band, series_of
from bptt_trainers.figures.style import (
    COLORS,
    DPI,
    WIDTH,
    Look,
    draw_curve,
    legend_below,
    line_style,
    looks_of,
    save_figure,
    variant_looks,
)
from bptt_trainers.figures.ticks import log_axes, ticks_at
from bptt_trainers.figures.trajectory import learning_curves_figure, trajectory_figure
from bptt_trainers.records.curve import CurvePoint
from bptt_trainers.records.tables import read_lines

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = Path(__file__).parents[2]
SMALLEST = 7.0  # points, of a text
SLACK = 2.0  # pixels by which the boxes of two texts may overlap: letters do not fill them


# Figures of every kind, most of them of the data in the repository: they are drawn anew with it


def of_study(name: str) -> Figure:
    """The figure of an experiment of results/."""
    experiment = EXPERIMENTS[name]
    ((task,),) = read_studies([experiment], ROOT / "results").values()
    return FIGURES[experiment.study](task)


def of_all_tasks(study: str, name: str) -> Figure:
    chosen = [one for one in EXPERIMENTS.values() if one.study == study]
    (tasks,) = read_studies(chosen, ROOT / "results").values()
    return OVERVIEWS[study][name]([task for task in tasks if task.results])


def points(*losses: float) -> list[CurvePoint]:
    return [CurvePoint(1000 * i, float(i), loss) for i, loss in enumerate(losses)]


def comparison(names: str = "R M S C PPO SAC turned fast slow wide narrow deep shallow long short") -> Figure:
    """Many methods, one of them with a single point, and two that do not learn."""
    curves = {(name, 0): points(2.0, 1.0 / (i + 1), 0.5 / (i + 1)) for i, name in enumerate(names.split())}
    curves |= {("once", 0): points(2.0, 1.5), ("zero", 0): points(2.0), ("random", 0): points(2.5)}
    return curves_figure(curves, "an environment, with all its options and more of them, judged by one loss " * 2)


def of_diagnoses(poles: int) -> Figure:
    system = MultiPole(n_poles=poles, horizon=12)
    controller = default_controller(system)
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    return diagnostics_figure([diagnose(system, controller, states, epoch) for epoch in (0, 1)], system, "a run")


def of_lqr() -> Figure:
    falling = np.geomspace(1e3, 1e-7, 200)[:, None, None] * np.ones((1, len(PAPER_RULES), 5))
    blocks = [(one, gains) for one in ("continuous", "final") for gains in ("constant", "time-varying")]
    return lqr_figure([Curves.of(*block, falling * (1 + np.arange(len(PAPER_RULES)))[:, None]) for block in blocks])


def of_rotation() -> Figure:
    start = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    found = {(k, rate): descents(rotation_sample(k), start, [rate], 30)[rate] for k in (1.0, 10.0) for rate in (0.1,)}
    return rotation_figure(found)


def of_adam() -> Figure:
    return adam_figure(
        toy_fields(integrator_sample(), 5), descents(integrator_sample(), square_grid(STARTS), (0.1, 0.01), 20, 10)
    )


def of_trajectories(system: CartPole | QuantumControl, batch: int) -> Figure:
    states = system.initial_states(batch, torch.Generator().manual_seed(0))
    actions = torch.linspace(-1.0, 1.0, batch).view(-1, *(1 for _ in system.action_shape))
    push = (actions * torch.ones(batch, *system.action_shape)).to(states.dtype)
    return trajectory_figure(system, rollout(system, lambda _: push, states))


DRAWN: dict[str, Callable[[], Figure]] = {
    **{
        name: lambda name=name: of_study(name)
        for name in (
            *("rules-quantum-3", "rl-cart-pole-1", "rl-quantum-3", "ablation-cart-pole-2"),
            *("stability-cart-pole-1", "stability-quantum-3", "continued-cart-pole-1"),
        )
    },
    "rules": lambda: of_all_tasks("rules", "rules"),
    "claims": lambda: of_all_tasks("rules", "claims"),
    "sensitivity": lambda: of_all_tasks("sensitivity", "sensitivity"),
    "comparison": comparison,
    "diagnostics": lambda: of_diagnoses(2),
    "lqr": of_lqr,
    **{
        f"scaling {axis}": lambda axis=axis: scaling_figure(
            by_axis(read_measurements(ROOT / "docs/scaling/scaling.csv"))[axis]
        )
        for axis in ("agents", "batch")
    },
    **{
        f"benchmark {name}": lambda name=name: benchmarks.FIGURES[name](
            read_lines(ROOT / f"docs/benchmarks/{name}.csv")
        )
        for name in benchmarks.FIGURES
    },
    "integrator": lambda: integrator_figure(toy_fields(integrator_sample(), 5)),
    "adam": of_adam,
    "rotation": of_rotation,
    "trajectories": lambda: of_trajectories(CartPole(), 9),
    "fields in time": lambda: of_trajectories(QuantumControl(), 2),
    "learning": lambda: learning_curves_figure([0, 1, 2], [1.0, math.nan, 0.9], [1.0, 0.95, 0.9], "a run " * 30),
}


def texts_of(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Text, Bbox]]:
    """The texts that are drawn, numbers of the axes among them, and where, in pixels."""
    canvas, found, draw = FigureCanvasAgg(figure), [], Text.draw

    def noted(self: Text, renderer: object) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        draw(self, renderer)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        canvas.draw()
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in dict.fromkeys(found)]


def log_axes_of(figure: Figure) -> Iterator[tuple[Axes, str]]:
    for axes in figure.axes:
        yield from ((axes, name) for name in "xy" if getattr(axes, f"get_{name}scale")() == "log")


def numbers(axes: Axes, name: str) -> list[float]:
    """The places of the ticks that have a label and are in sight."""
    axis = getattr(axes, f"{name}axis")
    low, high = sorted(axis.get_view_interval())
    labels = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
    found = zip(axis.get_majorticklocs(), labels, strict=True)
    return [place for place, label in found if label and low <= place <= high]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = DRAWN[name]()
    texts = texts_of(figure, monkeypatch)
    for text, box in texts:
        assert text.get_fontsize() >= SMALLEST or "$" in text.get_text(), text
        assert min(box.x0, box.y0) >= -SLACK, f"{text} leaves the figure"
        assert max(box.x1 - figure.bbox.width, box.y1 - figure.bbox.height) <= SLACK, f"{text} leaves the figure"
    for (one, box), (other, beside) in combinations(texts, 2):
        common = Bbox.intersection(box, beside)
        assert common is None or min(common.width, common.height) <= SLACK, f"{one} and {other} collide"
    for axes, which in log_axes_of(figure):
        if axes.has_data():
            assert len(numbers(axes, which)) >= 2, f"{which} of {axes}"
    for axes in figure.axes:
        curves = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        looks = {
            (str(line.get_color()), str(line.get_linestyle()), str(line._unscaled_dash_pattern)) for line in curves
        }
        assert len(looks) == len(curves), f"curves of {axes} look alike"


# Looks


def test_any_number_of_curves_have_looks_of_their_own() -> None:
    looks = looks_of([*COLORS, *(f"method {i}" for i in range(100))])
    assert len({*looks.values()}) == len(COLORS) + 100
    assert {looks[name].color for name in COLORS} == {*COLORS.values()}
    assert not {looks[f"method {i}"].color for i in range(100)} & {*COLORS.values()}
    assert len({str(line_style(place)) for place in range(50)}) == 50


def test_a_method_has_the_same_color_whatever_is_beside_it() -> None:
    assert looks_of(["other", "C"])["C"] == looks_of(["C"])["C"] == Look(COLORS["C"], "-")
    variants = variant_looks({"C": "C", "C cos": "C", "PPO": "PPO", "C turned": "C"})
    assert [look.color for look in variants.values()] == [COLORS[name] for name in ("C", "C", "PPO", "C")]
    assert len({*variants.values()}) == 4


@pytest.mark.parametrize(
    ("y", "marked"),
    [
        ([1.0], [0]),
        ([1.0, 2.0], []),
        ([1.0, math.nan, 2.0, 3.0], [0]),
        ([math.nan, 1.0, math.inf, 2.0, math.nan], [1, 3]),
        ([math.nan], []),
        ([], []),
    ],
)
def test_a_place_without_neighbours_has_a_marker(y: list[float], marked: list[int]) -> None:
    line = draw_curve(Figure().subplots(), range(len(y)), y, Look("black", "-"))
    assert (line.get_markevery() or []) == marked
    assert (line.get_marker() == "o") == bool(marked)


def test_the_median_of_runs_with_one_place_has_a_marker() -> None:
    axes = Figure().subplots()
    draw_band(axes, [(np.array([1.0]), np.array([loss])) for loss in (1.0, 2.0)], Look("black", "-"), "two")
    assert axes.lines[0].get_marker() == "o"


@pytest.mark.parametrize("count", range(1, 12))
def test_a_legend_of_names_as_wide_as_the_page_has_one_column(count: int) -> None:
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    (line,) = figure.subplots().plot([1.0, 2.0])
    legend_below(figure, {f"{i} {'a long name ' * 12}": line for i in range(count)})
    assert figure.legends[0]._ncols == 1


# Ticks


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("low", [1e-9, 0.00031, 0.97, 1.0, 4.6, 999.0, 2.5e6])
@pytest.mark.parametrize("span", [1 + 1e-7, 1.001, 1.3, 2.0, 5.0, 9.9, 30.0, 1e3, 1e6, 1e11, 1e20])
def test_a_log_axis_has_numbers_that_differ(low: float, span: float, which: str) -> None:
    axes = Figure(figsize=(4.0, 3.0)).subplots()
    log_axes(axes, which)
    getattr(axes, f"set_{which}lim")(low, low * span)
    found = numbers(axes, which)
    assert 2 <= len(found) <= 9
    axis = getattr(axes, f"{which}axis")
    labels = axis.get_major_formatter().format_ticks(found)
    assert len({*labels}) == len(labels)


def test_a_number_is_written_out_or_as_a_power_like_its_neighbours() -> None:
    axes = Figure().subplots()
    log_axes(axes)
    write = axes.yaxis.get_major_formatter().format_ticks
    assert write([0.001, 0.1, 10.0]) == ["0.001", "0.1", "10"]
    assert write([1e-4, 1.0, 3e2]) == ["$10^{-4}$", "$10^{0}$", r"$3 \times 10^{2}$"]


def test_names_of_places_that_are_too_near_are_left_out() -> None:
    axes = Figure(figsize=(3.0, 3.0)).subplots()
    log_axes(axes)
    ticks_at(axes, [1, 1000, 1024, 1100, 100_000], ["1", "1,000", "1,024", "1,100", "100,000"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "1,000", "", "", "100,000"]
    assert list(axes.get_xticks()) == [1, 1000, 1024, 1100, 100_000]


def test_a_single_place_has_numbers_beside_it() -> None:
    axes = Figure().subplots()
    log_axes(axes)
    axes.plot([64], [1.0], "o")
    ticks_at(axes, [64], ["64"])
    assert len(numbers(axes, "x")) >= 2


# Curves and files


def test_a_curve_can_be_smoothed_before_it_is_drawn() -> None:
    def half(losses: Sequence[float]) -> np.ndarray:
        return np.asarray(losses) / 2

    ((steps, losses),) = series_of([points(8.0, 4.0, 2.0, 1.0)], "simulator_steps", start=True, smooth=half)
    np.testing.assert_allclose(steps, [0.0, 1000.0, 2000.0, 3000.0])
    np.testing.assert_allclose(losses, [4.0, 2.0, 1.0, 0.5])


def test_a_png_can_be_printed_and_has_a_pdf_beside_it_where_one_is_asked_for(tmp_path: Path) -> None:
    figure = learning_curves_figure([0, 1], [1.0, 0.1], [1.0, 0.2])
    save_figure(figure, tmp_path / "alone.png")
    save_figure(figure, tmp_path / "weight-0.1.png", vector=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.png", "weight-0.1.pdf", "weight-0.1.png"]
    with Image.open(tmp_path / "alone.png") as picture:
        assert picture.width == figure.get_figwidth() * DPI
        assert picture.info["dpi"][0] == pytest.approx(DPI, abs=0.1)
        assert DPI >= 200


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_is_the_same_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, date in (("one", "0"), ("two", "1000000000")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", date)  # what matplotlib takes for the date, if it writes one
        save_figure(learning_curves_figure([0, 1], [1.0, 0.1], [1.0, 0.2]), tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
