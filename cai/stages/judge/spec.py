"""Judge: which of two answers, or of several, fits the constitution better, as a soft label.

Four scorings (``cai.judging.scorings``), one principle a row, an ensemble or the whole constitution, positions swapped
and averaged. Nothing is invented: a tie stays a tie with p = 0.5, a judge that says nothing readable is counted. Beside
its labels it leaves ``judge_report.json``, which says how far they can be trusted (``docs/judge.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from cai.clients.metering import ModelUse
from cai.identity import RUNTIME
from cai.judging.settings import Order, Pairs, Principles, Scoring
from cai.settings import Settings
from cai.stages.base import EngineSpec, Estimate, Sampled, StageSpec, TextFile, Wants
from cai.stages.respond import limited

JUDGE_TOKENS = 220
"""Assumed of a question about two answers."""
JUDGE_ANSWER_TOKENS = 64
"""Assumed of each further answer."""


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


_ONCE_OF_ALL: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "exemplars": {"n_exemplars": 6},
        "per_token": {"per_token": True},
        "temperature": {"temperature": 1.0},
        "order": {"order": "both"},
        "options": {"options": ["(A)", "(B)"]},
        "tie_option": {"tie_option": ""},
        "structured": {"structured": True},
        "reasoning": {"reasoning": False},
        "drawing": {
            "sampling": {
                "max_tokens": 128,
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 0,
                "repetition_penalty": 1.0,
                "stop": [],
            },
            "samples": 1,
        },
    }
)
"""What every judge's spec held before each scoring had its own: the values that stood in its ingredients."""


def _former(*groups: str) -> dict[str, Any]:
    return {name: value for group in groups for name, value in _ONCE_OF_ALL[group].items()}


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


