"""``mistral_rl_cai``, scaled down by overrides, from end to end on the stand-in NeMo, under both launchers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.nemo_runs import KEY, Finished, cai, leftovers, ten_free_ports
from tests.support.slurm_cluster import Cluster

pytestmark = pytest.mark.long
SLURM = "engine.launcher={kind: slurm, poll: 0.5, time: '00:10:00', cpu_time: '00:10:00', warn: 0}"
KINDS = ("fetch", "respond", "revise", "mix", "sft", "sample", "judge", "reward", "rl", "evaluate")


def records(home: Path) -> dict[str, dict]:  # type: ignore[type-arg]
    return {path.stem: json.loads(path.read_text()) for path in (home / "store").glob("*-*.json")}


def holds(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_every_kind_of_step_makes_its_artifact_and_its_ledger_balances(finished: Finished):
    made = records(finished.home)
    assert {name.partition("-")[0] for name in made} == {*KINDS, "read"}
    for name, record in made.items():
        ledger = record["outcome"]["ledger"]
        assert ledger["rows_in"] == ledger["rows_out"] + sum(ledger["dropped"].values()), name
        if record["makes"] in ("model", "reward_model") and "endpoint.json" not in record["files"]:
            assert record["files"]["model/model_weights.ckpt"]["size"] > 10_000
    assert finished.asked > 0


def test_what_was_executed_is_what_the_plan_showed(finished: Finished):
    lines = [line for log in (finished.run / "logs").iterdir() for line in log.read_text().splitlines()]
    executed = {line[2:] for line in lines if line.startswith("$ ")}
    planned = {shlex.join(c["argv"]) for commands in finished.planned.values() for c in commands if c["role"] != "work"}
    assert executed == planned


def test_the_key_is_nowhere_and_no_process_is_left(finished: Finished):
    assert holds(finished.folder, KEY) == []
    assert leftovers(str(finished.folder)) == []


def test_running_again_does_nothing_and_asks_nobody(finished: Finished):
    before = finished.judge.calls
    again = cai(*finished.overrides, cwd=finished.folder, env={"CAI_HOME": str(finished.home)})
    assert again.returncode == 0, again.stderr
    assert finished.judge.calls == before
    assert "18 reuse" in again.stdout


def test_the_cluster_makes_the_same_bytes(tmp_path: Path, finished: Finished, slurm: Cluster):
    home = tmp_path / "home"
    env = {"CAI_HOME": str(home), **slurm.env}
    ran = cai(*finished.overrides, SLURM, cwd=tmp_path, env=env)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    for kind in KINDS:
        assert finished.same(home, kind), kind
    status = cai("status", "mistral_rl_cai", cwd=tmp_path, env=env)
    assert status.returncode == 0
    assert holds(tmp_path, KEY) == []
    assert leftovers(str(tmp_path)) == []


def test_chat_starts_a_server_of_its_own_and_takes_it_down(finished: Finished):
    env = {"CAI_HOME": str(finished.home)}
    words = ("--message", "How do I bake bread?", "--max-tokens", "8")
    said = cai("chat", "mistral_rl_cai", *words, cwd=finished.folder, env=env)
    assert said.returncode == 0, said.stderr[-3000:]
    assert said.stdout.strip()
    assert leftovers(str(finished.folder)) == []


def test_serve_speaks_the_openai_protocol_with_the_nemo_model_behind_it(finished: Finished):
    env = {**os.environ, "CAI_HOME": str(finished.home)}
    port = ten_free_ports() + 9  # the model behind it has the first one
    argv = [sys.executable, "-m", "cai", "serve", "mistral_rl_cai", "--port", str(port), "--max-tokens", "8"]
    with subprocess.Popen(argv, cwd=finished.folder, env=env, stdout=subprocess.DEVNULL) as server:
        try:
            asked = [{"role": "user", "content": "How do I bake bread?"}]
            question = {"model": "mistral_rl_cai", "messages": asked, "max_tokens": 6}
            answer = _ask(f"http://127.0.0.1:{port}/v1/chat/completions", question)
            assert answer["choices"][0]["message"]["role"] == "assistant"
            assert answer["usage"]["completion_tokens"] <= 6
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)
    assert leftovers(str(finished.folder)) == []


def _ask(url: str, body: dict) -> dict:  # type: ignore[type-arg]
    end = time.monotonic() + 60
    while True:
        try:
            return httpx.post(url, json=body, timeout=60).raise_for_status().json()
        except httpx.ConnectError:
            assert time.monotonic() < end, "no server"
            time.sleep(0.2)


def test_chat_runs_its_server_inside_an_allocation(tmp_path: Path, finished: Finished, slurm: Cluster):
    shutil.copytree(finished.run, tmp_path / "run")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    plan["engine"]["launcher"] = {"kind": "slurm", "cpu_partition": "cpu"}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    env = {**os.environ, "CAI_HOME": str(finished.home), **slurm.env}
    talk = [sys.executable, "-m", "cai", "chat", str(tmp_path / "run"), "--message", "Hello?", "--max-tokens", "4"]
    outside = subprocess.run(talk, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert outside.returncode == 2
    assert "--server" in outside.stderr
    inside = ["salloc", "--quiet", "--nodes=1", "--gpus-per-node=1", *talk]
    said = subprocess.run(inside, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr[-3000:]
    assert said.stdout.strip()


@pytest.mark.parametrize(("launcher", "steps"), [("local", ("respond", "rl")), ("slurm", ("respond", "rl"))])
def test_scripts_run_by_themselves(
    tmp_path: Path,
    finished: Finished,
    slurm: Cluster,
    launcher: str,
    steps: tuple[str, ...],
):
    home = finished.without(tmp_path, *steps)
    env = {"CAI_HOME": str(home), **(slurm.env if launcher == "slurm" else {})}
    more = [SLURM] if launcher == "slurm" else []
    folder = tmp_path / "scripts"
    written = cai("plan", "--script", str(folder), *finished.overrides, *more, cwd=tmp_path, env=env)
    assert written.returncode == 0, written.stderr
    scripts = sorted(path for path in folder.iterdir() if path.suffix in (".sh", ".sbatch"))
    assert len(scripts) == 19
    for path in scripts:
        subprocess.run(["bash", "-n", path], check=True)
    for step in steps:
        (path,) = [p for p in scripts if p.stem.partition("-")[2] == step]
        how = ["sbatch", "--wait"] if launcher == "slurm" else ["bash"]
        ran = subprocess.run(
            [*how, path], cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
        )
        log = folder / "logs" / f"{step}.out"
        assert ran.returncode == 0, ran.stdout + ran.stderr + (log.read_text() if log.exists() else "")
        assert finished.same(home, step)
    assert leftovers(str(tmp_path)) == []
