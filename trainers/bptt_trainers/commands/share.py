"""`bptt share`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from bptt_envs import DifferentiableEnv
from bptt_envs.checks import path
from bptt_trainers.analysis.trained import Trained, by_reinforcement, trained
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import Misuse, checking_arguments
from bptt_trainers.commands.output import file_list
from bptt_trainers.commands.training_command import training_command
from bptt_trainers.controllers.model_card import PICTURE
from bptt_trainers.controllers.model_folder import CARD, DESCRIPTION, WEIGHTS, check_place, save, upload
from bptt_trainers.directions.rollout import losses
from bptt_trainers.records.files import understanding
from bptt_trainers.records.plain import plain
from bptt_trainers.records.tables import chosen, read_lines
from bptt_trainers.training.run_folder import RunFolder

EPISODES = 8  # in the picture


@dataclass(frozen=True)
class Share:
    """Write a trained controller as a model to share, into a folder of its own.

    Weights as safetensors, what it is and how it was trained as JSON, a model card
    with its losses, the command that trains it anew and a picture. In Python,
    load_pretrained(folder) gives the controller; nothing in the folder is code.
    bptt evaluate and bptt render take it as they take a run.

    A run of a comparison has the losses over the seeds on its card.
    Needs safetensors: pip install "stable-bptt[models]".

    example: bptt share runs/two --out models/two-poles
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""

    out: Path
    """The folder to write, new or empty."""

    which: Literal["best", "last"] = "best"
    """The checkpoint: that of the best epoch on the training states, or of the last epoch."""

    push_to: str | None = None
    """Where to put it on the Hugging Face hub, such as name/two-poles. None: nowhere."""

    private: bool = False
    """Whether only you see what is put there."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    def run(self) -> None:
        """Write it."""
        if self.push_to is not None:
            with checking_arguments():
                check_place("--push-to", self.push_to)
        if by_reinforcement(self.run_folder):
            raise Misuse(
                f"{self.run_folder} was trained by stable-baselines3, whose policies it shares itself "
                "(huggingface_sb3); bptt share takes runs of bptt train."
            )
        folder = RunFolder(self.run_folder)
        with checking_arguments():
            found = trained(self.run_folder, self.which)
        env = folder.make_env()
        controller, _ = folder.load_controller(found.system, self.which)
        about = {"training": self._training(folder, env, found), "losses": self._losses(found)}
        with checking_arguments():
            save(controller, path("--out", self.out), env, about=about, picture=self._picture(found))
        print(file_list(self.out, FILES))
        if self.push_to is not None:
            with checking_arguments():
                print(upload(self.out, self.push_to, private=self.private))

    def _training(self, folder: RunFolder, env: DifferentiableEnv, found: Trained) -> dict[str, Any]:
        config = folder.train_config()
        with understanding(folder.config_path):
            stored = folder.read_config()
            environment, own = stored["environment"], stored.get("own")
            command = None if own else training_command(config, environment["id"], environment["options"])
        settings = {name: plain(value) for name, value in asdict(config).items() if name != "out"}
        return {
            "method": found.method,
            "seed": config.seed,
            "epoch": found.epoch,
            "command": command,
            "settings": settings,
        }

    def _losses(self, found: Trained) -> dict[str, Any]:
        loss = losses(found.system, found.episodes())
        held_out = {"states": len(loss), "mean": float(loss.mean()), "median": float(loss.median())}
        held_out["largest"] = float(loss.max())
        seeds = self._over_seeds(found.method)
        return {"held_out": held_out} | ({} if seeds is None else {"over_seeds": seeds})

    def _over_seeds(self, method: str) -> dict[str, Any] | None:
        """What a comparison found of the method, if the run is one of it."""
        comparison = self.run_folder.absolute().parent.parent
        if self.run_folder.absolute().parent.name != "runs":
            return None
        table = comparison / "methods.csv"
        rows = chosen(read_lines(table), method=method)
        if not rows:
            return None
        with understanding(table):
            row = rows[0]
            spread = {"median": "final_loss", "least": "final_loss_min", "largest": "final_loss_max"}
            return {"runs": int(row["runs"])} | {name: float(row[column]) for name, column in spread.items()}

    def _picture(self, found: Trained) -> bytes:
        from bptt_trainers.figures.style import figure_bytes  # with it comes matplotlib
        from bptt_trainers.figures.trajectory import trajectory_figure

        return figure_bytes(trajectory_figure(found.system, found.episodes(EPISODES)), "png")


FILES = {
    WEIGHTS: "weights",
    DESCRIPTION: "what it is, what it is for and how it was trained",
    CARD: "the card: losses, use, the command that trains it anew",
    PICTURE: f"{EPISODES} of the held-out episodes",
}
"""What is written, in words."""
