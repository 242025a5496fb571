"""The contact study: what is measured, that it goes on, the verdicts, and `bptt contact`."""

import math
from dataclasses import replace

import pytest
import torch

import bptt_studies.contact.run
from bptt_envs.systems import CartPole, Integrator
from bptt_studies.contact.config import TASKS, ContactConfig, Task
from bptt_studies.contact.figure import contact_figure
from bptt_studies.contact.gradients import _size_and_noise, measure
from bptt_studies.contact.run import START, Measured, Run, read_study, study
from bptt_studies.contact.tables import QUESTIONS, gradient_rows, loss_rows, verdict_rows
from bptt_trainers import default_controller, policy_gradient
from bptt_trainers.cli import main
from bptt_trainers.directions.rules import PAPER_RULES, cosine, flat, sign_agreement
from bptt_trainers.records.files import RunFolderError

TINY = {"horizon": 2, "seeds": 2, "epochs": 1, "samples": 2}


def runs_of(losses, stiffness=1e4):
    """Runs with these losses by rule, all untrained at 1."""
    return [Run(stiffness, rule, i, 1.0, loss) for rule, each in losses.items() for i, loss in enumerate(each)]


def measured_at(stiffness, trained):
    numbers = dict.fromkeys(Measured.__dataclass_fields__, 0.5)
    return Measured(**numbers | {"stiffness": stiffness, "trained": trained, "seed": 0, "horizon": 50})


def test_sizes_noise_and_angle_are_those_of_the_directions_of_each_episode():
    system, states = CartPole(horizon=20), CartPole().initial_states(5, torch.Generator().manual_seed(0))
    controller = default_controller(system)
    found = measure(system, controller, states)
    assert next(controller.parameters()).dtype == torch.float32, "it is left as it is"
    controller, states = controller.double(), states.double()
    means = {}
    for rule in "RM":
        each = [flat(policy_gradient(system, controller, one, rule, "autograd").directions) for one in states.split(1)]
        mean, each = torch.stack(each).mean(0), torch.stack(each)
        noise = (each - mean).square().sum(1).mean().sqrt() / mean.norm()
        assert getattr(found, f"norm_{rule}") == pytest.approx(float(mean.norm()), rel=1e-9)
        assert getattr(found, f"noise_{rule}") == pytest.approx(float(noise), rel=1e-9)
        means[rule] = policy_gradient(system, controller, states, rule, "autograd").directions
    assert found.cosine == pytest.approx(cosine(means["R"], means["M"]), abs=1e-9)
    assert found.agreement == pytest.approx(sign_agreement(means["R"], means["M"]))
    assert found.balance_M > 0.0


@pytest.mark.parametrize("each", [[0.0, 0.0], [1.0, -1.0]], ids=["none", "opposite"])
def test_noise_about_a_mean_of_0_is_a_dash_in_the_tables(each):
    norm, noise = _size_and_noise({"weight": torch.tensor(each).unsqueeze(1)})
    assert norm == 0.0
    (row,) = gradient_rows([replace(measured_at(1e4, START), noise_R=noise)], [START], [50])
    assert (row["noise_R"], row["noise_M"]) == ("–", "0.5")


def test_feedback_under_m_is_in_balance_where_the_physics_neither_grows_nor_shrinks_it():
    system = Integrator(horizon=8)
    found = measure(system, default_controller(system), system.initial_states(3, torch.Generator().manual_seed(0)))
    assert found.balance_M == pytest.approx(0.0, abs=1e-9)
    assert found.growth_physics == pytest.approx(0.0, abs=1e-9)
    assert found.balance_R > 0.0


@pytest.fixture
def begun(monkeypatch):
    """The stiffnesses at which a study began to train, which here finds what is known before."""
    found = []

    def at(stiffness, config):
        found.append(stiffness)
        return runs_of(dict.fromkeys(PAPER_RULES, (0.5, 0.25)), stiffness), [measured_at(stiffness, START)]

    monkeypatch.setattr(bptt_studies.contact.run, "_at", at)
    return found


