"""Every field of an experiment with every odd value: a clear error with its place, or a plan that holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from cai.cli import main
from cai.engines import ENGINES
from cai.errors import CaiError, SpecError
from cai.experiment.compose import compose
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import plan_from_json
from cai.planning.resolver import resolve_data
from cai.run.checks import checked_specs
from cai.settings import types_in
from cai.stages import KINDS
from tests.fuzz.values import VALUES, chosen

pytestmark = pytest.mark.long

EXPERIMENTS = ("quickstart", "dpo_cai", "mistral_rl_cai")
Path = tuple[str, ...]


def fields_of(model: Any, path: Path, depth: int = 0) -> Iterator[Path]:
    """Every field of settings, nested ones too, whether an experiment writes it or not."""
    for name, info in model.model_fields.items():
        yield (*path, info.alias or name)
        for inner in types_in(info.annotation):
            if depth < 3 and isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields_of(inner, (*path, info.alias or name), depth + 1)


def written(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in plain data."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from written(inner, (*path, name))


def paths(raw: dict[str, Any]) -> list[Path]:
    found = dict.fromkeys(written(raw))
    for name, stage in raw["stages"].items():
        spec = KINDS[stage.get("kind", name)].spec
        for shape in spec.variants().values() or [spec]:
            found |= dict.fromkeys(fields_of(shape, ("stages", name)))
    for name in raw["models"]:
        found |= dict.fromkeys(("models", name, part) for part in ("url", "api_key_env", "template", "replicas"))
    found |= dict.fromkeys(fields_of(ENGINES[raw["engine"]["kind"]].settings, ("engine",)))
    return list(found)


def with_value(raw: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    edited = copy.deepcopy(raw)
    place = edited
    for part in path[:-1]:
        inner = place.get(part)
        if not isinstance(inner, dict):
            inner = place[part] = {}
        place = inner
    place[path[-1]] = value
    return edited


@pytest.fixture(scope="module")
def library() -> Library:
    return Library((shipped_root(),))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_odd_value_is_told_or_planned(experiment: str, library: Library) -> None:
    raw = compose([f"experiment={experiment}"], library).data
    cases = [(path, number) for path in paths(raw) for number in range(len(VALUES))]
    looked: dict[str, Any] = {}
    failed = []
    for path, number in chosen(cases, 500):
        try:
            plan = resolve_data(with_value(raw, path, VALUES[number]), library, looked=looked)
            again = plan_from_json(plan.to_json())
            again.to_json().encode()
            checked_specs(again, KINDS)
        except CaiError as error:
            if error.exit_code != 2 or not str(error).strip():
                failed.append((path, VALUES[number], repr(error)))
        except Exception as error:
            failed.append((path, VALUES[number], repr(error)[:300]))
    assert not failed, f"{len(failed)} of {len(cases)}: {failed[:20]}"


@pytest.mark.parametrize(
    "value", ['"\\ud800"', '"a\\0b"', ".nan", "1e999", "[[[[]]]]", '"\\u202e\\e[31m"', "!!python/x y"]
)
@pytest.mark.parametrize(
    "field", ["seed", "description", "stages.respond.limit", "models.base.source", "engine.device"]
)
def test_an_odd_value_in_a_file_ends_with_two_or_a_plan(tmp_path, monkeypatch, capfd, field, value) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    (tmp_path / "experiments").mkdir()
    head, *inner = field.split(".")
    nested = "".join(f"{{{part}: " for part in inner) + value + "}" * len(inner)
    text = f"defaults:\n  - quickstart\n  - _self_\n{head}: {nested}\n"
    (tmp_path / "experiments" / "odd.yaml").write_text(text)
    code = main(["plan", "experiment=odd", "--format", "json"])
    out, err = capfd.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in err
    if code == 0:
        json.loads(out)
    else:
        assert err.startswith("error: ")
        assert "\x1b" not in err
        assert "\u202e" not in err


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("stages.respond.sampling", {"max_tokens": 10**30}, "stages.respond.sampling.max_tokens"),
        ("stages.respond.limit", True, "stages.respond.limit"),
        ("data.red_team.splits", {"sl": True, "rl": 1, "heldout": 1}, "data.red_team.splits"),
        ("stages.sample.temperatures", [True], "stages.sample.temperatures"),
        ("stages.respond.sampling", {"temperature": -1}, "stages.respond.sampling.temperature"),
        ("stages.respond.sampling", {"top_p": 0}, "stages.respond.sampling.top_p"),
        ("stages.sft.training", {"learning_rate": 3}, "stages.sft.training.learning_rate"),
        ("stages.sft.training", {"epochs": float("nan")}, "stages.sft.training.epochs"),
    ],
)
def test_a_number_out_of_bounds_is_told_where_it_stands(library: Library, field: str, value: Any, where: str) -> None:
    raw = compose(["experiment=quickstart"], library).data
    with pytest.raises(SpecError) as caught:
        parse(with_value(raw, tuple(field.split(".")), value))
    assert [problem.where for problem in caught.value.problems] == [where]
