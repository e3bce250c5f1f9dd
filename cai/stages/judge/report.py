"""The judge as an instrument: what its own answers tell of how far it can be trusted, and what people's labels add.

Everything is summed while the entries stream by, in the order of the input, so that the report is the same bytes for
the same entries. ``docs/judge.md`` says how to read each figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from cai.figures.intervals import Interval
from cai.figures.judge_report import (
    ALWAYS_FIRST,
    ALWAYS_LONGER,
    ALWAYS_SHORTER,
    MAJORITY_SIDE,
    BaselineFigures,
    BeyondChance,
    ConfidenceBin,
    ConfidenceFigures,
    JudgeReport,
    LabelFigures,
    LengthFigures,
    PairCounts,
    PositionFigures,
    PrincipleAgreement,
    PrincipleFigures,
    SetShares,
    SwapFigures,
    VoteCounts,
)
from cai.figures.judge_standing import standing
from cai.figures.running_sums import Alpha, Bins, Correlation, Mean, mean_of, rounded, signs
from cai.judging.pairs import Pair, Question, Vote, agree, both_orders, by_pair, first_shown, of_pair, votes_of
from cai.judging.sets import (
    Agreement,
    Reading,
    agreement,
    apart,
    by_question,
    in_both_orders,
    lean_to_the_front,
    overall,
    p_between,
    pair_of,
    readings_of,
)
from cai.stages.flow.entries import StoredEntry
from cai.stages.judge.calibration import Calibration, logit
from cai.stages.judge.set_figures import SetFigures


@dataclass(slots=True)
class _Principle:
    """What one principle's questions came to."""

    pairs: int = 0
    decided: Mean = field(default_factory=Mean)
    longer: Mean = field(default_factory=Mean)
    others: Mean = field(default_factory=Mean)


@dataclass(frozen=True, slots=True)
class _RowProbabilities:
    """What was read of one row: p by pair, p by question, and how many pairs were asked about."""

    by_pair: Mapping[Pair, float]
    by_question: Mapping[Question, float]
    asked_pairs: int


