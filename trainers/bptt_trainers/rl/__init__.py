"""Reinforcement learning on the same task, by stable-baselines3."""
