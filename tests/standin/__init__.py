"""A stand-in for NeMo-Aligner v0.7.0 and NeMo v2.1.0: the same scripts, configs, formats and files, a tiny model."""
