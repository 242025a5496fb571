"""Estimators of the gradient of a stochastic controller's expected loss: their variance and bias."""
