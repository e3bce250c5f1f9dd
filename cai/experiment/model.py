"""The typed experiment: everything that decides a result, checked all at once.

``parse`` turns composed data into an ``Experiment`` or raises one ``SpecError`` that lists every problem, each with
its file, line and field. ``outline`` keeps what can be read of data with problems, so that the wiring between stages,
which is the resolver's, is checked in the same go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cai.clients.dialect_table import DialectName
from cai.clients.settings import ApiLimits
from cai.data.source import DataSource
from cai.engines import ENGINES
from cai.errors import Problem, SpecError, did_you_mean
from cai.experiment.field_hints import field_hint
from cai.files.library import FIELDS
from cai.identity import ADDED, RUNTIME, odd_texts
from cai.settings import Settings, types_in
from cai.stages import KINDS
from cai.stages.base import StageSpec
from cai.trackers.settings import Tracking

NAME_RULE = "use letters, digits, '_' and '-', beginning with a letter"
STEP_KINDS = ("fetch", "read")
"""Kinds the resolver makes itself from ``models`` and ``data``; they are not written as stages."""


PASTED = ("api_key_env", "url", "replicas", "uri")
"""Fields of models and trackers into which people paste keys: an error never repeats what they hold."""


class ModelSpec(Settings):
    """A model: ``hf:NAME_OR_FOLDER``, ``gguf:FILE``, ``pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf`` or ``api:NAME``.

    An ``api:`` model is served elsewhere: ``url`` is its OpenAI-compatible address, which ends before
    ``/chat/completions``, and ``api_key_env`` the name of the environment variable that holds the key. ``template`` is
    the chat template in which this model is asked, where that is not the experiment's. ``parameters`` is the number of
    its weights, for estimates of memory.

    Where a model is served does not say which model it is: ``url`` and ``replicas`` do not count, and what one address
    answered is not asked again of another. It is known by its name and its ``revision``; ``identity``, where it is
    given, counts in place of both.

    ``logprobs`` says what the server tells of log-probabilities: ``top`` of the likeliest next tokens, ``prompt`` of
    the text it reads as well (``echo`` of /completions, as vLLM has it); empty for neither. ``replicas`` are further
    addresses of the same model, among which calls are spread, and ``limits`` how hard they may be asked. ``dialect``
    says which server it is, where that is known: it is then asked in its own words (``docs/servers.md``).
    """

    source: str
    revision: str = ""
    sha256: str = ""
    identity: str = ""
    url: Annotated[str, RUNTIME] = ""
    api_key_env: str = ""
    template: str = ""
    logprobs: Literal["", "top", "prompt"] = ""
    dialect: Annotated[DialectName, ADDED("")] = ""
    replicas: Annotated[tuple[str, ...], RUNTIME] = ()
    limits: Annotated[ApiLimits, RUNTIME] = ApiLimits()
    parameters: Annotated[float | None, RUNTIME, Field(gt=0)] = None

    @field_validator("replicas")
    @classmethod
    def _are_addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(cls._is_address(value) for value in values)

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not value:
            return value
        if any(c in value for c in "@?#"):
            raise ValueError("holds a user, a password or a query; a key goes into the variable that api_key_env names")
        try:
            parts = urlsplit(value)
            port, host = parts.port, parts.hostname
        except ValueError:
            raise ValueError("is no address; write https://HOST/v1") from None
        if (
            parts.scheme not in ("http", "https")
            or not host
            or port == 0
            or any(c.isspace() or c == "\\" for c in value)
        ):
            raise ValueError("is no address; write https://HOST/v1")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, value: str) -> str:
        # A key of capitals and digits alone would pass for a name; names of that length have words in them.
        solid = len(value) >= 20 and "_" not in value and any(c.isdigit() for c in value)
        if value and (solid or not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value)):
            raise ValueError(
                "wants the NAME of an environment variable, e.g. NGC_API_KEY, in capitals; if this is the key itself, "
                "take it out of the file and export it under a name"
            )
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> ModelSpec:
        if self.source.startswith("api:"):
            if not self.url:
                raise ValueError("an api: model needs the `url` of its server, e.g. https://HOST/v1")
            if self.sha256:
                raise ValueError("sha256 is of a file, and an api: model has none; leave it out")
        elif any((self.url, self.api_key_env, self.replicas, self.logprobs, self.dialect, self.identity)) or (
            self.limits != ApiLimits()
        ):
            message = (
                "url, api_key_env, replicas, logprobs, dialect, identity and limits are of models served elsewhere"
            )
            raise ValueError(f"{message}; write source: api:NAME")
        return self


@dataclass(frozen=True)
class Experiment:
    """An experiment whose every field is valid by itself."""

    name: str
    description: str
    seed: int
    engine: dict[str, Any]
    constitution: Mapping[str, Any] | None
    template: str
    models: Mapping[str, ModelSpec]
    data: Mapping[str, DataSource]
    stages: Mapping[str, StageSpec]
    raw: Mapping[str, Any]
    tracking: Tracking = field(default_factory=Tracking)
    engines: Mapping[str, dict[str, Any]] = field(default_factory=dict)


Where = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Unread:
    """A block of an experiment that cannot be read: as it is written, and of a stage the spec that it was to become."""

    raw: Any
    model: type[StageSpec] | None = None


@dataclass(frozen=True)
class Outline:
    """What can be read of an experiment, and all that is wrong with it.

    A block that is sound but for fields that nobody knows is in ``experiment`` without these; what cannot be read is in
    ``unread``, by its path (``stages.sft``). An engine that cannot be read is there, too, and in its place in
    ``experiment`` stands one of its kind with default settings.
    """

    experiment: Experiment
    problems: tuple[Problem, ...] = ()
    unread: Mapping[str, Unread] = field(default_factory=dict)


def parse(raw: Mapping[str, Any], where: Where = str) -> Experiment:
    """Check composed data. ``where`` turns a field's path into file, line and path.

    Raises:
        SpecError: with every problem there is.
    """
    outlined = outline(raw, where)
    if outlined.problems:
        raise SpecError(outlined.problems)
    return outlined.experiment


def outline(raw: Mapping[str, Any], where: Where = str) -> Outline:
    """As ``parse``, of data that may have problems.

    Raises:
        SpecError: for texts that no file can hold; of these nothing can be said.
    """
    problems: list[Problem] = []
    unread: dict[str, Unread] = {}
    problems += (Problem(where(path), message, "take it out") for path, message in odd_texts(raw))
    if problems:
        raise SpecError(problems)
    for key in raw:
        if key not in FIELDS:
            problems.append(Problem(where(str(key)), "unknown field", did_you_mean(str(key), FIELDS)))
    name, seed = raw.get("name", "experiment"), raw.get("seed", 0)
    if not _is_name(name):
        problems.append(Problem(where("name"), f"{name!r} is no name", NAME_RULE))
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        problems.append(Problem(where("seed"), f"{seed!r} is no seed", "use a whole number from 0"))
        seed = 0
    engine = _engine(raw.get("engine", {}), "engine", where, problems=problems, unread=unread)
    engines = _engines(raw.get("engines"), where, problems=problems, unread=unread)
    tables = {
        section: _table(section, raw, where, problems=problems, unread=unread)
        for section in ("models", "data", "stages")
    }
    if not raw.get("stages"):
        problems.append(Problem(where("stages"), "the experiment has no stages", f"known kinds: {', '.join(KINDS)}"))
    tracking = _tracking(raw.get("tracking"), where, problems)
    constitution = raw.get("constitution")
    if constitution is not None and not isinstance(constitution, Mapping):
        problems.append(Problem(where("constitution"), "must be a constitution", "give `constitution=NAME`"))
        unread["constitution"] = Unread(constitution)
        constitution = None
    template = raw.get("template", {})
    template_name = template.get("name") if isinstance(template, Mapping) else template
    if template_name is not None and not isinstance(template_name, str):
        problems.append(Problem(where("template"), "must name a chat template", "give `template=NAME`"))
        unread["template"] = Unread(template)
        template_name = None
    problems += _shared_names(raw, where)
    experiment = Experiment(
        name=str(name),
        description=str(raw.get("description", "")),
        seed=seed,
        engine=engine,
        engines=engines,
        constitution=constitution,
        template=template_name or "",
        **tables,
        raw=raw,
        tracking=tracking,
    )
    return Outline(experiment, tuple(problems), unread)


def _shared_names(raw: Mapping[str, Any], where: Where) -> list[Problem]:
    models, data, stages = (
        set(block) if isinstance(block := raw.get(section), Mapping) else set[Any]()
        for section in ("models", "data", "stages")
    )
    shared = (models & stages) | (models & data) | (data & stages)
    return [
        Problem(where(f"stages.{name}"), "the name stands for two things", "rename one of them")
        for name in sorted(map(str, shared))
    ]


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and len(name) <= 64
        and name[:1].isalpha()
        and name.isascii()
        and all(c.isalnum() or c in "_-" for c in name)
    )


def _engine(raw: Any, path: str, where: Where, *, problems: list[Problem], unread: dict[str, Unread]) -> dict[str, Any]:
    if isinstance(raw, str):
        raw = {"kind": raw}
    if not isinstance(raw, Mapping):
        problems.append(Problem(where(path), "must be a mapping", f"{path}: {{kind: embedded}}"))
        unread[path] = Unread(raw)
        return _default_engine("embedded")
    kind = raw.get("kind", "embedded")
    if not isinstance(kind, str) or kind not in ENGINES:
        problems.append(Problem(where(f"{path}.kind"), f"unknown engine {kind!r}", did_you_mean(str(kind), ENGINES)))
        unread[path] = Unread(raw)
        return _default_engine("embedded")
    settings = {k: v for k, v in raw.items() if k != "kind"}
    checked = validate(ENGINES[kind].settings, settings, path=path, where=where, problems=problems)
    if checked is None:
        unread[path] = Unread(raw)
        return _default_engine(kind)
    return {"kind": kind, **checked.model_dump(mode="json")}


def _default_engine(kind: str) -> dict[str, Any]:
    return {"kind": kind, **ENGINES[kind].settings().model_dump(mode="json")}


def _engines(
    raw: Any, where: Where, *, problems: list[Problem], unread: dict[str, Unread]
) -> dict[str, dict[str, Any]]:
    """The engines that stages may name, beside the experiment's own."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        problems.append(Problem(where("engines"), "must be a mapping of names", "engines: {name: {kind: embedded}}"))
        return {}
    engines: dict[str, dict[str, Any]] = {}
    for name, block in raw.items():
        path = f"engines.{name}"
        if not _is_name(name):
            problems.append(Problem(where(path), f"{name!r} is no name", NAME_RULE))
            continue
        engine = _engine(block, path, where, problems=problems, unread=unread)
        if name in ENGINES and path not in unread and engine["kind"] != name:
            problems.append(Problem(where(path), f"is called like the engine {name}, and is another", "rename it"))
        engines[str(name)] = engine
    return engines


