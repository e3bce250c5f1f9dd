"""``judge_report.json``: how far the labels of a judge can be trusted, as every room reads it. ``docs/judge.md`` says
what each figure shows.

A figure has the name that it has in the file, where words are parted by spaces (and ``total`` is ``asked``). What a
file lacks, because an older program wrote it or because nothing was counted, is empty: a figure of no values, a part
that is None. pydantic reads and writes, and is imported only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cai.figures.documents import check_version, load_document, typed, write_document
from cai.figures.intervals import Interval, PlainFigure

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter

JUDGE_REPORT = "judge_report.json"
"""The file in the artifact of a judge step."""
VERSION = 1
"""Of the file. The first ones do not say it."""
ALWAYS_LONGER = "always the longer"
ALWAYS_SHORTER = "always the shorter"
"""Baselines: rules that know only how long the answers are."""
ALWAYS_FIRST = "always the first shown"
MAJORITY_SIDE = "the majority side"
"""Baselines that say the same of every pair. The second says whatever people said more often of these pairs."""


@dataclass(frozen=True, slots=True)
class VoteCounts:
    """Questions times samples: how many were asked, could be read, were exactly even; the others by reason."""

    total: int = 0
    readable: int = 0
    even: int = 0
    unreadable: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What became of the pairs that were asked; ``ties`` are within the judge's margin, ``identical`` were left out."""

    total: int = 0
    decided: int = 0
    ties: int = 0
    unreadable: int = 0
    identical: int = 0


@dataclass(frozen=True, slots=True)
class SwapFigures:
    """What a judge says when the answers change places."""

    consistency: Interval = Interval()
    mean_difference_of_p: Interval = Interval()
    read_in_one_order_only: int = 0


@dataclass(frozen=True, slots=True)
class PositionFigures:
    """How much a judge likes the answer that it is shown first; ``bias`` 0 is fair."""

    bias: Interval = Interval()
    first_shown_wins: Interval = Interval()


@dataclass(frozen=True, slots=True)
class LengthFigures:
    """How much a judge likes the longer answer."""

    longer_wins: Interval = Interval()
    mean_p_of_the_longer: Interval = Interval()
    correlation_of_logit_p_and_log_length_ratio: Interval = Interval()


@dataclass(frozen=True, slots=True)
class PrincipleFigures:
    """One principle's verdicts; ``pairs`` were judged by it."""

    pairs: int = 0
    decided: Interval = Interval()
    mean_p_of_the_longer: Interval = Interval()
    agrees_with_the_others: Interval = Interval()


@dataclass(frozen=True, slots=True)
class PrincipleAgreement:
    """Whether the principles of a judge agree; ``each`` by the principle's id."""

    pairwise_agreement: Interval = Interval()
    krippendorff_alpha: PlainFigure = PlainFigure()
    each: Mapping[str, PrincipleFigures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """Pairs whose preferred answer has a probability between ``low`` and ``high``."""

    low: float
    high: float
    n: int = 0


@dataclass(frozen=True, slots=True)
class ConfidenceFigures:
    """How sure the labels are: the probability of the preferred answer."""

    mean: float | None = None
    n: int = 0
    bins: tuple[ConfidenceBin, ...] = ()


@dataclass(frozen=True, slots=True)
class PlaceShares:
    """How often the answer at each place was the best, and how often the worst."""

    best: tuple[Interval, ...] = ()
    worst: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class SetShares:
    """Questions about sets: ``orders`` by what the two orders came to, ``places`` by the number of answers shown."""

    orders: Mapping[str, Interval] = field(default_factory=dict)
    places: Mapping[str, PlaceShares] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLoss:
    """A mean log loss with its interval; probabilities were kept ``clipped_at`` away from 0 and 1."""

    value: float | None = None
    low: float | int | None = None
    high: float | int | None = None
    n: int = 0
    clipped_at: float | None = None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs of which the judge was as sure as ``low`` to ``high``: how sure on average, and how often right."""

    low: float
    high: float
    n: int = 0
    confidence: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """What the judge should have been read at; ``setting`` is the step's ``temperature`` that makes up for it, None
    where the judge has no such setting."""

    slope: float | None = None
    temperature: float | None = None
    log_loss: float | None = None
    setting: float | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class BaselineFigures:
    """A rule that reads no answer, with the certainty that suits it best."""

    accuracy: Interval = Interval()
    brier: float | None = None
    log_loss: float | None = None


@dataclass(frozen=True, slots=True)
class LongerPreferred:
    """How often people, and the judge, prefer the longer answer."""

    human: Interval = Interval()
    judge: Interval = Interval()


@dataclass(frozen=True, slots=True)
class BeyondChance:
    """Cohen's kappa of a judge and people, and how much better it is than ``best_rule``, the best of the baselines that
    read no answer, pair by pair."""

    kappa: Interval = Interval()
    best_rule: str = ""
    above_best_rule: Interval = Interval()


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """A judge against labels of people; ``counts`` are pairs by what became of them, ``topics`` accuracies.

    ``beyond_chance`` is None in reports of older programs.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    accuracy: Interval = Interval()
    above_always_the_longer: Interval = Interval()
    brier: Interval = Interval()
    log_loss: LogLoss = LogLoss()
    expected_calibration_error: PlainFigure = PlainFigure()
    reliability: tuple[ReliabilityBin, ...] = ()
    fitted: FittedTemperature = FittedTemperature()
    baselines: Mapping[str, BaselineFigures] = field(default_factory=dict)
    longer_preferred: LongerPreferred = LongerPreferred()
    topics: Mapping[str, Interval] = field(default_factory=dict)
    beyond_chance: BeyondChance | None = None


def _name_in_file(field_name: str) -> str:
    return "asked" if field_name == "total" else field_name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The whole report; ``judge`` are the settings of the judge.

    ``sets`` are None of a judge of pairs, ``labelled`` of one without labelled data, ``given_labels`` where the
    candidates brought no labels.
    """

    # The nested parts inherit it.
    __pydantic_config__: ClassVar[ConfigDict] = {"alias_generator": _name_in_file}

    version: int = VERSION
    judge: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    votes: VoteCounts = VoteCounts()
    pairs: PairCounts = PairCounts()
    swap: SwapFigures = SwapFigures()
    position: PositionFigures = PositionFigures()
    length: LengthFigures = LengthFigures()
    principles: PrincipleAgreement = PrincipleAgreement()
    confidence: ConfidenceFigures = ConfidenceFigures()
    sets: SetShares | None = None
    labelled: LabelFigures | None = None
    given_labels: LabelFigures | None = None


@cache
def _adapter() -> TypeAdapter[JudgeReport]:
    from pydantic import TypeAdapter

    return TypeAdapter(JudgeReport)


def read_judge_report(path: Path) -> JudgeReport:
    """The report of a judge, of this version or an older one.

    Raises:
        SpecError: when it cannot be read, or a newer program wrote it.
    """
    document = check_version(load_document(path), str(path), name="a judge's report", newest=VERSION)
    return typed(_adapter(), document, str(path))


def write_judge_report(path: Path, report: JudgeReport) -> None:
    """Write a report; the same report gives the same bytes."""
    document = _adapter().dump_python(report, by_alias=True)
    optional_parts = ("sets", "labelled", "given labels")
    document = {name: part for name, part in document.items() if part is not None or name not in optional_parts}
    for labels in (document.get("labelled"), document.get("given labels")):
        if labels is not None and labels["fitted"]["setting"] is None:
            del labels["fitted"]["setting"]
        if labels is not None and labels["beyond chance"] is None:
            del labels["beyond chance"]
    write_document(path, document)
