"""Every stage that asks a model, through real servers: whole, and with the server killed in the midst."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.clients.dialect_table import DIALECTS, Support
from cai.plan import Plan
from cai.store.artifacts import Store
from tests.servers_lab.servers import RunningServer
from tests.servers_lab.stages import QUESTIONS, Project, modes_of


@pytest.fixture(scope="module")
def project(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp(f"project-{server.kind.name}"), server)


@pytest.fixture(scope="module")
def home(project: Project) -> Path:
    """The home of the runs that nothing disturbed."""
    return project.folder / "home"


def test_a_server_killed_in_the_midst_and_started_again_gives_the_same_bytes(project: Project, home: Path) -> None:
    plan = project.plan("first", whole=False)
    done = project.apply("first", home)
    assert done.returncode == 0, done.stdout + done.stderr
    killed_home = project.folder / "killed-home"
    codes = project.apply_and_kill("first", killed_home, step="sample", rows=2)
    print(f"\n{project.server.kind.name}: exit codes {codes}")
    assert codes[-1] == 0, (project.folder / "first.log").read_text()
    assert project.bytes_of(plan, killed_home) == project.bytes_of(plan, home)


def test_every_stage_and_every_scoring_that_the_server_can_do(project: Project, home: Path) -> None:
    plan = project.plan("whole", whole=True)
    done = project.apply("whole", home)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {step.name: _rows(plan, home, step.name) for step in plan.steps if step.kind not in ("fetch", "read")}
    assert [len(rows[name]) for name in ("respond", "sample", "revise")] == [len(QUESTIONS)] * 3
    pairs = [row["answers"] for row in rows["sample"]]
    assert any(first != second for first, second in pairs), "the draws of a row are draws"
    dialect = DIALECTS[project.server.kind.name]
    if dialect.plain["response_format"] is Support.HONOURED:
        # Kept to the options, even this small model gives a readable verdict on every pair.
        assert len(rows["best_worst"]) == len(QUESTIONS)
        assert len(rows["choice"]) >= len(QUESTIONS) - 1
    for mode in modes_of(project.server.kind.name):
        soft = [row["p_chosen"] for row in rows[f"logprob_{mode}"]]
        votes = _votes(plan, home, f"logprob_{mode}")
        assert all(0.5 <= p < 1 for p in soft), f"{mode}: {soft}"
        assert votes["asked"] == 2 * len(QUESTIONS), "every pair is asked in both orders"
        # Options scored as text always have a probability. Among the likeliest tokens this small model often lists
        # neither, which is no vote; that it lists them now and then is what shows that they are read.
        assert votes["readable"] >= (votes["asked"] if mode == "prompt" else 1), f"{mode}: {votes}"
    if dialect.prompt_logprobs:
        assert all(0.5 < row["p_chosen"] < 1 for row in rows["contrast"])
        assert _alike(rows["logprob_prompt"], rows["logprob_top"])
    for mode in modes_of(project.server.kind.name):
        print(f"\n{mode}: {_votes(plan, home, f'logprob_{mode}')}")
    told = {name: len(kept) for name, kept in rows.items()}
    print(f"\n{project.server.kind.name}: rows {told}")


def _rows(plan: Plan, home: Path, name: str) -> list[dict[str, Any]]:
    step = plan.step(name)
    stored = Store(home).find(step.kind, step.key)
    assert stored is not None
    return [json.loads(line) for line in (stored.path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def _votes(plan: Plan, home: Path, name: str) -> dict[str, Any]:
    step = plan.step(name)
    stored = Store(home).find(step.kind, step.key)
    assert stored is not None
    votes: dict[str, Any] = json.loads((stored.path / "judge_report.json").read_text(encoding="utf-8"))["votes"]
    return votes


def _alike(scored: list[dict[str, Any]], listed: list[dict[str, Any]]) -> bool:
    """Two ways of reading the same opinion: options scored as text, and looked up among the likeliest tokens."""
    by_id = {row["id"]: row for row in listed}
    return all(
        abs(row["p_chosen"] - by_id[row["id"]]["p_chosen"]) < 0.15
        for row in scored
        if row["id"] in by_id and row["chosen"] == by_id[row["id"]]["chosen"]
    )
