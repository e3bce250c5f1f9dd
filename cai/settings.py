"""The base of every typed setting: data that an experiment's YAML holds and that never acts; and what of it counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from cai.identity import RUNTIME, Added

MAX_INT, MAX_FLOAT = 2**63 - 1, 1e15
"""The largest numbers in an experiment: seeds are the largest whole ones."""


class Settings(BaseModel):
    """Base of every typed setting: unknown keys fail, values are frozen.

    ``FORMER`` is for settings that were one flat shape and became several: the fields that this one no longer has, each
    with the value that stood in the ingredients while it had them. So a union keeps the keys that were made before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    FORMER: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_sane(cls, data: Any) -> Any:
        """A number is no truth value (pydantic itself reads ``true`` as 1), and none is beyond what could be meant."""
        if not isinstance(data, Mapping):
            return data
        errors: list[InitErrorDetails] = []
        for name, value in data.items():
            types = _types_of(cls, str(name))
            if any(issubclass(kind, Settings) for kind in types):
                continue  # they look at their own, and know the field
            for leaf in _leaves(value):
                if isinstance(leaf, bool):
                    wrong = bool not in types and bool(types & {int, float})
                    reason = f"must be a number, not {str(leaf).lower()}"
                else:
                    wrong = isinstance(leaf, int | float) and abs(leaf) > (
                        MAX_INT if isinstance(leaf, int) else MAX_FLOAT
                    )
                    reason = "is larger than any number that can be meant"
                if wrong:
                    errors.append({"type": PydanticCustomError("number", reason), "loc": (name,), "input": None})
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return data


def types_in(annotation: Any) -> Iterator[Any]:
    """An annotation and everything that it is made of."""
    yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from types_in(inner)


@cache
def _types_of(model: type[Settings], name: str) -> frozenset[Any]:
    """The types that a field's annotation names, at any depth."""
    by_name = {key: info for field, info in model.model_fields.items() for key in (field, info.alias or field)}
    if name not in by_name:
        return frozenset()
    # In Python 3.10 a generic alias passes for a type.
    parts = types_in(by_name[name].annotation)
    return frozenset(part for part in parts if isinstance(part, type) and get_origin(part) is None)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(inner)
    else:
        yield value


def counts(info: FieldInfo, value: Any) -> bool:
    """Whether a field at this value decides results: not at run time, and not what the program did before it came."""
    if any(mark is RUNTIME for mark in info.metadata):
        return False
    return not any(isinstance(mark, Added) and mark.value == value for mark in info.metadata)


def semantic(settings: Settings) -> dict[str, Any]:
    """What of settings counts for an identity, as plain data; nested settings likewise."""
    plain = settings.model_dump(mode="json", by_alias=True)
    identity: dict[str, Any] = dict(settings.FORMER)
    for name, info in type(settings).model_fields.items():
        value, key = getattr(settings, name), info.alias or name
        if counts(info, value):
            identity[key] = semantic_value(value, plain[key])
    return identity


def semantic_value(value: Any, plain: Any) -> Any:
    """``plain``, the JSON data of ``value``, without what does not count in the settings that are in it."""
    if isinstance(value, Settings):
        return semantic(value)
    if isinstance(value, Mapping) and isinstance(plain, Mapping):
        return {key: semantic_value(item, plain[str(key)]) for key, item in value.items()}
    if isinstance(value, Sequence) and isinstance(plain, list):
        return [semantic_value(item, plain_item) for item, plain_item in zip(value, plain, strict=True)]
    return plain
