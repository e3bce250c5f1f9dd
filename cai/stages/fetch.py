"""Fetch: bring a model from where it is published into the store; of one that is served elsewhere, its address."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from cai.engines.base import ModelSource
from cai.errors import Problem, SpecError
from cai.files.library import Library
from cai.identity import ADDED, RUNTIME, path_digest
from cai.stages.base import ENDPOINT, Context, Ledger, Outcome, StageSpec
from cai.stages.flow.generation import write_json

API = "api:"
"""What the source of a model behind an OpenAI-compatible server begins with."""


def is_local(source: str) -> bool:
    """Whether a model is a file or a folder of this machine."""
    scheme, _, rest = source.partition(":")
    return scheme in ("gguf", "nemo") or (scheme == "hf" and rest.startswith(("/", "./", "../", "~")))


class FetchSpec(StageSpec):
    """A model by source; ``sha256`` (of the file) or ``revision`` (of the repository) pins it.

    ``identity``, ``url``, ``api_key_env``, ``logprobs`` and ``dialect`` are of an ``api:`` model. The key of this step
    is hashed from what the resolver takes as the model's identity, not from these fields.
    """

    MAKES: ClassVar[str] = "model"
    RESULT: ClassVar[bool] = False
    kind: Literal["fetch"] = "fetch"
    source: str
    revision: str = ""
    sha256: str = ""
    identity: str = ""
    url: Annotated[str, RUNTIME] = ""
    api_key_env: Annotated[str, RUNTIME] = ""
    logprobs: str = ""
    dialect: Annotated[str, ADDED("")] = ""
    parameters: Annotated[float | None, RUNTIME] = None


def run(spec: FetchSpec, ctx: Context) -> Outcome:
    """Fetch the model into ``ctx.out``; the metrics say what it is (parameters, digest, licence).

    Of an endpoint nothing is fetched and nothing asked: ``endpoint.json`` says where it was when it was first named and
    which variable has its key, never the key. Steps ask it where their plan says it is.

    Raises:
        SpecError: when a model of this machine is no longer the one that the plan was made for.
    """
    if spec.source.startswith(API):
        endpoint = {"model": spec.source.removeprefix(API), "url": spec.url, "api_key_env": spec.api_key_env}
        if spec.logprobs:
            endpoint["logprobs"] = spec.logprobs
        if spec.dialect:
            endpoint["dialect"] = spec.dialect
        write_json(ctx.out / ENDPOINT, endpoint)
        return Outcome(Ledger(), {"model": endpoint["model"], "url": spec.url})
    _check_unchanged(spec, ctx)
    source = ModelSource(spec.source, spec.revision, spec.sha256)
    return Outcome(Ledger(), ctx.engine.fetch(source, ctx.out, ctx.progress))


def _check_unchanged(spec: FetchSpec, ctx: Context) -> None:
    planned = ctx.planned_model.get("sha256", "")
    if spec.sha256 or spec.revision or not planned:
        return  # with a digest in the spec the engine checks it, and a commit is what it is
    path = Library.here().local(spec.source.partition(":")[2])
    if not path.exists() or path_digest(path) != planned:
        message = "the model has changed since the plan was made" if path.exists() else "the model is not there"
        raise SpecError(Problem(spec.source, message, "make the plan again"))
