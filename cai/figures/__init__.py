"""Figures: intervals, Elo, running sums, what can be said of an answer, the documents of figures. Free of stages."""