def _tracking(raw: Any, where: Where, problems: list[Problem]) -> Tracking:
    if raw is None:
        return Tracking()
    if not isinstance(raw, Mapping):
        problems.append(Problem(where("tracking"), "must be a mapping of trackers", "tracking: {tensorboard: {}}"))
        return Tracking()
    return validate(Tracking, raw, path="tracking", where=where, problems=problems) or Tracking()


def _stage_type(name: str, raw: Mapping[str, Any], where: Where, problems: list[Problem]) -> type[StageSpec] | None:
    kind = raw.get("kind", name)
    if not isinstance(kind, str):
        problems.append(Problem(where(f"stages.{name}.kind"), "must name a kind of stage", did_you_mean("", KINDS)))
        return None
    kinds = [k for k in KINDS if k not in STEP_KINDS]
    if kind in kinds:
        return KINDS[kind].spec.variant(raw)
    if "kind" in raw:
        message, path = f"unknown kind of stage {kind!r}", f"stages.{name}.kind"
    else:
        message, path = f"'{name}' is no kind of stage", f"stages.{name}"
    hint = did_you_mean(str(kind), kinds) if "kind" in raw else f"add `kind:`; {did_you_mean(str(kind), kinds)}"
    problems.append(Problem(where(path), message, hint))
    return None


