"""What a judge who names the best and the worst of a set tells of itself: how its two orders compare, and which places
it likes. A part of ``judge_report.json``; summed while the entries stream by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cai.figures.intervals import Interval
from cai.figures.judge_report import PlaceShares, SetShares
from cai.figures.running_sums import Mean
from cai.judging.sets import Agreement, SetQuestion, Standings, agreement, in_both_orders

ShownOrders = Mapping[SetQuestion, tuple[int, ...]]
"""The order in which each question showed its answers."""


class SetFigures:
    """Sums over questions about sets. Places are counted by the size of the set, as one of three has other chances."""

    def __init__(self) -> None:
        self.orders = {kind: Mean() for kind in Agreement}
        self.best: dict[int, list[Mean]] = {}
        self.worst: dict[int, list[Mean]] = {}

    def see(self, questions: Mapping[SetQuestion, Standings], counting: ShownOrders) -> None:
        """The questions of one row; of places only those ``counting`` tell."""
        kinds = [agreement(standings, swapped) for standings, swapped in in_both_orders(questions)]
        for kind, share in self.orders.items():
            share.add([float(kind_of_question is kind) for kind_of_question in kinds])
        by_size: dict[int, list[list[tuple[float, float]]]] = {}
        for question, shown_order in counting.items():
            standings = questions[question]
            ends_by_place = [(float(standings[i].best), float(standings[i].worst)) for i in shown_order]
            by_size.setdefault(len(shown_order), []).append(ends_by_place)
        for size, rows in by_size.items():
            best = self.best.setdefault(size, [Mean() for _ in range(size)])
            worst = self.worst.setdefault(size, [Mean() for _ in range(size)])
            for place in range(size):
                best[place].add([ends_by_place[place][0] for ends_by_place in rows])
                worst[place].add([ends_by_place[place][1] for ends_by_place in rows])

    def figures(self) -> SetShares:
        """Shares of the questions, by what the two orders came to and by place (the first is 1)."""
        return SetShares(
            orders={kind.value: share.share() for kind, share in self.orders.items()},
            places={
                str(size): PlaceShares(best=_shares(self.best[size]), worst=_shares(self.worst[size]))
                for size in sorted(self.best)
            },
        )


def _shares(means: Sequence[Mean]) -> tuple[Interval, ...]:
    return tuple(mean.share() for mean in means)
