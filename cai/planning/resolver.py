"""Experiment -> Plan. Reads files to take their digests and texts; starts nothing and writes nothing.

Every problem of wiring is found here: unknown inputs, an input of the wrong kind, circles, a constitution without
the texts that a stage reads, a missing prompt template, a data file that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate, PromptTemplate
from cai.constitution import TEXTS, Constitution, lint, resolve_constitution
from cai.data.locate import is_commit
from cai.data.source import DataSource, part_counts, part_makes, source_identity
from cai.engines import ENGINES, EngineKind
from cai.errors import PlanError, Problem, SpecError, did_you_mean
from cai.experiment.model import Experiment, ModelSpec
from cai.files.library import Library
from cai.files.yaml_lines import load_mapping
from cai.identity import file_digest, key_of, text_digest
from cai.plan import Names, Plan, Step
from cai.planning.endpoints import ANSWERING, cost_note, endpoint_problems, endpoint_resources, served_elsewhere
from cai.stages import KINDS
from cai.stages.base import Estimate, SpecParts, StageSpec, fits, take_apart

Where = Callable[[str], str]

_NOT_FETCHED = {"template", "replicas", "limits"}
"""Fields of a model that its fetch step does not need: how it is asked, not what it is."""


@dataclass
class _Work:
    """What one compilation knows so far; lives only inside ``resolve``."""

    experiment: Experiment
    library: Library
    where: Where
    problems: list[Problem] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    constitution: Constitution | None = None
    template: tuple[str, str] | None = None
    engine: EngineKind = field(default_factory=lambda: ENGINES["embedded"])
    engine_settings: Any = None
    parts: dict[str, SpecParts] = field(default_factory=dict)
    sources: Looked = field(default_factory=dict)
    linted: set[tuple[str, str]] = field(default_factory=set)

    def wrong(self, path: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(self.where(path), what, hint))

    def gather(self, error: SpecError) -> None:
        self.problems.extend(error.problems)


Looked = dict[str, tuple[dict[str, Any], dict[str, int | None]]]
"""Identity and row counts of data sources that have been looked at, by what they say."""


def resolve(
    experiment: Experiment, library: Library | None = None, where: Where = str, looked: Looked | None = None
) -> Plan:
    """Compile an experiment into a plan.

    ``looked`` is kept from one call to the next where many cells read the same data, which is then digested once.

    Raises:
        PlanError: with every problem found.
    """
    work = _Work(experiment, library or Library.here(), where)
    work.sources = {} if looked is None else looked
    kind = ENGINES[experiment.engine["kind"]]
    settings = kind.settings.model_validate({k: v for k, v in experiment.engine.items() if k != "kind"})
    described = dict(kind.describe(settings))
    work.engine, work.engine_settings = kind, settings
    texts = load_texts(experiment.constitution, experiment.template, work.library, where)
    work.constitution, work.template = texts.constitution, texts.template
    work.problems += texts.problems
    work.parts = {name: take_apart(spec) for name, spec in experiment.stages.items()}
    for name in _order(work):
        _stage_step(work, name, experiment.stages[name])
    if work.problems:
        raise PlanError(dict.fromkeys(work.problems))
    plan = Plan(
        experiment=experiment.name,
        seed=experiment.seed,
        engine={**experiment.engine, "uses": described},
        steps=tuple(work.steps.values()),
        source=_source(experiment),
        outputs=_outputs(work),
    )
    checked = kind.check(settings, plan, where)
    if checked.problems:
        raise PlanError(dict.fromkeys(checked.problems))
    noted = (replace(step, notes=[*step.notes, *checked.notes.get(step.name, [])]) for step in plan.steps)
    return replace(plan, steps=tuple(noted))


def _source(experiment: Experiment) -> dict[str, Any]:
    said = {k: v for k, v in experiment.raw.items() if k in ("description", "seed", "models", "data", "stages")}
    tracked = experiment.tracking.asked()
    return said | ({"tracking": {k: v.model_dump(mode="json") for k, v in tracked.items()}} if tracked else {})


def _outputs(work: _Work) -> dict[str, str]:
    """The last step that makes each kind of result: what ``chat``, ``serve`` and the summary take."""
    found: dict[str, str] = {}
    for step in work.steps.values():
        if step.makes in ("model", "reward_model", "evaluation") and step.kind not in ("fetch", "snapshot"):
            found[step.makes] = step.name
    if "model" not in found:
        fetched = (s for s in work.steps.values() if s.kind == "fetch")
        found.update({s.makes: s.name for s in fetched if served_elsewhere(work.experiment, s.name) is None})
    return found


@dataclass(frozen=True)
class Texts:
    """The constitution and the chat template of an experiment, and what is wrong with them."""

    constitution: Constitution | None
    template: tuple[str, str] | None
    problems: tuple[Problem, ...]


def load_texts(constitution: Mapping[str, Any] | None, template: str, library: Library, where: Where = str) -> Texts:
    """Resolve the constitution and read the chat template; problems are gathered, not raised."""
    resolved: Constitution | None = None
    read: tuple[str, str] | None = None
    problems: list[Problem] = []

    def find(name: str) -> Mapping[str, Any]:
        path = library.find("constitutions", name, f"{where('constitution')}.extends")
        return load_mapping(path, library.shown(path))

    if constitution is not None:
        try:
            resolved = resolve_constitution(
                constitution, find, "constitution", lambda f: where(f"constitution.{f}" if f else "constitution")
            )
        except SpecError as error:
            problems += error.problems
    if template:
        try:
            path = library.find("prompt_templates", template, where("template"))
            text = path.read_text(encoding="utf-8")
            ChatTemplate.from_text(template, text, library.shown(path))
            read = (template, text)
        except SpecError as error:
            problems += error.problems
    return Texts(resolved, read, tuple(problems))


def _order(work: _Work) -> list[str]:
    """Stage names, inputs before users, otherwise as written. Unknown inputs and circles become problems."""
    stages = work.experiment.stages
    done: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        if state.get(name) == 1:
            circle = " -> ".join((*path[path.index(name) :], name))
            work.wrong(f"stages.{name}", f"reads its own result: {circle}", "break the circle")
            return
        state[name] = 1
        for _, ref in _refs(work.parts[name].inputs):
            if ref in stages:
                visit(ref, (*path, name))
        state[name] = 2
        done.append(name)

    for name in stages:
        visit(name, ())
    return done


def _refs(inputs: Mapping[str, Names]) -> list[tuple[str, str]]:
    """(role, name) pairs; items of a list or a mapping as ``role.0`` and ``role.label``."""
    flat: list[tuple[str, str]] = []
    for role, value in inputs.items():
        if isinstance(value, str):
            flat.append((role, value))
        elif isinstance(value, dict):
            flat += [(f"{role}.{label}", name) for label, name in value.items()]
        else:
            flat += [(f"{role}.{i}", name) for i, name in enumerate(value)]
    return flat


def _step_name(work: _Work, ref: str, path: str) -> str | None:
    """The step a reference stands for; data and model steps are made when first asked for."""
    experiment = work.experiment
    if ref in work.steps:
        return ref
    if ref in experiment.stages:
        return None  # it had a problem of its own
    if ref in experiment.models:
        return _model_step(work, ref, experiment.models[ref])
    name, dot, part = ref.partition(".")
    if name in experiment.data:
        source = experiment.data[name]
        if not dot and len(source.splits) == 1:
            part = next(iter(source.splits))
        if part in source.splits:
            return _data_step(work, name, part, source)
        parts = [f"{name}.{p}" for p in source.splits]
        work.wrong(path, f"'{ref}' is no part of data '{name}'", did_you_mean(ref, parts))
        return None
    known = [*experiment.stages, *experiment.models]
    for name, source in experiment.data.items():
        known += [f"{name}.{p}" for p in source.splits] if len(source.splits) > 1 else [name]
    work.wrong(path, f"no stage, model or data makes '{ref}'", did_you_mean(ref, known))
    return None


_SOURCES = {
    "hf": "hf:NAME or hf:/FOLDER",
    "gguf": "gguf:FILE",
    "pypi": "pypi:PACKAGE==VERSION/PATH",
    "nemo": "nemo:FILE",
    "api": "api:NAME",
}


def _model_step(work: _Work, name: str, model: ModelSpec) -> str | None:
    path = f"models.{name}"
    scheme, colon, rest = model.source.partition(":")
    if not colon or scheme not in work.engine.sources or not rest:
        what = f"'{model.source}' is no model source that engine {work.experiment.engine['kind']} can use"
        hint = f"use {', '.join(_SOURCES[s] for s in work.engine.sources)}"
        work.wrong(f"{path}.source", what, hint)
        return None
    _own_template(work, name)
    identity: dict[str, Any] = {"sha256": model.sha256} if model.sha256 else {"source": model.source}
    local = work.library.local(rest)
    if scheme == "hf" and model.sha256 and work.engine.model_format:
        work.wrong(f"{path}.sha256", "the model is converted: no file has this digest", "pin it by revision")
        return None
    if scheme == "api":
        # The address counts: what answers to the same name elsewhere may be another model, and an artifact that holds
        # one address must not stand for another. The name of the key's variable does not; steps take the plan's.
        identity = {"api": rest, "revision": model.revision, "url": model.url}
        if model.logprobs:
            identity["logprobs"] = model.logprobs
    elif scheme in ("gguf", "nemo") or (scheme == "hf" and local.exists()):
        if not local.exists():
            work.wrong(f"{path}.source", f"no file {rest}", f"give the path of a .{scheme} file")
            return None
        identity = {"sha256": model.sha256 or _path_digest(local)}
    elif scheme == "hf":
        if not model.revision:
            work.wrong(f"{path}.revision", "a hub model needs a pinned revision", "give the commit's hash")
            return None
        identity["revision"] = model.revision
    elif "==" not in rest.partition("/")[0]:
        work.wrong(f"{path}.source", "the package's version is not pinned", "write pypi:PACKAGE==VERSION/PATH")
        return None
    spec = KINDS["fetch"].spec(kind="fetch", **model.model_dump(exclude=_NOT_FETCHED))
    _add(work, name, spec, {"model": identity}, {}, {}, spec.estimate({}), spec.MAKES)
    if scheme == "api":
        key = f"with the key in {model.api_key_env}" if model.api_key_env else "without a key"
        more = f" and {len(model.replicas)} more" if model.replicas else ""
        work.steps[name] = replace(work.steps[name], notes=[f"an endpoint: {rest} at {model.url}{more}, {key}"])
    return name


def _path_digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    return key_of({p.name: file_digest(p) for p in sorted(path.iterdir()) if p.is_file()})


def _data_step(work: _Work, name: str, part: str, source: DataSource) -> str | None:
    roots = work.library.data_roots()
    paths = tuple(map(work.library.placed, source.paths))
    # Where the files lie is no part of the spec: only the look at them is told of it.
    at = source if paths == source.paths else source.model_copy(update={"path": paths})
    said = repr((at, roots))
    try:
        if said not in work.sources:
            work.sources[said] = (source_identity(at, roots), part_counts(at, roots))
        identity, counts = work.sources[said]
    except SpecError as error:
        work.problems += [Problem(work.where(f"data.{name}"), p.what, p.next) for p in error.problems]
        return None
    spec = KINDS["read"].spec.model_validate(
        {"kind": "read", "source": source.model_dump(), "part": part, "identity": identity}
    )
    step = name if len(source.splits) == 1 else f"{name}.{part}"
    rows = work.rows[step] = counts[part]
    ingredients = {"data": identity, "part": part}
    _add(work, step, spec, ingredients, {}, {}, Estimate(rows), part_makes(source))
    notes = [f"downloads {at['file']} of {at['name']} at {at['revision']}" for at in identity["hub"]]
    moving = {at["revision"] for at in identity["hub"] if not is_commit(at["revision"])}
    notes += [f"'{branch}' can move: pin it to a commit to be able to repeat this" for branch in sorted(moving)]
    work.steps[step] = replace(work.steps[step], notes=notes)
    return step


def _stage_step(work: _Work, name: str, spec: StageSpec) -> None:
    parts, path = work.parts[name], f"stages.{name}"
    names: dict[str, str] = {}
    for role, ref in _refs(parts.inputs):
        step = _step_name(work, ref, f"{path}.{role}")
        if step is None:
            continue
        names[role] = step
        makes, wanted = work.steps[step].makes, parts.wants[role.partition(".")[0]]
        if not fits(makes, wanted):
            others = [s.name for s in work.steps.values() if fits(s.makes, wanted)]
            what = f"wants {' or '.join(wanted)}, but '{ref}' makes {_article(makes)}"
            work.wrong(f"{path}.{role}", what, did_you_mean(ref, others) if others else "")
    if len(names) < len(_refs(parts.inputs)):
        return
    for problem in endpoint_problems(work.experiment, path, spec, names):
        work.wrong(problem.where, problem.what, problem.next)
    makes_by_role = {role: work.steps[step].makes for role, step in names.items()}
    ingredients: dict[str, Any] = {"spec": {k: v for k, v in parts.semantic.items() if k != "kind"}}
    resources: dict[str, Any] = {}
    _add_constitution(work, path, spec, ingredients, resources)
    if spec.USES_TEMPLATE:
        _add_template(work, path, spec, names, ingredients, resources)
    resources |= endpoint_resources(work.experiment, names)
    _add_texts(work, path, parts, ingredients, resources)
    try:
        makes = spec.makes(makes_by_role)
        estimate = spec.estimate(_rows_by_role(work, parts.inputs, names))
    except SpecError as error:
        work.problems += [
            Problem(work.where(f"{path}.{p.where}" if p.where else path), p.what, p.next) for p in error.problems
        ]
        return
    work.rows[name] = estimate.rows
    inputs = _named(parts.inputs, names)
    _add(work, name, spec, ingredients, inputs, resources, estimate, makes)
    if notes := cost_note(work.experiment, names, estimate):
        work.steps[name] = replace(work.steps[name], notes=notes)


def _own_template(work: _Work, step: str) -> tuple[str, str] | None:
    """The chat template of a model that has its own and has not been trained here."""
    model = work.experiment.models.get(step)
    if model is None or not model.template:
        return None
    read = load_texts(None, model.template, work.library, lambda _: work.where(f"models.{step}.template"))
    work.problems += read.problems
    return read.template


def _add_template(
    work: _Work,
    path: str,
    spec: StageSpec,
    names: Mapping[str, str],
    ingredients: dict[str, Any],
    resources: dict[str, Any],
) -> None:
    """The chat template of a stage: the experiment's, or that of the model which answers.

    Training, and the mixing before it, keep to the experiment's: it is what they teach, and what the trained model is
    asked in from then on.
    """
    asked = names if spec.kind in ANSWERING else {}
    own = {role: read for role, step in asked.items() if (read := _own_template(work, step)) is not None}
    template = own.pop("model", None) or work.template
    if template is None:
        if not work.experiment.template:
            work.wrong(path, "needs a chat template", "give `template=NAME`")
        return
    resources["template"] = {"name": template[0], "text": template[1]}
    ingredients["template"] = text_digest(template[1])
    for role, (name, text) in own.items():
        if text != template[1]:
            label = role.partition(".")[2]
            resources.setdefault("templates", {})[label] = {"name": name, "text": text}
            ingredients.setdefault("templates", {})[label] = text_digest(text)


def _article(makes: str) -> str:
    return f"a {makes}" if makes in ("model", "reward_model") else makes


def _rows_by_role(work: _Work, inputs: Mapping[str, Names], names: Mapping[str, str]) -> dict[str, int | None]:
    rows: dict[str, int | None] = {role: work.rows.get(step) for role, step in names.items()}
    for role, value in inputs.items():
        if not isinstance(value, str):
            counts = [rows[r] for r in names if r.startswith(f"{role}.")]
            rows[role] = None if any(c is None for c in counts) else sum(c for c in counts if c is not None)
    return rows | {f"{role}:width": work.steps[step].estimate.get("width", 1) for role, step in names.items()}


def _named(inputs: Mapping[str, Names], names: Mapping[str, str]) -> dict[str, Names]:
    shaped: dict[str, Names] = {}
    for role, value in inputs.items():
        if isinstance(value, str):
            shaped[role] = names[role]
        elif isinstance(value, dict):
            shaped[role] = {label: names[f"{role}.{label}"] for label in value}
        else:
            shaped[role] = [names[f"{role}.{i}"] for i in range(len(value))]
    return shaped


def _add_constitution(
    work: _Work, path: str, spec: StageSpec, ingredients: dict[str, Any], resources: dict[str, Any]
) -> None:
    if not spec.PRINCIPLE_FIELDS:
        return
    if work.constitution is None:
        if work.experiment.constitution is None:
            work.wrong(path, "needs a constitution", "give `constitution=NAME`")
        return
    for finding in lint(work.constitution, tuple(f for f in spec.PRINCIPLE_FIELDS if f in TEXTS)):
        if finding.level == "error" and (finding.where, finding.what) not in work.linted:
            work.linted.add((finding.where, finding.what))
            what = f"{finding.what} ('{path}' reads it)"
            work.problems.append(Problem(work.where(f"constitution: {finding.where}"), what, finding.next))
    resources["constitution"] = work.constitution.to_json()
    ingredients["constitution"] = {"principles": work.constitution.identity(spec.PRINCIPLE_FIELDS)}


def _add_texts(
    work: _Work, path: str, parts: SpecParts, ingredients: dict[str, Any], resources: dict[str, Any]
) -> None:
    for name, (folder, file) in parts.texts.items():
        try:
            found = work.library.find(folder, file, work.where(f"{path}.{name}"))
            text = found.read_text(encoding="utf-8")
            if found.suffix == ".jinja":
                PromptTemplate.from_text(file, text, work.library.shown(found))
        except SpecError as error:
            work.gather(error)
            continue
        resources.setdefault("texts", {})[name] = text
        ingredients.setdefault("texts", {})[name] = text_digest(text)


def _add(
    work: _Work,
    name: str,
    spec: StageSpec,
    ingredients: dict[str, Any],
    inputs: dict[str, Names],
    resources: dict[str, Any],
    estimate: Estimate,
    makes: str,
) -> None:
    """Complete the ingredients, hash them, add the step."""
    made_here = spec.kind in ("fetch", "read")
    ingredients = {"kind": spec.kind, "version": spec.VERSION, **ingredients}
    if inputs:
        ingredients["inputs"] = {role: _keys(work, value) for role, value in inputs.items()}
    if spec.USES_ENGINE:
        identity = work.engine.identity(work.engine_settings, spec.kind, name, inputs)
        ingredients["engine"] = {"kind": work.experiment.engine["kind"], **identity}
    if spec.kind == "fetch" and work.engine.model_format and not spec.model_dump()["source"].startswith("api:"):
        ingredients["format"] = work.engine.model_format
    if not made_here:
        ingredients["seed"] = work.experiment.seed
    work.steps[name] = Step(
        name=name,
        kind=spec.kind,
        makes=makes,
        key=key_of(ingredients),
        seed=work.experiment.seed,
        inputs=inputs,
        spec=spec.model_dump(mode="json", by_alias=True),
        resources=resources,
        ingredients=ingredients,
        estimate=asdict(estimate),
    )


def _keys(work: _Work, value: Names) -> Any:
    if isinstance(value, str):
        return work.steps[value].key
    if isinstance(value, dict):
        # Pairs, not a mapping: the order of the labels decides what is compared with what.
        return [[label, work.steps[name].key] for label, name in value.items()]
    return [work.steps[name].key for name in value]
