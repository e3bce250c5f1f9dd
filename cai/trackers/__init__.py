"""Trackers: what a run measures, told to TensorBoard, Weights & Biases or MLflow; off unless an experiment asks.

A run writes its event log and knows of no tracker. For each tracker that is asked for, a process of its own follows
that log (``python -m cai.trackers``) and tells it on. So a tracker that is slow, away or broken costs the run nothing,
a run that is killed has told what it did, and a resumed one goes on where telling stopped.
"""
