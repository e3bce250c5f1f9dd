"""Trackers: what a run measures, told to TensorBoard, Weights & Biases or MLflow; off unless an experiment asks."""
