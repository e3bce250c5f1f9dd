"""Which model an API's model is: not where it is served. Work of another night, of another address, of an older program
is not paid for again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cai.plan import plan_from_json
from tests.support.api_experiment import API_MODEL, edited, keys_by_step, plan_of, problems_of, verdict
from tests.support.fake_api import KEY, Answer, FakeServer, Reply
from tests.support.plan_keys import rekeyed

pytestmark = pytest.mark.long

EXPERIMENT = """
# python -m cai experiment=night
defaults:
  - /constitution: quickstart
  - /template: chatml
  - _self_
engine: {kind: embedded, device: cpu, generator: transformers, generation_precision: float32}
models:
  mixtral: {source: "api:org/judge-8x7b", url: "http://127.0.0.1:9/v1", api_key_env: TEST_KEY, limits: {concurrency: 4}}
data:
  asked: {path: prompts.jsonl, makes: prompts}
stages:
  sample: {model: mixtral, prompts: asked, n: 4, chunk: 8}
  judge: {model: mixtral, candidates: sample, scoring: choice, principles: whole, pairs: best_worst}
"""


def test_an_identity_counts_in_place_of_source_and_revision(raw: dict[str, Any]) -> None:
    named = edited(raw, "models", "mixtral", "identity", to="judge of May")
    before = keys_by_step(named)
    for field, value in [("source", "api:alias"), ("revision", "2"), ("url", "https://other.example.com/v1")]:
        assert keys_by_step(edited(named, "models", "mixtral", field, to=value)) == before
    assert keys_by_step(edited(named, "models", "mixtral", "logprobs", to="top")) != before
    assert not any(step.former for step in plan_of(named).steps), "it may be given because the model is another now"


def test_one_name_at_two_addresses_is_not_silently_one_model(raw: dict[str, Any]) -> None:
    raw["models"]["twin"] = {**API_MODEL, "url": "https://other.example.com/v1"}
    raw["stages"]["second"] = {**raw["stages"]["judge"], "kind": "judge", "model": "twin"}
    assert "models.twin: has the name and revision of 'mixtral', which is at another address" in problems_of(raw)
    one = edited(edited(raw, "models", "twin", "identity", to="x"), "models", "mixtral", "identity", to="x")
    assert keys_by_step(one)["twin"] == keys_by_step(one)["mixtral"]
    two = keys_by_step(edited(raw, "models", "twin", "identity", to="x"))
    assert two["twin"] != two["mixtral"]
    assert two["second"] != two["judge"]


def test_the_former_key_is_that_with_the_address(raw: dict[str, Any]) -> None:
    compiled = plan_of(raw)
    assert [step.name for step in compiled.steps if step.former] == ["mixtral", "judge"]
    old = plan_from_json(json.dumps(as_written_before(json.loads(compiled.to_json()))))
    assert {s.name: s.former for s in compiled.steps if s.former} == {n: old.step(n).key for n in ("mixtral", "judge")}
    assert old.step("mixtral").ingredients.model == {"api": "org/judge-8x7b", "revision": "", "url": API_MODEL["url"]}
    assert plan_from_json(compiled.to_json()) == compiled


def as_written_before(raw: dict[str, Any]) -> dict[str, Any]:
    """A plan as it was written while the address counted."""
    for step in raw["steps"]:
        step.pop("former", None)
        if step["kind"] == "fetch" and step["spec"]["source"].startswith("api:"):
            step["ingredients"]["model"]["url"] = step["spec"]["url"]
            del step["spec"]["identity"]
    return rekeyed(raw)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "night.yaml").write_text(EXPERIMENT)
    lines = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(12))
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    return tmp_path


def cai(project: Path, *args: str, home: str = "home", **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"CAI_HOME": str(project / home), "NO_COLOR": "1", "TEST_KEY": KEY, "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, "-m", "cai", *args],
        cwd=project,
        env={**os.environ, **settings, **env},
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def at(server: FakeServer) -> str:
    return f"models.mixtral.url={server.url}"


def rows_of_judge(project: Path, home: str = "home") -> set[bytes]:
    return {path.read_bytes() for path in (project / home).rglob("judge-*/rows.jsonl")}


def prompts(*servers: FakeServer) -> list[str]:
    return [json.dumps(body, sort_keys=True) for server in servers for _, body in server.asked]


class Dying:
    """A server of which nothing more comes after so many answers."""

    def __init__(self, answers: int) -> None:
        self.left = answers

    def __call__(self, path: str, body: dict[str, Any]) -> Reply:
        self.left -= 1
        return verdict(path, body) if self.left >= 0 else Reply({"error": {"message": "no credit"}}, 402)


def answered(server: FakeServer, answers: int) -> list[str]:
    return prompts(server)[:answers]


def test_a_night_resumed_on_another_node_asks_nothing_again(
    project: Path, serve: Callable[[Answer], FakeServer]
) -> None:
    whole, first, second = serve(verdict), serve(Dying(70)), serve(verdict)
    assert cai(project, "experiment=night", at(whole), home="whole").returncode == 0
    stopped = cai(project, "experiment=night", at(first))
    assert stopped.returncode > 0, stopped.stdout + stopped.stderr
    plan = cai(project, "plan", "experiment=night", at(second), "--format", "json")
    actions = {step["name"]: step["action"] for step in json.loads(plan.stdout)["steps"]}
    assert actions == {"mixtral": "reuse", "asked": "reuse", "sample": "reuse", "judge": "resume"}
    assert cai(project, "experiment=night", at(second)).returncode == 0
    assert rows_of_judge(project) == rows_of_judge(project, "whole")
    refused = len(first.asked) - 70
    assert refused > 0
    assert len(first.asked) + len(second.asked) == len(whole.asked) + refused
    assert not set(answered(first, 70)) & set(prompts(second))


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_store_made_while_the_address_counted_is_used(
    project: Path, serve: Callable[[Answer], FakeServer], cache: str
) -> None:
    """Finished steps, the journal of an unfinished one and the request cache, also at a third address later."""
    old_home = Dying(70)
    server, later = serve(old_home), serve(verdict)
    assert cai(project, "plan", "experiment=night", at(server), "--out", "plan.json").returncode == 0
    old = as_written_before(json.loads((project / "plan.json").read_text()))
    (project / "old.json").write_text(json.dumps(old))
    stopped = cai(project, "apply", "old.json")
    assert stopped.returncode > 0, stopped.stdout + stopped.stderr
    keys = {step["name"]: step["key"] for step in old["steps"]}
    assert (project / "home" / "store" / f"sample-{keys['sample'][:16]}.json").exists()
    assert (project / "home" / "store" / f"judge-{keys['judge'][:16]}.partial").exists()
    shutil.copytree(project / "home", project / "before")
    plan = cai(project, "plan", "experiment=night", at(server), "--format", "json")
    whys = {step["name"]: (step["action"], step["reason"]) for step in json.loads(plan.stdout)["steps"]}
    assert whys["sample"] == ("reuse", "in the store, under the key that it had before")
    assert whys["judge"] == ("resume", "stopped before its end, under the key that it had before")
    old_home.left = 10**9
    asked = len(server.asked)
    env = {"CAI_REQUEST_CACHE": cache}
    assert cai(project, "experiment=night", at(server), **env).returncode == 0
    assert len(server.asked) - asked == 12 * 4 + 12 * 6 * 2 - 70
    assert cai(project, "experiment=night", at(later), **env).returncode == 0
    assert not later.asked
    assert cai(project, "apply", "old.json", home="before").returncode == 0, "an old plan goes on under its own keys"
    assert rows_of_judge(project, "before") == rows_of_judge(project)
    assert len(rows_of_judge(project)) == 1


def test_the_request_cache_of_the_former_key_is_read(project: Path, serve: Callable[[Answer], FakeServer]) -> None:
    server = serve(verdict)
    assert cai(project, "plan", "experiment=night", at(server), "--out", "plan.json").returncode == 0
    (project / "old.json").write_text(json.dumps(as_written_before(json.loads((project / "plan.json").read_text()))))
    assert cai(project, "apply", "old.json").returncode == 0
    shutil.rmtree(project / "home" / "store")
    asked = len(server.asked)
    assert cai(project, "experiment=night", at(server)).returncode == 0
    assert len(server.asked) == asked, "every answer is in the cache under the former key"
    # Its answers have the new key now, so another address needs nothing either.
    shutil.rmtree(project / "home" / "store")
    later = serve(verdict)
    assert cai(project, "experiment=night", at(later)).returncode == 0
    assert not later.asked


def test_a_former_key_that_does_not_follow_from_the_step_is_refused(project: Path) -> None:
    assert cai(project, "plan", "experiment=night", "--out", "plan.json").returncode == 0
    raw = json.loads((project / "plan.json").read_text())
    (judge,) = (step for step in raw["steps"] if step["name"] == "judge")
    judge["former"] = "f" * 64
    (project / "plan.json").write_text(json.dumps(raw))
    refused = cai(project, "apply", "plan.json")
    assert refused.returncode == 2
    assert "judge.former: is not the key that an older program gave such a step" in refused.stderr


def test_a_key_is_not_sent_to_an_address_that_an_artifact_was_not_made_at(
    project: Path, serve: Callable[[Answer], FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact holds an allowed address: the plan's is the one that is asked, and so the one that is checked."""
    first, second = serve(Dying(20)), serve(verdict)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project / "config"))
    monkeypatch.setenv("CAI_KEY_HOSTS", f"TEST_KEY={first.url.removeprefix('http://').removesuffix('/v1')}")
    assert cai(project, "experiment=night", at(first)).returncode > 0
    refused = cai(project, "experiment=night", at(second))
    assert refused.returncode == 2
    assert "TEST_KEY would be sent to" in refused.stderr
    assert not second.asked
