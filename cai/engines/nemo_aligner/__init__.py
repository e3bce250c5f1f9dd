"""NVIDIA NeMo-Aligner v0.7.0: its commands, what it accepts, and an engine that runs them."""
