"""``evaluation.json``: what ``evaluate`` measured, as every room reads it. ``docs/evaluation.md`` says what each figure
counts.

A figure has the name that it has in the file, and stands where it stands there. What a file lacks, because an older
program wrote it, is empty: a figure of no values, no rounds, no ratings. pydantic checks what is read, and is imported
only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.figures.documents import check_version, load_document, typed, write_document
from cai.figures.intervals import Interval, WinRate

if TYPE_CHECKING:
    from pydantic import TypeAdapter

EVALUATION = "evaluation.json"
"""The file in the artifact of an evaluation."""
VERSION = 1
"""Of the file. The first ones do not say it."""
PHRASES = "phrases"
"""The grader of evaluations that do not name one: phrases of refusal and evasion (``cai.figures.answers``)."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model's answers to one set of prompts.

    ``reward`` is None where no reward model was asked. Plain numbers are None where they are not defined, as
    ``self_bleu`` of a single answer is; ``empty`` counts answers.
    """

    reward: Interval | None = None
    reward_by_topic: Mapping[str, Interval] = field(default_factory=dict)
    tokens: Interval = Interval()
    characters: Interval = Interval()
    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None
    different_answers: float | None = None
    empty: int | None = None
    refusals: Interval = Interval()
    evasive: Interval = Interval()
    repetition: Interval = Interval()
    ended: Interval = Interval()
    reward_length_correlation: float | None = None
    # Of an evaluation whose grader gives grades: the share of each.
    grades: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelWins:
    """On how many prompts ``model`` has a higher reward than ``against``; a tie counts half in ``value``."""

    model: str
    against: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    wins: int = 0
    ties: int = 0
    losses: int = 0

    @property
    def share(self) -> Interval:
        """The share of prompts won."""
        return Interval(self.value, self.low, self.high, self.n)


@dataclass(frozen=True, slots=True)
class PromptSetFigures:
    """One set of prompts, ``rows`` of them; on a ``benign`` one a refusal is a fault.

    ``pairs`` compares every two models, ``wins`` those that one looks at first. Both are empty without a reward model.
    """

    rows: int
    benign: bool = False
    models: Mapping[str, ModelFigures] = field(default_factory=dict)
    wins: tuple[ModelWins, ...] = ()
    pairs: tuple[ModelWins, ...] = ()

    @property
    def comparisons(self) -> tuple[ModelWins, ...]:
        """Every two models; of an older evaluation those that one looks at first."""
        return self.pairs or self.wins


@dataclass(frozen=True, slots=True)
class AxisRatings:
    """The models' Elo on one axis from ``rows`` prompts; the ``reference`` stands at 0."""

    reference: str
    models: Mapping[str, Interval]
    rows: int


@dataclass(frozen=True, slots=True)
class RewardModelFigures:
    """The reward model on one set of pairs: how often it prefers the better answer, and by how much."""

    accuracy: Interval
    margin: Interval = Interval()
    longer_is_better: Interval = Interval()
    by_topic: Mapping[str, Interval] = field(default_factory=dict)
    by_kind: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RevisionRound:
    """The rewards after one round; round 0 is the first answer.

    ``change`` is against the first answer, ``wins`` against the round before (None of round 0).
    """

    round: int
    reward: Interval = Interval()
    change: Interval = Interval()
    wins: WinRate | None = None

    @property
    def share_won(self) -> Interval | None:
        """The share of answers that are better than those of the round before; None of round 0."""
        return self.wins.share if self.wins is not None else None


@dataclass(frozen=True, slots=True)
class PrincipleChange:
    """What the ``n`` rounds that drew a principle changed in the reward."""

    change: Interval = Interval()
    n: int = 0


@dataclass(frozen=True, slots=True)
class RevisionFigures:
    """The revisions of ``rows`` answers, round by round and by principle."""

    rows: int
    rounds: tuple[RevisionRound, ...] = ()
    by_principle: Mapping[str, PrincipleChange] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdherenceFigures:
    """The share of answers that violate a principle, by set, model and principle, as the judge ``model`` sees it.

    Of the questions ``asked``, ``unread`` had no readable answer.
    """

    model: str
    asked: int = 0
    unread: int = 0
    sets: Mapping[str, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExampleAnswers:
    """One prompt, drawn by chance, with every model's answer and its reward."""

    set: str
    id: str
    topic: str
    prompt: str
    answers: Mapping[str, str]
    rewards: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The whole document. ``models`` are in the order in which they are compared, ``caveats`` in plain words.

    ``axes`` names the prompt sets of each axis; without any, an older program wrote the file. ``grader`` says what
    refusals and evasions were found by; those of two graders are not to be compared. ``adherence`` is None where no
    judge was asked.
    """

    version: int = field(default=VERSION, kw_only=True)
    models: tuple[str, ...]
    sets: Mapping[str, PromptSetFigures]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grader: str = PHRASES
    elo: Mapping[str, AxisRatings] = field(default_factory=dict)
    over_refusal: Mapping[str, Interval] = field(default_factory=dict)
    reward_model: Mapping[str, RewardModelFigures] = field(default_factory=dict)
    revisions: Mapping[str, RevisionFigures] = field(default_factory=dict)
    adherence: AdherenceFigures | None = None
    examples: tuple[ExampleAnswers, ...] = ()
    caveats: tuple[str, ...] = ()


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation of a file, of this version or an older one.

    Raises:
        SpecError: when it cannot be read, or a newer program wrote it.
    """
    return parse_evaluation(load_document(path), str(path))


def parse_evaluation(document: Any, where: str = EVALUATION) -> Evaluation:
    """The evaluation of a parsed document; keys that this program does not know are left out.

    Raises:
        SpecError: when it is no evaluation, or a newer program wrote it.
    """
    checked = check_version(document, where, name="an evaluation", newest=VERSION)
    # Where no judge was asked, the file has an empty object.
    return typed(_adapter(), {**checked, "adherence": checked.get("adherence") or None}, where)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation; the same one gives the same bytes."""
    document = asdict(evaluation)
    document["adherence"] = document["adherence"] or {}
    if evaluation.grader == PHRASES:
        # As files were before there were grades.
        del document["grader"]
        for prompt_set in document["sets"].values():
            for figures in prompt_set["models"].values():
                del figures["grades"]
    write_document(path, document)


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    from pydantic import TypeAdapter

    return TypeAdapter(Evaluation)
