"""Values that people and machines write by mistake, or on purpose, and how many of them a test tries."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    10**30,
    2**63,
    -(10**30),
    1e308,
    0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "none",
    "../../up",
    "~nobody-of-that-name/x",
    "x" * 300,
    "a\0b",
    "\ud800",
    "\u202e\x1b[31m",
    "${seed}",
    True,
    False,
    [],
    [None],
    [[]],
    {},
    {"": None},
    {"a": {"b": 1}},
    {"\ud800": "\0"},
)

SEED = int(os.environ.get("CAI_FUZZ_SEED", "0"))


def chosen(cases: Sequence[T], budget: int, most: int | None = None) -> list[T]:
    """``budget`` of the cases, drawn by CAI_FUZZ_SEED; where CAI_FUZZ is ``all``, all of them, or ``most``."""
    if os.environ.get("CAI_FUZZ") == "all":
        budget = len(cases) if most is None else most
    return random.Random(SEED).sample(list(cases), min(budget, len(cases)))
