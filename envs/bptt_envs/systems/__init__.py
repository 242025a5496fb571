"""The systems, one file each."""

from bptt_envs.systems.cart_pole import CartPole, MultiPole
from bptt_envs.systems.integrator import Integrator

__all__ = ["CartPole", "Integrator", "MultiPole"]
