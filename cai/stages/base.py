"""What every kind of stage shares: how its spec is declared, and what its work is given.

A stage file holds a spec (data, decided while planning) and ``run`` (work, called by the executor alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from cai.chat import ChatTemplate
from cai.clients.base import Client, Sampling
from cai.clients.metering import Meter, ModelUse
from cai.constitution import Constitution
from cai.engines.base import Attempt, Progress, Session
from cai.identity import RUNTIME, key_of
from cai.settings import Settings, counts, semantic_value, types_in

if TYPE_CHECKING:
    from cai.clients.spending import Account

T = TypeVar("T")

ENDPOINT = "endpoint.json"
"""The file of a model that is served elsewhere: {model, url, api_key_env}. Its folder holds no weights.

What it says of the address was so when it was written; a plan says where the model is now."""


@dataclass(frozen=True, slots=True)
class Wants:
    """Marks a spec field as an input: the name of a stage, a model or a data part that makes one of ``kinds``.

    ``Annotated[str, Wants("prompts", "comparisons")]``; a tuple or dict of names works alike.
    """

    kinds: tuple[str, ...]

    def __init__(self, *kinds: str) -> None:
        object.__setattr__(self, "kinds", kinds)


IS_A = {
    "responses": ("conversations",),
    "revisions": ("conversations",),
    "conversations": (),
    "comparisons": (),
    "prompts": (),
    "candidates": (),
    "model": (),
    "reward_model": (),
    "evaluation": (),
}
"""What else an artifact counts as, wherever an input of that kind is wanted."""


def fits(makes: str, kinds: tuple[str, ...]) -> bool:
    """Whether an artifact of kind ``makes`` can be an input that wants one of ``kinds``."""
    return makes in kinds or any(kind in kinds for kind in IS_A.get(makes, ()))


@dataclass(frozen=True, slots=True)
class TextFile:
    """Marks a spec field as the name of a text file that users edit (a prompt template, few-shots).

    The name is not part of the identity; the file's text is. ``folder`` is the group it is looked up in.
    """

    folder: str = "prompt_templates"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step is expected to do; None where it cannot be known before. ``width``: answers in each row it makes.

    ``uses`` is what each model is asked, by role (``models.LABEL``), None where that cannot be known; a step with one
    model, in the role ``model``, leaves it out.
    """

    rows: int | None = None
    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    width: int = 1
    uses: Mapping[str, ModelUse | None] = field(default_factory=dict)

    def use_of(self, role: str) -> ModelUse | None:
        """What the model of a role is asked."""
        if self.uses:
            return self.uses.get(role, ModelUse())
        return None if self.rows is None else ModelUse(self.calls, self.prompt_tokens, self.tokens)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows in = rows out + rows dropped, by reason. ``parts`` counts rows out by part (train, val ...)."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage's work returns: its ledger, numbers for the record, and tokens for the rate."""

    ledger: Ledger
    metrics: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished input: its key, what kind it is (``prompts``, ``model`` ...), its folder and its record.

    ``former`` are keys that it had before: what was asked under them is not asked again.
    """

    key: str
    makes: str
    path: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    former: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``index`` (from 0) of ``count`` of a step's rows."""

    index: int
    count: int


