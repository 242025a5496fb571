"""The fields of R, M and C over planes in parameter space, and `bptt fields`."""

import math
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import bptt_trainers.analysis.run_fields
import bptt_trainers.commands.fields
from bptt_envs.systems import CartPole
from bptt_studies.toys.toys import rotation_sample
from bptt_trainers import MLP, RunFolder, TrainConfig, Trainer, policy_gradient
from bptt_trainers.analysis.fields import (
    COLUMNS,
    SHOWN_RULES,
    evaluate,
    grid,
    read_csv,
    rotation_of,
    rules_sample,
    to_csv,
    vectors_at_once,
)
from bptt_trainers.analysis.fields_figure import fields_figure, path_overlay, save_frames, scales_of
from bptt_trainers.analysis.planes import (
    filter_normalised,
    flat,
    natural_plane,
    path_plane,
    random_plane,
    rules_plane,
)
from bptt_trainers.analysis.run_fields import FieldsConfig, RunFields
from bptt_trainers.cli import main
from bptt_trainers.figures.style import save_figure
from bptt_trainers.records.files import RunFolderError

SYSTEM = CartPole(horizon=15)
STATES = SYSTEM.initial_states(3, torch.Generator().manual_seed(0), torch.float64)


def controller(seed=0):
    return MLP((4,), (1,), (6, 5), generator=torch.Generator().manual_seed(seed)).double()


