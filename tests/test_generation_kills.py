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
from pathlib import Path
from typing import Any

import pytest

from cai.plan import plan_from_json
from cai.store import Store
from tests.test_openai_api import FakeServer, Reply, says

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
"""
STEPS = ("respond", "revise", "sample", "judge")


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
    return says(text, delay=0.002 + 0.03 * random.random())


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    made = FakeServer(answer)
    yield made
    made.close()


def start(folder: Path, home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "CAI_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    argv = [sys.executable, "-m", "cai", "experiment=killed"]
    return subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def made(folder: Path, home: Path) -> dict[str, bytes]:
    """The bytes of every file of the four stages."""
    plan = plan_from_json((folder / "runs/killed/latest/plan.json").read_text())
    found: dict[str, bytes] = {}
    for name in STEPS:
        step = plan.step(name)
        stored = Store(home).find(step.kind, step.key)
        assert stored is not None
        found |= {f"{name}/{path.name}": path.read_bytes() for path in sorted(stored.path.iterdir())}
    return found


def wait(process: subprocess.Popen[bytes]) -> None:
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told.decode()[-2000:]


def killed(process: subprocess.Popen[bytes], server: FakeServer, draw: random.Random) -> bool:
    """Kill a process at a random moment; False when it had ended before."""
    before = len(server.asked)
    if draw.random() < 0.1:
        time.sleep(draw.uniform(0.05, 1.5))  # also before it has asked anything
    else:
        # It may have nothing to ask any more, and then ends.
        while len(server.asked) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_at_100_random_moments(tmp_path: Path, server: FakeServer) -> None:
    (tmp_path / "experiments").mkdir()
    data = tmp_path / "asked.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"What about {n}?"}) + "\n" for n in range(60)))
    (tmp_path / "experiments/killed.yaml").write_text(EXPERIMENT.format(url=server.url, data=data))
    began = time.monotonic()
    whole = start(tmp_path, tmp_path / "home")
    wait(whole)
    expected = made(tmp_path, tmp_path / "home")
    assert {"respond/rows.jsonl", "revise/rows.jsonl", "judge/judge_report.json"} <= set(expected)
    calls = Counter(json.dumps(body, sort_keys=True) for _, body in server.asked)
    draw, kills, runs = random.Random(20), 0, 0
    while kills < KILLS:
        home = tmp_path / f"home{runs}"
        runs += 1
        before = len(server.asked)
        mine = 0
        while True:
            process = start(tmp_path, home)
            if kills < KILLS and killed(process, server, draw):
                kills, mine = kills + 1, mine + 1
                continue
            wait(process)
            break
        assert made(tmp_path, home) == expected, f"after {mine} kills"
        # What was answered is not asked again: only what was on its way when it was killed, and what a fault repeats.
        asked = len(server.asked) - before
        assert asked <= 1.15 * sum(calls.values()) + 24 * mine, (asked, mine)
    print(f"{kills} kills, {runs} runs, {time.monotonic() - began:.0f} s")