class JudgeSpec(EngineSpec):
    """Compare each row's candidates: what the judges of all scorings have in common.

    A judge's p within ``margin`` of 0.5 is a tie. ``clamp`` bounds p (arXiv 2212.08073 uses 0.4 to 0.6 after
    ``reasoning``). ``labelled`` comparisons are judged before the work, and nothing of them gets into its rows; where
    they say that the judge is no better than chance, the step fails, unless it says ``uncalibrated``. That decides
    whether labels may be used, and not what they are, so neither it nor ``min_kappa`` counts for the key. Which further
    fields there are depends on ``scoring``: see the specs below. ``swap: true`` and ``swap: false`` are older names of
    ``order: both`` and ``order: given``.
    """

    VERSION: ClassVar[int] = 2
    MAKES: ClassVar[str] = "comparisons"
    USES_TEMPLATE: ClassVar[bool] = True
    PRINCIPLE_FIELDS: ClassVar[tuple[str, ...]] = ("comparison", "priority", "preamble")
    PROMPT: ClassVar[str] = ""
    WRITES: ClassVar[float] = 0.0
    ONLY_COMPARED: ClassVar[tuple[str, ...]] = ("labelled",)
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
    min_kappa: Annotated[
        float, RUNTIME, Field(ge=0, lt=1, description="the lower bound of kappa with the labels must be above this")
    ] = 0.0
    uncalibrated: Annotated[
        bool, RUNTIME, Field(description="train on the labels even so; every summary then says it")
    ] = False
    scoring: Scoring = Scoring.LOGPROB
    prompt: Annotated[str, TextFile(), Field(description="prompt template; empty takes the scoring's own")] = ""
    principles: Principles = Principles.ONE
    ensemble: Annotated[int, Field(ge=2, description="principles a row, for principles: ensemble")] = 4
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

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """The spec of the scoring that is written."""
        chosen = cls.variant(obj) if cls is JudgeSpec and isinstance(obj, Mapping) else cls
        if chosen is cls:
            return super().model_validate(obj, **options)
        spec = chosen.model_validate(obj, **options)
        assert isinstance(spec, cls)
        return spec

    @classmethod
    def variants(cls) -> Mapping[str, type[StageSpec]]:
        """The spec of each scoring."""
        return {scoring.value: spec for scoring, spec in JUDGES.items()}

    @classmethod
    def variant(cls, raw: Mapping[str, Any]) -> type[StageSpec]:
        """The spec of the scoring that is written; of an unknown one this, which says so."""
        scoring = raw.get("scoring", Scoring.LOGPROB)
        return JUDGES[Scoring(scoring)] if scoring in list(Scoring) else _AnyJudge

    @classmethod
    def misfit(cls, name: str) -> str:
        """Why a field of another scoring is none here."""
        readers = [f"'{scoring.value}'" for scoring, spec in JUDGES.items() if name in spec.model_fields]
        own = next((scoring.value for scoring, spec in JUDGES.items() if spec is cls), "")
        if not readers or not own:
            return ""
        return f"is read by scoring {' and '.join(readers)} only, and this is '{own}'"

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, raw: Any) -> Any:
        """The scoring's own prompt where none is named, so that only texts that are read count; the order by its older
        name; and nothing of what all scorings once had, where it stands at the value that it had then."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        if isinstance(filled.get("swap"), bool):
            if "order" in filled:
                raise ValueError("swap is the older name of order; give order alone")
            filled["order"] = Order.BOTH if filled.pop("swap") else Order.GIVEN
        filled["prompt"] = filled.get("prompt") or cls.PROMPT
        for name, former in {**cls.FORMER, "exemplars": None}.items():
            if name not in cls.model_fields and name in filled and _plain(filled[name]) == former:
                del filled[name]
        return filled

    @model_validator(mode="after")
    def _clamp_holds_the_tie(self) -> JudgeSpec:
        if self.clamp is not None and not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError(f"clamp {list(self.clamp)} must hold 0.5 and lie within 0 and 1, e.g. [0.4, 0.6]")
        return self

    @property
    def both_orders(self) -> bool:
        """Whether every question is asked in both orders of its answers."""
        return True

    @property
    def shown_settings(self) -> tuple[str, ...]:
        """Fields that one must know to read the judge's report, in order."""
        return ("scoring", "principles", "pairs", "margin")

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every asked pair of a row's candidates (``contrast``: every candidate; ``best_worst``: all in one question),
        with every vote asked for."""
        row_count = limited(rows.get("candidates"), self.limit)
        width = max(rows.get("candidates:width") or 1, 2)  # of revisions, the first answer and the last
        people = limited(rows.get("labelled"), self.labelled_limit) if self.labelled else 0
        own_calls = (row_count or 0) * self._calls(width)
        calls = own_calls + (people or 0) * self._calls(2)
        pairs = {Pairs.ALL: width * (width - 1) // 2, Pairs.NEIGHBOURS: width - 1, Pairs.BEST_WORST: 1}[self.pairs]
        prompt_tokens = calls * JUDGE_TOKENS + own_calls * self._further_tokens(width)
        tokens = self._written_tokens(calls)
        use = None if row_count is None or people is None else ModelUse(calls, prompt_tokens, tokens)
        rows_out = None if row_count is None else row_count * pairs
        return Estimate(rows_out, calls, prompt_tokens, tokens, uses={"model": use})

    def _principles(self) -> int:
        """Principles that one row is asked about."""
        return self.ensemble if self.principles is Principles.ENSEMBLE else 1

    def _pairs(self, width: int) -> int:
        """Pairs of one row of so many answers."""
        return width - 1 if self.pairs is Pairs.NEIGHBOURS else width * (width - 1) // 2

    def _calls(self, width: int) -> int:
        """For one row of so many answers."""
        return 0

    def _written_tokens(self, calls: int) -> int:
        return 0

    def _further_tokens(self, width: int) -> int:
        """Of a prompt that shows more than two answers."""
        return 0


class _AnyJudge(JudgeSpec):
    """Any field of any scoring: of a judge whose scoring is unknown only that is to be told."""

    model_config = ConfigDict(extra="ignore")


class ContrastJudge(JudgeSpec):
    """Compare each row's candidates by how much likelier an answer is after good ``exemplars`` than after bad ones.

    ``temperature`` divides the difference of two answers (nats, per token when ``per_token``) before the sigmoid.
    """

    FORMER: ClassVar[Mapping[str, Any]] = _former(
        "order", "options", "tie_option", "structured", "reasoning", "drawing"
    )
    PROMPT: ClassVar[str] = "judge_contrast.jinja"
    scoring: Literal[Scoring.CONTRAST] = Scoring.CONTRAST
    exemplars: Annotated[str, TextFile(), Field(description="good and bad answers")] = "few_shots/judge.yaml"
    n_exemplars: Annotated[int, Field(ge=1, description="how many exemplars are shown")] = 6
    temperature: Annotated[float, Field(gt=0)] = 1.0
    per_token: Annotated[bool, Field(description="divide log-likelihoods by the answer's tokens")] = True

    @model_validator(mode="before")
    @classmethod
    def _own_exemplars(cls, raw: Any) -> Any:
        """The shipped exemplars where none are named."""
        if isinstance(raw, Mapping) and "exemplars" in raw and not raw["exemplars"]:
            return {name: value for name, value in raw.items() if name != "exemplars"}
        return raw

    @property
    def shown_settings(self) -> tuple[str, ...]:
        """With the temperature."""
        return (*super().shown_settings, "temperature")

    def _calls(self, width: int) -> int:
        return 2 * width * self._principles()


class _AskingJudge(JudgeSpec):
    """What judges have in common that are asked a question, with the answers in an order."""

    order: Annotated[Order, Field(description="how the answers are shown; both asks twice and averages")] = Order.BOTH
    reasoning: Annotated[bool, Field(description="let the judge think before it decides")] = False
    sampling: Annotated[Sampled, Field(description="of what the judge writes")] = Sampled(
        max_tokens=128, temperature=0.0
    )
    samples: Annotated[int, Field(ge=1, le=64, description="reasonings or choices drawn a question, averaged")] = 1

    @model_validator(mode="after")
    def _samples_differ(self) -> _AskingJudge:
        if self.samples > 1 and not self.reasoning and not self.WRITES:
            raise ValueError(f"samples is {self.samples}, but nothing is drawn; use reasoning, or scoring: choice")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(f"samples is {self.samples}, and all are the same at sampling.temperature 0; raise it")
        return self

    @property
    def both_orders(self) -> bool:
        """As ``order`` says."""
        return self.order is Order.BOTH

    @property
    def shown_settings(self) -> tuple[str, ...]:
        """With how the judge is asked."""
        return (*super().shown_settings, "order", "samples", "reasoning")

    def _calls(self, width: int) -> int:
        repeats = (2 if self.both_orders else 1) * self.samples * (2 if self.reasoning else 1)
        return self._questions(width) * self._principles() * repeats

    def _questions(self, width: int) -> int:
        return self._pairs(width)

    def _written_tokens(self, calls: int) -> int:
        # With reasoning before a choice both are written; before options, half of the calls.
        return int(calls * (self.WRITES or (0.5 if self.reasoning else 0.0))) * self.sampling.max_tokens


class _PairJudge(_AskingJudge):
    """What judges have in common that are shown two answers at a time, with an option for each."""

    PROMPT: ClassVar[str] = "comparison.jinja"
    options: Annotated[tuple[str, str], Field(description="what the judge would write for the first, the second")] = (
        "(A)",
        "(B)",
    )
    tie_option: Annotated[str, Field(description="what it would write for neither, e.g. (C); empty: not offered")] = ""

    @model_validator(mode="after")
    def _options_differ(self) -> _PairJudge:
        answers = (*self.options, self.tie_option) if self.tie_option else self.options
        if len(set(answers)) < len(answers) or not all(self.options):
            raise ValueError("options must be two different texts, and tie_option a third")
        return self

    @property
    def shown_settings(self) -> tuple[str, ...]:
        """With the option of a tie."""
        return (*super().shown_settings, "tie_option")


class LogprobJudge(_PairJudge):
    """Compare each row's candidates by the probabilities of the two ``options``, after reasoning where it is asked for.

    ``temperature`` divides the difference of their log-probabilities (nats) before the sigmoid.
    """

    FORMER: ClassVar[Mapping[str, Any]] = _former("exemplars", "per_token", "structured")
    scoring: Literal[Scoring.LOGPROB] = Scoring.LOGPROB
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @property
    def shown_settings(self) -> tuple[str, ...]:
        """With the temperature."""
        return (*super().shown_settings, "temperature")


class ChoiceJudge(_PairJudge):
    """Compare each row's candidates by the option that the judge writes; several or none is no vote."""

    FORMER: ClassVar[Mapping[str, Any]] = _former("exemplars", "per_token", "temperature")
    WRITES: ClassVar[float] = 1.0
    scoring: Literal[Scoring.CHOICE] = Scoring.CHOICE
    structured: Annotated[bool, Field(description="keep a server that can to the options")] = True


