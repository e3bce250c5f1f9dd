"""Evaluate: what the training changed, with intervals."""
