"""One step whose rows several processes share: the project, its server's answers, and how its processes are found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cai.engines import make_engine
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import Plan
from cai.planning.resolver import resolve
from cai.run.executor import run, run_shard, run_step
from cai.run.results import RunResult
from cai.stages.base import Shard
from cai.store.artifacts import Store
from tests.support.fake_api import FakeServer, Reply, says

ROWS = 40
CALLS = 2 * ROWS


def answer(path: str, body: dict[str, Any]) -> Reply:
    """The same for the same question and seed."""
    text = f"{body['messages'][-1]['content']} {body['seed']}"
    return says(f"said {hashlib.sha256(text.encode()).hexdigest()[:12]}.")


class Project:
    """One step of ``sample`` on a small server, in the working folder."""

    def __init__(self, folder: Path, server: FakeServer) -> None:
        self.folder, self.server, self.url = folder, server, server.url
        rows = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(ROWS))
        (folder / "prompts.jsonl").write_text("".join(rows))
        (folder / "experiments").mkdir()

    def raw(self, shards: int, **stage: Any) -> dict[str, Any]:
        source = {
            "source": "api:org/model-8b",
            "url": self.url,
            "api_key_env": "TEST_KEY",
            "limits": {"retries": 0, "concurrency": 8},
        }
        return {
            "name": "parts",
            "engine": {"kind": "embedded", "generator": "transformers", "device": "cpu"},
            "template": {"name": "chatml"},
            "models": {"remote": source},
            "data": {"asked": {"path": "prompts.jsonl", "makes": "prompts"}},
            "stages": {"sample": {"model": "remote", "prompts": "asked", "chunk": 4, "shards": shards, **stage}},
        }

    def plan(self, shards: int, **stage: Any) -> Plan:
        return resolve(parse(self.raw(shards, **stage)), Library((self.folder, shipped_root())))

    def store(self, home: str = "home") -> Store:
        return Store(self.folder / home)

    def run(self, plan: Plan, home: str = "home", watch: Any = None) -> RunResult:
        at = self.folder / "run" / home
        made = partial(make_engine, plan=plan, run_dir=at)
        return run(plan, store=self.store(home), run_dir=at, make_engine=made, watch=watch)

    def inputs(self, plan: Plan, home: str = "home") -> dict[str, Any]:
        """Make what ``sample`` reads; what ``run_step`` and ``run_shard`` want."""
        at = self.folder / "run" / home
        more = {"store": self.store(home), "run_dir": at, "make_engine": make_engine}
        for name in ("remote", "asked"):
            run_step(plan, name, **more)
        return more

    def shard(self, plan: Plan, index: int, count: int, home: str = "home") -> None:
        run_shard(plan, "sample", Shard(index, count), **self.inputs(plan, home))

    def rows(self, home: str = "home") -> bytes:
        (path,) = (self.folder / home / "store").glob("sample-*/rows.jsonl")
        return path.read_bytes()

    def whole(self) -> bytes:
        """What one process makes."""
        self.run(self.plan(1), "whole")
        self.server.asked.clear()
        return self.rows("whole")

    def start(self, shards: int) -> subprocess.Popen[str]:
        """The whole run as a person starts it."""
        (self.folder / "experiments" / "parts.yaml").write_text(
            "# python -m cai experiment=parts\ndefaults: [/template: chatml, _self_]\n"
            + "".join(f"{k}: {json.dumps(v)}\n" for k, v in self.raw(shards).items() if k not in ("name", "template"))
        )
        env = {**os.environ, "CAI_HOME": str(self.folder / "home"), "NO_COLOR": "1"}
        argv, pipe = [sys.executable, "-m", "cai", "experiment=parts"], subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.folder, env=env, text=True, stdout=pipe, stderr=pipe)

    def shards(self) -> list[int]:
        """Processes of this project's shards, without their guards."""
        return [pid for pid, argv in processes() if f"{self.folder}/" in os_cwd(pid) and argv[1:3] == ["-m", "cai"]]


def os_cwd(pid: int) -> str:
    try:
        return f"{os.readlink(f'/proc/{pid}/cwd')}/" if b"--shard" in Path(f"/proc/{pid}/cmdline").read_bytes() else ""
    except OSError:
        return ""


def processes() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
