"""The plan: steps in order, each frozen with its identity. Pure data; opens no file and starts nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import key_of, odd_texts

FORMAT = 1
"""The version of a plan's file, and so of the ingredients and of the estimates in it."""

Names = str | list[str] | dict[str, str]
"""The steps of one role as a plan's file has them: one, several in order, or several by label."""


@dataclass(frozen=True, slots=True)
class Input:
    """A step that another one reads, in one of its roles.

    ``label`` tells apart the steps of a role that has several: their names in a mapping, or their places in a list.
    """

    role: str
    label: str | int | None
    step: str

    @property
    def place(self) -> str:
        """``role``, or ``role.label``: how problems, keys' variables and what a stage makes name it."""
        return self.role if self.label is None else f"{self.role}.{self.label}"


def inputs_of(steps_by_role: Mapping[str, Names]) -> tuple[Input, ...]:
    """The inputs that a plan's file has, by role."""
    inputs: list[Input] = []
    for role, names in steps_by_role.items():
        if isinstance(names, str):
            inputs.append(Input(role, None, names))
        else:
            labelled = names.items() if isinstance(names, Mapping) else enumerate(names)
            inputs += [Input(role, label, name) for label, name in labelled]
    return tuple(inputs)


def by_role(inputs: Iterable[Input]) -> dict[str, Names]:
    """The inverse of ``inputs_of``."""
    steps_by_role: dict[str, Names] = {}
    for entry in inputs:
        if entry.label is None:
            steps_by_role[entry.role] = entry.step
        elif isinstance(entry.label, int):
            places = steps_by_role.setdefault(entry.role, [])
            assert isinstance(places, list)
            places.append(entry.step)
        else:
            labels = steps_by_role.setdefault(entry.role, {})
            assert isinstance(labels, dict)
            labels[entry.label] = entry.step
    return steps_by_role


InputKeys = str | list[str] | list[list[str]]
"""The keys of one role's inputs: one, several in order, or [label, key] pairs, whose order counts too."""

_INGREDIENT_TYPES: dict[str, type] = {
    "kind": str,
    "version": int,
    "spec": Mapping,
    "model": Mapping,
    "format": str,
    "data": Mapping,
    "part": str,
    "constitution": Mapping,
    "template": str,
    "templates": Mapping,
    "texts": Mapping,
    "inputs": Mapping,
    "engine": Mapping,
    "seed": int,
}
"""The ingredients that this program knows, in the order in which plans and records have them."""


class HubEntry(TypedDict):
    """A file of a hub's repository that data was read from."""

    name: str
    revision: str
    file: str


