"""The base of every typed setting: data that an experiment's YAML holds and that never acts; and what of it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from cai.identity import RUNTIME, Added


class Settings(BaseModel):
    """Base of every typed setting: unknown keys fail, values are frozen.

    ``FORMER`` is for settings that were one flat shape and became several: the fields that this one no longer has, each
    with the value that stood in the ingredients while it had them. So a union keeps the keys that were made before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    FORMER: ClassVar[Mapping[str, Any]] = {}


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
