"""A constitution is data: an ordered set of principles, each with the texts that the stages read.

Which principle a row draws is a function of (seed, row, purpose) and of the principles' ids and weights: rewording a
principle moves no row, adding one to sixteen equals moves about one row in seventeen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator
from typing_extensions import Self

from cai.errors import Problem, SpecError, did_you_mean
from cai.files.yaml_lines import field_path
from cai.identity import parse_json, rendezvous, rendezvous_order

TEXTS = ("critique", "revision", "comparison")
"""The fields of a principle that models read."""

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,78}[a-z0-9])?")
SLUG_RULE = "small letters, digits and . _ - in between, at most 80"


def slug(value: str) -> str:
    """The value itself when it can be an id or a tag.

    Raises:
        ValueError: when it cannot, with the rule.
    """
    if not SLUG.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is no id ({SLUG_RULE})")
    return value


def slugs(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """``slug`` of each, repeats dropped; None stays None."""
    return None if values is None else tuple(dict.fromkeys(map(slug, values)))


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""One text or a list of texts."""

MAX_WEIGHT = 1e9
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT, strict=True)]
"""Relative chance of being drawn; no unit."""


class Frozen(BaseModel):
    """Base of the models here: unknown fields fail, values are frozen, texts lose the space around them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)


class Principle(Frozen):
    """One rule. Any of the three texts may be empty; ``lint(constitution, needs=...)`` says which a stage misses."""

    id: str
    critique: str = ""
    revision: str = ""
    comparison: str = ""
    tags: Names = ()
    weight: Weight = 1.0
    rationale: str = ""
    priority: Annotated[int, Field(strict=True)] = 0

    _id = field_validator("id")(slug)

    _tags = field_validator("tags")(slugs)


class Constitution(Frozen):
    """Resolved: plain principles in the order of the file, nothing left to extend or select."""

    name: str
    description: str = ""
    source: str = ""
    licence: str = ""
    preamble: str = ""
    principles: tuple[Principle, ...] = ()

    @field_validator("principles")
    @classmethod
    def _unique(cls, value: tuple[Principle, ...]) -> tuple[Principle, ...]:
        ids = [p.id for p in value]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"ids used twice: {', '.join(twice)}")
        return value

    @cached_property
    def _by_id(self) -> dict[str, Principle]:
        return {p.id: p for p in self.principles}

    @cached_property
    def _weights(self) -> tuple[tuple[str, float], ...]:
        return tuple((p.id, p.weight) for p in self.principles)

    def principle(self, name: str) -> Principle:
        """The principle with that id.

        Raises:
            KeyError: when there is none.
        """
        return self._by_id[name]

    @property
    def active(self) -> tuple[Principle, ...]:
        """The principles that can be drawn: those with a positive weight."""
        return tuple(p for p in self.principles if p.weight > 0)

    def draw(self, seed: int, row: str, purpose: str) -> Principle:
        """The principle of one row, by weighted rendezvous hashing (see ``cai.identity.rendezvous``).

        Raises:
            ValueError: when every weight is zero.
        """
        return self._by_id[rendezvous(seed, row, purpose, self._weights)]

    def draw_many(self, seed: int, row: str, purpose: str, k: int) -> tuple[Principle, ...]:
        """``k`` different principles (all of them when there are fewer), in order of draw; the first is ``draw``'s.

        Raises:
            ValueError: when every weight is zero, or ``k`` is less than one.
        """
        if k < 1:
            raise ValueError(f"k is {k}; draw at least one principle")
        order = rendezvous_order(seed, row, purpose, self._weights)
        if not order:
            raise ValueError("nothing to draw: every weight is zero")
        return tuple(self._by_id[name] for name in order[:k])

    def identity(self, fields: tuple[str, ...] = TEXTS) -> list[dict[str, Any]]:
        """What a stage's result depends on: id, weight and the named fields of every principle that can be drawn.

        ``fields`` are fields of a principle; ``preamble`` adds the constitution's own as the first entry, for a stage
        that reads it whole. Name, description, rationale and provenance are not part of it unless asked for.

        Raises:
            ValueError: for a field that principles do not have.
        """
        readable = {*Principle.model_fields, "preamble"}
        if unknown := [f for f in fields if f not in readable]:
            raise ValueError(f"principles have no field '{unknown[0]}'; {did_you_mean(unknown[0], readable)}")
        own = [f for f in fields if f not in ("id", "weight", "preamble")]
        entries: list[dict[str, Any]] = [{"preamble": self.preamble}] if "preamble" in fields else []
        for p in self.active:
            texts = {f: getattr(p, f) for f in own}
            entries.append({"id": p.id, "weight": p.weight} | {f: _plain(v) for f, v in texts.items()})
        return entries

    def as_text(self, field: str = "comparison") -> str:
        """The whole constitution for a judge that reads it at once: preamble, then the numbered ``field`` of each.

        Principles of higher priority come first; equals keep the order of the file. Weight zero leaves one out.

        Raises:
            ValueError: when a principle has no such text.
        """
        ordered = sorted(self.active, key=lambda p: -p.priority)
        if missing := [p.id for p in ordered if not getattr(p, field)]:
            raise ValueError(f"constitution '{self.name}': no {field} in {', '.join(missing)}")
        items = [f"{n}. {' '.join(getattr(p, field).split())}" for n, p in enumerate(ordered, 1)]
        return "\n\n".join(part for part in (self.preamble, "\n".join(items)) if part)

    def to_json(self) -> dict[str, Any]:
        """Plain data that ``json`` can write and ``from_json`` reads back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str, where: str = "constitution") -> Self:
        """The inverse of ``to_json``; takes its text too.

        Raises:
            SpecError: when the data is no resolved constitution.
        """
        try:
            return cls.model_validate(parse_json(data) if isinstance(data, str) else dict(data))
        except ValidationError as error:
            raise SpecError(problems_of(error, lambda field: f"{where}: {field}", Constitution)) from error
        except (ValueError, TypeError) as error:
            raise SpecError(Problem(where, f"is no JSON ({error})")) from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_SAYS = {
    "string_type": "must be text",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "tuple_type": "must be a text or a list of texts",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of fields",
    "missing": "is missing",
    "finite_number": "must be a finite number",
}


def problems_of(error: ValidationError, where: Any, model: type[BaseModel]) -> list[Problem]:
    """Every problem of a pydantic error in our words; ``where(field path)`` gives the place of each."""
    problems = []
    for item in error.errors(include_url=False):
        location = item["loc"]
        kind = item["type"]
        if kind == "extra_forbidden":
            field_names = Principle.model_fields if "principles" in location[:-1] else model.model_fields
            problems.append(
                Problem(where(field_path(location)), "unknown field", did_you_mean(str(location[-1]), field_names))
            )
            continue
        message = _SAYS.get(kind) or item["msg"].removeprefix("Value error, ").removeprefix("Input ").replace(
            "should", "must"
        )
        if kind not in ("missing", "value_error"):
            message += f", and is {_short(item['input'])}"
        problems.append(Problem(where(field_path(location)), message))
    return problems


def _short(value: Any) -> str:
    text = "empty" if value is None else f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
