"""Experiment -> Plan. Reads files to take their digests and texts; starts nothing and writes nothing.

Every problem of wiring is found here: unknown inputs, an input of the wrong kind, circles, a constitution without
the texts that a stage reads, a missing prompt template, a data file that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cai.chat import ChatTemplate
from cai.constitution import TEXTS, lint
from cai.engines.methods import method_of
from cai.errors import PlanError, Problem, SpecError, did_you_mean
from cai.experiment.model import Experiment, ModelSpec, Outline, outline
from cai.files.library import Library
from cai.plan import Ingredients, Input, Names, Plan, inputs_of
from cai.planning.compilation import Compilation, Looked, Where
from cai.planning.costs import with_costs
from cai.planning.data_steps import data_step, without_rows
from cai.planning.endpoints import (
    ANSWERING,
    dialect_notes,
    endpoint_problems,
    endpoint_resources,
    served_elsewhere,
)
from cai.planning.engines import PlanEngine, PlanEngines, method_problem
from cai.planning.identity import former_key, stage_ingredients
from cai.planning.models import NOT_FETCHED, former_identity, model_identity, model_notes, scheme_of
from cai.planning.overlap import overlap_problems
from cai.planning.template_notes import template_notes
from cai.planning.texts import NamedText, load_texts, read_template, read_text
from cai.stages import KINDS
from cai.stages.base import EngineSpec, SpecParts, StageSpec, fits, readable_parts, take_apart


def resolve_data(
    raw: Mapping[str, Any], library: Library | None = None, where: Where = str, looked: Looked | None = None
) -> Plan:
    """Compile composed data into a plan: problems of its fields and of what they name come together.

    Raises:
        SpecError: with every problem found.
    """
    return _resolve(outline(raw, where), library, where, looked)


def resolve(
    experiment: Experiment, library: Library | None = None, where: Where = str, looked: Looked | None = None
) -> Plan:
    """Compile an experiment into a plan.

    ``looked`` is kept from one call to the next where many cells read the same data, which is then digested once.

    Raises:
        PlanError: with every problem found.
    """
    return _resolve(Outline(experiment), library, where, looked)


def _resolve(outlined: Outline, library: Library | None, where: Where, looked: Looked | None) -> Plan:
    library, experiment = library or Library.here(), outlined.experiment
    engines = PlanEngines(experiment)
    own_block = engines.own.plan_block()
    texts = load_texts(experiment.constitution, experiment.template, library, where)
    work = Compilation(
        outlined,
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
    _look_at_unread_stages(work)
    if work.whole and not work.data_problems:
        work.problems += overlap_problems(work)
    problems = [*outlined.problems, *work.problems, *work.data_problems]
    if not work.whole:
        raise PlanError(dict.fromkeys(problems))
    plan = Plan(
        experiment=experiment.name,
        seed=experiment.seed,
        engine=own_block,
        steps=with_costs(experiment, tuple(work.steps.values()), work.estimates),
        source=_source(experiment),
        outputs=_outputs(work),
        engines=engines.blocks(),
    )
    try:
        checked = engines.check(plan, where)
    except PlanError as error:
        problems += error.problems
    if problems:
        raise PlanError(dict.fromkeys(problems))
    return checked


def _source(experiment: Experiment) -> dict[str, Any]:
    fields = ("description", "seed", "models", "data", "stages")
    written = {name: value for name, value in experiment.raw.items() if name in fields}
    trackers = experiment.tracking.enabled()
    if not trackers:
        return written
    return {**written, "tracking": {name: tracker.model_dump(mode="json") for name, tracker in trackers.items()}}


def _outputs(work: Compilation) -> dict[str, str]:
    """The last step that makes each kind of result: what ``chat``, ``serve`` and the summary take."""
    last: dict[str, str] = {}
    for step in work.steps.values():
        if step.makes in ("model", "reward_model", "evaluation") and KINDS[step.kind].spec.RESULT:
            last[step.makes] = step.name
    if "model" not in last:
        fetched = (step for step in work.steps.values() if step.kind == "fetch")
        last |= {step.makes: step.name for step in fetched if served_elsewhere(work.experiment, step.name) is None}
    return last


def _order(work: Compilation) -> list[str]:
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


def _step_name(work: Compilation, ref: str, path: str, engine: PlanEngine) -> str | None:
    """The step a reference stands for; data and model steps are made when first asked for."""
    experiment = work.experiment
    if ref in experiment.models:
        return _model_step(work, ref, experiment.models[ref], engine)
    if ref in work.steps:
        return ref
    name, dot, part = ref.partition(".")
    if ref in experiment.stages or any(work.unread(*way) for way in _ways(ref, name)):
        return None  # it had a problem of its own
    if name in experiment.data:
        source = experiment.data[name]
        if not dot and len(source.splits) == 1:
            part = next(iter(source.splits))
        if part in source.splits:
            return data_step(work, name, part, source)
        parts = [f"{name}.{p}" for p in source.splits]
        work.wrong(path, f"'{ref}' is no part of data '{name}'", did_you_mean(ref, parts))
        return None
    makers = [*experiment.stages, *experiment.models]
    for name, source in experiment.data.items():
        makers += [f"{name}.{p}" for p in source.splits] if len(source.splits) > 1 else [name]
    work.wrong(path, f"no stage, model or data makes '{ref}'", did_you_mean(ref, makers))
    return None


def _ways(ref: str, name: str) -> tuple[tuple[str, str], ...]:
    """The blocks that a reference may stand for."""
    return ("stages", ref), ("models", ref), ("data", name)


def _model_step(work: Compilation, name: str, model: ModelSpec, engine: PlanEngine) -> str | None:
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
        if work.sure_of(engine):
            work.problems += [Problem(work.where(p.where), p.message, p.next) for p in error.problems]
        return None
    spec = KINDS["fetch"].spec(kind="fetch", **model.model_dump(exclude=NOT_FETCHED))
    ingredients = Ingredients(model=identity)
    if scheme != "api":
        work.formats[step] = engine.kind.model_format
        if engine.kind.model_format:
            ingredients = replace(ingredients, format=engine.kind.model_format)
    notes = model_notes(model)
    fetched = work.step(
        step, spec, ingredients, makes=spec.MAKES, estimate=spec.estimate({}), engine=engine, notes=notes
    )
    then = former_identity(model)
    former = "" if then is None else former_key(fetched.ingredients, (), keys={}, former={}, model=then)
    work.steps[step] = replace(fetched, former=former)
    _check_one_address(work, name, model, fetched.key)
    return step


def _check_one_address(work: Compilation, name: str, model: ModelSpec, key: str) -> None:
    """Two models by one name at two addresses would silently be one: whether they are, only the user can say."""
    for other_name, other in work.experiment.models.items():
        twin = work.steps.get(other_name)
        if other_name == name or twin is None or twin.key != key or model.identity or other.url == model.url:
            continue
        reason = f"has the name and revision of '{other_name}', which is at another address"
        hint = "give both the same `identity` if they are one model, or one of them its own"
        work.wrong(f"models.{name}", reason, hint)


# ---- a stage -----------------------------------------------------------------------------------------------------


def _add_stage(work: Compilation, name: str, spec: StageSpec) -> None:
    parts, path = work.parts[name], f"stages.{name}"
    engine = work.engines.of(spec)
    if engine is None:
        if not work.unread("engines", getattr(spec, "engine", "")):
            work.wrong(f"{path}.engine", *work.engines.unknown(spec))
        engine = work.engines.own  # what else is wrong is told all the same
    elif (lacking := method_problem(engine, spec.kind)) and work.sure_of(engine):
        work.wrong(path, *lacking)
    reads_models = isinstance(spec, EngineSpec) and work.sure_of(engine) and work.sure_of(work.engines.own)
    names = _input_steps(work, path, parts, engine=engine, reads_models=reads_models)
    for problem in endpoint_problems(work.experiment, path, spec, names):
        work.wrong(problem.where, problem.message, problem.next)
    resources = {
        **_constitution(work, path, spec),
        **(_template(work, path, spec, names) if spec.USES_TEMPLATE else {}),
        **endpoint_resources(work.experiment, names),
        **_stage_texts(work, path, parts),
    }
    whole = len(names) == len(_refs(parts.inputs))
    try:
        if frozen := resources.get("template"):
            spec.check_template(partial(ChatTemplate.from_text, frozen["name"], frozen["text"]))
        if not whole:
            return
        makes = spec.makes({role: work.steps[step].makes for role, step in names.items()})
        estimate = spec.estimate(_rows_by_role(work, parts.inputs, names))
    except SpecError as error:
        work.gather(error, path)
        return
    work.rows[name] = estimate.rows
    work.estimates[name] = estimate
    if estimate.rows == 0 and method_of(spec.kind) is not None:
        _tell_no_rows(work, path, names)
    if makes in ("model", "reward_model"):
        sources = [work.formats[step] for step in names.values() if step in work.formats]
        work.formats[name] = engine.kind.model_format if isinstance(spec, EngineSpec) else next(iter(sources), "")
    work.steps[name] = work.step(
        name,
        spec,
        stage_ingredients(spec, parts.semantic, resources, work.constitution),
        makes=makes,
        estimate=estimate,
        inputs=tuple(Input(entry.role, entry.label, names[entry.place]) for entry in inputs_of(parts.inputs)),
        resources=resources,
        engine=engine,
        notes=[*dialect_notes(work.experiment, spec, names), *template_notes(work, spec, names, resources)],
    )


def _input_steps(
    work: Compilation, path: str, parts: SpecParts, *, engine: PlanEngine, reads_models: bool
) -> dict[str, str]:
    """The steps that a stage's references stand for, by role, where they stand for one; problems are noted.

    ``reads_models``: the stage's engine reads the files of its models, which must then be in its format.
    """
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
        elif reads_models and work.formats.get(step, engine.kind.model_format) != engine.kind.model_format:
            reason = f"'{ref}' is a model of another engine, whose files engine {engine.name} cannot read"
            work.wrong(f"{path}.{role}", reason, "give both stages the same engine")
    return names


def _tell_no_rows(work: Compilation, path: str, names: Mapping[str, str]) -> None:
    """A training without rows is an error, told with the data that has none."""
    for role, step in names.items():
        if (origin := without_rows(work, step)) is not None:
            since = f", since '{origin}' has none" if origin != step else ""
            reason = f"would train on no rows: '{step}' has none{since}"
            work.wrong(f"{path}.{role}", reason, f"give '{origin}' rows: other `splits`, or more data")


def _look_at_unread_stages(work: Compilation) -> None:
    """What stages of which some field cannot be read say of their inputs and texts; of the rest nothing is known."""
    for path, unread in work.outline.unread.items():
        if unread.model is not None and isinstance(unread.raw, Mapping):
            parts = readable_parts(unread.model, unread.raw)
            _input_steps(work, path, parts, engine=work.engines.own, reads_models=False)
            _stage_texts(work, path, parts)


def _own_template(work: Compilation, model_name: str) -> NamedText | None:
    """The chat template of a model that has its own and has not been trained here."""
    model = work.experiment.models.get(model_name)
    if model is None or not model.template:
        return None
    try:
        return read_template(model.template, work.library, work.where(f"models.{model_name}.template"))
    except SpecError as error:
        work.gather(error)
        return None


def _template(work: Compilation, path: str, spec: StageSpec, names: Mapping[str, str]) -> dict[str, Any]:
    """The chat template of a stage: the experiment's, or that of the model which answers.

    Training, and the mixing before it, keep to the experiment's: it is what they teach, and what the trained model is
    asked in from then on.
    """
    answering = names if spec.kind in ANSWERING else {}
    own = {role: text for role, step in answering.items() if (text := _own_template(work, step)) is not None}
    template = own.pop("model", None) or work.template
    if template is None:
        if not work.experiment.template and not work.unread("template"):
            work.wrong(path, "needs a chat template", "give `template=NAME`")
        return {}
    resources: dict[str, Any] = {"template": {"name": template.name, "text": template.text}}
    others = {role.partition(".")[2]: text for role, text in own.items() if text.text != template.text}
    if others:
        resources["templates"] = {label: {"name": text.name, "text": text.text} for label, text in others.items()}
    return resources


def _article(makes: str) -> str:
    return f"a {makes}" if makes in ("model", "reward_model") else makes


def _rows_by_role(work: Compilation, inputs: Mapping[str, Names], names: Mapping[str, str]) -> dict[str, int | None]:
    rows: dict[str, int | None] = {role: work.rows.get(step) for role, step in names.items()}
    for role, value in inputs.items():
        if not isinstance(value, str):
            counts = [rows[r] for r in names if r.startswith(f"{role}.")]
            rows[role] = None if any(c is None for c in counts) else sum(c for c in counts if c is not None)
    if work.constitution is not None:
        rows["constitution:principles"] = len(work.constitution.active)
    return rows | {f"{role}:width": work.steps[step].estimate.width for role, step in names.items()}


def _constitution(work: Compilation, path: str, spec: StageSpec) -> dict[str, Any]:
    if not spec.PRINCIPLE_FIELDS:
        return {}
    if work.constitution is None:
        if work.experiment.constitution is None and not work.unread("constitution"):
            work.wrong(path, "needs a constitution", "give `constitution=NAME`")
        return {}
    for finding in lint(work.constitution, tuple(f for f in spec.PRINCIPLE_FIELDS if f in TEXTS)):
        if finding.level == "error" and (finding.where, finding.message) not in work.linted:
            work.linted.add((finding.where, finding.message))
            reason = f"{finding.message} ('{path}' reads it)"
            work.problems.append(Problem(work.where(f"constitution: {finding.where}"), reason, finding.next))
    return {"constitution": work.constitution.to_json()}


def _stage_texts(work: Compilation, path: str, parts: SpecParts) -> dict[str, Any]:
    texts: dict[str, str] = {}
    for name, (folder, file) in parts.texts.items():
        try:
            texts[name] = read_text(folder, file, work.library, work.where(f"{path}.{name}"))
        except SpecError as error:
            work.gather(error)
    return {"texts": texts} if texts else {}
