"""Planning: an experiment becomes a plan. Reads files, writes none, starts nothing."""
