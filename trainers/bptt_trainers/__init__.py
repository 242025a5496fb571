"""Trains controllers through differentiable environments by stabilised backpropagation through time."""

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

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "RULES",
    "Callback",
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
    "check_gradients",
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
    "variations",
]
