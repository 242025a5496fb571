"""Planners: the best actions from given start states that anyone knows, which learn nothing."""
