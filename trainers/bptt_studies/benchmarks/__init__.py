"""What an update, an environment step and a start cost, beside peers."""
