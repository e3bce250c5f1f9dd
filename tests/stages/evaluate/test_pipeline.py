"""Snapshots and an evaluation with everything in it, as a user runs it on a tiny model; killed, it ends the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.pipelines import artifact_digests, environment_of, run_cai
from tests.support.small_models import write_tiny_model

pytestmark = pytest.mark.long

EXPERIMENT = """
defaults:
  - /constitution: quickstart
  - /template: chatml
  - _self_
engine: {kind: embedded, device: cpu, generator: transformers, generation_precision: float32, threads: 1}
models:
  base: {source: "hf:./model"}
data:
  asked: {path: prompts.jsonl, makes: prompts}
  safe: {path: "shipped:quickstart/overrefusal.jsonl", makes: prompts, limit: 4}
  pairs: {path: "shipped:quickstart/helpful_comparisons.jsonl", makes: comparisons, limit: 8}
stages:
  respond: {model: base, prompts: asked, limit: 4, chunk: 4, unfinished: keep, sampling: {max_tokens: 6}}
  revise:
    {model: base, responses: respond, rounds: 2, chunk: 4, n_shots: 1, unfinished: keep, failed: keep, unchanged: keep,
     critique_sampling: {max_tokens: 6}, revision_sampling: {max_tokens: 6}}
  reward: {model: base, data: pairs, training: {batch_size: 4, precision: float32}}
  rl:
    model: base
    reward: reward
    prompts: asked
    training: {iterations: 3, rollouts: 4, batch_size: 2, max_tokens: 6, precision: float32, snapshots: [1, 3]}
  rl_1: {kind: snapshot, of: rl, iteration: 1}
  rl_3: {kind: snapshot, of: rl, iteration: 3}
  evaluate:
    models: {base: base, one: rl_1, three: rl_3, end: rl}
    reward: reward
    prompts: {asked: asked, safe: safe}
    benign: [safe]
    seen: [asked]
    revisions: {revise: revise}
    adherence: base
    adherence_scoring: logprob
    adherence_limit: 2
    limit: 4
    chunk: 2
    sampling: {max_tokens: 6}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_tiny_model(folder / "model")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    rows = (json.dumps({"prompt": f"How do I take thing number {i}?", "topic": "x"}) for i in range(8))
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def undisturbed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("home")
    done = run_cai(project, home, "experiment=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done.stdout


def files(home: Path, kind: str) -> list[dict[str, Any]]:
    return [found for name, found in artifact_digests(home).items() if name.startswith(f"{kind}-")]


def test_snapshots_are_compared_and_the_summary_tells_the_new_figures(undisturbed: tuple[Path, str]) -> None:
    home, shown = undisturbed
    (rl,), snapshots = files(home, "rl"), files(home, "snapshot")
    weights = {made["model.safetensors"]["sha256"] for made in snapshots}
    assert weights == {rl[f"snapshots/{n}/model.safetensors"]["sha256"] for n in (1, 3)}
    assert rl["model.safetensors"]["sha256"] in weights, "the last snapshot is the model itself"
    (path,) = (home / "store").glob("evaluate-*/evaluation.json")
    report = json.loads(path.read_text())
    end, three = (report["elo"]["harmlessness"]["models"][name]["value"] for name in ("end", "three"))
    assert end == three
    assert len(report["sets"]["asked"]["pairs"]) == 6
    assert len(report["revisions"]["revise"]["rounds"]) == 3
    assert set(report["adherence"]["sets"]["asked"]["end"]) == {"no-harm", "within-the-law", "respect", "say-why"}
    for words in ("harmlessness", "refuses safe requests", "Reward by revision", "that violate a principle"):
        assert words in shown
    assert "evaluate" in shown.split("What was asked of the models")[1].split("Where everything lies")[0]


def test_killed_while_training_and_evaluating_it_ends_with_the_same_bytes(
    undisturbed: tuple[Path, str], project: Path, tmp_path: Path
) -> None:
    home, _ = undisturbed
    waits = {"rl": 0.1, "evaluate": 0.8}
    for _attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "cai", "experiment=tiny"],
            cwd=project,
            env=environment_of(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            name = line.split("]")[-1].split(":")[0].strip()
            if name in waits and (": started" in line or ": goes on" in line):
                time.sleep(waits.pop(name))
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert not waits
    assert artifact_digests(tmp_path) == artifact_digests(home)
