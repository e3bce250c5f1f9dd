"""The rows that ship, as they are written, and how near two texts are."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any


def records(name: str) -> list[dict[str, Any]]:
    text = (resources.files("cai.data") / "quickstart" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def grams(text: str) -> frozenset[str]:
    words = f" {re.sub('[^a-z0-9]+', ' ', text.lower()).strip()} "
    return frozenset(words[i : i + 4] for i in range(len(words) - 3))
