"""Benchmarks: each compares two ways of doing the same work in one run and ends with one line of JSON (a ratio)."""
