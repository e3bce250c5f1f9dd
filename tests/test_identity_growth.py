"""Settings grow without rerunning what was made before: a field that came later, a shape that became several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from cai.identity import ADDED, RUNTIME, key_of
from cai.settings import Settings, semantic
from cai.stages.base import StageSpec, TextFile, Wants, take_apart


class Inner(Settings):
    rate: float = 0.5
    threads: Annotated[int, RUNTIME] = 4


class GrownInner(Inner):
    floor: Annotated[float, ADDED(0.0)] = 0.0


class Before(StageSpec):
    VERSION: ClassVar[int] = 3
    kind: Literal["before"] = "before"
    model: Annotated[str, Wants("model")]
    prompt: Annotated[str, TextFile()] = ""
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner(rate=1.0))
    named: dict[str, Inner] = Field(default_factory=dict)
    limit: int | None = None


class After(Before):
    inner: GrownInner = GrownInner()
    many: tuple[GrownInner, ...] = (GrownInner(), GrownInner(rate=1.0))
    named: dict[str, GrownInner] = Field(default_factory=dict)
    min_tokens: Annotated[int, ADDED(0)] = 0
    words: Annotated[tuple[str, ...], ADDED(())] = ()
    # The default may change later: what counts is what the program did before there was a field.
    style: Annotated[str, ADDED("plain")] = "fancy"


def key(spec: Settings) -> str:
    return key_of(take_apart(spec).semantic)


def test_a_field_that_came_later_keeps_every_key_made_before() -> None:
    assert key(After(model="m", style="plain")) == key(Before(model="m"))
    named: Any = {"a": {"rate": 0.1}}
    assert key(After(model="m", style="plain", named=named)) == key(Before(model="m", named=named))


@pytest.mark.parametrize(
    "changed",
    [
        {"min_tokens": 1},
        {"words": ("x",)},
        {"style": "fancy"},
        {"inner": {"floor": 0.1}},
        {"many": ({}, {"floor": 0.1, "rate": 1.0})},
        {"named": {"a": {"floor": 0.1}}},
    ],
)
def test_at_any_other_value_it_counts(changed: dict[str, Any]) -> None:
    assert key(After.model_validate({"model": "m", "style": "plain", **changed})) != key(Before(model="m"))


def test_what_is_of_run_time_counts_nowhere() -> None:
    other = {"inner": {"threads": 8}, "many": ({"threads": 1}, {"rate": 1.0})}
    assert key(Before.model_validate({"model": "m", **other})) == key(Before(model="m"))
    assert semantic(GrownInner(threads=9)) == {"rate": 0.5}
    assert semantic(GrownInner(floor=1.0)) == {"rate": 0.5, "floor": 1.0}


class Flat(StageSpec):
    kind: Literal["flat"] = "flat"
    scoring: str = "choice"
    options: tuple[str, str] = ("A", "B")
    per_token: bool = True


class Choice(StageSpec):
    FORMER: ClassVar[Mapping[str, Any]] = {"per_token": True}
    kind: Literal["flat"] = "flat"
    scoring: Literal["choice"] = "choice"
    options: tuple[str, str] = ("A", "B")


class Contrast(StageSpec):
    FORMER: ClassVar[Mapping[str, Any]] = {"options": ["A", "B"]}
    kind: Literal["flat"] = "flat"
    scoring: Literal["contrast"] = "contrast"
    per_token: bool = True


def test_a_shape_that_became_several_writes_its_ingredients_as_it_did() -> None:
    assert key(Choice()) == key(Flat())
    assert key(Choice(options=("1", "2"))) == key(Flat(options=("1", "2"))) != key(Flat())
    assert key(Contrast(per_token=False)) == key(Flat(scoring="contrast", per_token=False))
