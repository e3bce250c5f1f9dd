"""Sweeps: many cells of one experiment, compiled before the first runs, sharing every step that they have in common."""
