"""From a constitution's file to plain principles: extends, overrides by id, include, exclude, weights, in that order.

Pure: it reads no file. ``find`` gives the data of a constitution that another extends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, field_validator

from cai.constitution.model import (
    MAX_WEIGHT,
    TEXTS,
    Constitution,
    Frozen,
    Names,
    Principle,
    Weight,
    problems_of,
    slug,
    slugs,
)
from cai.errors import Problem, SpecError, did_you_mean
from cai.files.yaml_lines import Located, load_mapping

Find = Callable[[str], Mapping[str, Any]]
Locate = Callable[[str], str]

MAX_CHAIN = 30
SCHEMA_PATH = "docs/schema/constitution.schema.json"
_FACTOR = re.compile(r"x\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def _reweight(value: Any) -> Any:
    factor = _FACTOR.fullmatch(value.strip()) if isinstance(value, str) else None
    number = float(factor[1]) if factor else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_WEIGHT:
        raise ValueError(f"{value!r:.40} is no weight; a number sets it, a text such as 'x0.5' multiplies it")
    return f"x{factor[1]}" if factor else float(value)


Reweight = Annotated[
    float | str,
    BeforeValidator(_reweight),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^x *[0-9.]+$"}]}),
]


class PrincipleEntry(Frozen):
    """One principle as the file writes it; fields not given keep the extended principle's value, or the default."""

    id: Annotated[str, Field(description="unique; small letters, digits, . _ -; the draw depends on it")]
    critique: Annotated[str | None, Field(description="asks the model what is wrong with its answer")] = None
    revision: Annotated[str | None, Field(description="asks the model to rewrite its answer")] = None
    comparison: Annotated[str | None, Field(description="asks which of two answers is better")] = None
    tags: Annotated[Names | None, Field(description="for include, exclude and weights: tag:NAME")] = None
    weight: Annotated[Weight | None, Field(description="relative chance of being drawn; 0 never")] = None
    rationale: Annotated[str | None, Field(description="why the principle is there; no model reads it")] = None
    priority: Annotated[int | None, Field(strict=True, description="higher comes first when read whole")] = None

    _id = field_validator("id")(slug)
    _tags = field_validator("tags")(slugs)


class ConstitutionFile(Frozen):
    """A constitution file (constitutions/*.yaml)."""

    name: Annotated[str, Field(description="shown in plans and reports; the file's name where not given")] = ""
    description: str = ""
    source: Annotated[str, Field(description="where the texts come from")] = ""
    licence: Annotated[str, Field(description="under which terms the texts may be used")] = ""
    extends: Annotated[Names, Field(description="constitutions to start from; later ones win")] = ()
    include: Annotated[Names, Field(description="keep only these: ids, tag:NAME, globs; empty keeps all")] = ()
    exclude: Annotated[Names, Field(description="then leave these out: ids, tag:NAME, globs")] = ()
    weights: Annotated[
        dict[str, Reweight],
        Field(default_factory=dict, description="selector: 2 sets the weight, 'x2' multiplies it; later ones win"),
    ]
    preamble: Annotated[str, Field(description="put before the principles when a judge reads them whole")] = ""
    principles: tuple[PrincipleEntry, ...] = ()


def constitution_schema() -> dict[str, Any]:
    """JSON Schema of a constitution file, for editors."""
    schema = ConstitutionFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Constitution"}


def resolve_constitution(
    raw: Mapping[str, Any], find: Find, where: str = "constitution", locate: Locate | None = None
) -> Constitution:
    """Apply a file's extends, overrides, include, exclude and weights.

    ``where`` names the file in errors. A ``Located`` mapping (``cai.files.yaml_lines.load_mapping``) brings its own
    places; ``locate(field path)`` overrides them. ``find(name)`` gives the data of an extended constitution and raises
    SpecError or KeyError when there is none. Include and exclude choose among all principles, inherited and own.

    Raises:
        SpecError: with every problem found in this file and those it extends.
    """
    problems: list[Problem] = []
    result = _Resolver(find, problems).resolve(raw, _places(raw, where, locate), ())
    if problems or result is None:
        raise SpecError(dict.fromkeys(problems))
    return result


