"""Every field of a plan's file, of a lock and of a finished run with every odd value: refused by name, or read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cai.commands.planning import compile_plan
from cai.errors import CaiError
from cai.files.library import Library, shipped_root
from cai.plan import plan_from_json
from cai.run.checks import checked_specs
from cai.stages import KINDS
from tests.fuzz.values import VALUES, chosen

pytestmark = pytest.mark.long

Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*place, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:3]):
            yield from places(inner, (*place, number))


def changed(raw: Any, place: Place, value: Any) -> Any:
    edited = copy.deepcopy(raw)
    inner = edited
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return edited


@pytest.mark.parametrize("experiment", ["quickstart", "mistral_rl_cai"])
def test_an_odd_value_in_a_plan_is_told_or_makes_no_difference(experiment: str) -> None:
    raw = json.loads(compile_plan([f"experiment={experiment}"], Library((shipped_root(),))).to_json())
    raw["steps"] = raw["steps"][:8]
    raw["outputs"] = {}
    cases = [(place, number) for place in places(raw) for number in range(len(VALUES))]
    failed = []
    passed = 0
    drawn = chosen(cases, 500)
    for place, number in drawn:
        edited = changed(raw, place, VALUES[number])
        try:
            plan = plan_from_json(json.dumps(edited), "plan.json")
            specs = checked_specs(plan, KINDS)
            plan.to_json().encode(errors="replace")
            passed += len(specs) == len(plan.steps)
        except CaiError as error:
            if error.exit_code != 2 or "plan" not in str(error):
                failed.append((place, VALUES[number], repr(error)[:300]))
        except Exception as error:
            failed.append((place, VALUES[number], repr(error)[:300]))
    assert not failed, f"{len(failed)} of {len(cases)}: {failed[:12]}"
    assert passed < len(drawn) * 0.8, "most of a plan decides something"
