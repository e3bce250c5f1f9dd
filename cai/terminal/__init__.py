"""The terminal: what a person sees of a plan, of a run and of a model."""
