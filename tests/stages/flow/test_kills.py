"""Data generation killed with SIGKILL at 100 random moments: real processes, a real server, the same bytes after."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cai.plan import plan_from_json
from cai.store.artifacts import Store
from tests.support.fake_api import FakeServer, Reply, says

KILLS = 100
EXPERIMENT = """
defaults: [/constitution: short, /template: chatml, _self_]
seed: 3
models:
  served: {{source: "api:small", url: "{url}", limits: {{concurrency: 24, retries: 8}}}}
data:
  asked: {{path: {data}, makes: prompts}}
stages:
  respond: {{model: served, prompts: asked}}
  revise: {{model: served, responses: respond, rounds: 2, few_shots: null, unchanged: keep, failed: keep,
            critique: critique_chat.jinja, revision: revision_chat.jinja}}
  sample: {{model: served, prompts: asked, n: 3}}
  judge: {{model: served, candidates: sample, scoring: choice, principles: ensemble, ensemble: 2}}
  judge_sets: {{kind: judge, model: served, candidates: sample, scoring: best_worst}}
"""
STEPS = ("respond", "revise", "sample", "judge", "judge_sets")


def answer(path: str, body: dict[str, Any]) -> Reply:
    """An answer that is a function of the request; now and then a fault before it."""
    asked = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()
    draw = random.random()
    if draw < 0.02:
        return Reply({"error": {"message": "busy"}}, 429, {"Retry-After": "0"})
    if draw < 0.03:
        return says("torn", half=True)
    if draw < 0.04:
        return Reply(reset=True)
    last = body["messages"][-1]["content"]
    text = ("(A)" if int(digest[0], 16) < 8 else "(B)") if "(A) or (B)" in last else f"An answer: {digest[:12]}."
    if "Best: (?), worst: (?)" in last:
        options = body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"]
        text = json.dumps({"choice": options[int(digest, 16) % len(options)]})
    return says(text, delay=0.002 + 0.03 * random.random())


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    made = FakeServer(answer)
    yield made
    made.close()


FORKS = """
import os, sys, traceback
from pathlib import Path
import cai.clients.cache, cai.clients.traffic, cai.stages.flow.pool, cai.stages.judge.report
from cai.engines import make_engine
from cai.run.executor import run
from cai.plan import plan_from_json
from cai.store.artifacts import Store
plan = plan_from_json(Path(sys.argv[1]).read_text())
for number, home in enumerate(sys.stdin):
    child = os.fork()
    if child == 0:
        try:
            run(plan, store=Store(Path(home.strip())), run_dir=Path(f"runs/{number}"), make_engine=make_engine)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Starts a process for each line that it reads: all imports are done once, so that 100 of them take a minute."""


class Forks:
    """Processes that carry out the plan, one after the other."""

    def __init__(self, folder: Path) -> None:
        argv = [sys.executable, "-c", FORKS, "plan.json"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self._parent = subprocess.Popen(argv, cwd=folder, env={**os.environ, "NO_PROXY": "127.0.0.1"}, **pipes)

    def start(self, home: Path) -> int:
        """The id of a process that begins, or goes on, under this home."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{home}\n")
        return int(self._parent.stdout.readline())

    def ended(self) -> int:
        """Wait for it; its exit code, or minus the signal that it died of."""
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        self._parent.communicate("", timeout=30)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def made(folder: Path, home: Path) -> dict[str, bytes]:
    """The bytes of every file of these stages."""
    plan = plan_from_json((folder / "plan.json").read_text())
    found: dict[str, bytes] = {}
    for name in STEPS:
        step = plan.step(name)
        stored = Store(home).find(step.kind, step.key)
        assert stored is not None
        found |= {f"{name}/{path.name}": path.read_bytes() for path in sorted(stored.path.iterdir())}
    return found


def killed(process: int, server: FakeServer, draw: random.Random) -> None:
    """Kill a process at a random moment, mostly while it asks; it may have ended before."""
    before = len(server.asked)
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, 0.3))  # also before it has asked anything
    else:
        # It may have nothing to ask any more, and then ends.
        while len(server.asked) == before and alive(process):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_at_100_random_moments(tmp_path: Path, server: FakeServer) -> None:
    (tmp_path / "experiments").mkdir()
    data = tmp_path / "asked.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What about {n}?"}) + "\n" for n in range(60)))
    (tmp_path / "experiments/killed.yaml").write_text(EXPERIMENT.format(url=server.url, data=data))
    planned = [sys.executable, "-m", "cai", "plan", "experiment=killed", "--out", "plan.json"]
    subprocess.run(
        planned, cwd=tmp_path, env={**os.environ, "CAI_HOME": str(tmp_path)}, check=True, capture_output=True
    )
    began = time.monotonic()
    forks = Forks(tmp_path)
    forks.start(tmp_path / "home")
    assert forks.ended() == 0
    expected = made(tmp_path, tmp_path / "home")
    assert {"respond/rows.jsonl", "revise/rows.jsonl", "judge_sets/judge_report.json"} <= set(expected)
    calls = Counter(json.dumps(body, sort_keys=True) for _, body in server.asked)
    draw, kills, runs = random.Random(20), 0, 0
    while kills < KILLS:
        home, before, mine, code = tmp_path / f"home{runs}", len(server.asked), 0, -signal.SIGKILL
        while code == -signal.SIGKILL:
            process = forks.start(home)
            if kills < KILLS:
                killed(process, server, draw)
            code = forks.ended()
            mine += code == -signal.SIGKILL
            kills += code == -signal.SIGKILL
        assert code == 0
        assert made(tmp_path, home) == expected, f"after {mine} kills"
        # What was answered is not asked again: only what was on its way when it was killed, and what a fault repeats.
        asked, runs = len(server.asked) - before, runs + 1
        assert asked <= 1.15 * sum(calls.values()) + 24 * mine, (asked, mine)
    forks.close()
    print(f"{kills} kills, {runs} runs, {time.monotonic() - began:.0f} s")
