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


def load_constitution(path: Path, find: Find | None = None, shown: str = "") -> Constitution:
    """The constitution of a YAML file; what it extends is looked for beside it unless ``find`` is given.

    Raises:
        SpecError: with every problem found.
    """
    shown = shown or str(path)

    def beside(name: str) -> Mapping[str, Any]:
        other = path.parent / f"{name}.yaml"
        if not _named(name) or not other.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise SpecError(Problem(str(path.parent), f"no '{name}'", did_you_mean(name, known)))
        return load_mapping(other, str(Path(shown).parent / other.name))

    raw = load_mapping(path, shown)
    raw.setdefault("name", path.stem)
    return resolve_constitution(raw, find or beside, shown)


def _named(name: str) -> bool:
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
        self.find, self.problems = find, problems
        self.done: dict[str, Constitution | None] = {}

    def resolve(self, raw: Mapping[str, Any], at: Locate, trail: tuple[str, ...]) -> Constitution | None:
        """The resolved constitution, or None when something in it or below it is wrong."""
        problems = self.problems
        before = len(problems)
        file = _parse(raw, at, problems)
        extends = dict.fromkeys(file.extends if file else _names_in(raw.get("extends")))
        found = [self._base(name, at("extends"), trail) for name in extends]
        if file is None or None in found:
            return None
        bases = [b for b in found if b is not None]
        merged: dict[str, Principle] = {p.id: p for base in bases for p in base.principles}
        _own(file.principles, merged, at, problems)
        kept = _select(file, list(merged.values()), at, problems) if len(problems) == before else []
        if len(problems) > before:
            return None
        if not kept:
            field = "include" if file.include else "exclude" if file.exclude else "principles"
            then = "add principles, or widen include and exclude"
            problems.append(Problem(at(field), "leaves no principle", then))
        elif not any(p.weight > 0 for p in kept):
            what = "every principle has weight 0, so none can be drawn"
            problems.append(
                Problem(at("weights" if file.weights else "principles"), what, "give one a positive weight")
            )
        return Constitution(
            name=file.name or "constitution",
            description=file.description,
            source=file.source or _joined(b.source for b in bases),
            licence=file.licence or _joined(b.licence for b in bases),
            preamble=file.preamble or next((b.preamble for b in reversed(bases) if b.preamble), ""),
            principles=tuple(kept),
        )

    def _base(self, name: str, here: str, trail: tuple[str, ...]) -> Constitution | None:
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            self.problems.append(Problem(here, f"extends itself ({circle})", "take one link out"))
            return None
        if len(trail) >= MAX_CHAIN:
            self.problems.append(Problem(here, f"extends more than {MAX_CHAIN} constitutions in a row"))
            return None
        if name not in self.done:
            try:
                raw = self.find(name)
            except SpecError as error:
                what = f"cannot extend '{name}'"
                self.problems += [Problem(here, f"{what} ({p.where}: {p.what})", p.next) for p in error.problems]
                self.done[name] = None
            except KeyError:
                self.problems.append(Problem(here, f"no constitution '{name}'"))
                self.done[name] = None
            else:
                self.done[name] = self.resolve(raw, _places(raw, name, None), (*trail, name))
        return self.done[name]


def _parse(raw: Mapping[str, Any], at: Locate, problems: list[Problem]) -> ConstitutionFile | None:
    try:
        # A field left empty in YAML is null, and means that it is not given.
        return ConstitutionFile.model_validate({k: v for k, v in raw.items() if v is not None})
    except ValidationError as error:
        problems += problems_of(error, at, ConstitutionFile)
        return None


def _own(entries: Sequence[PrincipleEntry], merged: dict[str, Principle], at: Locate, problems: list[Problem]) -> None:
    """Put a file's own principles into ``merged``: new ones at the end, known ids override the fields they give."""
    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if (other := first.setdefault(entry.id, number)) != number:
            what = f"'{entry.id}' is there twice (also principles[{other}])"
            problems.append(Problem(at(f"principles[{number}].id"), what, "give it an id of its own"))
            continue
        given = {f: getattr(entry, f) for f in entry.model_fields_set if getattr(entry, f) is not None}
        base = merged[entry.id].model_dump() if entry.id in merged else {}
        try:
            principle = Principle.model_validate(base | given)
        except ValidationError as error:
            problems += problems_of(error, lambda f, n=number: at(f"principles[{n}].{f}"), Principle)
            continue
        if not any(getattr(principle, f) for f in TEXTS):
            what = "has no critique, revision or comparison"
            near = did_you_mean(entry.id, merged) if merged and entry.id not in merged else ""
            problems.append(Problem(at(f"principles[{number}]"), what, near or "write at least one"))
        merged[entry.id] = principle


def _select(
    file: ConstitutionFile, all_of_them: list[Principle], at: Locate, problems: list[Problem]
) -> list[Principle]:
    def chosen(field: str, selectors: Sequence[str]) -> list[set[str]]:
        sets = []
        for number, selector in enumerate(selectors):
            ids = matching(selector, all_of_them)
            if not ids:
                known = {p.id for p in all_of_them} | {f"tag:{t}" for p in all_of_them for t in p.tags}
                place = at(f"{field}.{selector}" if field == "weights" else f"{field}[{number}]")
                problems.append(Problem(place, f"'{selector}' matches no principle", did_you_mean(selector, known)))
            sets.append(ids)
        return sets

    included = set().union(*chosen("include", file.include))
    excluded = set().union(*chosen("exclude", file.exclude))
    factors = list(zip(chosen("weights", list(file.weights)), file.weights.values(), strict=True))
    kept = []
    for p in all_of_them:
        if (file.include and p.id not in included) or p.id in excluded:
            continue
        weight = p.weight
        for ids, change in factors:
            if p.id in ids:
                weight = min(weight * float(change[1:]), MAX_WEIGHT) if isinstance(change, str) else change
        kept.append(p if weight == p.weight else p.model_copy(update={"weight": weight}))
    return kept


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