class DataIdentity(TypedDict, total=False):
    """What is relied on of a data source's ingredients; more may stand there."""

    sha256: list[str]
    hub: list[HubEntry]
    splits: list[tuple[str, float | int]]


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a step's key is the hash of; None stands for what has no part in it, which an empty mapping has.

    ``other`` is what another version of this program wrote: it is kept, and counts.
    """

    kind: str | None = None
    version: int | None = None
    # What counts of the stage's own fields.
    spec: Mapping[str, Any] | None = None
    # Of a model that is fetched: what it is, and the format that it is converted to.
    model: Mapping[str, Any] | None = None
    format: str | None = None
    # Of data that is read: what the source is, and which part of it.
    data: Mapping[str, Any] | None = None
    part: str | None = None
    # {principles: [...]}, with only the fields that the stage reads.
    constitution: Mapping[str, Any] | None = None
    # Digests of texts: the chat template, the templates of models with their own by label, the stage's texts by field.
    template: str | None = None
    templates: Mapping[str, str] | None = None
    texts: Mapping[str, str] | None = None
    inputs: Mapping[str, InputKeys] | None = None
    # The engine's kind, and what of its settings decides the result.
    engine: Mapping[str, Any] | None = None
    seed: int | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Ingredients:
        """Read what a plan or a record holds.

        Raises:
            ValueError: when it is no mapping, or a known ingredient has another type.
        """
        if not isinstance(raw, Mapping):
            raise ValueError("ingredients: not a mapping")
        known = {name: raw[name] for name in _INGREDIENT_TYPES if name in raw}
        for name, value in known.items():
            if not isinstance(value, _INGREDIENT_TYPES[name]):
                raise ValueError(f"ingredients.{name}: not {_INGREDIENT_TYPES[name].__name__}")
        if "data" in known:
            _data_identity().validate_python(known["data"])
        return cls(**known, other={name: value for name, value in raw.items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """The inverse of ``from_json``; what is not known comes last."""
        known = {name: value for name in _INGREDIENT_TYPES if (value := getattr(self, name)) is not None}
        return {**known, **self.other}

    def key(self) -> str:
        """The key of a step of these ingredients."""
        return key_of(self.to_json())

    def principles(self) -> Sequence[Mapping[str, Any]]:
        """What is read of each principle; none where no constitution is."""
        principles: Sequence[Mapping[str, Any]] = (self.constitution or {}).get("principles", ())
        return principles


@dataclass(frozen=True, slots=True)
class StepGpuTime:
    """What a step's GPU-hours were taken from; ``basis`` is empty where they are not known, and ``unknown`` says why.

    ``parts`` are seconds by what they go to, and ``assumes`` says which lengths were taken: both of an estimate alone.
    ``node_hours`` are those of a cluster.
    """

    basis: Literal["measured", "estimate", ""]
    gpus: int
    nodes: int
    node_hours: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    assumes: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the models behind an API are paid for a step: ``amounts`` by currency, every answer as long as it may be.

    ``unknown`` are the models whose part is not known, with the reason. Both are empty where all is free.
    """

    amounts: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """What a step is expected to do; None where that is not known. ``width``: answers in each row it makes.

    The times are for showing: ``cai.planning.rates`` adds them, and plans that run have none. There is a ``cost`` only
    where the step asks a model behind an API and the plan has a model with prices or a budget.
    """

    rows: int | None = None
    calls: int | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    width: int | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    gpu_time: StepGpuTime | None = None
    cost: StepCost | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StepEstimate:
        """Read what a plan holds; of fields that this program does not know nothing is taken, as no key has them.

        Raises:
            ValueError: when it is no mapping, or a field is no number.
            TypeError: when it has the GPU time or the cost of another version.
        """
        if not isinstance(raw, Mapping):
            raise ValueError("estimate: not a mapping")
        known = {entry.name: raw[entry.name] for entry in fields(cls) if raw.get(entry.name) is not None}
        gpu_time, cost = known.pop("gpu_time", None), known.pop("cost", None)
        for name, value in known.items():
            if not isinstance(value, int | float):
                raise ValueError(f"estimate.{name}: not a number")
        return cls(
            **known,
            gpu_time=None if gpu_time is None else StepGpuTime(**gpu_time),
            cost=None if cost is None else StepCost(**cost),
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of ``from_json``; where anything is known, unknown rows are said to be so."""
        known = {entry.name: value for entry in fields(self) if (value := getattr(self, entry.name)) is not None}
        if self.gpu_time is not None:
            known["gpu_time"] = asdict(self.gpu_time)
        if self.cost is not None:
            known["cost"] = asdict(self.cost)
        return {"rows": self.rows, **known} if known else {}

    def costs(self) -> dict[str, float | None]:
        """What plans and reviews count, by the names under which they show it."""
        return {
            "rows": self.rows,
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "gpu_hours": self.gpu_hours,
        }


@dataclass(frozen=True)
class Step:
    """One stage in one plan, resolved.

    ``key`` is the hash of ``ingredients`` (64 hexadecimal digits). ``inputs`` names the steps that make each role's
    artifacts. ``spec`` is the whole stage spec, runtime fields included. ``resources`` holds what the work reads
    besides its inputs, frozen: ``constitution`` (plain data), ``template`` ({name, text}), ``texts`` (field -> text).
    ``engine`` names one of the plan's ``engines``; empty: the plan's own. ``former`` is the key under which an older
    program kept the same work, where that is another: what lies there is taken over.
    """

    name: str
    kind: str
    makes: str
    key: str
    seed: int
    inputs: tuple[Input, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    ingredients: Ingredients = field(default_factory=Ingredients)
    estimate: StepEstimate = field(default_factory=StepEstimate)
    notes: list[str] = field(default_factory=list)
    engine: str = ""
    former: str = ""

    def needs(self) -> list[str]:
        """Names of the steps this one reads, each once, in order."""
        return list(dict.fromkeys(entry.step for entry in self.inputs))

    def sources(self, role: str) -> tuple[str, ...]:
        """Names of the steps of a role, in order; none where the step has no such role."""
        return tuple(entry.step for entry in self.inputs if entry.role == role)

    def source(self, role: str) -> str | None:
        """Name of the step of a role that has exactly one; None of any other."""
        return next((entry.step for entry in self.inputs if entry.role == role and entry.label is None), None)

    def to_json(self) -> dict[str, Any]:
        """The step as a plan's file has it."""
        return {
            **{entry.name: getattr(self, entry.name) for entry in fields(self)},
            "inputs": by_role(self.inputs),
            "ingredients": self.ingredients.to_json(),
            "estimate": self.estimate.to_json(),
        }


@dataclass(frozen=True)
class Plan:
    """The steps of one experiment in an order in which they can run."""

    experiment: str
    seed: int
    engine: dict[str, Any]
    steps: tuple[Step, ...]
    source: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def engine_of(self, step: Step) -> dict[str, Any]:
        """The engine block of the engine that a step works with."""
        return self.engines[step.engine] if step.engine else self.engine

    def seen_by(self, name: str) -> Plan:
        """The plan as one of its engines sees it: its block is the plan's own, and other engines' steps name theirs."""
        if not name:
            return self
        steps = tuple(replace(step, engine="" if step.engine == name else step.engine or "plan") for step in self.steps)
        return replace(self, engine=self.engines[name], steps=steps)

    def step(self, name: str) -> Step:
        """The step of that name.

        Raises:
            KeyError: when the plan has none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def to_json(self) -> str:
        """The plan as JSON text, stable: the same plan gives the same bytes."""
        steps = [step.to_json() for step in self.steps]
        data = {"format": FORMAT, **{entry.name: getattr(self, entry.name) for entry in fields(self)}, "steps": steps}
        # Plans with one engine are written as they were before there could be several; likewise steps with one key.
        for part in (data, *steps):
            for name in ("engine", "engines", "former"):
                if not part.get(name, True):
                    del part[name]
        return json.dumps(data, indent=1, sort_keys=False, ensure_ascii=False) + "\n"


def plan_from_json(text: str, where: str = "plan") -> Plan:
    """Read a plan back.

    Raises:
        SpecError: when the text is no plan, or one of another format.
    """
    try:
        raw = json.loads(text, parse_constant=_no_number)
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            raise SpecError(Problem(where, f"not a plan of format {FORMAT}", _AGAIN))
        if odd := [Problem(f"{where}: {path}", message, _AGAIN) for path, message in odd_texts(raw)]:
            raise SpecError(odd)
        # Only looked at: what it gives back has its keys in another order, and a plan keeps its bytes.
        _plan_file().validate_python(raw, strict=True)
        data = {k: v for k, v in raw.items() if k != "format"}
        plan = Plan(steps=tuple(_step_from_json(step) for step in data.pop("steps")), **data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError(Problem(f"{where}: {_place(raw, d['loc'])}", d["msg"], _AGAIN) for d in details) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SpecError(Problem(where, f"cannot be read as a plan ({error})", _AGAIN)) from error
    if problems := list(_loose_ends(plan, where)):
        raise SpecError(problems)
    return plan


_AGAIN = "make one with `plan --out FILE`"

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=300)]
"""A step or an engine. What is in it has no say in where files lie: names of files are quoted (``job_files``)."""


class _Text(TypedDict):
    name: str
    text: str


@with_config(ConfigDict(extra="forbid"))
class _Resources(TypedDict, total=False):
    constitution: dict[str, Any]
    template: _Text
    templates: dict[str, _Text]
    texts: dict[str, str]
    api_keys: dict[str, str]
    servers: dict[str, dict[str, Any]]


@with_config(ConfigDict(extra="allow"))
class _Engine(TypedDict):
    kind: str


@with_config(ConfigDict(extra="forbid"))
class _StepFile(TypedDict):
    name: Name
    kind: Annotated[str, StringConstraints(pattern="^[a-z_]+$")]
    makes: str
    key: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    seed: Annotated[int, Field(ge=0)]
    inputs: NotRequired[dict[str, Name | list[Name] | dict[str, Name]]]
    spec: NotRequired[dict[str, Any]]
    resources: NotRequired[_Resources]
    ingredients: NotRequired[dict[str, Any]]
    estimate: NotRequired[dict[str, Any]]
    notes: NotRequired[list[str]]
    engine: NotRequired[str]
    former: NotRequired[Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]]


@with_config(ConfigDict(extra="forbid"))
class _PlanFile(TypedDict):
    format: int
    experiment: Annotated[str, StringConstraints(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=160)]
    seed: Annotated[int, Field(ge=0)]
    engine: _Engine
    steps: Annotated[list[_StepFile], Field(min_length=1)]
    source: NotRequired[dict[str, Any]]
    outputs: NotRequired[dict[str, str]]
    engines: NotRequired[dict[Name, _Engine]]


@cache
def _data_identity() -> TypeAdapter[DataIdentity]:
    return TypeAdapter(DataIdentity)


@cache
def _plan_file() -> TypeAdapter[_PlanFile]:
    return TypeAdapter(_PlanFile)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of a plan")


def _step_from_json(raw: Mapping[str, Any]) -> Step:
    data = dict(raw)
    data["inputs"] = inputs_of(data.get("inputs", {}))
    data["ingredients"] = Ingredients.from_json(data.get("ingredients", {}))
    data["estimate"] = StepEstimate.from_json(data.get("estimate", {}))
    return Step(**data)


def _place(raw: Mapping[str, Any], location: tuple[str | int, ...]) -> str:
    """The field of a plan's file, with a step's name where it has one."""
    if location[:1] == ("steps",) and len(location) > 1 and isinstance(location[1], int):
        step = raw["steps"][location[1]]
        name = step.get("name") if isinstance(step, Mapping) else None
        location = (name if isinstance(name, str) else f"steps[{location[1]}]", *location[2:])
    return ".".join(str(part) for part in location)


def _loose_ends(plan: Plan, where: str) -> Iterator[Problem]:
    """Names that stand for nothing, or for two things."""
    before: set[str] = set()
    for step in plan.steps:
        if step.name in before:
            yield Problem(f"{where}: {step.name}", "stands twice in the plan", _AGAIN)
        for name in step.needs():
            if name not in before:
                reason = f"reads '{name}', which is no earlier step"
                yield Problem(f"{where}: {step.name}", reason, did_you_mean(name, before) or _AGAIN)
        if step.engine and step.engine not in plan.engines:
            yield Problem(f"{where}: {step.name}.engine", f"the plan has no engine '{step.engine}'", _AGAIN)
        before.add(step.name)
    for makes, name in plan.outputs.items():
        if name not in before:
            yield Problem(f"{where}: outputs.{makes}", f"the plan has no step '{name}'", did_you_mean(name, before))
