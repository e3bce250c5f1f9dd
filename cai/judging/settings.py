"""What a judge is told of how to judge: small enough for planning, which asks nobody."""

from __future__ import annotations

from enum import Enum


class Scoring(str, Enum):
    """How the judge's opinion is read: of two answers at a time, or (best-worst scaling) of all answers of a row."""

    LOGPROB = "logprob"
    CONTRAST = "contrast"
    CHOICE = "choice"
    BEST_WORST = "best_worst"


class Principles(str, Enum):
    """What the judge is told: one principle drawn for the row, several averaged, or the whole constitution."""

    ONE = "one"
    ENSEMBLE = "ensemble"
    WHOLE = "whole"


class Order(str, Enum):
    """How the answers of a question are shown: both ways round and averaged, in an order drawn for it, as given."""

    BOTH = "both"
    RANDOM = "random"
    GIVEN = "given"


class Pairs(str, Enum):
    """Which pairs of a row's candidates are asked, and come out: all; all are asked, and the best against the worst
    comes out; or each against the next."""

    ALL = "all"
    BEST_WORST = "best_worst"
    NEIGHBOURS = "neighbours"
