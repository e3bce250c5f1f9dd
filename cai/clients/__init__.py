"""Whoever answers prompts: one file a protocol."""
