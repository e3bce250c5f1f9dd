"""Mix: one training set out of several sources."""