def parameters(seed=0):
    """Those of a controller, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    named = {name: p.detach() for name, p in controller(seed).named_parameters()}
    return {n: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in named.items()}


def directions_at(at):
    module = controller()
    module.load_state_dict(at)
    return {rule: policy_gradient(SYSTEM, module, STATES, rule) for rule in SHOWN_RULES}


def planes():
    at = parameters()
    found = directions_at(at)
    return {
        "path": path_plane([parameters(seed) for seed in range(5)]),
        "random": random_plane(at, torch.Generator().manual_seed(0)),
        "rules": rules_plane(at, found["R"].directions, found["M"].directions),
        "natural": natural_plane({"first": torch.ones(1), "second": torch.ones(1, 1)}, ("a", "b")),
    }


THETA = natural_plane({"theta": torch.zeros(2, dtype=torch.float64)}, ("a", "b"))
POINTS = torch.tensor([[0.0, 0.0], [1.0, -0.5], [-0.3, 2.0]], dtype=torch.float64)


# Planes


@pytest.mark.parametrize("kind", ["path", "random", "rules", "natural"])
def test_directions_are_orthonormal_so_that_coordinates_are_distances(kind):
    plane = planes()[kind]
    first, second = map(flat, plane.axes)
    assert float(first @ first) == pytest.approx(1.0, abs=1e-12)
    assert float(second @ second) == pytest.approx(1.0, abs=1e-12)
    assert float(first @ second) == pytest.approx(0.0, abs=1e-12)
    points = [{name: p[i] for name, p in plane.points(POINTS).items()} for i in range(3)]
    for i, point in enumerate(points):
        torch.testing.assert_close(plane.coordinates(point), POINTS[i], atol=1e-6, rtol=0)
        assert float((flat(point) - flat(points[0])).norm()) == pytest.approx(float(POINTS[i].norm()), abs=1e-6)


def test_the_plane_of_a_path_holds_its_first_and_last_point():
    path = [parameters(seed) for seed in range(5)]
    plane = path_plane(path)
    for end, expected in ((path[0], 0.0), (path[-1], float((flat(path[-1]) - flat(path[0])).norm()))):
        a, b = plane.coordinates(end)
        assert float(a) == pytest.approx(expected)
        assert float(b) == pytest.approx(0.0, abs=1e-12)
        there = plane.points(torch.stack([a, b]).unsqueeze(0))
        assert all(torch.allclose(there[name][0], p) for name, p in end.items())


def test_no_other_plane_through_both_ends_holds_more_of_the_path():
    path = [parameters(seed) for seed in range(6)]
    plane = path_plane(path)
    first, second = map(flat, plane.axes)
    steps = torch.stack([flat(point) for point in path]) - flat(path[0])
    rest = steps - torch.outer(steps @ first, first)
    held = float((rest @ second).square().sum())
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        mixed = second + 0.3 * torch.randn(second.shape, generator=generator, dtype=second.dtype)
        other = mixed - (mixed @ first) * first
        assert float((rest @ (other / other.norm())).square().sum()) < held


def test_a_plane_moved_through_a_point_holds_it_and_keeps_its_coordinates():
    plane, point = path_plane([parameters(seed) for seed in range(3)]), parameters(9)
    moved = plane.through(point)
    torch.testing.assert_close(moved.coordinates(point), plane.coordinates(point))
    there = moved.points(moved.coordinates(point).unsqueeze(0))
    assert all(torch.allclose(there[name][0], p) for name, p in point.items())
    assert not all(
        torch.allclose(plane.points(plane.coordinates(point).unsqueeze(0))[n][0], p) for n, p in point.items()
    )


def test_filter_normalisation_gives_each_filter_the_norm_that_it_has():
    at = parameters()
    generator = torch.Generator().manual_seed(0)
    direction = filter_normalised({n: torch.randn(p.shape, generator=generator) for n, p in at.items()}, at)
    for name, p in at.items():
        if p.dim() > 1:
            torch.testing.assert_close(direction[name].norm(dim=1), p.norm(dim=1))
        else:
            torch.testing.assert_close(direction[name].norm(), p.norm())
    untouched = filter_normalised({"bias": torch.ones(3)}, {"bias": torch.zeros(3)})
    assert not untouched["bias"].any()


def test_random_planes_come_from_their_seed():
    first, again, other = (random_plane(parameters(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(flat(first.axes[1]), flat(again.axes[1]))
    assert not torch.allclose(flat(first.axes[1]), flat(other.axes[1]))


def test_what_spans_no_plane_is_refused_in_words():
    at = parameters()
    with pytest.raises(ValueError, match="at least 3 checkpoints; got 2"):
        path_plane([at, parameters(1)])
    doubled = {name: 2.0 * p for name, p in at.items()}
    with pytest.raises(ValueError, match="not parallel"):
        rules_plane(at, at, doubled)
    with pytest.raises(ValueError, match="not zero"):
        rules_plane(at, at, {name: torch.zeros_like(p) for name, p in at.items()})
    with pytest.raises(ValueError, match="finite"):
        rules_plane(at, at, {name: p * math.nan for name, p in at.items()})
    with pytest.raises(ValueError, match="the last one not the first"):
        path_plane([at, doubled, at])
    with pytest.raises(ValueError, match="not all on a line"):
        path_plane([at, doubled, {name: 3.0 * p for name, p in at.items()}])


# Fields


@pytest.mark.parametrize("kind", ["path", "random", "rules"])
def test_each_point_has_the_loss_and_directions_of_a_run_of_its_own(kind):
    plane = planes()[kind]
    table = evaluate(rules_sample(SYSTEM, controller(), STATES), plane, POINTS, 1e-3, at_once=100)
    axes = [flat(axis) for axis in plane.axes]
    for i in range(len(POINTS)):
        alone = directions_at({name: p[i] for name, p in plane.points(POINTS).items()})
        assert table["loss"][i] == pytest.approx(float(alone["R"].loss), rel=1e-10)
        for rule in SHOWN_RULES:
            vector = flat(alone[rule].directions)
            assert table[f"{rule}_norm"][i] == pytest.approx(float(vector.norm()), rel=1e-8)
            for axis, name in zip(axes, ("a", "b"), strict=True):
                assert table[f"{rule}_{name}"][i] == pytest.approx(float(vector @ axis), rel=1e-6, abs=1e-10)
        assert table["C_zero"][i] == pytest.approx(float((flat(alone["C"].directions) == 0).double().mean()))


def test_the_fields_do_not_depend_on_how_many_points_go_through_at_once():
    sample, plane = rules_sample(SYSTEM, controller(), STATES), planes()["random"]
    done = []
    one, all_ = (evaluate(sample, plane, POINTS, 1e-3, at_once=n, on_progress=done.append) for n in (1, 100))
    assert done == [1, 1, 1, 3]
    assert list(one) == list(COLUMNS)
    for column in COLUMNS:
        np.testing.assert_allclose(one[column], all_[column], rtol=1e-5, atol=1e-8)


def test_the_gradient_does_not_rotate_and_m_does():
    table = evaluate(rules_sample(SYSTEM, controller(), STATES), planes()["rules"], POINTS, 1e-4, at_once=100)
    assert np.abs(table["R_rotation"]).max() < 1e-4
    assert np.abs(table["M_rotation"]).max() > 1e-2


@pytest.mark.parametrize("strength", [-2.0, 0.0, 0.5, 100.0])
def test_a_known_rotation_is_found(strength):
    """(R, R turned) on a paraboloid has the derivative 2 [[1, -s], [s, 1]]."""
    table = evaluate(rotation_sample(strength), THETA, POINTS, 0.01, at_once=100)
    np.testing.assert_allclose(table["M_curl"], 4.0 * strength, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table["M_rotation"], strength / math.hypot(1.0, strength), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(table["R_curl"], 0.0, atol=1e-9)


def test_the_relative_rotation_is_between_minus_1_and_1_and_a_gap_where_nothing_changes():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    jacobians = torch.randn(1000, 2, 2, generator=torch.Generator().manual_seed(0))
    _, relative = rotation_of(torch.cat([jacobians, torch.stack([turn, -turn, 0.0 * turn])]))
    assert float(relative[:-1].abs().max()) == pytest.approx(1.0)
    torch.testing.assert_close(relative[-3:-1], torch.tensor([1.0, -1.0]))
    assert math.isnan(relative[-1])


def test_c_is_zero_where_the_signs_part():
    """R = 2 (a, b) and M = 2 (a - b, a + b) part where a and a - b, or b and a + b, differ in sign."""
    points = torch.tensor([[3.0, 1.0], [1.0, 3.0], [-1.0, 3.0], [3.0, -1.0]])
    table = evaluate(rotation_sample(1.0), THETA, points, 1e-3, at_once=100)
    np.testing.assert_array_equal(table["C_zero"], [0.0, 0.5, 0.0, 0.5])
    np.testing.assert_array_equal(table["C_a"] == 0.0, [False, True, False, False])
    np.testing.assert_array_equal(table["C_b"] == 0.0, [False, False, False, True])


def unbounded(parameters):
    """Infinite on one side, not a number on the other."""
    theta = parameters["theta"]
    losses, found = rotation_sample(1.0)(parameters)
    side = torch.where(theta[:, 0] > 0.5, math.inf, 1.0)
    return losses * side, {rule: {"theta": d["theta"] * side.unsqueeze(1)} for rule, d in found.items()}


@pytest.mark.usefixtures("drawn")
def test_what_is_not_finite_is_a_gap_in_the_table_the_file_and_the_figure(tmp_path):
    table = evaluate(unbounded, THETA, grid((0.0, 0.0), 1.0, 5), 0.01, at_once=100)
    gaps = table["a"] > 0.5
    for column in ("loss", "R_a", "M_norm", "C_rotation", "C_zero"):
        assert np.isnan(table[column][gaps]).all()
    assert np.isfinite(table["loss"][~gaps]).all()
    nothing = {name: values * (1.0 if name in "ab" else math.nan) for name, values in table.items()}
    for name, drawn in (("some", table), ("none", nothing)):
        save_figure(fields_figure(drawn, ("a", "b"), name, scales_of([drawn])), tmp_path / f"{name}.png")
    (tmp_path / "fields.csv").write_text(to_csv({3: table}))
    again = read_csv(tmp_path / "fields.csv")
    assert list(again) == [3]
    for column in COLUMNS:
        np.testing.assert_allclose(again[3][column], table[column], rtol=1e-5)


def test_a_controller_that_cannot_be_stacked_is_refused_in_words():
    dropping = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout()).double()
    with pytest.raises(ValueError, match="draws random numbers"):
        rules_sample(SYSTEM, dropping, STATES)


def test_memory_is_bounded_by_episodes_trajectories_and_parameters():
    small, large = controller(), MLP((4,), (1,), (1000, 1000))
    assert vectors_at_once(SYSTEM, small, 32) == 32
    assert vectors_at_once(SYSTEM, large, 32) == 4
    assert vectors_at_once(CartPole(horizon=100_000), small, 32) == 2
    assert vectors_at_once(SYSTEM, small, 10**6) == 1


@pytest.mark.usefixtures("drawn")
def test_frames_are_shown_one_after_another(tmp_path):
    table = evaluate(rotation_sample(1.0), THETA, grid((0.0, 0.0), 1.0, 5), 0.01, at_once=100)
    path = np.array([[0.0, 0.0], [0.5, 0.5]])
    figures = [fields_figure(table, ("a", "b"), "", overlay=path_overlay(path, i)) for i in range(2)]
    save_frames(figures, tmp_path / "film.gif", seconds=0.5, hold=3.0)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 2
        assert film.info["duration"] == 500
        film.seek(1)
        assert film.info["duration"] == 3000


# Runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 4 epochs with all of its checkpoints kept, in runs/one."""
    monkeypatch.chdir(tmp_path)
    train(Path("runs/one"), keep_every=1)
    return RunFolder(Path("runs/one"))


