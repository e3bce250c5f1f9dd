"""An API key: kept in one object that shows it to nobody and takes it out of every text that a server sends."""

from __future__ import annotations

import json
import re
from typing import NoReturn
from urllib.parse import quote


class ApiKey:
    """An API key that cannot be printed, pickled or copied by accident."""

    __slots__ = ("_hint", "_pattern", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        forms = {value, value.replace("/", "\\/"), json.dumps(value)[1:-1], quote(value, safe="")} - {""}
        patterns = [re.escape(form) for form in sorted(forms, key=len, reverse=True)]
        begins = list(forms)
        if len(value) >= 16:
            # Servers echo a key in part as well: what begins like it goes.
            begins.append(value[: min(len(value) // 2, 12)])
            patterns.append(re.escape(begins[-1]) + r"[^\s\"'<>,;)]*")
        self._pattern = re.compile("|".join(patterns) or "(?!)")
        # What all forms begin with: a text without it needs no second look, and that is nearly every text.
        first, last = min(begins, default=""), max(begins, default="")
        same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        self._hint = first[:same]

    def headers(self) -> dict[str, str]:
        """What a request is signed with."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hide(self, text: str) -> str:
        """``text`` without the key."""
        return self._pattern.sub("***", text) if self._hint in text else text

    def __repr__(self) -> str:
        return "<key>" if self._value else "<no key>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not written anywhere")
