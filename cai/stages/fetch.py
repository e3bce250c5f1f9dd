"""Fetch: bring a model from where it is published into the store; of one that is served elsewhere, its address."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from cai.engines.base import ModelSource
from cai.identity import RUNTIME
from cai.stages.base import ENDPOINT, Context, Ledger, Outcome, StageSpec
from cai.stages.flow.generation import write_json

API = "api:"
"""What the source of a model behind an OpenAI-compatible server begins with."""


class FetchSpec(StageSpec):
    """A model by source; ``sha256`` (of the file) or ``revision`` (of the repository) pins it.

    ``url``, ``api_key_env`` and ``logprobs`` are of an ``api:`` model. The key of this step is hashed from what the
    resolver takes as the model's identity, not from these fields.
    """

    MAKES: ClassVar[str] = "model"
    RESULT: ClassVar[bool] = False
    kind: Literal["fetch"] = "fetch"
    source: str
    revision: str = ""
    sha256: str = ""
    url: str = ""
    api_key_env: Annotated[str, RUNTIME] = ""
    logprobs: str = ""
    parameters: Annotated[float | None, RUNTIME] = None


def run(spec: FetchSpec, ctx: Context) -> Outcome:
    """Fetch the model into ``ctx.out``; the metrics say what it is (parameters, digest, licence).

    Of an endpoint nothing is fetched and nothing asked: ``endpoint.json`` says where it is and which variable has its
    key, never the key.
    """
    if spec.source.startswith(API):
        endpoint = {"model": spec.source.removeprefix(API), "url": spec.url, "api_key_env": spec.api_key_env}
        if spec.logprobs:
            endpoint["logprobs"] = spec.logprobs
        write_json(ctx.out / ENDPOINT, endpoint)
        return Outcome(Ledger(), {"model": endpoint["model"], "url": spec.url})
    source = ModelSource(spec.source, spec.revision, spec.sha256)
    return Outcome(Ledger(), ctx.engine.fetch(source, ctx.out, ctx.progress))
