"""Figures: intervals, Elo, running sums, and what can be said of an answer. Plain numbers, free of stages."""