def test_it_goes_on_where_it_stopped(begun, tmp_path):
    config = ContactConfig(stiffness=(1e4,), out=tmp_path / "study", **TINY)
    study(config)
    runs, measured = study(replace(config, stiffness=(1e4, 2e3)))
    assert begun == [1e4, 2e3]
    assert [one.stiffness for one in measured] == [2e3, 1e4], "the softest first"
    assert (runs, measured) == read_study(config.out)
    with pytest.raises(RunFolderError, match="seeds"):
        study(replace(config, seeds=3))


def test_a_stiffness_of_which_a_kill_left_the_runs_alone_is_done_anew(begun, tmp_path):
    config = ContactConfig(stiffness=(1e4,), out=tmp_path / "study", **TINY)
    expected = study(config)
    (config.out / "gradients.csv").unlink()
    assert study(config) == expected
    assert begun == [1e4, 1e4]


def test_verdicts_are_of_one_family_and_ask_for_enough_runs():
    better, worse = [0.1 + 0.01 * i for i in range(6)], [0.5 + 0.01 * i for i in range(6)]
    runs = runs_of({"R": worse, "M": worse, "S": [2.0, math.inf, 1.5, 3.0, 2.5, 1.2], "C": better})
    found = {row["does"]: row["verdict"] for row in verdict_rows(runs)}
    assert found == {
        "C end below R?": "yes",
        "M end below R?": "open",
        "S end below C?": "no",
        "S end below its start?": "no",
    }
    few = [run for run in runs if run.seed < 3]
    assert {row["verdict"] for row in verdict_rows(few)} == {"too few"}
    assert len(verdict_rows(runs + runs_of(dict.fromkeys(PAPER_RULES, better), 1e5))) == 2 * len(QUESTIONS)
    diverged = [math.inf] * 6
    assert "inf" in str(loss_rows(runs_of(dict.fromkeys(PAPER_RULES, diverged)))[0]["R"])


def test_the_figure_takes_runs_that_diverged():
    some = [0.5, math.inf, math.inf]
    runs = runs_of(dict.fromkeys(PAPER_RULES, some))
    figure = contact_figure(runs, [measured_at(1e4, START), measured_at(1e4, "C")], ContactConfig())
    assert len(figure.axes) == 6


@pytest.mark.parametrize(("settings", "words"), [({"task": "cart-pole"}, "task"), ({"stiffness": (0.0,)}, "stiffness")])
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ContactConfig(**settings)


def test_a_stiffness_that_the_system_refuses_is_so_before_any_trains(begun, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["contact", "--stiffness", "2e4", "1e9", "--out", str(out)]) == 2
    assert "stiffness" in capsys.readouterr().err
    assert not begun
    assert not out.exists()


@pytest.mark.usefixtures("drawn")
def test_the_command_leaves_tables_and_a_figure(tmp_path, capsys, monkeypatch):
    options = {"form": "vertical", "substeps": 1, "dt": 0.004}
    monkeypatch.setitem(TASKS, "hopper", Task("DiffHopper-v0", (1e3, 2e4), options))
    monkeypatch.setattr(bptt_studies.contact.run, "EPOCH_STATES", 8)
    monkeypatch.setattr(bptt_studies.contact.run, "TEST_STATES", 2)
    settings = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    assert main(["contact", "--stiffness", "2e4", *settings, "--out", str(tmp_path / "out")]) == 0
    assert "S end below its start?" in capsys.readouterr().out
    runs, measured = read_study(tmp_path / "out")
    assert len(runs) == len(PAPER_RULES) * TINY["seeds"]
    assert {(one.trained, one.horizon) for one in measured} == {
        *((trained, 2) for trained in (START, *PAPER_RULES)),
        *((trained, 1) for trained in (START, "C")),
    }
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "verdict" in tables
    assert all(f"| C | {horizon} | 20000 |" in tables for horizon in (1, 2)), "parts of the horizon, too"
    assert (tmp_path / "out" / "contact.pdf").stat().st_size > 1000
