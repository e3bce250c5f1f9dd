"""The mix stage on rows at hand, with its ledger checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.data.rows import Row, read_rows
from cai.stages.mix.stage import MixSpec, run
from tests.support.stage_doubles import Memory, artifact, context


def mix(folder: Path, sources: list[list[Row]], raw: dict[str, Any], **inputs: Any) -> tuple[Any, list[Row], list[Row]]:
    """The outcome, the rows to train on and the rows to validate on."""
    kind = type(sources[0][0])
    artifacts = tuple(artifact(folder / f"in{i}", kind.MAKES, rows) for i, rows in enumerate(sources))
    spec = MixSpec.model_validate({"kind": "mix", "sources": [{"from": f"s{i}"} for i in range(len(sources))], **raw})
    outcome = run(spec, context(folder, Memory(), {"sources": artifacts, **inputs}))
    train, val = (list(read_rows(folder / f"out/{part}.jsonl", kind)) for part in ("train", "val"))
    ledger = outcome.ledger
    assert ledger.rows_in == sum(map(len, sources)) == ledger.rows_out + sum(ledger.dropped.values())
    assert dict(ledger.parts) == {"train": len(train), "val": len(val)}
    return outcome, train, val