class JudgeTally:
    """Sums over the entries of a judge; ``margin``: a p this near to 0.5 is a tie.

    With ``balanced``, questions are asked in both orders, and only those read in both tell of the place: what the
    judge thinks of the answers cancels out then.
    """

    def __init__(self, margin: float, balanced: bool) -> None:
        self.margin = margin
        self.balanced = balanced
        self.rows = 0
        self.votes: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.consistent = Mean()
        self.apart = Mean()  # how far p moves when the answers change places
        self.one_order = 0  # questions that were read in one order only
        self.place = Mean()
        self.first = Mean()
        self.longer = Mean()
        self.p_longer = Mean()
        self.length = Correlation()
        self.alpha = Alpha()
        self.alike = Mean()  # how often two principles come to the same verdict
        self.principles: dict[str, _Principle] = {}
        self.confidence = Bins()
        self.sets = SetFigures()
        self.given_labels = Calibration(balanced)

    def see(self, entry: StoredEntry) -> None:
        """The next entry."""
        facts = entry.facts
        if "votes" not in facts:
            return
        self.rows += 1
        votes, readings = votes_of(facts["votes"]), readings_of(facts.get("readings", ()))
        answers: list[Vote | Reading] = [*votes, *readings]
        for vote in answers:
            self.votes["asked"] += 1
            if vote.why:
                self.unreadable[vote.why] += 1
            else:
                self.votes["readable"] += 1
        self.votes["even"] += sum(vote.p == 0.5 for vote in votes)
        row = self._set(readings) if readings else self._pairs(votes)
        unreadable, identical = row.asked_pairs - len(row.by_pair), entry.dropped.get("identical", 0)
        self.pairs.update({"asked": row.asked_pairs, "unreadable": unreadable, "identical": identical})
        self._lengths(row.by_pair, facts["lengths"])
        self._principles(row.by_question, facts["principles"], facts["lengths"])
        if "human" in facts:
            self.given_labels.see(facts, entry.dropped)

    def _pairs(self, votes: Sequence[Vote]) -> _RowProbabilities:
        """A row whose answers were shown in pairs."""
        questions = first_shown(votes)
        self._orders(questions)
        pairs = {(vote.i, vote.j) for vote in votes}
        return _RowProbabilities(by_pair(questions, self.balanced), questions, len(pairs))

    def _set(self, readings: Sequence[Reading]) -> _RowProbabilities:
        """A row whose answers were shown together: the pair that came out is the only one asked, and what each
        principle says of it the only questions."""
        questions = by_question(readings)
        both = in_both_orders(questions)
        self.consistent.add([float(agreement(standings, swapped) is Agreement.FULL) for standings, swapped in both])
        self.apart.add([apart(standings, swapped) for standings, swapped in both])
        orders = {(reading.k, reading.order): reading.shown_order for reading in readings}
        counting = {
            (k, order): orders[k, order] for k, order in questions if not self.balanced or (k, 1 - order) in questions
        }
        self.one_order += len(questions) - len(counting)
        self.place.add([lean_to_the_front(questions[question], places) for question, places in counting.items()])
        self.first.add([float(questions[question][places[0]].best) for question, places in counting.items()])
        self.sets.see(questions, counting)
        (i, j), p = pair_of(readings, self.balanced)
        by_principle: dict[Question, float] = {}
        for k in dict.fromkeys(k for k, _ in counting):
            if (standings := overall(questions, self.balanced, k)) is not None:
                by_principle[i, j, k, None] = p_between(standings, i, j)
        return _RowProbabilities({} if p is None else {(i, j): p}, by_principle, 1)

    def _orders(self, questions: Mapping[Question, float]) -> None:
        both = both_orders(questions)
        self.consistent.add([float(agree(p, p_swapped)) for p, p_swapped in both])
        self.apart.add([abs(p - p_swapped) for p, p_swapped in both])
        counting = [
            p
            for (i, j, k, flipped), p in questions.items()
            if flipped is not None and (not self.balanced or (i, j, k, not flipped) in questions)
        ]
        self.one_order += sum(flipped is not None for _, _, _, flipped in questions) - len(counting)
        self.place.add([p - 0.5 for p in counting])
        self.first.add([signs(p) for p in counting])

    def _lengths(self, pairs: Mapping[Pair, float], lengths: Sequence[int]) -> None:
        wins, p_longer, slopes = [], [], []
        for (i, j), p in pairs.items():
            decided = abs(p - 0.5) > self.margin
            self.pairs["decided" if decided else "ties"] += 1
            self.confidence.add(max(p, 1 - p))
            if lengths[i] != lengths[j]:
                of_longer = p if lengths[i] > lengths[j] else 1 - p
                p_longer.append(of_longer)
                slopes.append((logit(p), math.log(max(lengths[i], 1) / max(lengths[j], 1))))
                if decided:
                    wins.append(signs(of_longer))
        self.longer.add(wins)
        self.p_longer.add(p_longer)
        self.length.add(slopes)

    def _principles(self, questions: Mapping[Question, float], names: Sequence[str], lengths: Sequence[int]) -> None:
        opinions: dict[Pair, dict[int, list[float]]] = {}
        for question, p in questions.items():
            opinions.setdefault(question[:2], {}).setdefault(question[2], []).append(of_pair(question, p))
        alike: list[float] = []
        for (i, j), by_number in opinions.items():
            mine = {k: mean_of(values) for k, values in by_number.items()}
            verdicts = [signs(p) for p in mine.values()]
            self.alpha.add(verdicts)
            alike += [float(first == second) for first, second in combinations(verdicts, 2)]
            for k, p in mine.items():
                principle = self.principles.setdefault(names[k], _Principle())
                principle.pairs += 1
                principle.decided.add([float(abs(p - 0.5) > self.margin)])
                if lengths[i] != lengths[j]:
                    principle.longer.add([p if lengths[i] > lengths[j] else 1 - p])
                others = [p_of_other for number, p_of_other in mine.items() if number != k]
                if others and (majority := signs(mean_of(others))) != 0.5:
                    principle.others.add([float(signs(p) == majority)])
        self.alike.add(alike)

    def figures(self, settings: Mapping[str, Any], labelled: Calibration | None) -> JudgeReport:
        """The report; ``settings`` are those of the judge, ``labelled`` saw its labelled set."""
        temperature = settings.get("temperature")
        return JudgeReport(
            judge=dict(settings),
            rows=self.rows,
            votes=VoteCounts(
                total=self.votes["asked"],
                readable=self.votes["readable"],
                even=self.votes["even"],
                unreadable=dict(sorted(self.unreadable.items())),
            ),
            pairs=PairCounts(
                total=self.pairs["asked"],
                decided=self.pairs["decided"],
                ties=self.pairs["ties"],
                unreadable=self.pairs["unreadable"],
                identical=self.pairs["identical"],
            ),
            swap=SwapFigures(
                consistency=self.consistent.share(),
                mean_difference_of_p=self.apart.mean(0, 1),
                read_in_one_order_only=self.one_order,
            ),
            position=PositionFigures(bias=self.place.mean(-0.5, 0.5), first_shown_wins=self.first.share()),
            length=LengthFigures(
                longer_wins=self.longer.share(),
                mean_p_of_the_longer=self.p_longer.mean(0, 1),
                correlation_of_logit_p_and_log_length_ratio=self.length.figure(),
            ),
            principles=self._by_principle(),
            confidence=self._confidence(),
            sets=self.sets.figures() if any(self.sets.best.values()) else None,
            labelled=labelled.figures(temperature) if labelled is not None else None,
            given_labels=self.given_labels.figures(temperature) if self.given_labels.counts else None,
        )

    def _by_principle(self) -> PrincipleAgreement:
        return PrincipleAgreement(
            pairwise_agreement=self.alike.share(),
            krippendorff_alpha=self.alpha.figure(),
            each={
                name: PrincipleFigures(
                    pairs=principle.pairs,
                    decided=principle.decided.share(),
                    mean_p_of_the_longer=principle.longer.mean(0, 1),
                    agrees_with_the_others=principle.others.share(),
                )
                for name, principle in sorted(self.principles.items())
            },
        )

    def _confidence(self) -> ConfidenceFigures:
        n = sum(self.confidence.n)
        return ConfidenceFigures(
            mean=rounded(math.fsum(self.confidence.x) / n) if n else None,
            n=n,
            bins=tuple(
                ConfidenceBin(low, high, count)
                for (low, high), count in zip(self.confidence.bounds(), self.confidence.n, strict=True)
            ),
        )


