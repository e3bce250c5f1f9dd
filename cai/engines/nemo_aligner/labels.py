"""Soft labels made hard, for a trainer that knows only "chosen" and "rejected".

The Bradley-Terry loss of a soft label p is -[p log s(d) + (1 - p) log s(-d)], linear in p: drawing the order with
probability p gives the same gradient on average, with a variance that falls with the number of draws. Keeping the
likelier order instead has no variance and is biased: it teaches 1 where the judge said 0.7. Draws are counted from
(seed, row id, replica), so that no pair's draw depends on which other pairs there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cai.data.formats.nemo_aligner import HardPair
from cai.engines.methods.base import PairText
from cai.engines.nemo_aligner.settings import Hard, LabelSettings
from cai.errors import Problem, SpecError
from cai.identity import uniform

WITHIN_MARGIN = "soft label within margin"
"""Reason in the ledger: the label is nearer to 0.5 than ``margin``, or says nothing at all."""
# Probabilities come through arithmetic: 0.6 - 0.5 must not count as less than 0.1.
_HAIR = 1e-9


@dataclass(frozen=True, slots=True)
class HardLabels:
    """Pairs in the order of their rows, the better one in ``chosen``, and what was done to get there.

    ``swapped`` counts rows whose rejected answer was the likelier one (p < 0.5), ``flipped`` the replicas that were
    drawn against the likelier order, ``dropped`` rows by reason. ``expected_flips`` is what ``flipped`` is on average.
    """

    pairs: tuple[HardPair, ...]
    swapped: int
    flipped: int
    expected_flips: float
    dropped: dict[str, int]

    def record(self) -> dict[str, int | float]:
        """The counts, for a step's record."""
        return {
            "hard_pairs": len(self.pairs),
            "labels_swapped": self.swapped,
            "replicas_flipped": self.flipped,
            "replicas_flipped_expected": round(self.expected_flips, 3),
        }


def hard_labels(pairs: Iterable[PairText], labels: LabelSettings, seed: int) -> HardLabels:
    """Every soft pair as hard ones, by ``labels.how``.

    ``margin`` leaves out pairs whose p is nearer to 0.5 than the margin, and ties; a p at the margin stays, so that
    labels clamped to 0.4 and 0.6 pass a margin of 0.1. ``replicas`` keeps every pair, ties too, and repeats it.

    Raises:
        SpecError: a ``p_chosen`` that is no probability.
    """
    hard: list[HardPair] = []
    swapped = flipped = left_out = 0
    expected = 0.0
    for pair in pairs:
        p = pair.p_chosen
        if not 0 <= p <= 1:
            raise SpecError(Problem(f"comparison {pair.id}", f"p_chosen is {p}", "a label is between 0 and 1"))
        swap = p < 0.5
        likelier = 1 - p if swap else p
        if labels.how is Hard.MARGIN and (likelier - 0.5 < labels.margin - _HAIR or likelier - 0.5 < _HAIR):
            left_out += 1
            continue
        swapped += swap
        if labels.how is Hard.MARGIN:
            hard.append(_ordered(pair, swap, 0))
            continue
        expected += labels.replicas * (1 - likelier)
        for replica, flip in enumerate(_flips(pair.id, likelier, labels.replicas, seed)):
            flipped += flip
            hard.append(_ordered(pair, swap != flip, replica))
    return HardLabels(tuple(hard), swapped, flipped, expected, {WITHIN_MARGIN: left_out} if left_out else {})


def _flips(row: str, likelier: float, replicas: int, seed: int) -> Iterator[bool]:
    for replica in range(replicas):
        yield uniform(seed, row, f"hard label {replica}") >= likelier


def _ordered(pair: PairText, swapped: bool, replica: int) -> HardPair:
    chosen, rejected = (pair.rejected, pair.chosen) if swapped else (pair.chosen, pair.rejected)
    return HardPair(pair.id, pair.prompt, chosen, rejected, replica)