def _table(
    section: str, raw: Mapping[str, Any], where: Where, *, problems: list[Problem], unread: dict[str, Unread]
) -> dict[str, Any]:
    checked_entries: dict[str, Any] = {}
    items = raw.get(section) or {}
    if not isinstance(items, Mapping):
        problems.append(Problem(where(section), "must be a mapping of names", f"{section}: {{name: ...}}"))
        unread[section] = Unread(items)
        return checked_entries
    for name, value in items.items():
        path = f"{section}.{name}"
        if not _is_name(name):
            problems.append(Problem(where(path), f"{name!r} is no name", NAME_RULE))
            unread[path] = Unread(value)
            continue
        if section == "models" and isinstance(value, str):
            value = {"source": value}
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            problems.append(Problem(where(path), "must be a mapping of fields"))
            unread[path] = Unread(value)
            continue
        stage = _stage_type(name, value, where, problems) if section == "stages" else None
        model: type[Any] | None = stage if section == "stages" else {"models": ModelSpec, "data": DataSource}[section]
        if section == "stages":
            value = {**value, "kind": value.get("kind", name)}
        checked = None if model is None else validate(model, value, path=path, where=where, problems=problems)
        if checked is None:
            unread[path] = Unread(value, stage)
        else:
            checked_entries[name] = checked
    return checked_entries


