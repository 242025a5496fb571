"""The rules on the linear quadratic regulator, where the optimum is known."""