class BestWorstJudge(_AskingJudge):
    """Show all answers of a row at once, as (A), (B), (C) ..., and read which is written to be the best and the worst.

    There is no option for a tie: orders that contradict each other are its ties.
    """

    FORMER: ClassVar[Mapping[str, Any]] = _former("exemplars", "per_token", "temperature", "options", "tie_option")
    PROMPT: ClassVar[str] = "comparison_set.jinja"
    WRITES: ClassVar[float] = 1.0
    scoring: Literal[Scoring.BEST_WORST] = Scoring.BEST_WORST
    pairs: Pairs = Pairs.BEST_WORST
    structured: Annotated[bool, Field(description="keep a server that can to the options")] = True

    @model_validator(mode="after")
    def _names_the_ends(self) -> BestWorstJudge:
        if self.pairs is not Pairs.BEST_WORST:
            raise ValueError(
                f"pairs is '{self.pairs.value}', but scoring 'best_worst' says nothing of the answers between; "
                "use pairs: best_worst, or scoring: choice"
            )
        return self

    def _questions(self, width: int) -> int:
        return 1

    def _further_tokens(self, width: int) -> int:
        return (width - 2) * JUDGE_ANSWER_TOKENS


JUDGES: Mapping[Scoring, type[JudgeSpec]] = MappingProxyType(
    {
        Scoring.LOGPROB: LogprobJudge,
        Scoring.CONTRAST: ContrastJudge,
        Scoring.CHOICE: ChoiceJudge,
        Scoring.BEST_WORST: BestWorstJudge,
    }
)
"""The spec of each scoring: together what ``kind: judge`` may be."""


def judge_spec(**fields: Any) -> JudgeSpec:
    """A judge's spec from its fields, of the type that its scoring has."""
    return JudgeSpec.model_validate(fields)
