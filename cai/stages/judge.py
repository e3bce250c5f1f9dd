"""Judge: which of two answers fits the constitution better, as a soft label.

Three scorings (``cai.stages.judging``), one principle a row, an ensemble or the whole constitution, positions swapped
and averaged. Nothing is invented: a tie stays a tie with p = 0.5, a judge that says nothing readable is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cai.clients.base import Client
from cai.data.rows import Candidates, Comparison, Conversation, Row
from cai.identity import RUNTIME
from cai.stages.base import Context, Estimate, Outcome, Sampled, StageSpec, TextFile, Wants
from cai.stages.generation import Entry, distinct, in_chunks, rows_of
from cai.stages.generation import write_entries as write
from cai.stages.judging import EXEMPLARS, SCORINGS, Principles, Scoring, Verdict, questions
from cai.stages.prompting import asking
from cai.stages.respond import limited

JUDGE_TOKENS = 220


class Pairs(str, Enum):
    """Which pairs of a row's candidates come out."""

    ALL = "all"
    BEST_WORST = "best_worst"


class Ties(str, Enum):
    """What becomes of a tie: a comparison with p = 0.5, or dropped and counted."""

    KEEP = "keep"
    DROP = "drop"


class Labels(str, Enum):
    """Probabilities as they are, or rounded to 1."""

    SOFT = "soft"
    HARD = "hard"


_PROMPTS = {
    Scoring.CONTRAST: "judge_contrast.jinja",
    Scoring.LOGPROB: "comparison.jinja",
    Scoring.CHOICE: "comparison.jinja",
}
_EXEMPLARS = "few_shots/judge.yaml"


class JudgeSpec(StageSpec):
    """Compare each row's candidates.

    ``contrast`` asks how much likelier an answer is after good exemplars than after bad ones, and needs
    ``exemplars``; ``logprob`` compares the probabilities of the two ``options``; ``choice`` parses a written one.
    ``temperature`` divides the difference of two answers (nats, per token when ``per_token``) before the sigmoid.
    A judge's p within ``margin`` of 0.5 is a tie. ``clamp`` bounds p (arXiv 2212.08073 uses 0.4 to 0.6 after
    ``reasoning``).
    """

    MAKES: ClassVar[str] = "comparisons"
    USES_TEMPLATE: ClassVar[bool] = True
    USES_ENGINE: ClassVar[bool] = True
    PRINCIPLE_FIELDS: ClassVar[tuple[str, ...]] = ("comparison", "priority", "preamble")
    kind: Literal["judge"] = "judge"
    model: Annotated[str, Wants("model")]
    candidates: Annotated[
        str, Wants("candidates", "revisions"), Field(description="answers; of revisions, the first answer and the last")
    ]
    scoring: Scoring = Scoring.LOGPROB
    prompt: Annotated[str, TextFile(), Field(description="prompt template; empty takes the scoring's own")] = ""
    exemplars: Annotated[str | None, TextFile(), Field(description="good and bad answers, for contrast")] = None
    n_exemplars: Annotated[int, Field(ge=1, description="how many exemplars are shown")] = 6
    principles: Principles = Principles.ONE
    ensemble: Annotated[int, Field(ge=2, description="principles a row, for principles: ensemble")] = 4
    swap: Annotated[bool, Field(description="ask with the answers in both orders and average")] = True
    options: Annotated[tuple[str, str], Field(description="what the judge would write for the first, the second")] = (
        "(A)",
        "(B)",
    )
    reasoning: Annotated[bool, Field(description="let the judge think before its options are scored")] = False
    sampling: Annotated[Sampled, Field(description="of the reasoning and of the written choice")] = Sampled(
        max_tokens=128, temperature=0.0
    )
    temperature: Annotated[float, Field(gt=0)] = 1.0
    per_token: Annotated[bool, Field(description="contrast: divide log-likelihoods by the answer's tokens")] = True
    pairs: Pairs = Pairs.ALL
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    ties: Ties = Ties.KEEP
    clamp: tuple[float, float] | None = None
    labels: Labels = Labels.SOFT
    limit: Annotated[int | None, Field(ge=1, description="only the first n rows")] = None
    chunk: Annotated[int, Field(ge=1, description="rows judged together; decides the draws")] = 32
    max_drop_rate: Annotated[float, RUNTIME, Field(ge=0, le=1, description="a larger dropped share fails")] = 0.5

    @model_validator(mode="before")
    @classmethod
    def _prompt_of_scoring(cls, raw: Any) -> Any:
        """The scoring's own prompt (and exemplars) where none is named, so that only texts that are read count."""
        if not isinstance(raw, Mapping) or raw.get("scoring", Scoring.LOGPROB) not in list(Scoring):
            return raw
        scoring = Scoring(raw.get("scoring", Scoring.LOGPROB))
        filled = {**raw, "prompt": raw.get("prompt") or _PROMPTS[scoring]}
        if scoring is Scoring.CONTRAST:
            filled["exemplars"] = raw.get("exemplars") or _EXEMPLARS
        return filled

    @model_validator(mode="after")
    def _settings_agree(self) -> JudgeSpec:
        if self.exemplars and self.scoring is not Scoring.CONTRAST:
            raise ValueError(f"exemplars are read by scoring 'contrast' only, and this is '{self.scoring.value}'")
        if self.reasoning and self.scoring is not Scoring.LOGPROB:
            raise ValueError("reasoning goes before option log-probabilities; use scoring: logprob")
        if self.clamp is not None and not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError(f"clamp {list(self.clamp)} must hold 0.5 and lie within 0 and 1, e.g. [0.4, 0.6]")
        if self.options[0] == self.options[1] or not all(self.options):
            raise ValueError("options must be two different texts")
        return self

    @property
    def votes(self) -> int:
        """Questions for one pair (``contrast``: for one answer)."""
        orders = 2 if self.scoring is Scoring.CONTRAST or self.swap else 1
        return orders * (self.ensemble if self.principles is Principles.ENSEMBLE else 1)

    def estimate(self, rows: Mapping[str, int | None]) -> Estimate:
        """Every pair of a row's candidates (``contrast``: every candidate), with every vote asked for."""
        n = limited(rows.get("candidates"), self.limit)
        width = max(rows.get("candidates:width") or 1, 2)  # of revisions, the first answer and the last
        pairs = width * (width - 1) // 2
        # The probabilities of two options are two calls.
        asked = {Scoring.CONTRAST: width, Scoring.LOGPROB: 2 * pairs, Scoring.CHOICE: pairs}[self.scoring]
        calls = (n or 0) * self.votes * asked
        written = self.sampling.max_tokens if self.reasoning or self.scoring is Scoring.CHOICE else 0
        made = None if n is None else n * (pairs if self.pairs is Pairs.ALL else 1)
        return Estimate(made, calls, calls * JUDGE_TOKENS, calls * written)


