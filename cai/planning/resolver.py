"""Experiment -> Plan. Reads files to take their digests and texts; starts nothing and writes nothing.

Every problem of wiring is found here: unknown inputs, an input of the wrong kind, circles, a constitution without
the texts that a stage reads, a missing prompt template, a data file that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cai.chat import ChatTemplate
from cai.constitution import TEXTS, Constitution, lint
from cai.data.source import DataSource, part_counts, part_makes, source_identity
from cai.errors import PlanError, Problem, SpecError, did_you_mean
from cai.experiment.model import Experiment, ModelSpec
from cai.files.library import Library
from cai.identity import is_commit
from cai.plan import Ingredients, Input, Names, Plan, Step, StepEstimate, inputs_of
from cai.planning.costs import with_costs
from cai.planning.endpoints import (
    ANSWERING,
    dialect_notes,
    endpoint_problems,
    endpoint_resources,
    served_elsewhere,
)
from cai.planning.engines import PlanEngine, PlanEngines, method_problem
from cai.planning.identity import complete, former_key, stage_ingredients
from cai.planning.models import (
    NOT_FETCHED,
    former_identity,
    model_identity,
    model_notes,
    moving_note,
    scheme_of,
)
from cai.planning.texts import NamedText, load_texts, read_template, read_text
from cai.stages import KINDS
from cai.stages.base import EngineSpec, Estimate, SpecParts, StageSpec, fits, take_apart

Where = Callable[[str], str]
SourceLook = tuple[dict[str, Any], dict[str, int | None]]
"""The identity of a data source, and how many rows each of its parts has."""
Looked = dict[str, SourceLook]
"""Of data sources that have been looked at, by what they say."""


@dataclass
class _Compilation:
    """One compilation while it lasts: what has been found out, and what is wrong."""

    experiment: Experiment
    library: Library
    where: Where
    engines: PlanEngines
    constitution: Constitution | None
    template: NamedText | None
    parts: dict[str, SpecParts]
    sources: Looked
    problems: list[Problem] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    # The format of every model that lies in a folder; one that is served elsewhere has none.
    formats: dict[str, str] = field(default_factory=dict)
    linted: set[tuple[str, str]] = field(default_factory=set)

    def wrong(self, path: str, reason: str, hint: str = "") -> None:
        self.problems.append(Problem(self.where(path), reason, hint))

    def gather(self, error: SpecError, below: str = "") -> None:
        """Take up problems; those of fields below ``below`` are told where they stand in the files."""
        for problem in error.problems:
            path = ".".join(part for part in (below, problem.where) if part)
            self.problems.append(Problem(self.where(path), problem.message, problem.next) if below else problem)


def resolve(
    experiment: Experiment, library: Library | None = None, where: Where = str, looked: Looked | None = None
) -> Plan:
    """Compile an experiment into a plan.

    ``looked`` is kept from one call to the next where many cells read the same data, which is then digested once.

    Raises:
        PlanError: with every problem found.
    """
    library = library or Library.here()
    engines = PlanEngines(experiment)
    own_block = engines.own.plan_block()
    texts = load_texts(experiment.constitution, experiment.template, library, where)
    work = _Compilation(
        experiment,
        library,
        where,
        engines,
        texts.constitution,
        texts.template,
        parts={name: take_apart(spec) for name, spec in experiment.stages.items()},
        sources={} if looked is None else looked,
        problems=list(texts.problems),
    )
    for name in _order(work):
        _add_stage(work, name, experiment.stages[name])
    if work.problems:
        raise PlanError(dict.fromkeys(work.problems))
    plan = Plan(
        experiment=experiment.name,
        seed=experiment.seed,
        engine=own_block,
        steps=with_costs(experiment, tuple(work.steps.values()), work.estimates),
        source=_source(experiment),
        outputs=_outputs(work),
        engines=engines.blocks(),
    )
    return engines.check(plan, where)


def _source(experiment: Experiment) -> dict[str, Any]:
    fields = ("description", "seed", "models", "data", "stages")
    written = {name: value for name, value in experiment.raw.items() if name in fields}
    trackers = experiment.tracking.enabled()
    if not trackers:
        return written
    return {**written, "tracking": {name: tracker.model_dump(mode="json") for name, tracker in trackers.items()}}


def _outputs(work: _Compilation) -> dict[str, str]:
    """The last step that makes each kind of result: what ``chat``, ``serve`` and the summary take."""
    last: dict[str, str] = {}
    for step in work.steps.values():
        if step.makes in ("model", "reward_model", "evaluation") and KINDS[step.kind].spec.RESULT:
            last[step.makes] = step.name
    if "model" not in last:
        fetched = (step for step in work.steps.values() if step.kind == "fetch")
        last |= {step.makes: step.name for step in fetched if served_elsewhere(work.experiment, step.name) is None}
    return last


def _order(work: _Compilation) -> list[str]:
    """Stage names, inputs before users, otherwise as written. Unknown inputs and circles become problems."""
    stages = work.experiment.stages
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            work.wrong(f"stages.{name}", f"reads its own result: {circle}", "break the circle")
            return
        for _, ref in _refs(work.parts[name].inputs):
            if ref in stages:
                visit(ref, (*path, name))
        ordered.append(name)

    for name in stages:
        visit(name, ())
    return ordered


def _refs(inputs: Mapping[str, Names]) -> list[tuple[str, str]]:
    """(role, name) pairs; items of a list or a mapping as ``role.0`` and ``role.label``."""
    return [(entry.place, entry.step) for entry in inputs_of(inputs)]


# ---- what a stage's inputs stand for -------------------------------------------------------------------------------


def _step_name(work: _Compilation, ref: str, path: str, engine: PlanEngine) -> str | None:
    """The step a reference stands for; data and model steps are made when first asked for."""
    experiment = work.experiment
    if ref in experiment.models:
        return _model_step(work, ref, experiment.models[ref], engine)
    if ref in work.steps:
        return ref
    if ref in experiment.stages:
        return None  # it had a problem of its own
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
    makers = [*experiment.stages, *experiment.models]
    for name, source in experiment.data.items():
        makers += [f"{name}.{p}" for p in source.splits] if len(source.splits) > 1 else [name]
    work.wrong(path, f"no stage, model or data makes '{ref}'", did_you_mean(ref, makers))
    return None


def _model_step(work: _Compilation, name: str, model: ModelSpec, engine: PlanEngine) -> str | None:
    """The step that fetches a model in the format of ``engine``. Engines of one format share it."""
    own, scheme = work.engines.own, scheme_of(model)
    if scheme == "api" or (engine.kind.model_format == own.kind.model_format and scheme in own.kind.sources):
        engine, step = own, name
    else:
        step = name if engine is own else f"{name}.{engine.kind.model_format or 'hf'}"
    if step in work.steps:
        return step
    _own_template(work, name)
    path = f"models.{name}"
    try:
        identity = model_identity(model, engine, work.library, path)
    except SpecError as error:
        work.problems += [Problem(work.where(p.where), p.message, p.next) for p in error.problems]
        return None
    spec = KINDS["fetch"].spec(kind="fetch", **model.model_dump(exclude=NOT_FETCHED))
    ingredients = Ingredients(model=identity)
    if scheme != "api":
        work.formats[step] = engine.kind.model_format
        if engine.kind.model_format:
            ingredients = replace(ingredients, format=engine.kind.model_format)
    notes = model_notes(model)
    fetched = _step(
        work, step, spec, ingredients, makes=spec.MAKES, estimate=spec.estimate({}), engine=engine, notes=notes
    )
    then = former_identity(model)
    former = "" if then is None else former_key(fetched.ingredients, (), keys={}, former={}, model=then)
    work.steps[step] = replace(fetched, former=former)
    _check_one_address(work, name, model, fetched.key)
    return step


def _check_one_address(work: _Compilation, name: str, model: ModelSpec, key: str) -> None:
    """Two models by one name at two addresses would silently be one: whether they are, only the user can say."""
    for other_name, other in work.experiment.models.items():
        twin = work.steps.get(other_name)
        if other_name == name or twin is None or twin.key != key or model.identity or other.url == model.url:
            continue
        reason = f"has the name and revision of '{other_name}', which is at another address"
        hint = "give both the same `identity` if they are one model, or one of them its own"
        work.wrong(f"models.{name}", reason, hint)


def _data_step(work: _Compilation, name: str, part: str, source: DataSource) -> str | None:
    step = name if len(source.splits) == 1 else f"{name}.{part}"
    if step in work.steps:
        return step
    roots = work.library.data_roots()
    paths = tuple(map(work.library.placed, source.paths))
    # Where the files lie is no part of the spec: only the look at them is told of it.
    placed = source if paths == source.paths else source.model_copy(update={"path": paths})
    look_key = repr((placed, roots))
    try:
        if look_key not in work.sources:
            work.sources[look_key] = (source_identity(placed, roots), part_counts(placed, roots))
        identity, counts = work.sources[look_key]
    except SpecError as error:
        work.problems += [Problem(work.where(f"data.{name}"), p.message, p.next) for p in error.problems]
        return None
    spec = KINDS["read"].spec.model_validate(
        {"kind": "read", "source": source.model_dump(), "part": part, "identity": identity}
    )
    work.rows[step] = counts[part]
    notes = [f"downloads {entry['file']} of {entry['name']} at {entry['revision']}" for entry in identity["hub"]]
    moving = {entry["revision"] for entry in identity["hub"] if not is_commit(entry["revision"])}
    notes += map(moving_note, sorted(moving))
    ingredients = Ingredients(data=identity, part=part)
    work.steps[step] = _step(
        work, step, spec, ingredients, makes=part_makes(source), estimate=Estimate(counts[part]), notes=notes
    )
    return step


# ---- a stage -----------------------------------------------------------------------------------------------------


def _add_stage(work: _Compilation, name: str, spec: StageSpec) -> None:
    parts, path = work.parts[name], f"stages.{name}"
    engine = work.engines.of(spec)
    if engine is None:
        work.wrong(f"{path}.engine", *work.engines.unknown(spec))
        return
    if lacking := method_problem(engine, spec.kind):
        work.wrong(path, *lacking)
    names: dict[str, str] = {}
    for role, ref in _refs(parts.inputs):
        step = _step_name(work, ref, f"{path}.{role}", engine)
        if step is None:
            continue
        names[role] = step
        makes, wants = work.steps[step].makes, parts.wants[role.partition(".")[0]]
        if not fits(makes, wants):
            others = [s.name for s in work.steps.values() if fits(s.makes, wants)]
            reason = f"wants {' or '.join(wants)}, but '{ref}' makes {_article(makes)}"
            work.wrong(f"{path}.{role}", reason, did_you_mean(ref, others) if others else "")
        elif isinstance(spec, EngineSpec) and work.formats.get(step, engine.kind.model_format) != (
            engine.kind.model_format
        ):
            reason = f"'{ref}' is a model of another engine, whose files engine {engine.name} cannot read"
            work.wrong(f"{path}.{role}", reason, "give both stages the same engine")
    if len(names) < len(_refs(parts.inputs)):
        return
    for problem in endpoint_problems(work.experiment, path, spec, names):
        work.wrong(problem.where, problem.message, problem.next)
    resources = {
        **_constitution(work, path, spec),
        **(_template(work, path, spec, names) if spec.USES_TEMPLATE else {}),
        **endpoint_resources(work.experiment, names),
        **_stage_texts(work, path, parts),
    }
    try:
        if frozen := resources.get("template"):
            spec.check_template(partial(ChatTemplate.from_text, frozen["name"], frozen["text"]))
        makes = spec.makes({role: work.steps[step].makes for role, step in names.items()})
        estimate = spec.estimate(_rows_by_role(work, parts.inputs, names))
    except SpecError as error:
        work.gather(error, path)
        return
    work.rows[name] = estimate.rows
    work.estimates[name] = estimate
    if makes in ("model", "reward_model"):
        sources = [work.formats[step] for step in names.values() if step in work.formats]
        work.formats[name] = engine.kind.model_format if isinstance(spec, EngineSpec) else next(iter(sources), "")
    work.steps[name] = _step(
        work,
        name,
        spec,
        stage_ingredients(spec, parts.semantic, resources, work.constitution),
        makes=makes,
        estimate=estimate,
        inputs=tuple(Input(entry.role, entry.label, names[entry.place]) for entry in inputs_of(parts.inputs)),
        resources=resources,
        engine=engine,
        notes=dialect_notes(work.experiment, spec, names),
    )


def _own_template(work: _Compilation, model_name: str) -> NamedText | None:
    """The chat template of a model that has its own and has not been trained here."""
    model = work.experiment.models.get(model_name)
    if model is None or not model.template:
        return None
    try:
        return read_template(model.template, work.library, work.where(f"models.{model_name}.template"))
    except SpecError as error:
        work.gather(error)
        return None


def _template(work: _Compilation, path: str, spec: StageSpec, names: Mapping[str, str]) -> dict[str, Any]:
    """The chat template of a stage: the experiment's, or that of the model which answers.

    Training, and the mixing before it, keep to the experiment's: it is what they teach, and what the trained model is
    asked in from then on.
    """
    answering = names if spec.kind in ANSWERING else {}
    own = {role: text for role, step in answering.items() if (text := _own_template(work, step)) is not None}
    template = own.pop("model", None) or work.template
    if template is None:
        if not work.experiment.template:
            work.wrong(path, "needs a chat template", "give `template=NAME`")
        return {}
    resources: dict[str, Any] = {"template": {"name": template.name, "text": template.text}}
    others = {role.partition(".")[2]: text for role, text in own.items() if text.text != template.text}
    if others:
        resources["templates"] = {label: {"name": text.name, "text": text.text} for label, text in others.items()}
    return resources


def _article(makes: str) -> str:
    return f"a {makes}" if makes in ("model", "reward_model") else makes


def _rows_by_role(work: _Compilation, inputs: Mapping[str, Names], names: Mapping[str, str]) -> dict[str, int | None]:
    rows: dict[str, int | None] = {role: work.rows.get(step) for role, step in names.items()}
    for role, value in inputs.items():
        if not isinstance(value, str):
            counts = [rows[r] for r in names if r.startswith(f"{role}.")]
            rows[role] = None if any(c is None for c in counts) else sum(c for c in counts if c is not None)
    if work.constitution is not None:
        rows["constitution:principles"] = len(work.constitution.active)
    return rows | {f"{role}:width": work.steps[step].estimate.width for role, step in names.items()}


def _constitution(work: _Compilation, path: str, spec: StageSpec) -> dict[str, Any]:
    if not spec.PRINCIPLE_FIELDS:
        return {}
    if work.constitution is None:
        if work.experiment.constitution is None:
            work.wrong(path, "needs a constitution", "give `constitution=NAME`")
        return {}
    for finding in lint(work.constitution, tuple(f for f in spec.PRINCIPLE_FIELDS if f in TEXTS)):
        if finding.level == "error" and (finding.where, finding.message) not in work.linted:
            work.linted.add((finding.where, finding.message))
            reason = f"{finding.message} ('{path}' reads it)"
            work.problems.append(Problem(work.where(f"constitution: {finding.where}"), reason, finding.next))
    return {"constitution": work.constitution.to_json()}


def _stage_texts(work: _Compilation, path: str, parts: SpecParts) -> dict[str, Any]:
    texts: dict[str, str] = {}
    for name, (folder, file) in parts.texts.items():
        try:
            texts[name] = read_text(folder, file, work.library, work.where(f"{path}.{name}"))
        except SpecError as error:
            work.gather(error)
    return {"texts": texts} if texts else {}


def _step(
    work: _Compilation,
    name: str,
    spec: StageSpec,
    ingredients: Ingredients,
    *,
    makes: str,
    estimate: Estimate,
    inputs: tuple[Input, ...] = (),
    resources: Mapping[str, Any] | None = None,
    engine: PlanEngine | None = None,
    notes: list[str] | None = None,
) -> Step:
    """Complete the ingredients and hash them."""
    seed = work.experiment.seed
    keys = {step.name: step.key for step in work.steps.values()}
    completed = complete(ingredients, spec, name, inputs, keys=keys, engine=engine or work.engines.own, seed=seed)
    former = {step.name: step.former for step in work.steps.values() if step.former}
    return Step(
        name=name,
        kind=spec.kind,
        makes=makes,
        key=completed.key(),
        seed=seed,
        inputs=inputs,
        # Which engine does the step is the plan's to say, not the spec's.
        spec=spec.model_dump(mode="json", by_alias=True, exclude={"engine"}),
        resources=dict(resources or {}),
        ingredients=completed,
        estimate=StepEstimate(
            rows=estimate.rows,
            calls=estimate.calls,
            prompt_tokens=estimate.prompt_tokens,
            tokens=estimate.tokens,
            width=estimate.width,
        ),
        notes=[*(notes or []), *([f"with engine {engine.label}"] if engine is not None and engine.label else [])],
        engine=engine.label if engine is not None else "",
        former=former_key(completed, inputs, keys=keys, former=former),
    )
