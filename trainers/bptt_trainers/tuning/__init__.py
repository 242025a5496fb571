"""The search for settings, the same for update rules and for reinforcement learning."""