@dataclass(frozen=True)
class Context:
    """All that a stage's work may touch.

    ``templates`` are those of models that have their own, where a role has several models (by label). ``api_keys`` are
    names of environment variables by role (``model``, ``models.LABEL``), ``servers`` where an endpoint is and what else
    it is asked with: the plan's, which a change reaches without a rerun. ``key`` is the step's, ``planned_model`` what
    the plan says of the model that the step fetches, ``serves`` what of the engine decides an answer; ``cache`` is the
    folder of the request cache, ``accounts`` that of what was spent, where the steps of ``plan_keys`` count together
    for a budget. A ``shard`` does only its part of the rows. A ``meter`` is told what each row's calls read and write.
    ``served`` is the folder of what servers first said they serve.
    """

    name: str
    seed: int
    inputs: Mapping[str, Artifact | tuple[Artifact, ...] | dict[str, Artifact]]
    out: Path
    work: Path
    engine: Session
    progress: Progress
    template: ChatTemplate | None
    constitution: Constitution | None
    texts: Mapping[str, str]
    stops: tuple[str, ...] = ()
    templates: Mapping[str, ChatTemplate] = field(default_factory=dict)
    api_keys: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    key: str = ""
    planned_model: Mapping[str, Any] = field(default_factory=dict)
    serves: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    accounts: Path | None = None
    plan_keys: tuple[str, ...] = ()
    shard: Shard | None = None
    meter: Meter | None = None
    served: Path | None = None

    def input(self, role: str) -> Artifact:
        """The artifact of a role that has exactly one."""
        artifact = self.inputs[role]
        if not isinstance(artifact, Artifact):
            raise TypeError(f"{self.name}: input {role!r} has several artifacts")
        return artifact

    @property
    def chat(self) -> ChatTemplate:
        """The chat template; planning has made sure that there is one."""
        if self.template is None:
            raise ValueError(f"{self.name}: no chat template")
        return self.template

    @property
    def principles(self) -> Constitution:
        """The constitution; planning has made sure that there is one."""
        if self.constitution is None:
            raise ValueError(f"{self.name}: no constitution")
        return self.constitution

    @property
    def attempt(self) -> Attempt:
        """This attempt, as an engine's training takes it."""
        return Attempt(self.seed, self.out, self.work, self.progress)

    def model(self, role: str, label: str = "") -> Artifact:
        """The model of a role; ``label`` names one of several."""
        models = self.inputs[role]
        if isinstance(models, dict):
            return models[label]
        return self.input(role)

    def client(self, role: str, label: str = "") -> AbstractContextManager[Client]:
        """A model, served while the ``with`` block lasts."""
        name = f"{role}.{label}" if label else role
        model, account = self.model(role, label), None
        if self.accounts is not None and (model.path / ENDPOINT).is_file():
            from cai.clients.spending import Account

            account = Account(self.accounts / f"{model.key[:32]}.json", self.key, self.plan_keys)
        return serving(self.engine, model.path, self.api_keys.get(name), self.servers.get(name), account=account)

    def flows(self, role: str, label: str = "") -> bool:
        """Whether the model's client takes calls one by one; known without opening it."""
        return (self.model(role, label).path / ENDPOINT).is_file() or self.engine.flows

    def scope(self, role: str, label: str = "") -> str:
        """What decides the answer to a call beside the call itself: the model, and the engine that serves it."""
        model = self.model(role, label)
        here = not (model.path / ENDPOINT).is_file()
        return key_of({"model": model.key, "engine": dict(self.serves) if here else {}})

    def former_scopes(self, role: str, label: str = "") -> tuple[str, ...]:
        """What ``scope`` was while the address of a model behind an API counted."""
        return tuple(key_of({"model": key, "engine": {}}) for key in self.model(role, label).former)


class serving:  # noqa: N801 - reads as a verb: ``with serving(engine, model) as client``
    """A client that is closed at the end of the block: the engine's, or that of the endpoint the model is behind.

    ``api_key_env`` names the variable with the endpoint's key, without it ``endpoint.json`` says; ``server`` has the
    ``limits`` and ``replicas`` of the endpoint, and its ``url`` and the name of its ``model`` where the plan says them.
    """

    def __init__(
        self,
        engine: Session,
        model: Path,
        api_key_env: str | None = None,
        server: Mapping[str, Any] | None = None,
        *,
        account: Account | None = None,
    ) -> None:
        self._engine = engine
        self._model = model
        self._api_key_env = api_key_env
        self._server = server or {}
        self._account = account

    def __enter__(self) -> Client:
        endpoint = self._model / ENDPOINT
        if endpoint.is_file():
            from cai.clients.settings import ApiLimits
            from cai.clients.sharing import share_endpoint

            limits = ApiLimits.model_validate(self._server.get("limits", {}))
            replicas = tuple(self._server.get("replicas", ()))
            place = {
                name: self._server[name] for name in ("model", "url", "logprobs", "dialect") if name in self._server
            }
            self._client: Client = share_endpoint(
                endpoint, self._api_key_env, limits, replicas, place=place, account=self._account
            )
        else:
            self._client = self._engine.client(self._model)
        return self._client

    def __exit__(self, *exc: object) -> None:
        self._client.close()


