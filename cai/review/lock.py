"""Locks: the resolved experiment as a small file to commit, and the plan that such a file stands for.

A lock holds what decides each result: every setting with its default filled in, the principles, digests of texts, data
and models, and the first 16 digits of every key. Texts other than the principles are known by their digests alone.

What the machine decided (``device: auto``) is in it too. A lock is held against another machine's plan as if that had
decided the same, so that a lock made on a GPU is not stale on a laptop.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from cai.constitution import Constitution
from cai.errors import Problem, SpecError
from cai.experiment.compose import DEFAULT_EXPERIMENT
from cai.experiment.strangers import check_words
from cai.files.library import Library
from cai.files.yaml_lines import dumps, field_path, load_mapping
from cai.identity import canonical
from cai.plan import HubEntry, Ingredients, Names, Plan, Step, StepEstimate, by_role, inputs_of
from cai.review.changes import flat
from cai.review.compare import compare
from cai.review.inputs import source_name
from cai.review.principles import constitution_of

FORMAT = 1
FOLDER = Path("locks")
SUFFIX = ".lock.yaml"
DIGITS = 16
_SAID = ("reader", "splits", "split_by", "split_seed", "limit", "options")
"""What of a data source's identity its settings say already."""
_DEFAULTS: dict[str, Any] = {"limit": None, "revision": None, "expect": None, "options": {}}
_EMPTY: dict[str, Any] = {
    "revision": "",
    "sha256": "",
    "url": "",
    "api_key_env": "",
    "logprobs": "",
    "parameters": None,
}
"""What a lock leaves out of a data source and of a model: fields that are empty."""


def lock_path(name: str) -> Path:
    """Where the lock of an experiment lies."""
    return FOLDER / f"{name}{SUFFIX}"


def experiment_of(overrides: Sequence[str]) -> str:
    """The experiment that overrides choose."""
    chosen = [o.partition("=")[2] for o in overrides if o.startswith("experiment=")]
    return chosen[-1] if chosen else DEFAULT_EXPERIMENT


def own_experiments(library: Library) -> list[str]:
    """Experiments of the first root, the folder where the user stands; shipped ones are not theirs to lock."""
    return [name for name, path in library.names("experiments") if path.is_relative_to(library.roots[0])]


def locked_experiments() -> list[str]:
    """Names of the experiments that have a lock here."""
    lock_names = (path.relative_to(FOLDER).as_posix() for path in sorted(FOLDER.rglob(f"*{SUFFIX}")))
    return [name.removesuffix(SUFFIX) for name in lock_names]


def check_lock(
    name: str, compile_plan: Callable[[Sequence[str]], Plan], overrides: Sequence[str] = ()
) -> list[Problem]:
    """What is wrong with the lock of an experiment: that it is missing, that it is stale and in what.

    ``compile_plan`` makes the plan of overrides: those of the lock, and then ``overrides``.
    """
    path = lock_path(name)
    again = f"run `python -m cai lock experiment={name}`"
    if not path.is_file():
        return [Problem(str(path), "there is no lock", again)]
    lock = read_lock(path)
    locked = [word for word in lock["overrides"] if not word.startswith("experiment=")]
    check_words(locked, str(path))
    again = f"if that is meant, run `python -m cai lock {shlex.join([f'experiment={name}', *locked])}`"
    plan = compile_plan([f"experiment={name}", *locked, *overrides])
    words = list(stale(lock, plan, str(path)))
    return [
        Problem(str(path), f"is stale: {difference}", again if difference is words[-1] else "") for difference in words
    ]


