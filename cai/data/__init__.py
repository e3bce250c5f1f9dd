"""Data: the rows that flow between stages, where they come from, and how they are split."""
