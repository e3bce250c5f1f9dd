"""The store: artifacts by key, the log of events, and upkeep."""
