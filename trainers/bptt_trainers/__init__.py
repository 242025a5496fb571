"""Trains controllers through differentiable environments by stabilised backpropagation through time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bptt_trainers.analysis.diagnostics import Diagnosis, diagnose
from bptt_trainers.analysis.gradient_check import GradientCheck, check_gradients
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.controllers.gaussian import Gaussian
from bptt_trainers.controllers.networks import MLP, ConvNet, Squash
from bptt_trainers.controllers.recurrent import GRU, LSTM
from bptt_trainers.directions.augmented import draw_noise
from bptt_trainers.directions.policy_gradient import PolicyGradient, policy_gradient
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.directions.rules import RULES, Feedback, Rule
from bptt_trainers.planning.plan import Plan, plan
from bptt_trainers.presets.presets import from_preset
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.training.callbacks import Callback, ProgressBar
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.ensemble import Ensemble, variations
from bptt_trainers.training.pretrained import load_pretrained, pretrained_env
from bptt_trainers.training.ranks import LostRankError, join_ranks
from bptt_trainers.training.recorders import register_recorder
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.run_folder import RunFolder
from bptt_trainers.training.sapo_config import SAPOConfig
from bptt_trainers.training.shac_config import SHACConfig
from bptt_trainers.training.start_states import held_out_states, training_states
from bptt_trainers.training.trainer import Trainer

if TYPE_CHECKING:
    from bptt_trainers.comparison.compare import ComparisonConfig, compare
    from bptt_trainers.tuning.config import TuneConfig
    from bptt_trainers.tuning.outcome import best_rows
    from bptt_trainers.tuning.study import tune

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "RULES",
    "Callback",
    "ComparisonConfig",
    "Controller",
    "ConvNet",
    "Diagnosis",
    "Ensemble",
    "Feedback",
    "Gaussian",
    "GradientCheck",
    "LostRankError",
    "NonFiniteError",
    "Plan",
    "PolicyGradient",
    "ProgressBar",
    "Rule",
    "RunFolder",
    "RunFolderError",
    "SAPOConfig",
    "SHACConfig",
    "Squash",
    "TrainConfig",
    "Trainer",
    "Trajectory",
    "TuneConfig",
    "best_rows",
    "check_gradients",
    "compare",
    "default_controller",
    "diagnose",
    "draw_noise",
    "from_preset",
    "held_out_states",
    "join_ranks",
    "load_pretrained",
    "losses",
    "plan",
    "policy_gradient",
    "pretrained_env",
    "register_recorder",
    "rollout",
    "training_states",
    "tune",
    "variations",
]

_SLOW = {
    "ComparisonConfig": "bptt_trainers.comparison.compare",
    "compare": "bptt_trainers.comparison.compare",
    "TuneConfig": "bptt_trainers.tuning.config",
    "best_rows": "bptt_trainers.tuning.outcome",
    "tune": "bptt_trainers.tuning.study",
}
"""Where names are that are imported when they are asked for: with figures and what else takes long to import."""


def __getattr__(name: str) -> Any:
    if name not in _SLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_SLOW[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_SLOW})
