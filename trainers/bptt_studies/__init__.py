"""What was found out with `bptt_trainers`, and how: studies that it knows nothing of."""
