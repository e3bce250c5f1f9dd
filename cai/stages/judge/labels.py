"""Votes become labels: what is judged of a row, and the comparisons that come out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.data.rows import Candidates, Comparison, Conversation, Row
from cai.identity import counted
from cai.judging.pairs import Pair, Verdict, agree, both_orders, by_pair, chosen_pairs, first_shown, unread
from cai.judging.sets import Agreement, agreement, by_question, in_both_orders, pair_of
from cai.stages.flow.entries import Entry
from cai.stages.judge.spec import Abstain, JudgeSpec, Labels, Ties


def as_candidates(row: Row, seed: int) -> Candidates | str:
    """The row itself; of a revised answer, what was first said and what became of it; of a comparison, both answers.

    The better answer always comes first in a comparison, so its two are put in an order drawn for the row, and the
    ``human`` in ``meta`` is p that the first of them is the better one.
    """
    if isinstance(row, Conversation) and "response" in row.meta:
        meta = {k: v for k, v in row.meta.items() if k not in ("response", "rounds")}
        return Candidates(row.id, row.prompt, (str(row.meta["response"]), row.answer), row.topic, meta)
    if isinstance(row, Comparison):
        turned = counted(seed, row.id, "judge/human") % 2 == 1
        answers = (row.rejected, row.chosen) if turned else (row.chosen, row.rejected)
        human = round(1 - row.p_chosen if turned else row.p_chosen, 6)
        return Candidates(row.id, row.messages, answers, row.topic, {**row.meta, "human": human})
    return row if isinstance(row, Candidates) else "no first answer"


def facts(row: Candidates, verdict: Verdict, principles: list[str], human: bool) -> dict[str, Any]:
    """What the report needs of a row."""
    row_facts: dict[str, Any] = {
        "votes": [vote.plain() for vote in verdict.votes],
        "principles": principles,
        "lengths": [len(answer) for answer in row.answers],
    }
    if verdict.readings:
        row_facts["readings"] = [reading.plain() for reading in verdict.readings]
    return {**row_facts, "human": row.meta["human"], "topic": row.topic} if human else row_facts


@dataclass(frozen=True, slots=True)
class _Opinion:
    """The pairs of a row that come out, p that the first answer of each is the better one where that could be read, and
    for every question that was read in both orders whether these agree."""

    pairs: Sequence[Pair]
    probabilities: Mapping[Pair, float]
    orders_agree: Sequence[bool]


def _opinion(spec: JudgeSpec, row: Candidates, verdict: Verdict) -> _Opinion:
    both = spec.both_orders
    if verdict.readings:
        pair, p = pair_of(verdict.readings, both)
        orders = in_both_orders(by_question(verdict.readings))
        alike = [agreement(standings, swapped) is Agreement.FULL for standings, swapped in orders]
        return _Opinion([pair], {} if p is None else {pair: p}, alike)
    questions = first_shown(verdict.votes)
    probabilities = by_pair(questions, both)
    alike = [agree(p, p_swapped) for p, p_swapped in both_orders(questions)]
    return _Opinion(chosen_pairs(spec.pairs, row, probabilities), probabilities, alike)


def entry(spec: JudgeSpec, row: Candidates, verdict: Verdict, *, principles: list[str], human: bool) -> Entry:
    """The comparisons that come out of a row, and what did not come to one, by reason."""
    opinion = _opinion(spec, row, verdict)
    dropped: dict[str, int] = {}
    counts: dict[str, float] = {}
    comparisons = []
    for i, j in opinion.pairs:
        p = opinion.probabilities.get((i, j))
        if row.answers[i] == row.answers[j]:
            dropped["identical"] = dropped.get("identical", 0) + 1
            continue
        if p is None:
            if spec.abstain is Abstain.DROP:
                reason = unread(verdict.readings or [vote for vote in verdict.votes if (vote.i, vote.j) == (i, j)])
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            p = 0.5
            counts["abstained"] = counts.get("abstained", 0) + 1
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
        if human and first != 0:
            meta["human"] = round(1 - row.meta["human"], 6)
        chosen, rejected = row.answers[first], row.answers[second]
        name = f"{row.id}/{i}-{j}"
        comparisons.append(Comparison(name, row.messages, chosen, rejected, round(label, 6), row.topic, meta))
        counts["pairs"] = counts.get("pairs", 0) + 1
        counts["p_chosen"] = counts.get("p_chosen", 0.0) + label
    if not comparisons and not dropped:
        dropped["fewer than two answers"] = 1
    counts["judged in both orders"] = len(opinion.orders_agree)
    counts["orders agree"] = sum(opinion.orders_agree)
    row_facts = facts(row, verdict, principles, human)
    return Entry(row.id, tuple(comparisons), dropped, counts, verdict.calls, verdict.tokens, row_facts)