def load_constitution(path: Path, find: Find | None = None, display_path: str = "") -> Constitution:
    """The constitution of a YAML file; what it extends is looked for beside it unless ``find`` is given.

    Raises:
        SpecError: with every problem found.
    """
    display_path = display_path or str(path)

    def beside(name: str) -> Mapping[str, Any]:
        base_path = path.parent / f"{name}.yaml"
        if not _is_slug(name) or not base_path.is_file():
            names = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise SpecError(Problem(str(path.parent), f"no '{name}'", did_you_mean(name, names)))
        return load_mapping(base_path, str(Path(display_path).parent / base_path.name))

    raw = load_mapping(path, display_path)
    raw.setdefault("name", path.stem)
    return resolve_constitution(raw, find or beside, display_path)


def _is_slug(name: str) -> bool:
    try:
        return bool(slug(name))
    except ValueError:
        return False


def _places(raw: Mapping[str, Any], where: str, locate: Locate | None) -> Locate:
    if locate is not None:
        return locate
    if isinstance(raw, Located):
        return raw.where
    return lambda field: f"{where}: {field}" if field else where


class _Resolver:
    """Collects problems; resolves each extended constitution once, however many paths lead to it."""

    def __init__(self, find: Find, problems: list[Problem]) -> None:
        self.find = find
        self.problems = problems
        self.resolved: dict[str, Constitution | None] = {}
        """By name, so that one that several extend is resolved once; None where something in it is wrong."""

    def resolve(self, raw: Mapping[str, Any], locate: Locate, trail: tuple[str, ...]) -> Constitution | None:
        """The resolved constitution, or None when something in it or below it is wrong."""
        problems = self.problems
        before = len(problems)
        file = _parse(raw, locate, problems)
        extends = dict.fromkeys(file.extends if file else _names_in(raw.get("extends")))
        resolved_bases = [self._base(name, locate("extends"), trail) for name in extends]
        if file is None or None in resolved_bases:
            return None
        bases = [b for b in resolved_bases if b is not None]
        inherited: dict[str, Principle] = {p.id: p for base in bases for p in base.principles}
        merged = _with_own(file.principles, inherited, locate, problems)
        selected = _select(file, list(merged.values()), locate, problems) if len(problems) == before else []
        if len(problems) > before:
            return None
        if not selected:
            field = "include" if file.include else "exclude" if file.exclude else "principles"
            then = "add principles, or widen include and exclude"
            problems.append(Problem(locate(field), "leaves no principle", then))
        elif not any(p.weight > 0 for p in selected):
            message = "every principle has weight 0, so none can be drawn"
            problems.append(
                Problem(locate("weights" if file.weights else "principles"), message, "give one a positive weight")
            )
        return Constitution(
            name=file.name or "constitution",
            description=file.description,
            source=file.source or _joined(b.source for b in bases),
            licence=file.licence or _joined(b.licence for b in bases),
            preamble=file.preamble or next((b.preamble for b in reversed(bases) if b.preamble), ""),
            principles=tuple(selected),
        )

    def _base(self, name: str, here: str, trail: tuple[str, ...]) -> Constitution | None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            self.problems.append(Problem(here, f"extends itself ({circle})", "take one link out"))
            return None
        if len(trail) >= MAX_CHAIN:
            self.problems.append(Problem(here, f"extends more than {MAX_CHAIN} constitutions in a row"))
            return None
        if name not in self.resolved:
            try:
                raw = self.find(name)
            except SpecError as error:
                message = f"cannot extend '{name}'"
                self.problems += [Problem(here, f"{message} ({p.where}: {p.message})", p.next) for p in error.problems]
                self.resolved[name] = None
            except KeyError:
                self.problems.append(Problem(here, f"no constitution '{name}'"))
                self.resolved[name] = None
            else:
                self.resolved[name] = self.resolve(raw, _places(raw, name, None), (*trail, name))
        return self.resolved[name]