def headline(report: JudgeReport) -> dict[str, Any]:
    """A few flat figures for the step's record; those without any n are left out."""
    figures = {
        "swap consistency": report.swap.consistency,
        "position bias": report.position.bias,
        "longer wins": report.length.longer_wins,
    }
    if report.labelled is not None:
        figures["labelled accuracy"] = report.labelled.accuracy
    flat: dict[str, Any] = {name: figure.value for name, figure in figures.items() if figure.n}
    if report.labelled is not None:
        flat["labelled n"] = report.labelled.accuracy.n
        if (beyond := report.labelled.beyond_chance) is not None and beyond.kappa.value is not None:
            flat["labelled kappa"] = beyond.kappa.value
    return flat


def summary_rows(report: JudgeReport) -> list[tuple[str, str, str]]:
    """The report for a person: figure, value with its 95 % interval and n, and what it means in a few words."""
    votes, pairs, agreement = report.votes, report.pairs, report.principles.pairwise_agreement
    rows = [
        ("votes read", f"{votes.readable} of {votes.total}", _reasons(votes.unreadable)),
        ("pairs decided", f"{pairs.decided} of {pairs.total}", f"{pairs.ties} ties, {pairs.unreadable} unread"),
        ("swap consistency", _share(report.swap.consistency), "same verdict when the answers change places"),
        ("position bias", _signed(report.position.bias), "p of the answer shown first, above 0.5; 0 is fair"),
        *(_set_rows(report.sets) if report.sets is not None else ()),
        ("longer wins", _share(report.length.longer_wins), "of decided pairs; compare with people's labels"),
    ]
    if agreement.n:
        alpha = report.principles.krippendorff_alpha.value
        meaning = "two principles, same verdict" + ("" if alpha is None else f"; alpha {alpha:.2f}, 0 is chance")
        rows.append(("principles agree", _share(agreement), meaning))
    for name, labels in (("labelled", report.labelled), ("given", report.given_labels)):
        if labels is not None:
            rows += _label_rows(labels, name)
    return [row for row in rows if row[1]]