def train(out, epochs=4, **settings):

    config = TrainConfig(
        epochs=epochs, train_states=16, test_states=8, hidden=(6,), record=("pictures",), out=out, **settings
    )
    Trainer(gym.make("DiffCartPole-v0", horizon=10), config=config).fit()


@pytest.fixture
def bptt(capsys):
    def bptt(line, code=0):
        assert main(shlex.split(line)) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.err if code else captured.out

    return bptt


@pytest.fixture
def computed(monkeypatch):
    """How many points each call of `evaluate` was for; a call can be made to fail by setting `computed.fails`."""

    class Calls(list):
        fails = None

    calls = Calls()

    def counting(sample, plane, points, step, **options):
        if len(calls) == calls.fails:
            raise KeyboardInterrupt
        calls.append(len(points))
        return evaluate(sample, plane, points, step, **options)

    monkeypatch.setattr(bptt_trainers.analysis.run_fields, "evaluate", counting)
    monkeypatch.setattr(bptt_trainers.commands.fields, "draw", lambda *_: None)  # takes longer than all the rest
    return calls


TINY = "--size 3 --states 4"


@pytest.mark.parametrize("directions", ["path", "random", "rules"])
def test_each_slice_holds_its_checkpoint_and_all_have_one_radius(run, directions):
    fields = RunFields(run, FieldsConfig(directions=directions, states=4))
    assert list(fields.slices) == [0, 1, 2, 3, 4]
    assert len({piece.radius for piece in fields.slices.values()}) == 1
    for epoch, piece in fields.slices.items():
        at = fields.path[epoch]
        here = piece.plane.coordinates(at)
        np.testing.assert_allclose(piece.path[piece.here], here.numpy(), atol=1e-6)
        there = piece.plane.points(here.unsqueeze(0))
        assert all(torch.allclose(there[name][0], p, atol=1e-6) for name, p in at.items())
        assert np.abs(here.numpy() - piece.center).max() < piece.radius
    if directions == "path":
        assert len({piece.center for piece in fields.slices.values()}) == 1
        assert np.abs(piece.path - piece.center).max() < piece.radius


