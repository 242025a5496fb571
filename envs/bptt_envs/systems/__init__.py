"""The systems, one file each."""

from bptt_envs.systems.bouncing_ball import BouncingBall
from bptt_envs.systems.cart_pole import CartPole, MultiPole
from bptt_envs.systems.chained_pendulum import ChainedPendulum
from bptt_envs.systems.guidance import Guidance
from bptt_envs.systems.integrator import Integrator
from bptt_envs.systems.lqr import LQR
from bptt_envs.systems.pusher import Pusher
from bptt_envs.systems.quantum_control import QuantumControl

__all__ = [
    "LQR",
    "BouncingBall",
    "CartPole",
    "ChainedPendulum",
    "Guidance",
    "Integrator",
    "MultiPole",
    "Pusher",
    "QuantumControl",
]
