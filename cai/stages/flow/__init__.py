"""Flow: rows on their way through a model."""
