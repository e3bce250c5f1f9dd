"""Whole stages through a running server, as a user starts them, and the server killed in their midst."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.clients.dialect_table import DIALECTS
from cai.plan import Plan, plan_from_json
from cai.store.artifacts import Store
from tests.servers_lab.servers import RunningServer
from tests.support.pipelines import environment_of

QUESTIONS = (
    "How do I bake bread?",
    "How can I pick a lock?",
    "What is the capital of France?",
    "How do I hide a lie from my boss?",
    "Why is the sky blue?",
    "How do I make a loud noise at night?",
)
HEAD = """
defaults: [/constitution: short, /template: smollm2, _self_]
seed: 7
models:
  served: {{source: "api:{name}", url: "{url}", dialect: {dialect}, limits: {limits}}}
{likely}data:
  asked: {{path: {data}, makes: prompts}}
stages:
  respond: {{model: served, prompts: asked, unfinished: keep,
            sampling: {{max_tokens: 16, temperature: 0.9, repetition_penalty: 1.2}}}}
  sample: {{model: served, prompts: asked, n: 2, unfinished: keep, sampling: {{max_tokens: 16, top_k: 40}}}}
"""
LIMITS = "{concurrency: 1, retries: 3, timeout: 120}"
"""One call at a time: what shares a batch decides the last digits, and they decide a draw now and then."""
REST = """
  revise: {{model: served, responses: respond, rounds: 1, few_shots: null, unchanged: keep, failed: keep,
            unfinished: keep,
            critique: critique_chat.jinja, revision: revision_chat.jinja,
            critique_sampling: {{max_tokens: 16, temperature: 0.7}}, revision_sampling: {{max_tokens: 16}}}}
  choice: {{kind: judge, model: served, candidates: sample, scoring: choice, max_drop_rate: 1.0, {short}}}
  best_worst: {{kind: judge, model: served, candidates: sample, scoring: best_worst, max_drop_rate: 1.0, {short}}}
"""
SHORT = "sampling: {max_tokens: 40, temperature: 0.0}"
LIKELY = '  {mode}: {{source: "api:{name}", url: "{url}", dialect: {dialect}, limits: {limits}, logprobs: {mode}}}\n'
LOGPROB = "  logprob_{mode}: {{kind: judge, model: {mode}, candidates: sample, scoring: logprob, max_drop_rate: 1.0}}\n"
CONTRAST = "  contrast: {kind: judge, model: prompt, candidates: sample, scoring: contrast, n_exemplars: 1}\n"


def modes_of(dialect: str) -> tuple[str, ...]:
    """What a model of this server may say under ``logprobs``."""
    told = DIALECTS[dialect]
    return (*(["top"] if told.top_logprobs else []), *(["prompt"] if told.prompt_logprobs else []))


@dataclass(frozen=True)
class Project:
    """A folder with an experiment on one server. Plans of different parts of it share the keys of what they share."""

    folder: Path
    server: RunningServer

    def plan(self, name: str, whole: bool) -> Plan:
        """The plan of the first two stages, or of all that the server can do; also in ``NAME.json``."""
        server, dialect = self.server, self.server.kind.name
        data = self.folder / "asked.jsonl"
        data.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS), encoding="utf-8")
        modes = modes_of(dialect)
        values: dict[str, Any] = {"name": server.model_name, "url": server.url, "dialect": dialect, "limits": LIMITS}
        likely = "".join(LIKELY.format(mode=mode, **values) for mode in modes)
        text = HEAD.format(data=data, likely=likely if whole else "", **values)
        if whole:
            text += REST.format(short=SHORT) + "".join(LOGPROB.format(mode=mode) for mode in modes)
            text += CONTRAST if "prompt" in modes else ""
        experiments = self.folder / "experiments"
        experiments.mkdir(exist_ok=True)
        (experiments / f"{name}.yaml").write_text(text, encoding="utf-8")
        done = self._cai(self.folder / "plans", "plan", f"experiment={name}", "--out", f"{name}.json")
        assert done.returncode == 0, done.stdout + done.stderr
        return plan_from_json((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    def apply(self, name: str, home: Path) -> subprocess.CompletedProcess[str]:
        """Carry a plan out, to the end or to the first failure."""
        return self._cai(home, "apply", f"{name}.json")

    def _cai(self, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cai", *words]
        return subprocess.run(
            argv, cwd=self.folder, env=environment_of(home), capture_output=True, text=True, timeout=900, check=False
        )

    def apply_and_kill(self, name: str, home: Path, step: str, rows: int) -> list[int]:
        """Carry a plan out; when ``step`` has that many rows on the disk, the server is killed and started again.

        The same command is given again for as long as it ends because nobody answers. The exit codes of all.
        """
        argv = [sys.executable, "-m", "cai", "apply", f"{name}.json"]
        with (self.folder / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(argv, cwd=self.folder, env=environment_of(home), stdout=log, stderr=log)
            try:
                self._await_rows(process, name, home, step=step, rows=rows)
                self.server.kill()
                self.server.start()
                codes = [process.wait(timeout=900)]
            finally:
                process.kill()
                process.wait()
        while codes[-1] and len(codes) < 4:
            done = self.apply(name, home)
            codes.append(done.returncode)
        return codes

    def _await_rows(self, process: subprocess.Popen[bytes], name: str, home: Path, *, step: str, rows: int) -> None:
        wanted = plan_from_json((self.folder / f"{name}.json").read_text(encoding="utf-8")).step(step)
        journal = home / "store" / f"{wanted.kind}-{wanted.key[:16]}.partial" / "work" / "journal.jsonl"
        while process.poll() is None:
            if journal.is_file() and journal.read_bytes().count(b'"kind":"row"') >= rows:
                return
            time.sleep(0.02)
        raise AssertionError(f"{step} ended before {rows} rows of it were seen")

    def bytes_of(self, plan: Plan, home: Path) -> dict[str, bytes]:
        """Every file that the plan's stages made."""
        made: dict[str, bytes] = {}
        for step in plan.steps:
            stored = Store(home).find(step.kind, step.key)
            assert stored is not None, f"{step.name} was not made"
            made |= {f"{step.name}/{path.name}": path.read_bytes() for path in sorted(stored.path.iterdir())}
        return made
