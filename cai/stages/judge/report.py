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
from cai.stages.flow.entries import Kept
from cai.stages.judge.calibration import Calibration, logit
from cai.stages.judge.set_figures import SetFigures, set_rows

FILE = "judge_report.json"


@dataclass(slots=True)
class _Principle:
    """What one principle's questions came to."""

    pairs: int = 0
    decided: Mean = field(default_factory=Mean)
    longer: Mean = field(default_factory=Mean)
    others: Mean = field(default_factory=Mean)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read of one row: p by pair, p by question, and how many pairs were asked about."""

    pairs: Mapping[Pair, float]
    questions: Mapping[Question, float]
    asked: int


class JudgeTally:
    """Sums over the entries of a judge; ``margin``: a p this near to 0.5 is a tie.

    With ``balanced``, questions are asked in both orders, and only those read in both tell of the place: what the
    judge thinks of the answers cancels out then.
    """

    def __init__(self, margin: float, balanced: bool) -> None:
        self.margin, self.balanced = margin, balanced
        self.rows = 0
        self.asked: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.consistent, self.apart = Mean(), Mean()
        self.one_order = 0
        self.place, self.first = Mean(), Mean()
        self.longer, self.p_longer, self.length = Mean(), Mean(), Correlation()
        self.alpha, self.alike = Alpha(), Mean()
        self.principles: dict[str, _Principle] = {}
        self.confidence = Bins()
        self.sets = SetFigures()
        self.given = Calibration(balanced)

    def see(self, entry: Kept) -> None:
        """The next entry."""
        facts = entry.facts
        if "votes" not in facts:
            return
        self.rows += 1
        votes, readings = votes_of(facts["votes"]), readings_of(facts.get("readings", ()))
        answers: list[Vote | Reading] = [*votes, *readings]
        for vote in answers:
            self.asked["asked"] += 1
            if vote.why:
                self.unreadable[vote.why] += 1
            else:
                self.asked["readable"] += 1
        self.asked["even"] += sum(vote.p == 0.5 for vote in votes)
        read = self._set(readings) if readings else self._pairs(votes)
        unreadable, identical = read.asked - len(read.pairs), entry.dropped.get("identical", 0)
        self.pairs.update({"asked": read.asked, "unreadable": unreadable, "identical": identical})
        self._lengths(read.pairs, facts["lengths"])
        self._principles(read.questions, facts["principles"], facts["lengths"])
        if "human" in facts:
            self.given.see(facts, entry.dropped)

    def _pairs(self, votes: Sequence[Vote]) -> _Read:
        """A row whose answers were shown in pairs."""
        questions = first_shown(votes)
        self._orders(questions)
        return _Read(by_pair(questions, self.balanced), questions, len({(vote.i, vote.j) for vote in votes}))

    def _set(self, readings: Sequence[Reading]) -> _Read:
        """A row whose answers were shown together: the pair that came out is the only one asked, and what each
        principle says of it the only questions."""
        questions = by_question(readings)
        both = in_both_orders(questions)
        self.consistent.add([float(agreement(one, other) is Agreement.FULL) for one, other in both])
        self.apart.add([apart(one, other) for one, other in both])
        orders = {(reading.k, reading.order): reading.shown for reading in readings}
        shown = {
            (k, order): orders[k, order] for k, order in questions if not self.balanced or (k, 1 - order) in questions
        }
        self.one_order += len(questions) - len(shown)
        self.place.add([lean_to_the_front(questions[question], places) for question, places in shown.items()])
        self.first.add([float(questions[question][places[0]].best) for question, places in shown.items()])
        self.sets.see(questions, shown)
        (i, j), p = pair_of(readings, self.balanced)
        by_principle: dict[Question, float] = {}
        for k in dict.fromkeys(k for k, _ in shown):
            if (standings := overall(questions, self.balanced, k)) is not None:
                by_principle[i, j, k, None] = p_between(standings, i, j)
        return _Read({} if p is None else {(i, j): p}, by_principle, 1)

    def _orders(self, read: Mapping[Question, float]) -> None:
        both = both_orders(read)
        self.consistent.add([float(agree(one, other)) for one, other in both])
        self.apart.add([abs(one - other) for one, other in both])
        shown = [
            p
            for (i, j, k, flipped), p in read.items()
            if flipped is not None and (not self.balanced or (i, j, k, not flipped) in read)
        ]
        self.one_order += sum(flipped is not None for _, _, _, flipped in read) - len(shown)
        self.place.add([p - 0.5 for p in shown])
        self.first.add([signs(p) for p in shown])

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

    def _principles(self, read: Mapping[Question, float], names: Sequence[str], lengths: Sequence[int]) -> None:
        opinions: dict[Pair, dict[int, list[float]]] = {}
        for question, p in read.items():
            opinions.setdefault(question[:2], {}).setdefault(question[2], []).append(of_pair(question, p))
        alike: list[float] = []
        for (i, j), by_number in opinions.items():
            mine = {k: mean_of(values) for k, values in by_number.items()}
            verdicts = [signs(p) for p in mine.values()]
            self.alpha.add(verdicts)
            alike += [float(one == other) for one, other in combinations(verdicts, 2)]
            for k, p in mine.items():
                one = self.principles.setdefault(names[k], _Principle())
                one.pairs += 1
                one.decided.add([float(abs(p - 0.5) > self.margin)])
                if lengths[i] != lengths[j]:
                    one.longer.add([p if lengths[i] > lengths[j] else 1 - p])
                others = [other for number, other in mine.items() if number != k]
                if others and (majority := signs(mean_of(others))) != 0.5:
                    one.others.add([float(signs(p) == majority)])
        self.alike.add(alike)

    def figures(self, settings: Mapping[str, Any], labelled: Calibration | None) -> dict[str, Any]:
        """The report as plain data; ``settings`` are those of the judge, ``labelled`` saw its labelled set."""
        temperature = settings.get("temperature")
        report: dict[str, Any] = {
            "judge": dict(settings),
            "rows": self.rows,
            "votes": {
                "asked": self.asked["asked"],
                "readable": self.asked["readable"],
                "even": self.asked["even"],
                "unreadable": dict(sorted(self.unreadable.items())),
            },
            "pairs": {name: self.pairs[name] for name in ("asked", "decided", "ties", "unreadable", "identical")},
            "swap": {
                "consistency": self.consistent.share(),
                "mean difference of p": self.apart.mean(0, 1),
                "read in one order only": self.one_order,
            },
            "position": {"bias": self.place.mean(-0.5, 0.5), "first shown wins": self.first.share()},
            "length": {
                "longer wins": self.longer.share(),
                "mean p of the longer": self.p_longer.mean(0, 1),
                "correlation of logit p and log length ratio": self.length.figure(),
            },
            "principles": self._by_principle(),
            "confidence": self._confidence(),
        }
        if any(self.sets.best.values()):
            report["sets"] = self.sets.figures()
        if labelled is not None:
            report["labelled"] = labelled.figures(temperature)
        if self.given.counts:
            report["given labels"] = self.given.figures(temperature)
        return report

    def _by_principle(self) -> dict[str, Any]:
        return {
            "pairwise agreement": self.alike.share(),
            "krippendorff alpha": self.alpha.figure(),
            "each": {
                name: {
                    "pairs": one.pairs,
                    "decided": one.decided.share(),
                    "mean p of the longer": one.longer.mean(0, 1),
                    "agrees with the others": one.others.share(),
                }
                for name, one in sorted(self.principles.items())
            },
        }

    def _confidence(self) -> dict[str, Any]:
        n = sum(self.confidence.n)
        return {
            "mean": rounded(math.fsum(self.confidence.x) / n) if n else None,
            "n": n,
            "bins": [
                {"low": low, "high": high, "n": count}
                for (low, high), count in zip(self.confidence.bounds(), self.confidence.n, strict=True)
            ],
        }


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """A few flat figures for the step's record; those without any n are left out."""
    found = {
        "swap consistency": report["swap"]["consistency"],
        "position bias": report["position"]["bias"],
        "longer wins": report["length"]["longer wins"],
    }
    if "labelled" in report:
        found["labelled accuracy"] = report["labelled"]["accuracy"]
    flat: dict[str, Any] = {name: figure["value"] for name, figure in found.items() if figure["n"]}
    if "labelled" in report:
        flat["labelled n"] = report["labelled"]["accuracy"]["n"]
    return flat


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The report for a person: figure, value with its 95 % interval and n, and what it means in a few words."""
    votes, pairs = report["votes"], report["pairs"]
    rows = [
        ("votes read", f"{votes['readable']} of {votes['asked']}", _reasons(votes["unreadable"])),
        (
            "pairs decided",
            f"{pairs['decided']} of {pairs['asked']}",
            f"{pairs['ties']} ties, {pairs['unreadable']} unread",
        ),
        ("swap consistency", _share(report["swap"]["consistency"]), "same verdict when the answers change places"),
        ("position bias", _signed(report["position"]["bias"]), "p of the answer shown first, above 0.5; 0 is fair"),
        *(set_rows(report["sets"]) if "sets" in report else ()),
        ("longer wins", _share(report["length"]["longer wins"]), "of decided pairs; compare with people's labels"),
    ]
    if report["principles"]["pairwise agreement"]["n"]:
        alpha = report["principles"]["krippendorff alpha"]["value"]
        told = "two principles, same verdict" + ("" if alpha is None else f"; alpha {alpha:.2f}, 0 is chance")
        rows.append(("principles agree", _share(report["principles"]["pairwise agreement"]), told))
    for name in ("labelled", "given labels"):
        if name in report:
            rows += _against(report[name], "labelled" if name == "labelled" else "given")
    return [row for row in rows if row[1]]


def _against(found: Mapping[str, Any], name: str) -> list[tuple[str, str, str]]:
    if not found["accuracy"]["n"]:
        return []
    longer = found["baselines"]["always the longer"]["accuracy"]["value"]
    shorter = found["baselines"]["always the shorter"]["accuracy"]["value"]
    fitted, loss = found["fitted"], found["log loss"]["value"]
    best = f"; {fitted['log loss']:.3f} at temperature x {fitted['temperature']:.3g}" if fitted["temperature"] else ""
    people = found["longer preferred"]["human"]
    return [
        (
            f"{name}: accuracy",
            _share(found["accuracy"]),
            f"always longer {longer:.1%}, shorter {shorter:.1%}, coin 50%",
        ),
        (f"{name}: log loss", f"{loss:.3f}", f"a coin has 0.693{best}"),
        (
            f"{name}: calibration error",
            f"{found['expected calibration error']['value']:.3f}",
            "sure minus right, 0 is calibrated",
        ),
        (
            f"{name}: longer preferred",
            _share(found["longer preferred"]["judge"]),
            f"by people {_share(people)}" if people["n"] else "",
        ),
    ]


def _reasons(unreadable: Mapping[str, int]) -> str:
    told = ", ".join(f"{reason} {n}" for reason, n in sorted(unreadable.items(), key=lambda item: (-item[1], item[0])))
    return told or "nothing unreadable"


def _share(figure: Mapping[str, Any]) -> str:
    if not figure["n"]:
        return ""
    return f"{figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}], n={figure['n']}"


def _signed(figure: Mapping[str, Any]) -> str:
    if not figure["n"]:
        return ""
    span = f" [{figure['low']:+.3f}, {figure['high']:+.3f}]" if figure["low"] is not None else ""
    return f"{figure['value']:+.3f}{span}, n={figure['n']}"
