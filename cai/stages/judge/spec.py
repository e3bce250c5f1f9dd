"""Judge: which of two answers, or of several, fits the constitution better, as a soft label.

Four scorings (``cai.judging.scorings``), one principle a row, an ensemble or the whole constitution, positions swapped
and averaged. Nothing is invented: a tie stays a tie with p = 0.5, a judge that says nothing readable is counted. Beside
its labels it leaves ``judge_report.json``, which says how far they can be trusted (``docs/judge.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cai.identity import RUNTIME
from cai.judging.pairs import Pairs
from cai.judging.scorings import Order, Principles, Scoring
from cai.stages.base import EngineSpec, Estimate, Sampled, TextFile, Wants
from cai.stages.respond import limited

JUDGE_TOKENS = 220
"""Assumed of a question about two answers."""
JUDGE_ANSWER_TOKENS = 64
"""Assumed of each further answer."""

_PROMPTS = {
    Scoring.CONTRAST: "judge_contrast.jinja",
    Scoring.LOGPROB: "comparison.jinja",
    Scoring.CHOICE: "comparison.jinja",
    Scoring.BEST_WORST: "comparison_set.jinja",
}
WRITTEN = (Scoring.CHOICE, Scoring.BEST_WORST)
"""Scorings whose judge writes its answer."""
_EXEMPLARS = "few_shots/judge.yaml"


class Ties(str, Enum):
    """What becomes of a tie: a comparison with p = 0.5, or dropped and counted."""

    KEEP = "keep"
    DROP = "drop"


class Abstain(str, Enum):
    """What becomes of a pair on which nothing could be read: dropped and counted, or a tie."""

    DROP = "drop"
    TIE = "tie"


class Labels(str, Enum):
    """Probabilities as they are, or rounded to 1."""

    SOFT = "soft"
    HARD = "hard"


class JudgeSpec(EngineSpec):
    """Compare each row's candidates.

    ``contrast`` asks how much likelier an answer is after good exemplars than after bad ones, and needs
    ``exemplars``; ``logprob`` compares the probabilities of the two ``options``; ``choice`` parses a written one;
    ``best_worst`` parses which of all answers of a row is written to be the best and which the worst.
    ``temperature`` divides the difference of two answers (nats, per token when ``per_token``) before the sigmoid.
    A judge's p within ``margin`` of 0.5 is a tie. ``clamp`` bounds p (arXiv 2212.08073 uses 0.4 to 0.6 after
    ``reasoning``). ``labelled`` comparisons are judged beside the work, for the report alone. ``swap: true`` and
    ``swap: false`` are older names of ``order: both`` and ``order: given``.
    """

    VERSION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "comparisons"
    USES_TEMPLATE: ClassVar[bool] = True
    PRINCIPLE_FIELDS: ClassVar[tuple[str, ...]] = ("comparison", "priority", "preamble")
    kind: Literal["judge"] = "judge"
    model: Annotated[str, Wants("model")]
    candidates: Annotated[
        str,
        Wants("candidates", "revisions", "comparisons"),
        Field(description="answers; of revisions, the first answer and the last; of comparisons, both, judged anew"),
    ]
    labelled: Annotated[
        str | None, Wants("comparisons"), Field(description="comparisons by people, to hold the judge against")
    ] = None
    labelled_limit: Annotated[int | None, Field(ge=1, description="only the first n labelled comparisons")] = 200
    scoring: Scoring = Scoring.LOGPROB
    prompt: Annotated[str, TextFile(), Field(description="prompt template; empty takes the scoring's own")] = ""
    exemplars: Annotated[str | None, TextFile(), Field(description="good and bad answers, for contrast")] = None
    n_exemplars: Annotated[int, Field(ge=1, description="how many exemplars are shown")] = 6
    principles: Principles = Principles.ONE
    ensemble: Annotated[int, Field(ge=2, description="principles a row, for principles: ensemble")] = 4
    order: Annotated[Order, Field(description="how the answers are shown; both asks twice and averages")] = Order.BOTH
    options: Annotated[tuple[str, str], Field(description="what the judge would write for the first, the second")] = (
        "(A)",
        "(B)",
    )
    tie_option: Annotated[str, Field(description="what it would write for neither, e.g. (C); empty: not offered")] = ""
    structured: Annotated[bool, Field(description="keep a server that can to the options, where one is written")] = True
    reasoning: Annotated[bool, Field(description="let the judge think before it decides")] = False
    sampling: Annotated[Sampled, Field(description="of the reasoning and of the written choice")] = Sampled(
        max_tokens=128, temperature=0.0
    )
    samples: Annotated[int, Field(ge=1, le=64, description="reasonings or choices drawn a question, averaged")] = 1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    per_token: Annotated[bool, Field(description="contrast: divide log-likelihoods by the answer's tokens")] = True
    pairs: Pairs = Pairs.ALL
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    ties: Ties = Ties.KEEP
    abstain: Annotated[Abstain, Field(description="what becomes of a pair without a readable vote")] = Abstain.DROP
    clamp: tuple[float, float] | None = None
    labels: Labels = Labels.SOFT
    limit: Annotated[int | None, Field(ge=1, description="only the first n rows")] = None
    chunk: Annotated[int, Field(ge=1, description="rows judged together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5
    shards: Annotated[int, RUNTIME, Field(ge=1, le=1000, description="processes that share the rows")] = 1

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, raw: Any) -> Any:
        """The scoring's own prompt (and exemplars, and pairs) where none is named, so that only texts that are read
        count; and the order by its older name."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        if isinstance(filled.get("swap"), bool):
            if "order" in filled:
                raise ValueError("swap is the older name of order; give order alone")
            filled["order"] = Order.BOTH if filled.pop("swap") else Order.GIVEN
        if filled.get("scoring", Scoring.LOGPROB) in list(Scoring):
            scoring = Scoring(filled.get("scoring", Scoring.LOGPROB))
            filled["prompt"] = filled.get("prompt") or _PROMPTS[scoring]
            if scoring is Scoring.CONTRAST:
                filled["exemplars"] = filled.get("exemplars") or _EXEMPLARS
            if scoring is Scoring.BEST_WORST:
                filled.setdefault("pairs", Pairs.BEST_WORST)
        return filled

    @model_validator(mode="after")
    def _settings_agree(self) -> JudgeSpec:
        contrast = self.scoring is Scoring.CONTRAST
        if self.exemplars and not contrast:
            raise ValueError(f"exemplars are read by scoring 'contrast' only, and this is '{self.scoring.value}'")
        if self.reasoning and contrast:
            raise ValueError("scoring 'contrast' writes nothing, so there is no reasoning; use logprob or choice")
        if self.tie_option and contrast:
            raise ValueError("scoring 'contrast' shows no options, so there is no tie_option; use margin")
        if self.samples > 1 and not self.reasoning and self.scoring not in WRITTEN:
            raise ValueError(f"samples is {self.samples}, but nothing is drawn; use reasoning, or scoring: choice")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(f"samples is {self.samples}, and all are the same at sampling.temperature 0; raise it")
        if self.clamp is not None and not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError(f"clamp {list(self.clamp)} must hold 0.5 and lie within 0 and 1, e.g. [0.4, 0.6]")
        if len(set(self.answers)) < len(self.answers) or not all(self.options):
            raise ValueError("options must be two different texts, and tie_option a third")
        if self.scoring is Scoring.BEST_WORST:
            self._names_the_ends()
        return self

    def _names_the_ends(self) -> None:
        """What makes no sense where a judge names the best and the worst of a row."""
        if self.pairs is not Pairs.BEST_WORST:
            raise ValueError(
                f"pairs is '{self.pairs.value}', but scoring 'best_worst' says nothing of the answers between; "
                "use pairs: best_worst, or scoring: choice"
            )
        if self.tie_option:
            raise ValueError(
                "scoring 'best_worst' has no tie_option: orders that contradict each other are its ties; leave it out, "
                "or use scoring: choice"
            )
        if self.options != type(self).model_fields["options"].default:
            raise ValueError(
                "options names two answers, but scoring 'best_worst' shows all of a row as (A), (B), (C) ...; "
                "leave it out"
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """What the judge may answer: the options, and the tie where it is one."""
        return (*self.options, self.tie_option) if self.tie_option else self.options

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every asked pair of a row's candidates (``contrast``: every candidate; ``best_worst``: all in one question),
        with every vote asked for."""
        n = limited(rows.get("candidates"), self.limit)
        width = max(rows.get("candidates:width") or 1, 2)  # of revisions, the first answer and the last
        people = limited(rows.get("labelled"), self.labelled_limit) if self.labelled else 0
        own_calls = (n or 0) * self._calls(width)
        calls = own_calls + (people or 0) * self._calls(2)
        # With reasoning before a choice both are written; before options, half of the calls.
        writes = 1.0 if self.scoring in WRITTEN else 0.5 if self.reasoning else 0.0
        made = {Pairs.ALL: width * (width - 1) // 2, Pairs.NEIGHBOURS: width - 1, Pairs.BEST_WORST: 1}[self.pairs]
        tokens = int(calls * writes) * self.sampling.max_tokens
        further = own_calls * (width - 2) * JUDGE_ANSWER_TOKENS if self.scoring is Scoring.BEST_WORST else 0
        return Estimate(None if n is None else n * made, calls, calls * JUDGE_TOKENS + further, tokens)

    def _calls(self, width: int) -> int:
        """For one row of so many answers."""
        told = self.ensemble if self.principles is Principles.ENSEMBLE else 1
        if self.scoring is Scoring.CONTRAST:
            return 2 * width * told
        pairs = width - 1 if self.pairs is Pairs.NEIGHBOURS else width * (width - 1) // 2
        shown = 1 if self.scoring is Scoring.BEST_WORST else pairs
        return shown * told * (2 if self.order is Order.BOTH else 1) * self.samples * (2 if self.reasoning else 1)
