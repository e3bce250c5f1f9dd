"""A small project for the tests of sweeps: an endpoint, a constitution of three principles, two experiments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.api_server import ApiServer, Say, answer, asked_for

IDS = ("kind", "honest", "brief")


def said(path: str, body: dict[str, Any]) -> Say:
    """Answers that depend on the question alone; every third one declines."""
    number = int(hashlib.sha256(asked_for(body).encode()).hexdigest(), 16)
    return answer(("I can't help with that, sorry. " if number % 3 == 0 else "Here it is: ") + str(number % 1000))


@contextmanager
def serving(react: Any = said) -> Iterator[ApiServer]:
    server = ApiServer(react)
    try:
        yield server
    finally:
        server.close()


def make_project(folder: Path, url: str, rows: int = 12) -> Path:
    """``experiment=small`` (respond, revise) and ``experiment=judged`` (also evaluate)."""
    for name in ("experiments", "constitutions"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    principles = [
        f"  - {{id: {name}, critique: 'Is it {name}?', revision: 'Make it {name}.', comparison: 'Which is {name}?', "
        f"tags: [{'tone' if name != 'honest' else 'truth'}]}}\n"
        for name in IDS
    ]
    (folder / "constitutions/three.yaml").write_text("principles:\n" + "".join(principles))
    (folder / "constitutions/two.yaml").write_text("principles:\n" + "".join(principles[:2]))
    (folder / "asks.jsonl").write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in range(rows)))
    head = (
        "defaults: [{/constitution: three}, {/template: chatml}, _self_]\n"
        f"models: {{m: {{source: 'api:tiny', url: '{url}'}}}}\n"
        "data: {asks: {path: asks.jsonl, makes: prompts}}\n"
        "stages:\n"
        "  respond: {model: m, prompts: asks}\n"
        "  revise: {model: m, responses: respond}\n"
    )
    (folder / "experiments/small.yaml").write_text(head)
    tail = "  evaluate: {models: {m: m}, prompts: {asks: asks}, benign: [asks]}\n"
    (folder / "experiments/judged.yaml").write_text(head + tail)
    return folder
