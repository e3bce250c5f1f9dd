"""Fixtures that several folders share, and which tests are long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is loaded: several test processes share the cores, and threads that spin for each other cost more than
# tiny models could gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Servers of tests are on this machine, and these are the variables with their keys.
os.environ["CAI_KEY_HOSTS"] = "TEST_KEY=127.0.0.1,OTHER_KEY=127.0.0.1,NGC_API_KEY=127.0.0.1"

# What one test found out about a server must not decide how the next begins.
os.environ["CAI_LIMIT_MEMORY"] = "off"

# What is checked there is told as fully as in a test.
pytest.register_assert_rewrite("tests.support")
pytest_plugins = (
    "tests.support.nemo_experiment",
    "tests.support.nemo_runs",
    "tests.support.slurm_cluster",
    "tests.support.slurm_jobs",
    "tests.support.small_disk",
    "tests.support.small_models",
    "tests.support.toy_project",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a Slurm cluster or a whole finished run is long; files with the most to do come first.

    Files are dealt to processes in this order: a long one that came last would be waited for by all others.
    """
    weight: dict[Path, int] = {}
    for item in items:
        needs = set(getattr(item, "fixturenames", ()))
        if {"slurm", "finished"} & needs:
            item.add_marker(pytest.mark.long)
        if item.get_closest_marker("long"):
            weight[item.path] = weight.get(item.path, 0) + (5 if "finished" in needs else 1)
    items.sort(key=lambda item: -weight.get(item.path, 0))
