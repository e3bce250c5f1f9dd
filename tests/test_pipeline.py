"""The whole pipeline as a user runs it, on a tiny random model: every stage, reuse, kill -9, chat and serve."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.pipelines import artifact_digests, environment_of, run_cai
from tests.support.small_models import write_tiny_model

pytestmark = pytest.mark.long

EXPERIMENT = """
# python -m cai experiment=tiny
defaults:
  - /constitution: quickstart
  - /template: chatml
  - _self_
engine: {kind: embedded, device: cpu, generator: transformers, generation_precision: float32, threads: 1}
models:
  base: {source: "hf:./model"}
data:
  red_team: {path: prompts.jsonl, makes: prompts, splits: {sl: 0.5, rl: 0.3, heldout: 0.2}}
  helpful: {path: "shipped:quickstart/helpful.jsonl", makes: conversations, limit: 12}
  pairs: {path: "shipped:quickstart/helpful_comparisons.jsonl", makes: comparisons, limit: 12}
stages:
  respond: {model: base, prompts: red_team.sl, chunk: 4, unfinished: keep, sampling: {max_tokens: 6}}
  revise:
    {model: base, responses: respond, chunk: 4, n_shots: 1, unfinished: keep, failed: keep, unchanged: keep,
     critique_sampling: {max_tokens: 6}, revision_sampling: {max_tokens: 6}}
  sl_mix: {kind: mix, sources: [{from: revise}, {from: helpful}]}
  sft: {model: base, data: sl_mix, training: {batch_size: 4, precision: float32, checkpoint_every: 1}}
  sample: {model: sft, prompts: red_team.rl, chunk: 3, unfinished: keep, sampling: {max_tokens: 6, temperature: 1.3}}
  judge: {model: base, candidates: sample, scoring: contrast, n_exemplars: 1, chunk: 3}
  rm_mix: {kind: mix, sources: [{from: judge}, {from: pairs}]}
  reward: {model: sft, data: rm_mix, training: {batch_size: 4, precision: float32, checkpoint_every: 1}}
  dpo: {model: sft, data: rm_mix, training: {batch_size: 4, precision: float32, checkpoint_every: 1}}
  rl:
    model: sft
    reward: reward
    prompts: red_team.rl
    training: {iterations: 2, rollouts: 4, batch_size: 2, max_tokens: 6, precision: float32}
  evaluate:
    models: {base: base, sl: sft, dpo: dpo, rl: rl}
    reward: reward
    prompts: {heldout: red_team.heldout}
    comparisons: {pairs: pairs}
    seen: [pairs]
    chunk: 2
    sampling: {max_tokens: 6}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with an experiment and a tiny model in it."""
    folder = tmp_path_factory.mktemp("project")
    write_tiny_model(folder / "model")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"How do I take thing number {i}?", "topic": "x"}) + "\n" for i in range(24))
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(project, tmp_path_factory):
    """The store of a run that nothing disturbed."""
    home = tmp_path_factory.mktemp("home")
    done = run_cai(project, home, "experiment=tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done.stdout


def test_every_stage_runs_and_the_summary_says_what_changed(undisturbed, project):
    home, shown = undisturbed
    kinds = {name.partition("-")[0] for name in artifact_digests(home)}
    assert kinds == {
        "fetch", "read", "respond", "revise", "mix", "sft", "sample", "judge", "reward", "dpo", "rl", "evaluate",
    }  # fmt: skip
    for words in ("What changed", "What the numbers do not show", "Where everything lies"):
        assert words in shown
    run = project / "runs" / "tiny" / "latest"
    assert {"plan.json", "events.jsonl", "record.json", "summary.md"} <= {p.name for p in run.iterdir()}


def test_the_report_has_a_curve_of_every_training(undisturbed, project, tmp_path):
    home, _ = undisturbed
    done = run_cai(project, home, "report", "--out", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "report.html").read_text()
    assert [kind for kind in ("sft", "reward", "dpo", "rl") if f'id="{kind}"' not in page] == []
    assert "Preference training" in page


def test_a_second_run_reuses_every_step(undisturbed, project):
    home, _ = undisturbed
    before = artifact_digests(home)
    done = run_cai(project, home, "experiment=tiny")
    assert done.returncode == 0
    assert "started" not in done.stdout
    assert artifact_digests(home) == before
    plan = run_cai(project, home, "plan", "experiment=tiny", "--format", "json")
    assert {step["action"] for step in json.loads(plan.stdout)["steps"]} == {"reuse"}


def test_a_reworded_comparison_reruns_from_the_judge_on(undisturbed, project):
    home, _ = undisturbed
    (project / "constitutions").mkdir(exist_ok=True)
    from cai.files.library import shipped_root

    text = (shipped_root() / "constitutions" / "quickstart.yaml").read_text()
    old = "Which answer is kinder and fairer to people?"
    assert old in text
    (project / "constitutions" / "mine.yaml").write_text(text.replace(old, "Which answer is the warmer one?"))
    shown = run_cai(project, home, "plan", "experiment=tiny", "constitution=mine", "--format", "json").stdout
    steps = {step["name"]: step for step in json.loads(shown)["steps"]}
    assert {n for n, s in steps.items() if s["action"] == "run"} == {
        "judge",
        "rm_mix",
        "reward",
        "dpo",
        "rl",
        "evaluate",
    }
    assert "(respect).comparison changed" in steps["judge"]["reason"]


def test_killed_again_and_again_it_ends_with_the_same_bytes(undisturbed, project, tmp_path):
    home, _ = undisturbed
    killed, steps_seen = 0, set()
    for attempt in range(40):
        process = subprocess.Popen(
            [sys.executable, "-m", "cai", "experiment=tiny"],
            cwd=project,
            env=environment_of(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        # Killed after a step that no earlier attempt has begun has run for a moment: so each kind of step is hit.
        for line in process.stdout:
            if (name := line.split("]")[-1].split(":")[0].strip()) and ": started" in line and name not in steps_seen:
                steps_seen.add(name)
                if name in ("respond", "revise", "sft", "judge", "reward", "rl", "evaluate"):
                    time.sleep(0.05 + 0.3 * (attempt % 3))
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                    break
        process.stdout.close()
        if process.wait() == 0:
            break
    assert killed >= 5
    assert process.returncode == 0
    assert artifact_digests(tmp_path) == artifact_digests(home)


def test_two_runs_at_once_share_the_work(undisturbed, project, tmp_path):
    home, _ = undisturbed
    command = [sys.executable, "-m", "cai", "experiment=tiny"]
    runs = [
        subprocess.Popen(command, cwd=project, env=environment_of(tmp_path), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shown = [run.communicate(timeout=280)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], shown
    assert artifact_digests(tmp_path) == artifact_digests(home)
    finished = [line for text in shown for line in text.splitlines() if " done " in line and "sft" in line]
    assert len(finished) == 1


def test_the_store_can_be_listed_verified_and_cleaned(undisturbed, project):
    home, _ = undisturbed
    assert "tiny" in run_cai(project, home, "store", "ls").stdout
    assert "0 problems" in run_cai(project, home, "store", "verify").stdout
    assert "0 artifacts" in run_cai(project, home, "store", "gc", "--dry-run").stdout
    ledger = run_cai(project, home, "rows", "tiny", "--why").stdout
    assert "respond" in ledger
    row = json.loads(run_cai(project, home, "rows", "tiny", "revise", "--limit", "1").stdout)
    assert row["meta"]["rounds"][0]["principle"]


def test_the_finished_model_answers_in_the_terminal(undisturbed, project):
    home, _ = undisturbed
    asked = "How can I hack into my neighbour's Wifi?"
    done = run_cai(project, home, "chat", "tiny", "--message", asked, "--max-tokens", "8", "--compare")
    assert done.returncode == 0, done.stderr
    assert asked in done.stdout
    assert "rl:" in done.stdout
    assert "base:" in done.stdout
    piped = run_cai(project, home, "chat", "tiny", "--max-tokens", "8", input="hello\n")
    assert piped.returncode == 0, piped.stderr


def test_the_finished_model_is_served_to_the_openai_client(undisturbed, project):
    openai = pytest.importorskip("openai")
    home, _ = undisturbed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "cai", "serve", "tiny", "--port", str(port), "--max-tokens", "8"],
        cwd=project,
        env=environment_of(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None
                time.sleep(0.25)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "seed": 3}
            whole = client.chat.completions.create(**asked)
            pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked, stream=True)]
            assert "".join(pieces) == whole.choices[0].message.content
            assert whole.usage.completion_tokens > 0
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) in (0, 130)


def test_an_applied_plan_is_the_reviewed_one_whatever_was_edited_since(undisturbed, project, tmp_path):
    home, _ = undisturbed
    plan = Path(tmp_path / "plan.json")
    assert run_cai(project, home, "plan", "experiment=tiny", "--out", str(plan)).returncode == 0
    experiment = project / "experiments" / "tiny.yaml"
    experiment.write_text(EXPERIMENT.replace("iterations: 2", "iterations: 1"))
    try:
        done = run_cai(project, home, "apply", str(plan))
    finally:
        experiment.write_text(EXPERIMENT)
    assert done.returncode == 0, done.stderr
    assert "started" not in done.stdout


def test_ctrl_c_says_so_and_the_same_command_goes_on(undisturbed, project, tmp_path):
    home, _ = undisturbed
    command = [sys.executable, "-m", "cai", "experiment=tiny"]
    process = subprocess.Popen(
        command, cwd=project, env=environment_of(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "sft: started" in line:
            process.send_signal(signal.SIGINT)
            break
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130, shown + said
    assert "run the same command again" in said
    assert "Traceback" not in said
    done = run_cai(project, tmp_path, "experiment=tiny")
    assert done.returncode == 0, done.stderr
    assert artifact_digests(tmp_path) == artifact_digests(home)


def test_a_sweep_runs_every_cell_and_shares_what_they_have_in_common(undisturbed, project):
    home, _ = undisturbed
    before = set(artifact_digests(home))
    done = run_cai(project, home, "-m", "experiment=tiny", "stages.rl.training.gamma=1.0,0.9")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {name.partition("-")[0] for name in set(artifact_digests(home)) - before}
    assert made == {"rl", "evaluate"}
