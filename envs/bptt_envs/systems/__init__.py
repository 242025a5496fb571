"""The systems, one file each."""

from bptt_envs.systems.bouncing_ball import BouncingBall
from bptt_envs.systems.burgers import Burgers
from bptt_envs.systems.cart_pole import CartPole, MultiPole
from bptt_envs.systems.chained_pendulum import ChainedPendulum
from bptt_envs.systems.guidance import Guidance
from bptt_envs.systems.heat import Heat
from bptt_envs.systems.hopper import Hopper
from bptt_envs.systems.integrator import Integrator
from bptt_envs.systems.kuramoto_sivashinsky import KuramotoSivashinsky
from bptt_envs.systems.lqr import LQR
from bptt_envs.systems.pusher import Pusher
from bptt_envs.systems.quadrotor import Quadrotor
from bptt_envs.systems.quantum_control import QuantumControl

__all__ = [
    "LQR",
    "BouncingBall",
    "Burgers",
    "CartPole",
    "ChainedPendulum",
    "Guidance",
    "Heat",
    "Hopper",
    "Integrator",
    "KuramotoSivashinsky",
    "MultiPole",
    "Pusher",
    "Quadrotor",
    "QuantumControl",
]
