"""What the request cache saves: a changed constitution asks again what it changed, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.chat import Message
from cai.clients.base import Request
from cai.constitution import Constitution
from cai.data.rows import Candidates, Conversation
from cai.stages import KINDS
from tests.support.flows import Flowing
from tests.support.stage_doubles import artifact, context, shipped, user

N = 320
TEXTS = {name: shipped(f"{name}.jinja") for name in ("critique", "revision", "comparison")}


def sixteen(**reworded: str) -> dict[str, Any]:
    return {
        "name": "sixteen",
        "principles": [
            {
                "id": f"p{i}",
                "critique": reworded.get(f"p{i}", f"What about {i}?"),
                "revision": f"Mend {i}.",
                "comparison": reworded.get(f"p{i}", f"Which is {i}?"),
            }
            for i in range(16)
        ],
    }


def asked(folder: Path, kind: str, constitution: dict[str, Any]) -> tuple[list[Request], list[list[str]]]:
    """What one stage asks with this constitution, and which principles each row drew."""
    engine = Flowing()
    turns = [(*user(f"Question {i}?"), Message("assistant", f"Bad {i}.")) for i in range(N)]
    inputs: dict[str, Any] = {"model": artifact(folder / "m", "model")}
    raw: dict[str, Any] = {"kind": kind, "model": "m"}
    if kind == "revise":
        rows = [Conversation(f"r{i:03}", turn) for i, turn in enumerate(turns)]
        inputs["responses"] = artifact(folder / "r", "responses", rows)
        raw |= {"responses": "r", "few_shots": None}
        texts = {name: TEXTS[name] for name in ("critique", "revision")}
    else:
        pairs = [Candidates(f"r{i:03}", turn[:1], (f"kind {i}", f"rude {i}")) for i, turn in enumerate(turns)]
        inputs["candidates"] = artifact(folder / "c", "candidates", pairs)
        raw |= {"candidates": "c", "scoring": "choice", "max_drop_rate": 1.0}
        texts = {"prompt": TEXTS["comparison"]}
    made = Constitution.from_json(constitution)
    where = folder / str(len(list(folder.glob("run*")))).join(("run", ""))
    ctx = replace(
        context(where, engine, inputs, texts), constitution=made, cache=folder / "cache", key=f"{where.name:0<64}"
    )
    spec = KINDS[kind].spec.model_validate(raw)
    KINDS[kind].run(spec, ctx)
    purpose = "revise/1" if kind == "revise" else "judge"
    drawn = [[p.id for p in made.draw_many(ctx.seed, f"r{i:03}", purpose, 1)] for i in range(N)]
    return [call for call in engine.server.asked if isinstance(call, Request)], drawn


@pytest.mark.parametrize("kind", ["revise", "judge"])
def test_rewording_one_of_sixteen_asks_only_rows_that_drew_it(tmp_path: Path, kind: str) -> None:
    first, drawn = asked(tmp_path, kind, sixteen())
    again, _ = asked(tmp_path, kind, sixteen())
    assert again == []
    mine = {f"r{i:03}" for i, ids in enumerate(drawn) if ids == ["p5"]}
    reworded, _ = asked(tmp_path, kind, sixteen(p5="Quite another question?"))
    assert {call.id.partition("/")[0] for call in reworded} == mine
    assert len(reworded) == len(mine) * len(first) // N
    assert 0.02 < len(mine) / N < 0.12


@pytest.mark.long
@pytest.mark.parametrize("kind", ["revise", "judge"])
def test_adding_one_to_sixteen_asks_about_a_seventeenth(tmp_path: Path, kind: str) -> None:
    first, before = asked(tmp_path, kind, sixteen())
    more = sixteen()
    more["principles"].append(
        {"id": "new", "critique": "New?", "revision": "Mend the new.", "comparison": "Which is newer?"}
    )
    added, after = asked(tmp_path, kind, more)
    moved = {f"r{i:03}" for i in range(N) if before[i] != after[i]}
    assert {call.id.partition("/")[0] for call in added} == moved
    assert 0.5 / 17 < len(moved) / N < 2 / 17
    assert len(added) < len(first) * 2 / 17