def lock_data(plan: Plan, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A plan as the plain data of a lock. ``overrides`` are those it was compiled with, the experiment's name first."""
    counts = next((dict(engine) for s in plan.steps if (engine := s.ingredients.engine) is not None), {})
    constitution = constitution_of(plan)
    lock: dict[str, Any] = {
        "format": FORMAT,
        "experiment": plan.experiment,
        "overrides": list(overrides),
        "description": str(plan.source.get("description", "")),
        "seed": plan.seed,
        "engine": {"settings": {k: v for k, v in plan.engine.items() if k != "uses"}, "counts": counts},
    }
    if plan.engines:
        lock["engines"] = {
            name: {k: v for k, v in block.items() if k != "uses"} for name, block in plan.engines.items()
        }
    if constitution is not None:
        lock["constitution"] = dict(constitution)
    if sources := {source_name(step): _data(step) for step in plan.steps if step.kind == "read"}:
        lock["data"] = sources
    return {**lock, "steps": [_step_data(step, counts) for step in plan.steps]}


def _data(step: Step) -> dict[str, Any]:
    """A data source: its settings, and what of its identity they do not say."""
    source, identity = step.spec["source"], step.ingredients.data or {}
    more = {k: v for k, v in identity.items() if k not in _SAID}
    return {"source": {k: v for k, v in source.items() if v not in (None, {})}, **more}


def _step_data(step: Step, counts: Mapping[str, Any]) -> dict[str, Any]:
    ingredients = step.ingredients
    locked_step: dict[str, Any] = {"name": step.name, "kind": step.kind, "version": ingredients.version}
    locked_step["key"] = step.key[:DIGITS]
    if step.engine:
        locked_step["by"] = step.engine
    if step.kind == "read":
        rows = step.estimate.rows
        return {
            **locked_step,
            "data": source_name(step),
            "part": ingredients.part,
            **({} if rows is None else {"rows": rows}),
        }
    if step.kind == "fetch":
        counted = {k: v for k, v in (("model", ingredients.model), ("format", ingredients.format)) if v is not None}
        return {**locked_step, "counts": counted, "spec": {k: v for k, v in step.spec.items() if v not in ("", None)}}
    locked_step["inputs"] = by_role(step.inputs)
    if (engine := ingredients.engine) is not None:
        locked_step["engine"] = "counts" if canonical(engine) == canonical(counts) else engine
    if ingredients.constitution is not None:
        locked_step["principles"] = list(dict.fromkeys(f for entry in ingredients.principles() for f in entry))
    if ingredients.template is not None:
        locked_step["template"] = {
            "name": step.resources.get("template", {}).get("name"),
            "sha256": ingredients.template,
        }
    if ingredients.templates is not None:
        names = step.resources.get("templates", {})
        locked_step["templates"] = {
            k: {"name": names.get(k, {}).get("name"), "sha256": v} for k, v in ingredients.templates.items()
        }
    if ingredients.texts is not None:
        locked_step["texts"] = {k: {"file": step.spec.get(k), "sha256": v} for k, v in ingredients.texts.items()}
    locked_step["settings"] = ingredients.spec or {}
    if endpoints := {name: step.resources[name] for name in ("api_keys", "servers") if name in step.resources}:
        locked_step["endpoints"] = endpoints
    if runtime := _runtime(step):
        locked_step["runtime"] = runtime
    return locked_step


def _runtime(step: Step) -> dict[str, Any]:
    """Leaves of a spec that do not count, by path."""
    counted, texts = flat(step.ingredients.spec or {}), step.ingredients.texts or {}
    roles = tuple(by_role(step.inputs))
    uncounted = {
        path: value
        for path, value in flat(step.spec).items()
        if path not in counted and path not in texts and path != "kind"
    }
    return {p: v for p, v in uncounted.items() if not any(p == r or p.startswith((f"{r}.", f"{r}[")) for r in roles)}


def lock_text(data: Mapping[str, Any]) -> str:
    """The bytes of a lock: the same plan gives the same."""
    overrides = " ".join(" ".join(data["overrides"]).split())
    head = (
        f"# Written by `python -m cai lock {overrides}`. `python -m cai validate --locked` says whether it is stale.\n"
    )
    return head + dumps(dict(data))


def read_lock(path: Path) -> dict[str, Any]:
    """The data of a lock.

    Raises:
        SpecError: when it is not there or is no lock of this format.
    """
    lock = dict(load_mapping(path, str(path)))
    if lock.get("format") != FORMAT:
        raise SpecError(Problem(str(path), f"is no lock of format {FORMAT}", _AGAIN))
    try:
        canonical(lock)
        _lock_file().validate_python(lock, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError(Problem(f"{path}: {field_path(d['loc'])}", d["msg"], _AGAIN) for d in details) from error
    except (TypeError, ValueError) as error:
        raise SpecError(Problem(str(path), f"cannot be read as a lock ({error})", _AGAIN)) from error
    return lock


_AGAIN = "make one with `python -m cai lock`"


class _LockedEngine(TypedDict):
    settings: dict[str, Any]
    counts: dict[str, Any]


class _LockedData(TypedDict):
    source: dict[str, Any]
    hub: NotRequired[list[HubEntry]]
    sha256: NotRequired[list[str]]


class _LockedStep(TypedDict):
    name: str
    kind: str
    version: int
    key: str
    by: NotRequired[str]
    data: NotRequired[str]
    part: NotRequired[str]
    rows: NotRequired[int]
    counts: NotRequired[dict[str, Any]]
    spec: NotRequired[dict[str, Any]]
    inputs: NotRequired[dict[str, Names]]
    engine: NotRequired[str | dict[str, Any]]
    principles: NotRequired[list[str]]
    template: NotRequired[dict[str, str | None]]
    templates: NotRequired[dict[str, dict[str, str | None]]]
    texts: NotRequired[dict[str, dict[str, str | None]]]
    settings: NotRequired[dict[str, Any]]
    endpoints: NotRequired[dict[str, dict[str, Any]]]
    runtime: NotRequired[dict[str, Any]]


class _LockFile(TypedDict):
    """What is relied on; more may stand there."""

    experiment: str
    overrides: list[str]
    seed: int
    engine: _LockedEngine
    steps: list[_LockedStep]
    description: NotRequired[str]
    engines: NotRequired[dict[str, dict[str, Any]]]
    constitution: NotRequired[dict[str, Any]]
    data: NotRequired[dict[str, _LockedData]]


@cache
def _lock_file() -> TypeAdapter[_LockFile]:
    return TypeAdapter(_LockFile)


def plan_of_lock(data: Mapping[str, Any], where: str) -> Plan:
    """The plan that a lock stands for; its keys have 16 digits, and of texts only the digests are known.

    Raises:
        SpecError: when the data is no lock.
    """
    try:
        steps = tuple(replace(_step_of(data, step), engine=str(step.get("by", ""))) for step in data["steps"])
        return Plan(
            experiment=str(data["experiment"]),
            seed=int(data["seed"]),
            engine=dict(data["engine"]["settings"]),
            steps=steps,
            source={"description": str(data.get("description", ""))},
            engines={str(name): dict(block) for name, block in data.get("engines", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(Problem(where, f"cannot be read as a lock ({error})", _AGAIN)) from error


def _step_of(data: Mapping[str, Any], step: Mapping[str, Any]) -> Step:
    name, kind, key = str(step["name"]), str(step["kind"]), str(step["key"])
    if kind == "read":
        source = {**_DEFAULTS, **data["data"][step["data"]]["source"]}
        identity = {**{k: source[k] for k in _SAID}, "splits": [[k, v] for k, v in source["splits"].items()]}
        identity |= {k: v for k, v in data["data"][step["data"]].items() if k != "source"}
        spec = {"kind": kind, "source": source, "part": step["part"]}
        counted = {"kind": kind, "version": step["version"], "data": identity, "part": step["part"]}
        ingredients = Ingredients.from_json(counted)
        estimate = StepEstimate(rows=step.get("rows"))
        return Step(name, kind, "", key, data["seed"], (), spec, {}, ingredients, estimate)
    if kind == "fetch":
        spec = {"kind": kind, **_EMPTY, **step["spec"]}
        ingredients = replace(Ingredients.from_json(step["counts"]), kind=kind, version=step["version"])
        return Step(name, kind, "", key, data["seed"], (), spec, {}, ingredients)
    resources: dict[str, Any] = dict(step.get("endpoints", {}))
    principles: dict[str, Any] | None = None
    if "principles" in step:
        constitution = Constitution.from_json(data["constitution"])
        principles = {"principles": constitution.identity(tuple(step["principles"]))}
        resources["constitution"] = data["constitution"]
    template, templates, texts = step.get("template"), step.get("templates"), step.get("texts", {})
    if template is not None:
        resources["template"] = {"name": template["name"]}
    if templates is not None:
        resources["templates"] = {label: {"name": t["name"]} for label, t in templates.items()}
    engine = step.get("engine")
    ingredients = Ingredients(
        kind=kind,
        version=step["version"],
        spec=step["settings"],
        constitution=principles,
        template=None if template is None else template["sha256"],
        templates=None if templates is None else {label: t["sha256"] for label, t in templates.items()},
        texts={field: text["sha256"] for field, text in texts.items()} or None,
        engine=data["engine"]["counts"] if engine == "counts" else engine,
        seed=data["seed"],
    )
    spec = {**step["settings"], **{field: text["file"] for field, text in texts.items()}, **step.get("runtime", {})}
    return Step(name, kind, "", key, data["seed"], inputs_of(step["inputs"]), spec, resources, ingredients)


def stale(lock: Mapping[str, Any], plan: Plan, where: str) -> Iterator[str]:
    """What differs between a lock and the plan that its experiment has now, in the words of a review.

    Raises:
        SpecError: when the data is no lock.
    """
    locked = plan_of_lock(lock, where)
    now = lock_data(_as_decided(plan, lock), lock["overrides"])
    if canonical(now) == canonical(dict(lock)):
        return
    changes = [change.words for change in compare(locked, plan_of_lock(now, where))]
    yield from changes or ["it was written by another version of this program, or by hand"]


def _as_decided(plan: Plan, lock: Mapping[str, Any]) -> Plan:
    """The plan as it would be on the machine that wrote the lock, where the experiment leaves the machine to decide."""
    auto_settings = {k for k, v in plan.engine.items() if v == "auto" and lock["engine"]["settings"].get(k) == "auto"}
    decided = {k: v for k, v in lock["engine"]["counts"].items() if k in auto_settings}
    keys: dict[str, str] = {}
    steps = []
    for step in plan.steps:
        ingredients = step.ingredients
        if ingredients.engine is not None:
            engine = {k: decided.get(k, v) for k, v in ingredients.engine.items()}
            ingredients = replace(ingredients, engine=engine)
        if ingredients.inputs is not None:
            ingredients = replace(ingredients, inputs=_replaced(ingredients.inputs, keys))
        keys[step.key] = ingredients.key()
        steps.append(replace(step, ingredients=ingredients, key=keys[step.key]))
    return replace(plan, steps=tuple(steps))


def _replaced(value: Any, keys: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return keys.get(value, value)
    if isinstance(value, Mapping):
        return {name: _replaced(inner, keys) for name, inner in value.items()}
    return [_replaced(inner, keys) for inner in value] if isinstance(value, list) else value
