"""Soft labels become hard ones: what is left out, what is swapped, and that replicas are fair and independent."""

from __future__ import annotations

import math

import pytest

from cai.data.formats.nemo_aligner import HardPair
from cai.engines.methods.base import PairText
from cai.engines.nemo_aligner.labels import WITHIN_MARGIN, HardLabels, hard_labels
from cai.engines.nemo_aligner.settings import Hard, LabelSettings
from cai.errors import SpecError
from cai.identity import uniform


def soft(*p_chosen: float) -> list[PairText]:
    return [PairText(f"row{i}", f"prompt {i}", f"one {i}", f"other {i}", p) for i, p in enumerate(p_chosen)]


def many(count: int) -> list[PairText]:
    return soft(*(uniform(5, str(i), "label") for i in range(count)))


def replicas(count: int) -> LabelSettings:
    return LabelSettings(how=Hard.REPLICAS, replicas=count)


def margin(width: float) -> LabelSettings:
    return LabelSettings(how=Hard.MARGIN, margin=width)


def first_is_chosen(pair: HardPair) -> bool:
    return pair.chosen.startswith("one")


def test_a_label_below_one_half_swaps_the_sides() -> None:
    found = hard_labels(soft(0.9, 0.1, 1.0, 0.0), margin(0.1), seed=0)
    assert [first_is_chosen(pair) for pair in found.pairs] == [True, False, True, False]
    assert [(pair.prompt, {pair.chosen, pair.rejected}) for pair in found.pairs] == [
        (f"prompt {i}", {f"one {i}", f"other {i}"}) for i in range(4)
    ]
    assert (found.swapped, found.flipped, found.dropped) == (2, 0, {})


def test_labels_nearer_to_one_half_than_the_margin_are_left_out_and_counted() -> None:
    found = hard_labels(soft(0.59, 0.6, 0.4, 0.41, 0.5), margin(0.1), seed=0)
    assert [pair.id for pair in found.pairs] == ["row1", "row2"]  # clamped labels lie exactly at the margin
    assert found.dropped == {WITHIN_MARGIN: 3}
    assert found.swapped == 1


def test_without_a_margin_only_a_tie_is_left_out() -> None:
    found = hard_labels(soft(0.5, 0.500001, 0.499999), margin(0.0), seed=0)
    assert [pair.id for pair in found.pairs] == ["row1", "row2"]
    assert found.dropped == {WITHIN_MARGIN: 1}


def test_replicas_keep_every_row_and_its_id() -> None:
    found = hard_labels(soft(1.0, 0.5, 0.0), replicas(3), seed=1)
    assert [(pair.id, pair.replica) for pair in found.pairs] == [(f"row{i}", k) for i in range(3) for k in range(3)]
    assert all(first_is_chosen(pair) for pair in found.pairs[:3])
    assert not any(first_is_chosen(pair) for pair in found.pairs[6:])
    assert found.dropped == {}
    assert found.swapped == 1
    assert found.expected_flips == 1.5


def test_adding_a_row_or_changing_the_order_changes_no_other_draw() -> None:
    rows = many(40)

    def drawn(pairs: list[PairText], count: int = 4) -> dict[tuple[str, int], bool]:
        return {(p.id, p.replica): first_is_chosen(p) for p in hard_labels(pairs, replicas(count), seed=3).pairs}

    whole = drawn(rows)
    assert drawn(rows[::-1]) == whole
    assert drawn(rows[:17]).items() <= whole.items()
    assert whole.items() <= drawn(rows, count=6).items()  # nor does another replica
    assert {pair.id for pair in rows} == {row for row, _ in whole}
    other = hard_labels(rows, replicas(4), seed=4).pairs
    assert {(p.id, p.replica): first_is_chosen(p) for p in other} != whole


def test_the_order_in_which_a_judge_names_the_sides_changes_nothing() -> None:
    rows = many(30)
    turned = [PairText(p.id, p.prompt, p.rejected, p.chosen, 1 - p.p_chosen) for p in rows]
    for labels in (replicas(5), margin(0.1)):
        assert hard_labels(rows, labels, seed=2).pairs == hard_labels(turned, labels, seed=2).pairs


def slope(pairs: list[PairText], found: HardLabels) -> tuple[float, float]:
    """Mean derivative, by one weight, of the hard and of the soft loss; margins differ from pair to pair."""
    at = {pair.id: (1 / (1 + math.exp(-feature)), feature) for pair in pairs for feature in [_feature(pair.id)]}
    soft_slope = sum((at[p.id][0] - p.p_chosen) * at[p.id][1] for p in pairs) / len(pairs)
    terms = [(at[p.id][0] - first_is_chosen(p)) * at[p.id][1] for p in found.pairs]
    return sum(terms) / len(terms), soft_slope


def _feature(row: str) -> float:
    return 4 * uniform(9, row, "feature") - 2


@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_the_mean_gradient_of_replicas_tends_to_the_soft_one(count: int) -> None:
    pairs = many(500)
    found = hard_labels(pairs, replicas(count), seed=0)
    hard, wanted = slope(pairs, found)
    # The standard error: each draw has variance p (1 - p) times the square of the pair's feature.
    variance = sum(p.p_chosen * (1 - p.p_chosen) * _feature(p.id) ** 2 for p in pairs) / (len(pairs) ** 2 * count)
    assert abs(hard - wanted) < 4 * math.sqrt(variance)
    assert abs(found.flipped - found.expected_flips) < 4 * math.sqrt(500 * count / 4)


def test_keeping_the_likelier_side_has_another_gradient() -> None:
    pairs = soft(*([0.7] * 200 + [0.3] * 200))
    rows = [PairText(p.id, p.prompt, p.chosen, p.rejected, p.p_chosen) for p in pairs]
    features = {p.id: (1.0 if p.p_chosen > 0.5 else -1.0) for p in rows}

    def mean(found: HardLabels) -> float:
        return sum(first_is_chosen(p) * features[p.id] for p in found.pairs) / len(found.pairs)

    truth = sum(p.p_chosen * features[p.id] for p in rows) / len(rows)
    assert mean(hard_labels(rows, margin(0.1), seed=0)) == pytest.approx(0.5)
    assert truth == pytest.approx(0.2)
    assert mean(hard_labels(rows, replicas(64), seed=0)) == pytest.approx(truth, abs=0.02)


def test_the_record_holds_the_counts() -> None:
    record = hard_labels(soft(0.9, 0.2), replicas(2), seed=0).record()
    assert record["hard_pairs"] == 4
    assert record["labels_swapped"] == 1
    assert record["replicas_flipped_expected"] == pytest.approx(0.6)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_label_that_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(SpecError, match=r"row0.*between 0 and 1"):
        hard_labels(soft(p), margin(0.1), seed=0)