def _parse(raw: Mapping[str, Any], locate: Locate, problems: list[Problem]) -> ConstitutionFile | None:
    try:
        # A field left empty in YAML is null, and means that it is not given.
        return ConstitutionFile.model_validate({k: v for k, v in raw.items() if v is not None})
    except ValidationError as error:
        problems += problems_of(error, locate, ConstitutionFile)
        return None


def _with_own(
    entries: Sequence[PrincipleEntry], inherited: Mapping[str, Principle], locate: Locate, problems: list[Problem]
) -> dict[str, Principle]:
    """``inherited`` and a file's own principles: new ones at the end, known ids override the fields they give."""
    merged = dict(inherited)
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if (first_number := first.setdefault(entry.id, number)) != number:
            message = f"'{entry.id}' is there twice (also principles[{first_number}])"
            problems.append(Problem(locate(f"principles[{number}].id"), message, "give it an id of its own"))
            continue
        overrides = {f: getattr(entry, f) for f in entry.model_fields_set if getattr(entry, f) is not None}
        base = merged[entry.id].model_dump() if entry.id in merged else {}
        try:
            principle = Principle.model_validate(base | overrides)
        except ValidationError as error:
            problems += problems_of(error, lambda f, n=number: locate(f"principles[{n}].{f}"), Principle)
            continue
        if not any(getattr(principle, f) for f in TEXTS):
            message = "has no critique, revision or comparison"
            near = did_you_mean(entry.id, merged) if merged and entry.id not in merged else ""
            problems.append(Problem(locate(f"principles[{number}]"), message, near or "write at least one"))
        merged[entry.id] = principle
    return merged


def _select(
    file: ConstitutionFile, all_of_them: list[Principle], locate: Locate, problems: list[Problem]
) -> list[Principle]:
    def chosen(field: str, selectors: Sequence[str]) -> list[set[str]]:
        sets = []
        for number, selector in enumerate(selectors):
            ids = matching(selector, all_of_them)
            if not ids:
                valid_selectors = {p.id for p in all_of_them} | {f"tag:{t}" for p in all_of_them for t in p.tags}
                place = locate(f"{field}.{selector}" if field == "weights" else f"{field}[{number}]")
                problems.append(
                    Problem(place, f"'{selector}' matches no principle", did_you_mean(selector, valid_selectors))
                )
            sets.append(ids)
        return sets

    included = set().union(*chosen("include", file.include))
    excluded = set().union(*chosen("exclude", file.exclude))
    factors = list(zip(chosen("weights", list(file.weights)), file.weights.values(), strict=True))
    selected = []
    for p in all_of_them:
        if (file.include and p.id not in included) or p.id in excluded:
            continue
        weight = p.weight
        for ids, change in factors:
            if p.id in ids:
                weight = min(weight * float(change[1:]), MAX_WEIGHT) if isinstance(change, str) else change
        selected.append(p if weight == p.weight else p.model_copy(update={"weight": weight}))
    return selected


def matching(selector: str, principles: Iterable[Principle]) -> set[str]:
    """Ids of the principles that a selector names: an id, ``tag:NAME``, or a glob over either."""
    if selector.startswith("tag:"):
        return {p.id for p in principles if any(fnmatchcase(t, selector[4:]) for t in p.tags)}
    return {p.id for p in principles if fnmatchcase(p.id, selector)}


def _names_in(value: Any) -> tuple[str, ...]:
    """What can be read of an ``extends`` whose file has problems, so that the extended files are checked as well."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(v for v in values if isinstance(v, str))


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(v for v in values if v))
