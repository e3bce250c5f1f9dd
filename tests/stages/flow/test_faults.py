"""What a disk and a clock can do to rows on their way: nothing is lost, and the next run ends with the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.clients.base import Completion, Finish, Request
from cai.data.journal import Journal
from cai.data.rows import Prompt
from cai.errors import Incomplete
from cai.stages.flow.base import Turn
from cai.stages.flow.entries import MOST_REASONS, Entry
from cai.stages.flow.generation import as_prompt, source_of, through
from cai.stages.respond import RespondSpec
from cai.stages.respond import run as respond
from tests.support.fake_api import FakeServer, Reply, says
from tests.support.flows import ROWS, Crash, Flowing, FlowSpec, ShuffledServer, chained, flow_context, run_flow
from tests.support.stage_doubles import Memory, artifact, context, user

PADDED = [Prompt(row.id, row.messages, "", {"note": "x" * 400}) for row in ROWS]


def through_disk(folder: Path, disk: Path, engine: Memory) -> bytes:
    """As ``run``, with the journal and the cache on the disk."""
    ctx = flow_context(folder, engine, PADDED, cache=disk / "cache")
    ctx = replace(ctx, work=disk / "work")

    def padded(row: Prompt) -> Turn:
        entry = yield from chained(row)
        return Entry(entry.id, entry.rows, calls=entry.calls, facts={"note": "y" * 800})

    through(ctx, source_of(ctx.input("prompts"), as_prompt), padded, FlowSpec())
    return (folder / "out" / "rows.jsonl").read_bytes()


def test_a_full_disk_stops_the_stage_and_space_lets_it_go_on(tmp_path: Path, small_disk: Path) -> None:
    whole = through_disk(tmp_path / "whole", tmp_path / "roomy", Flowing())
    stopped = Flowing()
    with pytest.raises(Incomplete, match=rf"no space is left on the disk at {small_disk}.*run the same command") as hit:
        through_disk(tmp_path / "a", small_disk, stopped)
    assert hit.value.exit_code == 3
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    again = Flowing(ShuffledServer(seed=5))
    assert through_disk(tmp_path / "a", small_disk, again) == whole
    kept = len(stopped.server.order)
    assert len(again.server.asked) < 4 * len(ROWS) - kept / 2, "what was finished is not asked again"


def test_a_disk_that_may_only_be_read_says_so_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    whole = through_disk(tmp_path / "whole", tmp_path / "roomy", Flowing())
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    with pytest.raises(Crash):
        through_disk(tmp_path / "a", small_disk, Flowing(ShuffledServer(crash_after=300)))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(Incomplete, match="may only be read"):
        through_disk(tmp_path / "a", small_disk, Flowing())
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    again = Flowing()
    assert through_disk(tmp_path / "a", small_disk, again) == whole
    assert len(again.server.asked) <= 4 * len(ROWS) - 290


def test_two_processes_with_one_step_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "a" / "work").mkdir(parents=True)
    other = Journal(tmp_path / "a" / "work" / "journal.jsonl")
    with pytest.raises(Incomplete, match="another process is writing it"):
        run_flow(tmp_path / "a", Flowing())
    other.close()
    assert run_flow(tmp_path / "a", Flowing()) == run_flow(tmp_path / "b", Flowing())


@pytest.mark.long
def test_jumps_of_the_wall_clock_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = random.Random(2)

    def answer(path: str, body: dict[str, Any]) -> Reply:
        if faults.random() < 0.1:
            return Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"})
        return says(f"About {body['messages'][-1]['content']}")

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FakeServer(answer)
    served = artifact(tmp_path / "model", "model")
    (served.path / "endpoint.json").write_text(f'{{"model": "m", "url": "{server.url}", "api_key_env": ""}}')

    def answered(name: str) -> bytes:
        prompts = artifact(tmp_path / name / "p", "prompts", ROWS[:80])
        ctx = context(tmp_path / name, Memory(), {"model": served, "prompts": prompts})
        respond(RespondSpec(model="m", prompts="p"), replace(ctx, cache=tmp_path / name / "cache", key="k" * 64))
        return (tmp_path / name / "out/rows.jsonl").read_bytes()

    try:
        whole = answered("still")
        jumps = random.Random(1)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e6, 1e6))
        began = time.monotonic()
        assert answered("jumping") == whole
        assert time.monotonic() - began < 20
    finally:
        server.close()


def test_half_characters_of_a_model_are_written_as_such(tmp_path: Path) -> None:
    class Torn(Memory):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            return Completion(request.id, "half \ud83d of it, whole \U0001f600", 1, 2, Finish.STOP)

    inputs = {"model": artifact(tmp_path / "m", "model"), "prompts": artifact(tmp_path / "p", "prompts", ROWS[:2])}
    respond(RespondSpec(model="m", prompts="p"), context(tmp_path, Torn(), inputs))
    assert "half \ufffd of it, whole \U0001f600" in (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8")


def test_a_refusal_of_the_server_is_counted_by_reason(tmp_path: Path) -> None:
    class Refusing(Memory):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            if request.id.endswith("3"):
                return Completion(request.id, "", 1, 0, Finish.REFUSED, "prompt too long")
            return super().complete(model, batch, request)

    inputs = {"model": artifact(tmp_path / "m", "model"), "prompts": artifact(tmp_path / "p", "prompts", ROWS[:10])}
    outcome = respond(RespondSpec(model="m", prompts="p"), context(tmp_path, Refusing(), inputs))
    assert outcome.ledger.dropped == {"refused by the server: prompt too long": 1}


def test_questions_of_the_same_words_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = [Prompt("a", user("Same?")), Prompt("b", user("Same?"))]
    engine = Flowing()
    run_flow(tmp_path, engine, rows=rows, cache=tmp_path / "cache")
    assert len(engine.server.asked) == 8, "each row draws for itself"


def test_a_ledger_tells_a_bounded_number_of_reasons_apart(tmp_path: Path) -> None:
    class Wordy(Memory):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            return Completion(request.id, "", 1, 0, Finish.REFUSED, f"for the reason {request.id}")

    inputs = {"model": artifact(tmp_path / "m", "model"), "prompts": artifact(tmp_path / "p", "prompts", ROWS)}
    spec = RespondSpec(model="m", prompts="p", max_drop_rate=1)
    ledger = respond(spec, context(tmp_path, Wordy(), inputs)).ledger
    assert len(ledger.dropped) == MOST_REASONS + 1
    assert ledger.dropped["other reasons"] == len(ROWS) - MOST_REASONS
    assert ledger.rows_in == sum(ledger.dropped.values()) == len(ROWS)


def test_a_thought_is_kept_beside_the_answer_or_left_out(tmp_path: Path) -> None:
    class Thinking(Memory):
        def complete(self, model: str, batch: str, request: Request) -> Completion:
            if request.id.endswith("3"):
                return Completion(request.id, "", 1, 4, Finish.LENGTH, thinking="Let me see", thinking_tokens=4)
            return Completion(request.id, "It is 4.", 1, 7, Finish.STOP, thinking="Two and two.", thinking_tokens=4)

    inputs = {"model": artifact(tmp_path / "m", "model"), "prompts": artifact(tmp_path / "p", "prompts", ROWS[:10])}
    outcome = respond(RespondSpec(model="m", prompts="p"), context(tmp_path, Thinking(), inputs))
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["messages"][-1]["content"], row["messages"][-1]["thinking"]) for row in rows} == {
        ("It is 4.", "Two and two.")
    }
    assert outcome.ledger.dropped == {"unfinished": 1}
    assert outcome.metrics["thoughts"] == 10
    assert outcome.metrics["thinking tokens"] == 40
    respond(RespondSpec(model="m", prompts="p", thinking="drop"), context(tmp_path / "b", Thinking(), inputs))
    assert "thinking" not in (tmp_path / "b/out/rows.jsonl").read_text(encoding="utf-8")