def test_some_checkpoints_are_the_first_the_last_and_evenly_between(run):
    def epochs(count):
        return list(RunFields(run, FieldsConfig(checkpoints=count, states=4)).slices)

    assert [epochs(count) for count in (1, 2, 3, 9)] == [[4], [0, 4], [0, 2, 4], [0, 1, 2, 3, 4]]


@pytest.mark.usefixtures("drawn")
def test_it_leaves_pictures_an_animation_and_numbers(bptt, run):
    said = bptt(f"fields runs/one {TINY} --checkpoints 2")
    out = Path("runs/one/fields/path")
    assert {path.name for path in out.iterdir()} == {
        *(f"epoch_{epoch:06d}.{kind}" for epoch in (0, 4) for kind in ("png", "pdf")),
        "fields.gif",
        "fields.csv",
        "checkpoints.csv",
        "fields.json",
    }
    with Image.open(out / "fields.gif") as film:
        assert film.n_frames == 2
    points, checkpoints = read_csv(out / "fields.csv"), read_csv(out / "checkpoints.csv")
    assert [len(table["loss"]) for table in points.values()] == [9, 9]
    system = run.make_env().system
    states = Trainer(system, config=run.train_config(out=None)).train_states[:4]
    for epoch, table in checkpoints.items():
        module, _ = run.load_controller(system, run.kept()[epoch])
        alone = policy_gradient(system, module, states, "M")
        assert table["loss"][0] == pytest.approx(float(alone.loss), rel=1e-4)
        assert table["M_norm"][0] == pytest.approx(float(flat(alone.directions).norm()), rel=1e-3)
    assert said.split()[:2] == ["epoch", "loss"]
    assert max(map(len, said.splitlines())) <= 80


