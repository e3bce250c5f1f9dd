"""A budget as a person writes it: ``20 USD``, ``3M tokens``, ``2000 calls``."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = ("tokens", "calls")
_AMOUNT = re.compile(r"(?P<number>[0-9][0-9_]*(\.[0-9]+)?)(?P<size>[kMG]?) (?P<unit>tokens|calls|[A-Z]{3})")
_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Amount:
    """So much of a ``unit``: tokens (read and written), calls (attempts), or a currency by its three letters."""

    value: float
    unit: str
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def is_money(self) -> bool:
        """Whether prices are needed to know it."""
        return self.unit not in UNITS


def parse_budget(text: str) -> Amount:
    """Read a budget.

    Raises:
        ValueError: with what to write.
    """
    match = _AMOUNT.fullmatch(" ".join(text.split()))
    if match is None or (match["size"] and match["unit"] not in UNITS):
        raise ValueError(f"{text!r} is no budget; write 20 USD, 3M tokens or 2000 calls")
    value = float(match["number"].replace("_", "")) * _SIZES[match["size"]]
    if value <= 0:
        raise ValueError(f"{text!r} buys nothing; leave it out for no budget")
    return Amount(value, match["unit"], " ".join(text.split()))
