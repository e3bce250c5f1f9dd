"""Judge: which of two answers, or of several, fits the constitution better."""
