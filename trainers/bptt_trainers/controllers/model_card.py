"""The card of a controller to share: README.md with a head that the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bptt_trainers.records.options import write_options
from bptt_trainers.records.tables import markdown

PICTURE = "trajectory.png"


def model_card(description: Mapping[str, Any], *, with_picture: bool = False) -> str:
    """A card for what config.json says.

    Args:
        description: what `save` of model_folder.py writes. Beside it, of a run: `training`, with its method, epoch,
            seed, its settings and the command that trains it anew, and `losses`, over held-out start states and over
            the seeds of a comparison.
        with_picture: whether a trajectory lies beside it.
    """
    environment, training = description["environment"], description.get("training")
    losses = description.get("losses", {})
    title = _title(description)
    parts = [_head(title, environment, losses), f"# {title}", _what_it_is(description)]
    if with_picture:
        parts.append(f"![Trajectories from held-out start states]({PICTURE})")
    if losses:
        parts += ["## Losses", _losses(losses)]
    parts += ["## Use it", _use(environment is not None)]
    if training:
        parts += ["## Training", _training(training)]
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    parts += ["## Versions", f"Written by {versions}."]
    return "\n\n".join(parts) + "\n"


def _title(description: Mapping[str, Any]) -> str:
    environment, training = description["environment"], description.get("training")
    kind = description["controller"]["type"]
    task = f" for {environment['id']}" if environment else ""
    return f"{kind}{task}" + (f", trained by {training['method']}" if training else "")


def _head(title: str, environment: Mapping[str, Any] | None, losses: Mapping[str, Any]) -> str:
    """The YAML between the dashes; JSON values are YAML."""
    tags = ["control", "differentiable-physics", "gymnasium", "reinforcement-learning", "stable-bptt"]
    if environment:
        tags.append(environment["id"])
    head: dict[str, Any] = {"library_name": "stable-bptt", "pipeline_tag": "reinforcement-learning", "tags": tags}
    if environment and losses:
        metric = {"type": "loss", "name": "held-out loss, mean", "value": losses["held_out"]["mean"]}
        kind = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        dataset = {"type": environment["id"], "name": environment["id"]}
        head["model-index"] = [{"name": title, "results": [{"task": kind, "dataset": dataset, "metrics": [metric]}]}]
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---"])


def _what_it_is(description: Mapping[str, Any]) -> str:
    controller, environment = description["controller"], description["environment"]
    rows = [("controller", f"`{controller['type']}`, {_options(controller['settings'])}")]
    rows += [(name, f"`{tuple(controller[f'{name}_shape'])}`") for name in ("observation", "action")]
    rows += [(name, f"`{tuple(s)}`") for name in ("memory", "noise") if (s := controller[f"{name}_shape"])]
    if description["normalization"]:
        rows.append(("observations", "shifted and scaled by their running mean and deviation, which are weights"))
    if environment:
        rows.append(("environment", f"`{environment['id']}`, {_options(environment['options'])}"))
    return markdown([{"": name, "what": what} for name, what in rows])


def _options(options: Mapping[str, Any]) -> str:
    return f"`{write_options(options)}`" if options else "defaults"


def _losses(losses: Mapping[str, Any]) -> str:
    held, seeds = losses["held_out"], losses.get("over_seeds")
    text = (
        f"The loss is that of an episode, over {held['states']} held-out start states. This controller: mean "
        f"{held['mean']:.3g}, median {held['median']:.3g}, largest {held['largest']:.3g}."
    )
    if seeds:
        text += (
            f"\n\nOver the {seeds['runs']} seeds that its settings were trained with, the mean at the end was "
            f"{seeds['median']:.3g} in the median, from {seeds['least']:.3g} to {seeds['largest']:.3g}."
        )
    return text


def _use(with_env: bool) -> str:
    names = "held_out_states, load_pretrained, losses, pretrained_env, rollout" if with_env else "load_pretrained"
    lines = [f"from bptt_trainers import {names}"]
    lines += ["", 'controller = load_pretrained("FOLDER")  # this folder, for instance by huggingface_hub']
    if with_env:
        lines += [
            'system = pretrained_env("FOLDER").system',
            "trajectory = rollout(system, controller, held_out_states(system, 8))",
            "print(losses(system, trajectory))",
        ]
    return "\n".join(['```bash\npip install "stable-bptt[models]"\n```\n\n```python', *lines, "```"])


def _training(training: Mapping[str, Any]) -> str:
    text = f"By {training['method']}, seed {training['seed']}; the weights are those after epoch {training['epoch']}."
    if training["command"] is None:
        return text + " It was trained in Python, with code or states of its user's own."
    return f"{text} Trained anew by\n\n```bash\n{training['command']}\n```\n\nconfig.json has all settings."
