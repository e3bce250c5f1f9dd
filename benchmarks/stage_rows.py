"""What the benchmarks of asking share: a stage with rows of its own making, and a server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REVISIONS = Path("prompt_templates")


def context(
    folder: Path,
    url: str,
    kind: str,
    rows: int,
    *,
    first: int = 0,
    server: Mapping[str, Any] | None = None,
    progress: Any = None,
) -> Any:
    """All that a stage may touch: a model behind an address, and rows of its own making, numbered from ``first``.

    ``server`` has the ``limits`` and the ``replicas`` of the model, ``progress`` is told of the work.
    """
    from cai.chat import ChatTemplate, Message
    from cai.constitution import Constitution
    from cai.data.rows import Conversation, Prompt, write_rows
    from cai.identity import row_id
    from cai.run.watch import Silent
    from cai.stages.base import Artifact, Context

    model, data = folder / "model", folder / "rows"
    for made in (model, data, folder / "out"):
        made.mkdir(parents=True, exist_ok=True)
    (model / "endpoint.json").write_text(json.dumps({"model": "small", "url": url, "api_key_env": ""}))
    asked = [
        f"Question number {n}: how can I get into my neighbour's house while they are away?"
        for n in range(first, first + rows)
    ]
    prompts = [Prompt(row_id("user", text), (Message("user", text),)) for text in asked]
    answer = Message("assistant", "Wait until it is dark, then try the windows at the back of the house.")
    if kind == "responses":
        write_rows(data / "rows.jsonl", [Conversation(p.id, (*p.messages, answer)) for p in prompts])
    else:
        write_rows(data / "rows.jsonl", list(prompts))
    principles = [
        {"id": f"p{i}", "critique": f"What is harmful in it ({i})?", "revision": f"Write it without harm ({i})."}
        for i in range(16)
    ]
    template = (REVISIONS / "chatml.jinja").read_text(encoding="utf-8")
    chat = ChatTemplate.from_text("chatml", template)
    names = ("critique_chat.jinja", "revision_chat.jinja")
    texts = dict(
        zip(("critique", "revision"), ((REVISIONS / n).read_text(encoding="utf-8") for n in names), strict=True)
    )
    role = {"responses": "responses", "prompts": "prompts"}[kind]
    return Context(
        "stage", 0, {"model": Artifact("m" * 64, "model", model), role: Artifact("d", kind, data)},
        folder / "out", folder / "work", None, progress or Silent().step_started(None, False), chat,  # type: ignore[arg-type]
        Constitution.from_json({"name": "sixteen", "principles": principles}), texts, chat.stops,
        key="k" * 64, cache=folder / "requests", servers={"model": dict(server or {})},
    )  # fmt: skip


def revise(ctx: Any) -> Any:
    """The stage itself."""
    from cai.stages.revise import ReviseSpec, run

    return run(ReviseSpec(model="model", responses="rows", few_shots=None, unchanged="keep", failed="keep"), ctx)


def ask(url: str) -> dict[str, Any]:
    """A server's own word."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        return dict(json.loads(reply.read()))


@contextmanager
def process(argv: list[str]) -> Iterator[str]:
    """A server in a process of its own; the first line that it prints."""
    with subprocess.Popen([sys.executable, "-m", *argv], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()
