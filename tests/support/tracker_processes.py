"""What the tests of trackers share: programs in processes of their own, and event files read back."""

import json
import os
import subprocess
import sys

from cai.trackers.base import RunAddress
from cai.trackers.follow import Follower, Orders
from tests.support.paths import ROOT

TB = {"tensorboard": {"dir": "tb"}}
SECRET = "sk-T0psecret-0123456789abcdef"


def scalars(folder):
    """Tag -> [(step, value)] of the event files in a folder, in the order in which they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def python(code, *args, **env):
    """Run a program that prints JSON; what it printed."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def program(home, run_dir, tracking, *more, **env):
    command = [
        sys.executable,
        "-m",
        "tests.support.tracker_kinds",
        str(home),
        str(run_dir),
        json.dumps(tracking),
        *more,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env, timeout=60)


class Scripted:
    """A tracker that keeps what it is told, and fails as often as it is asked to."""

    def __init__(self, told, failures=()):
        self.told, self.failures = told, failures if isinstance(failures, list) else list(failures)

    def _maybe_fail(self, where):
        if self.failures and self.failures[0] == where:
            self.failures.pop(0)
            raise ConnectionError(f"the server is away, and so is {SECRET}")

    def start(self, run, known):
        self._maybe_fail("start")
        self.told.append(("start", known))
        return RunAddress(known or "id-1", "somewhere")

    def log(self, told):
        self._maybe_fail("log")
        self.told += told

    def finish(self, ending):
        self._maybe_fail("finish")
        self.told.append(ending)


def follow(tmp_path, make, **orders):
    folder = tmp_path / "run"
    (folder / "tracking").mkdir(parents=True, exist_ok=True)
    return Follower(Orders("tensorboard", TB, str(folder), str(tmp_path / "home"), **orders), make)