class StageSpec(Settings):
    """Base of every stage's spec. ClassVars say what the resolver must know.

    VERSION: bump when the same spec would now give other bytes. MAKES: the kind of artifact.
    USES_TEMPLATE: whether the chat template is part of the identity.
    PRINCIPLE_FIELDS: the fields of a principle that this stage reads; empty when it reads no constitution.
    ONLY_COMPARED: roles of which no row goes into what the stage makes.
    RESULT: whether what it makes is a result of the experiment, and not only taken from elsewhere.
    """

    VERSION: ClassVar[int] = 1
    MAKES: ClassVar[str] = ""
    USES_TEMPLATE: ClassVar[bool] = False
    PRINCIPLE_FIELDS: ClassVar[tuple[str, ...]] = ()
    ONLY_COMPARED: ClassVar[tuple[str, ...]] = ()
    RESULT: ClassVar[bool] = True

    kind: str

    @classmethod
    def variants(cls) -> Mapping[str, type[StageSpec]]:
        """The specs of which a stage of this kind has one, by what tells them apart; none where this is all of it."""
        return {}

    @classmethod
    def variant(cls, raw: Mapping[str, Any]) -> type[StageSpec]:
        """The spec that fields are written for."""
        return cls

    @classmethod
    def misfit(cls, name: str) -> str:
        """Why a field that a variant has is none of this one; empty where no variant has it."""
        return ""

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Expected work, from the known row counts of the inputs.

        ``rows`` has every role; a role of several inputs is also there item by item as ``role.0``, ``role.name``,
        and by itself as the sum (None when any is unknown). ``role:width`` is the answers in each row of a role, and
        ``constitution:principles`` how many principles are active.
        """
        return Estimate()

    def makes(self, inputs: Mapping[str, str]) -> str:
        """The kind of artifact, where it depends on the kinds of the inputs (by role, items as in ``estimate``)."""
        return self.MAKES

    def check_template(self, template: Callable[[], ChatTemplate]) -> None:
        """Whether the stage can use the chat template that the plan gives it, which is made when it is asked for.

        Raises:
            SpecError: with the field that asks for too much.
        """


class EngineSpec(StageSpec):
    """Base of the specs of stages that ask a model, or train one.

    ``engine`` is not hashed by itself: what of an engine decides the result is an ingredient of the step.
    """

    engine: Annotated[
        str, RUNTIME, Field(description="one of `engines`, or a kind of engine as it is; empty: the experiment's")
    ] = ""


@dataclass(frozen=True, slots=True)
class SpecParts:
    """A spec taken apart by how each field counts."""

    inputs: dict[str, str | list[str] | dict[str, str]]
    wants: dict[str, tuple[str, ...]]
    texts: dict[str, tuple[str, str]]
    semantic: dict[str, Any]


def take_apart(spec: Settings) -> SpecParts:
    """Inputs by role, text files by field (folder, name), and what counts for the identity by itself.

    Names of inputs and of text files do not count: the keys of the inputs and the texts do. RUNTIME fields do not
    count at all, ADDED ones not at the value that was there before them. In a list of nested settings that name inputs
    (``sources``), the role is the list's field.
    """
    parts = SpecParts({}, {}, {}, dict(spec.FORMER))
    plain = spec.model_dump(mode="json", by_alias=True)
    for name, info in type(spec).model_fields.items():
        value, field_name = getattr(spec, name), info.alias or name
        wants = next((m for m in info.metadata if isinstance(m, Wants)), None)
        text = next((m for m in info.metadata if isinstance(m, TextFile)), None)
        if wants is not None:
            if value or value == "":  # an empty name is a wrong one; there is none where nothing stands
                parts.inputs[name] = value if isinstance(value, str) else _plain_names(value)
                parts.wants[name] = wants.kinds
        elif text is not None:
            if value or value == "" != info.default:  # as above, where empty does not stand for the shipped one
                parts.texts[name] = (text.folder, value)
        elif not counts(info, value):
            continue
        elif isinstance(value, tuple | list) and value and all(isinstance(v, Settings) for v in value):
            inner = [take_apart(v) for v in value]
            input_names = [next(iter(i.inputs.values())) for i in inner if i.inputs]
            if input_names:
                parts.inputs[name] = [n for n in input_names if isinstance(n, str)]
                parts.wants[name] = tuple(dict.fromkeys(k for i in inner for w in i.wants.values() for k in w))
            parts.semantic[field_name] = [i.semantic for i in inner]
        else:
            parts.semantic[field_name] = semantic_value(value, plain[field_name])
    return parts


def readable_parts(spec: type[Settings], raw: Mapping[str, Any]) -> SpecParts:
    """The inputs and text files that fields name, of a stage of which other fields are wrong; nothing counts of it."""
    parts = SpecParts({}, {}, {}, {})
    for name, info in spec.model_fields.items():
        value = raw.get(info.alias or name)
        wants = next((m for m in info.metadata if isinstance(m, Wants)), None)
        text = next((m for m in info.metadata if isinstance(m, TextFile)), None)
        if wants is not None and (names := _written_names(value)):
            parts.inputs[name] = names
            parts.wants[name] = wants.kinds
        elif text is not None and isinstance(value, str) and value:
            parts.texts[name] = (text.folder, value)
        elif isinstance(value, list):
            nested = [t for t in types_in(info.annotation) if isinstance(t, type) and issubclass(t, Settings)]
            inner = [readable_parts(nested[0], item) for item in value if nested and isinstance(item, Mapping)]
            input_names = [n for i in inner for n in i.inputs.values() if isinstance(n, str)]
            if input_names:
                parts.inputs[name] = input_names
                parts.wants[name] = tuple(dict.fromkeys(k for i in inner for w in i.wants.values() for k in w))
    return parts


def _written_names(value: Any) -> str | list[str] | dict[str, str] | None:
    """Names as a file writes them; None where they are no names."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in (*value, *value.values())):
        return dict(value)
    return list(value) if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


def _plain_names(value: Any) -> list[str] | dict[str, str]:
    return dict(value) if isinstance(value, Mapping) else list(value)


class Sampled(Settings):
    """How a stage draws tokens; ``stop`` adds to the template's own stop strings."""

    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 64
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    stop: tuple[str, ...] = ()

    def sampling(self, stops: tuple[str, ...] = ()) -> Sampling:
        """The client's view, with the template's stop strings added."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(dict.fromkeys((*self.stop, *stops))),
        )


def chunks(rows: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive pieces of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