def validate(model: type[Any], value: Mapping[str, Any], *, path: str, where: Where, problems: list[Problem]) -> Any:
    """``model.model_validate(value)``, every error turned into a ``Problem``.

    Where only unknown fields are wrong, what is valid without them; None where more is.
    """
    remaining: Any = value
    for _ in range(2):
        try:
            return model.model_validate(remaining)
        except ValidationError as error:
            items = _real_errors(error)
        field_problems = [_problem(model, item, path, where) for item in items]
        problems += [problem for problem in field_problems if problem not in problems]
        for item in items:
            if item["type"] == "extra_forbidden":
                remaining = _without(remaining, item["loc"])
    return None


def _real_errors(error: ValidationError) -> list[Any]:
    """The errors, without those that a list is too short which say only that its items are wrong."""
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(p != item["loc"] and p[: len(item["loc"])] == item["loc"] for p in places)
    ]


def _without(value: Any, location: tuple[str | int, ...]) -> Any:
    """Plain data without the field at a place; as it is where there is no such place."""
    head, *rest = location
    if isinstance(value, Mapping):
        if head not in value:
            return _without(value, tuple(rest)) if rest else value  # pydantic's own word for a type
        if not rest:
            return {name: inner for name, inner in value.items() if name != head}
        return {**value, head: _without(value[head], tuple(rest))}
    if isinstance(value, list | tuple) and rest:
        if not isinstance(head, int):
            return _without(value, tuple(rest))
        return [_without(inner, tuple(rest)) if number == head else inner for number, inner in enumerate(value)]
    return value


def _problem(model: type[BaseModel], item: Any, path: str, where: Where) -> Problem:
    full, here, enclosing, last = path, model, [model], model
    above = path
    for depth, part in enumerate(item["loc"], 1):
        # The end of an unknown field's place is what a person wrote, whatever it is.
        if _is_tag(part) and not (item["type"] == "extra_forbidden" and depth == len(item["loc"])):
            continue
        last, here = here, _field_model(here, part)
        if here is not enclosing[-1]:
            enclosing.append(here)
        above = full
        full += f"[{part}]" if isinstance(part, int) else f".{part}"
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        if isinstance(last, type) and issubclass(last, StageSpec) and (reason := last.misfit(name)):
            return Problem(where(full), reason, "leave it out")
        return Problem(where(full), "unknown field", field_hint(name, enclosing, above))
    if item["type"] == "union_tag_invalid":
        expected_tags = [word.strip(" '") for word in str(item["ctx"]["expected_tags"]).split(",")]
        tag, name = str(item["ctx"]["tag"]), str(item["ctx"]["discriminator"]).strip("'")
        return Problem(where(f"{full}.{name}"), f"unknown {name} {tag!r}", did_you_mean(tag, expected_tags))
    if item["type"] == "missing":
        return Problem(where(full), "is missing", "")
    given_value = item.get("input")
    hidden = model in (ModelSpec, Tracking) and any(part in PASTED for part in item["loc"])
    excerpt = (
        ""
        if hidden or isinstance(given_value, Mapping | list) or given_value is None
        else f" (got {str(given_value)[:60]!r})"
    )
    message = item["msg"].removeprefix("Value error, ")
    return Problem(where(full), message[:1].lower() + message[1:] + excerpt)


def _is_tag(part: str | int) -> bool:
    """Whether a part of an error's place is pydantic's own word for a type, and no field: ``list[str]``, ``str``."""
    tags = ("function-", "constrained-", "literal[", "tuple[", "list[", "dict[")
    return isinstance(part, str) and (part.startswith(tags) or part in ("str", "int", "float", "bool", "tuple", "list"))


def _field_model(model: Any, part: str | int) -> Any:
    """The model behind a field, looked for inside Optional, tuple and dict annotations."""
    if isinstance(part, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
        return model
    info = model.model_fields.get(part)
    if info is None:
        return model
    for candidate in types_in(info.annotation):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return model
