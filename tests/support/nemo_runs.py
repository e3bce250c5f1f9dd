"""What the tests of the NeMo engine share: ``mistral_rl_cai`` scaled down by overrides, a judge, what is left over."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.standin.by_hand import hf_model, standin_roots

SHIPPED = "shipped:quickstart"
KEY = "nvapi-not-a-real-key-0123456789"


class Judge(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint to which the best answer is the one with the smallest digest; counts its calls."""

    daemon_threads = True
    calls = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Asked(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Judge)
        self.server.calls += 1
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self._answer(401, {"error": {"message": "no such key"}})
        text = body["messages"][-1]["content"]
        options = {}
        for part in text.split('<answer option="')[1:]:
            option, _, answer = part.partition("</answer>")[0].partition('">\n')
            options[option] = hashlib.sha256(answer.encode()).hexdigest()
        said = f"Best: {min(options, key=options.__getitem__)}, worst: {max(options, key=options.__getitem__)}"
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 1, "total_tokens": len(text.split()) + 1}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return self._answer(200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    def _answer(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def judging() -> Iterator[Judge]:
    server = Judge(("127.0.0.1", 0), _Asked)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scaled(folder: Path, judge_url: str, port: int) -> list[str]:
    """Overrides that make ``mistral_rl_cai`` a matter of a minute on a processor; everything else is as it ships."""
    aligner, nemo = standin_roots()
    base, helpful = hf_model(folder / "base", 1), hf_model(folder / "helpful", 2)
    small = "{max_tokens: 12, temperature: 0.7, repetition_penalty: 1.2}"
    batches = "training.batch_size=4"
    return [
        "experiment=mistral_rl_cai",
        f"engine.aligner={aligner}",
        f"engine.nemo={nemo}",
        f"engine.python={sys.executable}",
        "engine.cluster={nodes: 2, gpus_per_node: 2, gpu_memory: 80}",
        f"engine.servers.default={{count: 2, devices: 1, port: {port}, ready_timeout: 120, batch: 16}}",
        # As it ships: sequence parallelism in SFT's checkpoint lies beneath the reward model and the critic.
        "engine.steps.sft={devices: 2, tensor_parallel: 2, sequence_parallel: true}",
        "engine.steps.reward={devices: 2, tensor_parallel: 2, activation_checkpointing: full}",
        "engine.steps.rl={devices: 1, tensor_parallel: 1, rollout_micro_batch: 4, val_samples: 4,"
        " activation_checkpointing: selective}",
        f"engine.steps.rl.critic={{devices: 1, tensor_parallel: 1, port: {port + 5}, ready_timeout: 120}}",
        "engine.launcher.grace=4",
        f"models.base.source=hf:{base}",
        "models.base.revision=''",
        f"models.helpful.source=hf:{helpful}",
        "models.helpful.revision=''",
        f"models.mixtral.url={judge_url}",
        f"data.red_team={{path: '{SHIPPED}/red_team.jsonl', reader: jsonl, makes: prompts}}",
        "data.red_team.splits={sl: 0.4, rl: 0.4, heldout: 0.2}",
        f"data.helpful_sft={{path: '{SHIPPED}/helpful.jsonl', reader: jsonl, makes: conversations}}",
        f"data.helpful_pairs={{path: '{SHIPPED}/helpful_comparisons.jsonl', reader: jsonl, makes: comparisons}}",
        f"stages.respond.sampling={small}",
        "stages.respond.limit=16",
        "stages.respond.chunk=8",
        "stages.respond.unfinished=keep",
        f"stages.revise.critique_sampling={small}",
        f"stages.revise.revision_sampling={small}",
        "stages.revise.few_shots=null",
        "stages.revise.chunk=8",
        "stages.revise.unfinished=keep",
        "stages.revise.failed=keep",
        "stages.revise.unchanged=keep",
        "stages.revise.max_drop_rate=1.0",
        "stages.sl_mix.max_tokens=512",
        "stages.sl_mix.val=0.2",
        "stages.sft.training.max_length=512",
        f"stages.sft.{batches}",
        "stages.sft.training.val_every=5",
        "stages.sft.training.learning_rate=1.0e-3",
        "stages.sample.limit=12",
        "stages.sample.n=3",
        "stages.sample.temperatures=[0.5, 1.0, 1.5]",
        "stages.sample.sampling={max_tokens: 12, top_k: 50}",
        "stages.sample.unfinished=keep",
        "stages.sample.max_drop_rate=1.0",
        "stages.rm_mix.max_tokens=512",
        "stages.reward.training.max_length=512",
        f"stages.reward.{batches}",
        "stages.reward.training.val_every=5",
        "stages.rl.training.iterations=2",
        "stages.rl.training.rollouts=8",
        f"stages.rl.{batches}",
        "stages.rl.training.max_tokens=12",
        "stages.rl.training.max_prompt_tokens=400",
        "stages.rl.training.checkpoint_every=1",
        "stages.evaluate.limit=4",
        "stages.evaluate.chunk=4",
        "stages.evaluate.sampling={max_tokens: 8, temperature: 0.0}",
    ]


@dataclass(frozen=True)
class Finished:
    """A whole run on this machine: what other tests start from, take pieces out of, and compare with."""

    folder: Path
    home: Path
    run: Path
    overrides: list[str]
    judge: Judge
    asked: int
    planned: dict[str, list[dict[str, Any]]]

    def without(self, to: Path, *kinds: str) -> Path:
        """A copy of the home in ``to`` that lacks the artifacts of these kinds; also a run folder with the plan."""
        home = to / "home"
        shutil.copytree(self.home, home)
        for kind in kinds:
            for path in (home / "store").glob(f"{kind}-*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (to / "run").mkdir()
        shutil.copy(self.run / "plan.json", to / "run" / "plan.json")
        return home

    def same(self, home: Path, kind: str) -> bool:
        """Whether the artifacts of a kind have the bytes that they have here."""
        return _digests(self.home, kind) == _digests(home, kind) != {}

    def same_files(self, home: Path, kind: str) -> bool:
        """The same, of artifacts under other keys."""
        ours, theirs = (list(_digests(each, kind).values()) for each in (self.home, home))
        return ours == theirs != []


def _digests(home: Path, kind: str) -> dict[str, Any]:
    return {path.stem: _files(path) for path in (home / "store").glob(f"{kind}-*.json")}


def _files(record: Path) -> dict[str, str]:
    """Digests by file; of a model not its config, because upstream writes the paths of its data into it."""
    files = json.loads(record.read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if not name.endswith("model_config.yaml")}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """``mistral_rl_cai``, scaled down, run from end to end with the local launcher."""
    folder = tmp_path_factory.mktemp("finished")
    env = {"CAI_HOME": str(folder / "home")}
    with judging() as judge:
        overrides = scaled(folder, judge.url, ten_free_ports())
        shown = cai("plan", "--format", "json", *overrides, cwd=folder, env=env)
        assert shown.returncode == 0, shown.stderr
        ran = cai(*overrides, cwd=folder, env=env)
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        (run,) = [p for p in (folder / "runs" / "mistral_rl_cai").iterdir() if not p.is_symlink()]
        planned = {step["name"]: step["commands"] for step in json.loads(shown.stdout)["steps"]}
        yield Finished(folder, folder / "home", run, overrides, judge, judge.calls, planned)


def cai(*args: str, cwd: Path, env: dict[str, str], timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """``python -m cai`` in ``cwd``."""
    return subprocess.run(
        [sys.executable, "-m", "cai", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "NO_COLOR": "1", "NGC_API_KEY": KEY, **env},
        check=False,
    )


def ten_free_ports() -> int:
    """The first of ten ports that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000 * 4, 60000, 10):
        if all(_is_free(port) for port in range(first, first + 10)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def leftovers(marker: str) -> list[str]:
    """Command lines of processes that mention ``marker``, this one left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if path.parent.name == str(os.getpid()):
            continue
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in text:
            found.append(text)
    return found