def run(spec: JudgeSpec, ctx: Context) -> Outcome:
    """Judge every row; a row in is a pair looked at."""
    everything = [candidates for row in rows_of(ctx.one("candidates")) if (candidates := _candidates(row)) is not None]
    rows, repeated = distinct(everything[: spec.limit])
    score = SCORINGS[spec.scoring](spec, ctx)
    # A prompt that does not show the principle is asked once, and the row does not claim that one was read.
    reads = "principle" in asking(ctx, "prompt").template.variables()

    def work(client: Client, chunk: list[Candidates]) -> list[Entry]:
        asked = {
            row.id: questions(ctx, row.id, spec.principles, spec.ensemble) if reads else EXEMPLARS for row in chunk
        }
        verdicts = score(client, chunk, asked)
        return [_entry(spec, row, verdicts[row.id], [name for name, _ in asked[row.id]]) for row in chunk]

    outcome, counts = write(ctx, in_chunks(ctx, "model", rows, spec.chunk, work), repeated)
    return replace(outcome, metrics=_metrics(counts))


def _candidates(row: Row) -> Candidates | None:
    """The row itself; of a revised answer, what was first said and what became of it."""
    if isinstance(row, Conversation) and "response" in row.meta:
        meta = {k: v for k, v in row.meta.items() if k not in ("response", "rounds")}
        return Candidates(row.id, row.prompt, (str(row.meta["response"]), row.answer), row.topic, meta)
    return row if isinstance(row, Candidates) else None


def _metrics(counts: Mapping[str, float]) -> dict[str, Any]:
    pairs, both = counts.get("pairs", 0), counts.get("judged in both orders", 0)
    shares = {"mean p_chosen": counts.get("p_chosen", 0.0) / pairs} if pairs else {}
    if both:
        shares["agreement of the two orders"] = counts.get("orders agree", 0) / both
    return {**{k: v for k, v in counts.items() if v and k != "p_chosen"}, **shares}


def _entry(spec: JudgeSpec, row: Candidates, verdict: Verdict, principles: list[str]) -> Entry:
    dropped: dict[str, int] = {}
    counts: dict[str, float] = {}
    made = []
    for i, j in _chosen_pairs(spec, row, verdict):
        p = 0.5 if row.answers[i] == row.answers[j] else verdict.p.get((i, j))
        if row.answers[i] == row.answers[j]:
            dropped["identical"] = dropped.get("identical", 0) + 1
            continue
        if p is None:
            dropped["unparsed"] = dropped.get("unparsed", 0) + 1
            continue
        judged = max(p, 1 - p)
        if abs(p - 0.5) <= spec.margin:
            p = 0.5
            counts["ties"] = counts.get("ties", 0) + 1
            if spec.ties is Ties.DROP:
                dropped["tie"] = dropped.get("tie", 0) + 1
                continue
        first, second, label = (i, j, p) if p >= 0.5 else (j, i, 1 - p)
        if spec.labels is Labels.HARD and label != 0.5:
            label = 1.0
        if spec.clamp is not None:
            label = min(max(label, spec.clamp[0]), spec.clamp[1])
        meta = {**row.meta, "principles": principles, "judged": round(judged, 6)}
        chosen, rejected = row.answers[first], row.answers[second]
        made.append(Comparison(f"{row.id}/{i}-{j}", row.messages, chosen, rejected, round(label, 6), row.topic, meta))
        counts["pairs"] = counts.get("pairs", 0) + 1
        counts["p_chosen"] = counts.get("p_chosen", 0.0) + label
    if not made and not dropped:
        dropped["fewer than two answers"] = 1
    counts["judged in both orders"], counts["orders agree"] = verdict.both, verdict.agree
    return Entry(row.id, tuple(made), dropped, counts, verdict.calls, verdict.tokens)


def _chosen_pairs(spec: JudgeSpec, row: Candidates, verdict: Verdict) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j. The best and the worst are those with the highest and the lowest mean p over the others."""
    n = len(row.answers)
    everything = list(combinations(range(n), 2))
    if spec.pairs is Pairs.ALL or n <= 2:
        return everything
    means = [0.0] * n
    for i, j in everything:
        p = verdict.p.get((i, j))
        p = 0.5 if p is None else p
        means[i] += p
        means[j] += 1 - p
    best = max(range(n), key=lambda i: (means[i], -i))
    worst = min((i for i in range(n) if i != best), key=lambda i: (means[i], -i))
    return [(min(best, worst), max(best, worst))]