def test_run_again_it_computes_only_what_is_missing(bptt, run, computed):
    bptt(f"fields runs/one {TINY} --checkpoints 2")
    assert computed == [9, 1] * 2
    out = Path("runs/one/fields/path")
    first = (out / "fields.csv").read_bytes()
    bptt(f"fields runs/one {TINY} --checkpoints 2")
    assert computed == [9, 1] * 2
    assert (out / "fields.csv").read_bytes() == first
    bptt(f"fields runs/one {TINY} --checkpoints 3")
    assert computed == [9, 1] * 3
    assert list(read_csv(out / "fields.csv")) == [0, 2, 4]


def test_what_is_finished_survives_an_interruption(bptt, run, computed):
    computed.fails = 3  # in the middle of the second checkpoint
    command = f"fields runs/one {TINY} --checkpoints 3 --directions random --out runs/slices"
    said = bptt(command, code=130)
    assert said.splitlines()[-1].strip() == f"bptt {command}"
    assert list(read_csv(Path("runs/slices/fields.csv"))) == [0]
    computed.fails = None
    bptt(command)
    bptt(command.replace("runs/slices", "runs/whole"))
    assert computed == [9, 1, 9, *[9, 1] * 2, *[9, 1] * 3]
    for name in ("fields.csv", "checkpoints.csv"):
        assert Path("runs/slices", name).read_bytes() == Path("runs/whole", name).read_bytes()


def test_fields_of_other_settings_or_of_a_run_that_went_on_are_not_mixed(bptt, run, computed):
    bptt(f"fields runs/one {TINY} --checkpoints 1 --out runs/slices")
    said = bptt("fields runs/one --size 4 --states 4 --checkpoints 1 --out runs/slices", code=1)
    assert "size: 3 in the folder, 4 asked for" in said
    train(Path("runs/one"), epochs=5, keep_every=1)
    assert "digest" in bptt(f"fields runs/one {TINY} --checkpoints 1 --out runs/slices", code=1)


def test_a_run_without_kept_checkpoints_says_what_to_do(bptt, computed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(Path("runs/one"), epochs=1)
    said = bptt("fields runs/one", code=1)
    assert "--keep-every" in said
    assert "got 1" in said
    assert "radius must be given" in bptt(f"fields runs/one {TINY} --directions rules", code=2)
    bptt(f"fields runs/one {TINY} --directions rules --radius 0.1")
    assert list(read_csv(Path("runs/one/fields/rules/fields.csv"))) == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--directions paths", "'path'"),
        ("--size 1", "size must be an integer of at least 2; got 1"),
        ("--states 0", "states must be an integer of at least 1; got 0"),
        ("--radius -1", "radius must be a finite number above 0; got -1.0"),
        ("--checkpoints 0", "checkpoints must be an integer of at least 1; got 0"),
        ("--seed -1", "seed must be an integer of at least 0; got -1"),
    ],
)
def test_misuse_is_explained(bptt, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in " ".join(bptt(f"fields runs/one {arguments}", code=2).replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read_are_named(bptt, run, computed):
    bptt(f"fields runs/one {TINY} --checkpoints 1 --out runs/slices")
    for name, content in (("fields.csv", "epoch,a\n1,2\n"), ("fields.json", "{")):
        Path("runs/slices", name).write_text(content)
        assert f"cannot read runs/slices/{name}" in bptt(f"fields runs/one {TINY} --out runs/slices", code=1)
    assert "nowhere is not a run folder" in bptt("fields nowhere", code=1)


def test_a_direction_that_spans_no_plane_names_the_epoch(run, monkeypatch):
    def still(system, controller, initial_states):
        return lambda named: (
            torch.zeros(1),
            {rule: {n: torch.zeros_like(p) for n, p in named.items()} for rule in "RMC"},
        )

    monkeypatch.setattr(bptt_trainers.analysis.run_fields, "rules_sample", still)
    with pytest.raises(RunFolderError, match=r"runs/one, epoch 0: .* not zero"):
        RunFields(run, FieldsConfig(directions="rules", states=4))
