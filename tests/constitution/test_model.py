import pytest

from cai.constitution import Constitution, Principle
from cai.errors import SpecError
from cai.identity import canonical

ROWS = [f"row-{n}" for n in range(5000)]


def sixteen(**change: str) -> Constitution:
    principles = tuple(Principle(id=f"p{n}", critique=f"What is wrong with part {n}?", **change) for n in range(16))
    return Constitution(name="sixteen", principles=principles)


def draws(constitution: Constitution) -> list[str]:
    return [constitution.draw(7, row, "critique:0").id for row in ROWS]


def test_rewording_a_principle_moves_no_row() -> None:
    assert draws(sixteen()) == draws(sixteen(revision="Write it again.", rationale="other words"))


def test_adding_a_seventeenth_moves_about_one_row_in_seventeen_and_only_to_it() -> None:
    old = sixteen()
    new = Constitution(name="new", principles=(*old.principles, Principle(id="added", critique="What else?")))
    moved = [after for before, after in zip(draws(old), draws(new), strict=True) if before != after]
    assert set(moved) == {"added"}
    assert abs(len(moved) / len(ROWS) - 1 / 17) < 0.012


def test_order_of_principles_moves_no_row() -> None:
    turned = Constitution(name="turned", principles=sixteen().principles[::-1])
    assert draws(turned) == draws(sixteen())


def test_draws_follow_the_weights() -> None:
    heavy = Principle(id="heavy", critique="a", weight=3)
    constitution = Constitution(name="c", principles=(heavy, Principle(id="light", critique="b")))
    assert abs(draws(constitution).count("heavy") / len(ROWS) - 0.75) < 0.025


def test_draw_many_has_no_repeats_starts_with_draw_and_stops_at_what_there_is() -> None:
    constitution = sixteen()
    many = constitution.draw_many(7, "row-1", "judge", 5)
    assert len({p.id for p in many}) == 5
    assert many[0] == constitution.draw(7, "row-1", "judge")
    assert {p.id for p in constitution.draw_many(7, "row-1", "judge", 99)} == {p.id for p in constitution.principles}


def test_weight_zero_is_never_drawn_never_read_and_not_part_of_the_identity() -> None:
    off = Principle(id="off", comparison="Which is off?", weight=0)
    on = Principle(id="on", comparison="Which is on?")
    both, alone = (Constitution(name="c", principles=p) for p in ((off, on), (on,)))
    assert set(draws(both)) == {"on"}
    assert both.as_text() == alone.as_text() == "1. Which is on?"
    assert both.identity() == alone.identity()


@pytest.mark.parametrize("k", [0, -1])
def test_drawing_no_principle_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        sixteen().draw_many(1, "r", "p", k)


def test_drawing_from_zero_weights_is_refused() -> None:
    constitution = Constitution(name="c", principles=(Principle(id="a", critique="x", weight=0),))
    with pytest.raises(ValueError, match="every weight is zero"):
        constitution.draw(1, "r", "p")
    with pytest.raises(ValueError, match="every weight is zero"):
        constitution.draw_many(1, "r", "p", 1)


def test_identity_has_the_fields_asked_for_and_no_others() -> None:
    p = Principle(id="a", critique="c", revision="r", comparison="q", rationale="why", tags=("x",), priority=1)
    constitution = Constitution(name="n", preamble="read me", description="d", principles=(p,))
    assert constitution.identity(("critique", "revision")) == [
        {"id": "a", "weight": 1.0, "critique": "c", "revision": "r"}
    ]
    assert constitution.identity(("comparison", "preamble"))[0] == {"preamble": "read me"}
    renamed = constitution.model_copy(update={"name": "other", "description": "other"})
    assert canonical(renamed.identity()) == canonical(constitution.identity())


def test_identity_refuses_an_unknown_field() -> None:
    with pytest.raises(ValueError, match="did you mean 'critique'"):
        sixteen().identity(("critque",))


def test_the_whole_text_has_the_preamble_first_and_then_the_highest_priority() -> None:
    low, high = Principle(id="low", comparison="Low\none?"), Principle(id="high", comparison="High one?", priority=2)
    constitution = Constitution(name="n", preamble="Weigh these.", principles=(low, high))
    assert constitution.as_text() == "Weigh these.\n\n1. High one?\n2. Low one?"
    with pytest.raises(ValueError, match="no critique in high, low"):
        constitution.as_text("critique")


def test_json_round_trip() -> None:
    constitution = sixteen()
    assert Constitution.from_json(constitution.to_json()) == constitution
    assert canonical(constitution.to_json())


@pytest.mark.parametrize("bad", ["[", "[]", "null", '{"name": 3}', "[" * 100_000])
def test_from_json_refuses_what_is_no_constitution(bad: str) -> None:
    with pytest.raises(SpecError):
        Constitution.from_json(bad)
