"""What two processes train together, for training/test_ranks.py: torchrun starts this with a folder for the results.

Every process runs every case, in order, and saves what came of it.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bptt_envs import Task
from bptt_envs.systems import CartPole
from bptt_trainers import (
    MLP,
    Callback,
    Gaussian,
    LostRankError,
    NonFiniteError,
    TrainConfig,
    Trainer,
    join_ranks,
    training_states,
)
from bptt_trainers.cli import main

# Batches of 5, 5 and 3: shares differ, and so does the last batch
TINY = TrainConfig(epochs=2, batch_size=5, train_states=13, test_states=7, hidden=(8,), record=())
SMALL = "--train-states 20 --batch-size 10 --test-states 7 --epochs 2 --record csv"
COMMAND = f"train --env DiffIntegrator-v0 --preset paper {SMALL}"


def pole(**options):
    return CartPole(horizon=8, **options)


def mlp(system, seed=0):
    torch.manual_seed(seed)
    return MLP(system.observation_shape, system.action_shape, hidden=(8,)).double()


def gaussian(system):
    torch.manual_seed(0)
    return Gaussian(system.observation_shape, system.action_shape, hidden=(8,)).double()


def randomized():
    return Task(pole(), randomize={"pole_length": (0.4, 0.6)})


ALIKE = {  # system, controller, settings: what one process would do, but for rounding
    "C": (pole, mlp, {"clip": "norm", "average": 0.5}),
    "R decay 0.9": (pole, mlp, {"rule": "R decay 0.9", "start_states": "fresh"}),
    "random places": (pole, mlp, {"combine": "random", "start_states": "shuffled"}),
    "autograd": (pole, mlp, {"engine": "autograd"}),
    "noise": (pole, gaussian, {"entropy": 0.01, "rule": "M"}),
    "drawn parameters": (randomized, mlp, {}),
    "skipped": (pole, mlp, {"on_nonfinite": "skip"}),
}

REFUSED = {
    "buffers": lambda system: nn.Sequential(nn.BatchNorm1d(*system.observation_shape), nn.Linear(4, 1)),
    "random numbers": lambda system: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)),
    "hooks": lambda system: hooked(nn.Linear(4, 1)),
}


def hooked(controller):
    controller.weight.register_hook(lambda gradient: gradient.clamp(-1.0, 1.0))
    return controller


class StopHere(Callback):
    """Ends the run of the second process after an epoch."""

    def on_epoch_end(self, trainer, metrics):
        return trainer.ranks.first


def far_out(system):
    """Start states, one of which costs infinitely much: the second process has it, in the first batch."""
    states = training_states(system, TINY.train_states, 0, torch.float64)
    states[4] = 1e200
    return states


def trained(name, **given):
    """The trainer of a case, after training: alone, or with `ranks`."""
    system, controller, settings = ALIKE[name]
    system = system()
    if name == "skipped":
        given["train_states"] = far_out(system)
    trainer = Trainer(system, controller(system), replace(TINY, **settings), **given)
    trainer.fit()
    return trainer


def seen(trainer):
    """Weights, and what does not hang on the clock of the last epoch."""
    row = trainer.history[-1]
    numbers = [
        row.epoch,
        row.train_loss,
        row.test_loss,
        row.direction_norm,
        row.sign_agreement,
        row.cosine,
        row.skipped,
    ]
    weights = torch.cat([one.detach().flatten() for one in trainer.controller.parameters()])
    return torch.tensor(numbers, dtype=torch.float64), weights


def words(make):
    """What an error says."""
    try:
        make()
    except (ValueError, NonFiniteError, LostRankError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def together(ranks, results):
    found = {}
    for name in ALIKE:
        numbers, weights = seen(trained(name, ranks=ranks))
        found[name] = numbers, weights
        assert ranks.all(torch.equal(ranks.told(weights), weights))
    system = pole()
    for name, controller in REFUSED.items():
        trainer = Trainer(system, controller(system), TINY, ranks=ranks)
        found[name] = words(trainer.fit)
    found["stopped"] = words(Trainer(system, mlp(system), TINY, train_states=far_out(system), ranks=ranks).fit)
    trainer = Trainer(system, mlp(system), TINY, callbacks=[StopHere()], ranks=ranks)
    found["ended by one"] = len(trainer.fit())
    trainer = Trainer(system, mlp(system, seed=ranks.rank), TINY, ranks=ranks)
    found["other weights"] = seen_weights(trainer)
    out = results / f"run{ranks.rank}"
    trainer = Trainer(system, mlp(system), replace(TINY, out=out, epochs=1, record=("csv",)), ranks=ranks)
    found["folder"] = [row.train_loss for row in trainer.fit()]
    trainer = Trainer(system, mlp(system), replace(TINY, out=out, epochs=2, record=("csv",)), ranks=ranks)
    found["resumed"] = [row.train_loss for row in trainer.fit()]
    return found


def seen_weights(trainer):
    trainer.fit()
    return seen(trainer)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = Path(sys.argv[1])
    codes = [
        main([*COMMAND.split(), "--out", str(results / "command"), *more.split()])
        for more in ("", "--seeds 0 1", "--learner SHAC", "--batch-size 1")
    ]
    codes.append(main(["compare"]))
    ranks = join_ranks()
    found = together(ranks, results) | {"codes": codes}
    torch.save(found, results / f"found{ranks.rank}.pt")
    system = pole()
    last = Trainer(system, mlp(system), replace(TINY, seed=ranks.rank), ranks=ranks)
    (results / f"last{ranks.rank}.txt").write_text(str(words(last.fit)))
    os._exit(0)  # without a word to the other
