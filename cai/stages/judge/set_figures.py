"""What a judge who names the best and the worst of a set tells of itself: how its two orders compare, and which places
it likes. A part of ``judge_report.json``; summed while the entries stream by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cai.figures.running_sums import Mean
from cai.judging.sets import Agreement, SetQuestion, Standings, agreement, in_both_orders

Shown = Mapping[SetQuestion, tuple[int, ...]]
"""The order in which each question showed its answers."""


class SetFigures:
    """Sums over questions about sets. Places are counted by the size of the set, as one of three has other chances."""

    def __init__(self) -> None:
        self.orders = {kind: Mean() for kind in Agreement}
        self.best: dict[int, list[Mean]] = {}
        self.worst: dict[int, list[Mean]] = {}

    def see(self, questions: Mapping[SetQuestion, Standings], counting: Shown) -> None:
        """The questions of one row; of places only those ``counting`` tell."""
        kinds = [agreement(one, other) for one, other in in_both_orders(questions)]
        for kind, share in self.orders.items():
            share.add([float(one is kind) for one in kinds])
        by_size: dict[int, list[list[tuple[float, float]]]] = {}
        for question, shown in counting.items():
            named = [(float(questions[question][i].best), float(questions[question][i].worst)) for i in shown]
            by_size.setdefault(len(shown), []).append(named)
        for size, rows in by_size.items():
            best = self.best.setdefault(size, [Mean() for _ in range(size)])
            worst = self.worst.setdefault(size, [Mean() for _ in range(size)])
            for place in range(size):
                best[place].add([named[place][0] for named in rows])
                worst[place].add([named[place][1] for named in rows])

    def figures(self) -> dict[str, Any]:
        """As plain data: shares of the questions, by what the two orders came to and by place (the first is 1)."""
        return {
            "orders": {kind.value: share.share() for kind, share in self.orders.items()},
            "places": {
                str(size): {
                    "best": [share.share() for share in self.best[size]],
                    "worst": [share.share() for share in self.worst[size]],
                }
                for size in sorted(self.best)
            },
        }


def set_rows(sets: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures for a person: figure, value and meaning."""
    swapped = sets["orders"][Agreement.SWAPPED.value]
    rows = []
    if swapped["n"]:
        value = f"{swapped['value']:.1%} [{swapped['low']:.1%}, {swapped['high']:.1%}], n={swapped['n']}"
        rows.append(("orders contradict", value, "best and worst changed places, which makes a tie"))
    for size, ends in sets["places"].items():
        for end, shares in ends.items():
            value = ", ".join(f"{share['value']:.0%}" for share in shares) + f", n={shares[0]['n']}"
            fair = f"{1 / int(size):.0%} each is fair, where the order is drawn"
            rows.append((f"{end} of {size}, by place", value, fair))
    return rows