def _set_rows(sets: SetShares) -> list[tuple[str, str, str]]:
    swapped = _share(sets.orders.get(Agreement.SWAPPED.value, Interval()))
    rows = [("orders contradict", swapped, "best and worst changed places, which makes a tie")]
    for size, places in sets.places.items():
        fair = f"{1 / int(size):.0%} each is fair, where the order is drawn"
        for end, shares in (("best", places.best), ("worst", places.worst)):
            if shares:
                value = ", ".join(_percent(share.value, 0) for share in shares) + f", n={shares[0].n}"
                rows.append((f"{end} of {size}, by place", value, fair))
    return rows


def _label_rows(labels: LabelFigures, name: str) -> list[tuple[str, str, str]]:
    if not labels.accuracy.n:
        return []
    longer, shorter = (
        _percent(labels.baselines.get(rule, BaselineFigures()).accuracy.value)
        for rule in (ALWAYS_LONGER, ALWAYS_SHORTER)
    )
    fitted, people = labels.fitted, labels.longer_preferred.human
    best = f"; {_three_digits(fitted.log_loss)} at temperature x {fitted.temperature:.3g}" if fitted.temperature else ""
    return [
        (
            f"{name}: accuracy",
            _share(labels.accuracy),
            f"always longer {longer}, shorter {shorter}, coin 50%",
        ),
        *(_kappa_rows(labels, labels.beyond_chance, name) if labels.beyond_chance is not None else ()),
        (f"{name}: log loss", _three_digits(labels.log_loss.value), f"a coin has 0.693{best}"),
        (
            f"{name}: calibration error",
            _three_digits(labels.expected_calibration_error.value),
            "sure minus right, 0 is calibrated",
        ),
        (
            f"{name}: longer preferred",
            _share(labels.longer_preferred.judge),
            f"by people {_share(people)}" if people.n else "",
        ),
    ]


def _kappa_rows(labels: LabelFigures, beyond: BeyondChance, name: str) -> list[tuple[str, str, str]]:
    same, majority = (
        _percent(labels.baselines.get(rule, BaselineFigures()).accuracy.value) for rule in (ALWAYS_FIRST, MAJORITY_SIDE)
    )
    return [
        (f"{name}: kappa", _signed(beyond.kappa), f"0 is chance, 1 all alike; {standing(labels).value}"),
        (
            f"{name}: above best rule",
            _signed(beyond.above_best_rule),
            f"'{beyond.best_rule}'; always the first {same}, the majority side {majority}",
        ),
    ]


def _reasons(unreadable: Mapping[str, int]) -> str:
    counts = sorted(unreadable.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {n}" for reason, n in counts) or "nothing unreadable"


def _percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}%}"


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(figure: Interval) -> str:
    if not figure.n:
        return ""
    return f"{_percent(figure.value)} [{_percent(figure.low)}, {_percent(figure.high)}], n={figure.n}"


def _signed(figure: Interval) -> str:
    if figure.value is None:
        return ""
    span = f" [{figure.low:+.3f}, {figure.high:+.3f}]" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:+.3f}{span}, n={figure.n}"
