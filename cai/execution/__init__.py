"""Parts of the executor: what it checks, what it would do, and whom it tells."""
