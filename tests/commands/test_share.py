"""`bptt share`: a run as a model to share, with the command that trains it anew."""

import json
import shlex
from dataclasses import replace

import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

import bptt_envs
from bptt_trainers import SAPOConfig, SHACConfig, TrainConfig, Trainer, load_pretrained, pretrained_env
from bptt_trainers.cli import main, read_command
from bptt_trainers.commands.environment import parse_options
from bptt_trainers.commands.training_command import training_command
from bptt_trainers.controllers import model_folder
from bptt_trainers.training.run_folder import RunFolder

POLE = {"max_force": 50.0, "horizon": 5}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A folder as `bptt compare` leaves it, with one run of rule M."""
    out = tmp_path_factory.mktemp("comparison")
    config = TrainConfig(rule="M", epochs=2, train_states=8, test_states=4, hidden=(4,), record=(), controller="gru")
    Trainer(gym.make("DiffCartPole-v0", **POLE), config=_in(config, out / "runs" / "M-seed0")).fit()
    rows = ["method,runs,final_loss,final_loss_min,final_loss_max", "C,3,1,1,1", "M,5,0.25,0.125,0.5"]
    (out / "methods.csv").write_text("\n".join(rows) + "\n")
    return out


def _in(config, folder):
    return replace(config, out=folder)


def bptt(line, capsys, code=0):
    assert main(shlex.split(line)) == code, capsys.readouterr().err
    said = capsys.readouterr()
    return said.err if code else said.out


def test_a_run_is_shared_with_its_losses_its_command_and_a_picture(comparison, tmp_path, capsys):
    run, model = comparison / "runs" / "M-seed0", tmp_path / "model"
    said = bptt(f"share {run} --out {model} --which last", capsys)
    assert {path.name for path in model.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "trajectory.png",
    }
    assert all(path.name in said for path in model.iterdir())
    with Image.open(model / "trajectory.png") as picture:
        assert picture.width > 500
    trained, _ = RunFolder(run).load_controller(RunFolder(run).make_env().system, "last")
    seen = np.random.default_rng(0).normal(size=(3, 4))
    assert np.array_equal(load_pretrained(model).predict(seen)[0], trained.predict(seen)[0])
    assert (pretrained_env(model).spec.id, pretrained_env(model).system.horizon) == ("DiffCartPole-v0", 5)

    description = json.loads((model / "config.json").read_text())
    assert description["losses"]["over_seeds"] == {"runs": 5, "median": 0.25, "least": 0.125, "largest": 0.5}
    card = huggingface_hub.ModelCard.load(model / "README.md")
    assert [result.metric_value for result in card.data.eval_results] == [description["losses"]["held_out"]["mean"]]
    assert "Over the 5 seeds" in card.text
    assert "trained by M" in card.text
    assert f"\n{description['training']['command']}\n" in card.text

    rows = [line.split() for line in bptt(f"evaluate {run} --which last", capsys).splitlines()]
    assert [line.split()[1:] for line in bptt(f"evaluate {model}", capsys).splitlines()] == [row[1:] for row in rows]
    assert "leave out --which last" in bptt(f"evaluate {model} --which last", capsys, 2)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (TrainConfig(), {}),
        (TrainConfig(rule="R decay 0.9", epochs=3, hidden=(8, 8), squash=True, clip="norm", seed=7), POLE),
        (TrainConfig(rule="M", adam_betas=(0.8, 0.9), final_learning_rate=1e-5, amsgrad=True), {"max_force": None}),
        (TrainConfig(rule="R", optimizer="SGD", optimizer_options={"momentum": 0.9, "nesterov": True}), {}),
        (TrainConfig(rule="R", deviation="state", estimator="likelihood_ratio"), {"observe_time": True}),
        (SHACConfig(rule="C", window=4), {"observation": "cos_sin"}),
        (SAPOConfig(epochs=2), {"max_force": 20.0}),
        (TrainConfig(rule="C"), {"randomize": {"pole_length": [0.4, 0.6]}}),
    ],
)
def test_the_command_of_a_run_asks_for_its_settings(config, options):
    _, _, *arguments = shlex.split(training_command(config, "DiffCartPole-v0", options))
    command = read_command("train", arguments)
    texts = dict(text.split("=", 1) for text in command.optimizer_option)
    assert texts.keys() == config.optimizer_options.keys()
    assert _in(command.training, None) == _in(config, None) if not texts else command.training.optimizer == "SGD"
    read = parse_options(command.env, command.env_option)
    assert json.loads(json.dumps(read)) == options
    assert command.env == "DiffCartPole-v0"


def test_a_run_with_code_of_its_own_has_no_command(tmp_path, capsys):
    config = TrainConfig(epochs=1, train_states=8, test_states=4, hidden=(4,), record=(), out=tmp_path / "run")
    states = gym.make("DiffIntegrator-v0").unwrapped.initial_states(8)
    Trainer(gym.make("DiffIntegrator-v0"), config=config, train_states=states).fit()
    bptt(f"share {tmp_path / 'run'} --out {tmp_path / 'model'}", capsys)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trained in Python" in card
    assert "bptt train" not in card


def test_what_is_pushed_is_the_folder(comparison, tmp_path, capsys, monkeypatch):
    pushed = []
    monkeypatch.setattr("bptt_trainers.commands.share.upload", lambda *a, **k: pushed.append((*a, k)) or "address")
    run, model = comparison / "runs" / "M-seed0", tmp_path / "model"
    assert bptt(f"share {run} --out {model} --push-to me/pole --private", capsys).splitlines()[-1] == "address"
    assert pushed == [(model, "me/pole", {"private": True})]
    assert model_folder.read_description(model)["versions"]["bptt_envs"] == bptt_envs.__version__


def test_a_run_of_reinforcement_learning_is_refused_in_words(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"method": "PPO"}')
    assert "huggingface_sb3" in bptt(f"share {tmp_path / 'run'} --out {tmp_path / 'model'}", capsys, 2)


@pytest.mark.parametrize("name", ["", "bad name/x y", "a/b/c"])
def test_a_name_that_the_hub_does_not_take_is_refused_before_anything_is_written(comparison, tmp_path, capsys, name):
    line = f"share {comparison / 'runs' / 'M-seed0'} --out {tmp_path / 'model'} --push-to {shlex.quote(name)}"
    assert "--push-to must be a name on the hub" in bptt(line, capsys, code=2)
    assert not any(tmp_path.iterdir())


def test_a_model_is_no_run_and_its_commands_say_so(comparison, tmp_path, capsys):
    model = tmp_path / "model"
    bptt(f"share {comparison / 'runs' / 'M-seed0'} --out {model}", capsys)
    for line in (f"resume {model}", f"report {model}", f"share {model} --out {tmp_path / 'again'}"):
        assert "holds a model to share" in bptt(line, capsys, code=1)
