"""One file for each family of verbs; ``cai.cli`` has the table."""
