"""Differentiable physics environments for Gymnasium, in torch. Importing this package registers their ids."""

from bptt_envs.contract import check_system
from bptt_envs.differentiable_env import DifferentiableEnv, make_env
from bptt_envs.registration import register, register_all
from bptt_envs.system import System
from bptt_envs.task import Task
from bptt_envs.torch_env import TorchVectorEnv, make_torch
from bptt_envs.vector_env import DifferentiableVectorEnv

__all__ = [
    "DifferentiableEnv",
    "DifferentiableVectorEnv",
    "System",
    "Task",
    "TorchVectorEnv",
    "check_system",
    "make_env",
    "make_torch",
    "register",
]

__version__ = "1.0.0"

register_all()
