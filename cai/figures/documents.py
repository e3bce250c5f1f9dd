"""Documents that a step leaves and several rooms read: plain JSON with a version, checked once when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cai.errors import Problem, SpecError
from cai.identity import parse_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
_REPAIR = "run `store verify`"


def load_document(path: Path) -> Any:
    """What a file holds.

    Raises:
        SpecError: when it cannot be read, or is no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})", _REPAIR)) from error


def check_version(document: Any, where: str, *, name: str, newest: int) -> Mapping[str, Any]:
    """The document, whose ``version`` this program knows; files made before there was one are of version 1.

    Raises:
        SpecError: when it is no object, or a newer program wrote it.
    """
    if not isinstance(document, dict):
        raise SpecError(Problem(where, "is no JSON object", _REPAIR))
    version = document.get("version", 1)
    if isinstance(version, int) and version > newest:
        message = f"{name} of version {version}, and this program reads up to {newest}"
        raise SpecError(Problem(where, message, "upgrade constitution-as-code"))
    return document


def typed(adapter: TypeAdapter[T], document: Mapping[str, Any], where: str) -> T:
    """The document as its type; keys that this program does not know are left out.

    Raises:
        SpecError: naming the first field that is wrong.
    """
    from pydantic import ValidationError

    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise SpecError(Problem(where, f"cannot be read ({reason})", _REPAIR)) from error


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document; the same one gives the same bytes."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
