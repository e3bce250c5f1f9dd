"""Whole pipelines as a user starts them: the command line in a process of its own, and the digests of what it made."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def environment_of(home):
    """The environment of a process whose store is under this home."""
    return {**os.environ, "CAI_HOME": str(home), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def run_cai(project, home, *args, **more):
    """Run ``cai`` in a project's folder to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cai", *args],
        cwd=project,
        env=environment_of(home),
        capture_output=True,
        text=True,
        timeout=280,
        **more,
    )


def artifact_digests(home):
    """Digests of every file of every finished artifact."""
    return {p.stem: json.loads(p.read_text())["files"] for p in sorted((home / "store").glob("*.json"))}
