"""Fetch: bring a model from where it is published into the store, as a Hugging Face folder."""

from __future__ import annotations

from typing import ClassVar, Literal

from cai.engines.base import ModelSource
from cai.stages.base import Context, Ledger, Outcome, StageSpec


class FetchSpec(StageSpec):
    """A model by source; ``sha256`` (of the file) or ``revision`` (of the repository) pins it."""

    MAKES: ClassVar[str] = "model"
    kind: Literal["fetch"] = "fetch"
    source: str
    revision: str = ""
    sha256: str = ""


def run(spec: FetchSpec, ctx: Context) -> Outcome:
    """Fetch the model into ``ctx.out``; the metrics say what it is (parameters, digest, licence)."""
    source = ModelSource(spec.source, spec.revision, spec.sha256)
    return Outcome(Ledger(), ctx.engine.fetch(source, ctx.out, ctx.progress))
