"""Train a controller to swing up a pole, then watch it for one episode. Made to be copied and changed.

    python scripts/train.py --epochs 40

Interrupted, or run again with more epochs, it goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import torch
import tyro

from bptt_trainers import Callback, ProgressBar, TrainConfig, Trainer
from bptt_trainers.training.metrics import EpochMetrics


@dataclass(frozen=True)
class Settings:
    """What to train."""

    n_poles: int = 1
    """Poles on the cart."""
    epochs: int = 40
    """Passes over 256 start states, at most; 40 take about 20 s for one pole."""
    target: float = 0.002
    """Stop when the loss over the training states is below this."""
    out: Path = Path("runs/my-first")
    """The run folder."""


class StopAt(Callback):
    """Ends training at a loss: what a callback can do."""

    def __init__(self, target: float) -> None:
        self.target = target

    def on_epoch_end(self, trainer: Trainer, metrics: EpochMetrics) -> bool:
        """Return False to end."""
        return metrics.train_loss > self.target


def main(settings: Settings) -> None:
    """Train, then run one episode as any Gymnasium program would."""
    env = gym.make("bptt_envs:DiffMultiPole-v0", n_poles=settings.n_poles)
    config = TrainConfig(rule="C", epochs=settings.epochs, seed=0, out=settings.out)
    # the controller may be any torch module: Trainer(env, my_module, config, ...)
    trainer = Trainer(env, config=config, callbacks=[ProgressBar(), StopAt(settings.target)])
    history = trainer.fit()
    print(f"held-out loss: {history[0].test_loss:.4f} untrained, {history[-1].test_loss:.4f} trained")

    observation, _ = env.reset(seed=1)
    terminated, episode_return = False, 0.0
    while not terminated:
        with torch.no_grad():
            actions = trainer.controller(torch.from_numpy(observation).unsqueeze(0))
        observation, reward, terminated, _, _ = env.step(actions[0])
        episode_return += float(reward)
    print(f"one episode: return {episode_return:.4f}; {settings.out} holds checkpoints and pictures")


if __name__ == "__main__":
    main(tyro.cli(Settings))
