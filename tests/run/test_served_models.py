"""What a server says it serves is kept with the step's record; another name later is told once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.cli import main
from cai.clients.served_models import MOST, ServedModel, first_served, served_model
from tests.support.api_experiment import verdict
from tests.support.fake_api import KEY, FakeServer, Reply

EXPERIMENT = """
# python -m cai experiment=served
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
  sample: {model: mixtral, prompts: asked, n: 2}
  judge: {model: mixtral, candidates: sample, scoring: choice, principles: whole}
"""


class Router(FakeServer):
    """A server that judges, and says that it serves ``name``."""

    name: Any = "judge-2026-01-01"
    fingerprint = "fp_1"

    def __init__(self) -> None:
        super().__init__(self._served)

    def _served(self, path: str, body: dict[str, Any]) -> Reply:
        reply = verdict(path, body)
        assert isinstance(reply.body, dict)
        return Reply({**reply.body, "model": self.name, "system_fingerprint": self.fingerprint})


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[Router]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    server = Router()
    yield server
    server.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "served.yaml").write_text(EXPERIMENT)
    lines = (json.dumps({"prompt": f"question {i}", "topic": "t"}) + "\n" for i in range(6))
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return tmp_path


def run(router: Router, *args: str) -> None:
    assert main(["experiment=served", f"models.mixtral.url={router.url}", *args]) == 0


def records(project: Path, kind: str) -> list[Any]:
    """By time, the newest last."""
    paths = sorted((project / "home" / "store").glob(f"{kind}-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text())["outcome"]["metrics"] for path in paths]


def events(project: Path, event: str) -> list[Any]:
    """Of the newest run."""
    lines = (project / "runs" / "served" / "latest" / "events.jsonl").read_text().splitlines()
    return [(e["step"], e["data"]) for e in map(json.loads, lines) if e["event"] == event]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "now says" in r.getMessage()]


def test_a_step_keeps_what_its_server_says_it_serves(project: Path, router: Router) -> None:
    run(router)
    served = [{"model": "judge-2026-01-01", "system_fingerprint": "fp_1"}]
    for kind in ("sample", "judge"):
        assert records(project, kind)[-1]["served"] == {"model": served}
    said = {"role": "model", "model": "judge-2026-01-01", "system_fingerprint": "fp_1"}
    assert events(project, "model.served") == [("sample", said), ("judge", said)]
    (path,) = (project / "home" / "served").glob("*.json")
    assert json.loads(path.read_text())["model"] == "judge-2026-01-01"


def test_another_name_is_told_once_in_a_run(project: Path, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    run(router)
    assert warnings(caplog) == []
    router.name = "judge-2026-05-01"
    run(router, "seed=1")
    (warning,) = warnings(caplog)
    assert "'judge-2026-05-01'; the first answers of this model came from 'judge-2026-01-01'" in warning
    assert "give it an `identity`" in warning
    changed = {"role": "model", "recorded": "judge-2026-01-01", "model": "judge-2026-05-01"}
    assert events(project, "model.changed") == [("sample", changed)]
    assert records(project, "judge")[-1]["served"]["model"][0]["model"] == "judge-2026-05-01"


def test_a_model_with_an_identity_of_its_own_is_compared_with_nothing(
    project: Path, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    run(router)
    router.name = "judge-2026-05-01"
    run(router, "+models.mixtral.identity=may")
    assert warnings(caplog) == []
    assert len(list((project / "home" / "served").glob("*.json"))) == 2


def test_another_fingerprint_is_kept_and_compared_with_nothing(
    project: Path, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    run(router)
    router.fingerprint = "fp_2"
    run(router, "seed=1")
    assert warnings(caplog) == []
    assert events(project, "model.changed") == []
    assert records(project, "sample")[-1]["served"]["model"][0]["system_fingerprint"] == "fp_2"


@pytest.mark.parametrize("name", [None, 7, "", ["judge"]])
def test_a_server_that_names_no_model_leaves_nothing(project: Path, router: Router, name: Any) -> None:
    router.name = name
    run(router)
    assert "served" not in records(project, "sample")[-1]
    assert not (project / "home" / "served").exists()


def test_a_key_that_a_server_says_again_is_not_written(project: Path, router: Router) -> None:
    router.name = f"judge {KEY}"
    run(router)
    (path,) = (project / "home" / "served").glob("*.json")
    assert KEY not in path.read_text() + json.dumps(records(project, "sample"))


def test_names_without_end_are_not_all_kept(project: Path, router: Router) -> None:
    names = iter(range(1000))
    router.answer = lambda path, body: Reply({**verdict(path, body).body, "model": f"judge-{next(names)}"})
    run(router)
    assert len(records(project, "sample")[-1]["served"]["model"]) <= MOST


def test_no_key_of_a_step_changes_by_what_is_served(project: Path, router: Router) -> None:
    run(router)
    router.name = "judge-2026-05-01"
    asked = len(router.asked)
    run(router)
    assert len(router.asked) == asked, "everything is reused"


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "served" / "model.json"
    path.parent.mkdir()
    path.write_text("{half")
    assert first_served(path, ServedModel("b")) == ServedModel("b")
    assert first_served(path, ServedModel("c")) == ServedModel("b")


def test_what_is_said_is_kept_on_one_line_and_short() -> None:
    assert served_model({"model": "a\x1b[2J\nb" + "c" * 500}) == ServedModel(("a [2J b" + "c" * 500)[:200])
