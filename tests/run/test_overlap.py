"""Before a step trains, all of its rows are held against what the plan evaluates on: here nothing is too large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai.errors import SpecError
from cai.plan import Ingredients, Plan, Step, inputs_of
from cai.run.executor import run
from cai.run.results import RunResult
from cai.stages import KINDS
from cai.stages.base import Context, Ledger, Outcome, StageSpec
from cai.stages.flow.generation import part
from cai.store.artifacts import Store
from cai.store.events import new_run_folder
from tests.support.executor_kinds import Kind, no_engine

ASKED = "Tell me how the thing on the upper shelf may be taken down and put back unseen"


class AnySpec(StageSpec):
    """A stage of which only its inputs matter."""

    MAKES: ClassVar[str] = "model"
    kind: str
    seen: tuple[str, ...] = ()
    limit: int | None = None


class Site:
    """Runs of plans in one store, in the folder where the data lies; ``done`` are the steps that were made."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "home")
        self.runs = folder / "runs"
        self.done: list[str] = []

    def work(self, spec: AnySpec, ctx: Context) -> Outcome:
        self.done.append(ctx.name)
        (ctx.out / "made").write_text("x")
        return Outcome(Ledger())

    def mix(self, spec: AnySpec, ctx: Context) -> Outcome:
        """The first row to train on, the others to validate."""
        path = part(ctx.input("data"), "train")
        assert path is not None
        lines = path.read_text().splitlines(keepends=True)
        (ctx.out / "train.jsonl").write_text(lines[0])
        (ctx.out / "val.jsonl").write_text("".join(lines[1:]))
        return Outcome(Ledger())

    def run(self, *steps: Step) -> RunResult:
        kinds: dict[str, Any] = {name: Kind(AnySpec, self.work) for name in ("dpo", "rl", "evaluate")}
        kinds |= {name: Kind(AnySpec, self.mix) for name in ("sample", "decontaminate")}
        kinds |= {"read": KINDS["read"], "mix": Kind(AnySpec, self.mix)}
        where = new_run_folder(self.runs, "apart")
        plan = Plan("apart", 0, {"kind": "none"}, steps)
        return run(plan, store=self.store, run_dir=where, make_engine=no_engine, kinds=kinds)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    return Site(tmp_path)


def read(name: str, *prompts: str) -> Step:
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    spec = {"kind": "read", "source": {"path": f"{name}.jsonl", "makes": "prompts"}, "part": "all"}
    ingredients = Ingredients(kind="read", data={"splits": [["all", 1.0]]}, part=name, other={"prompts": list(prompts)})
    return Step(name, "read", "prompts", ingredients.key(), 0, (), spec, ingredients=ingredients)


def stage(name: str, kind: str, makes: str, inputs: dict[str, Any], **fields: Any) -> Step:
    ingredients = Ingredients(kind=kind, spec={"name": name}, other={"inputs": repr(inputs)})
    spec = {"kind": kind, **fields}
    return Step(name, kind, makes, ingredients.key(), 0, inputs_of(inputs), spec, ingredients=ingredients)


def trained(data: Step, **fields: Any) -> tuple[Step, Step]:
    """A training on ``data`` and the evaluation of ``test`` after it."""
    rl = stage("rl", "rl", "model", {"prompts": data.name})
    return rl, stage(
        "evaluate", "evaluate", "evaluation", {"models": {"m": "rl"}, "prompts": {"set": "test"}}, **fields
    )


def test_a_training_on_what_is_evaluated_stops_before_it_begins(site: Site) -> None:
    asked = read("asked", "Why?", f"{ASKED}, please", "How?")
    test = read("test", "When?", ASKED)
    with pytest.raises(SpecError) as error:
        site.run(asked, test, *trained(asked))
    (problem,) = error.value.problems
    assert problem.where == "rl.prompts"
    shown = f"{ASKED}, please"[:77] + "..."
    assert problem.message == (
        f"of 'asked' 1 row asks nearly what 'evaluate.prompts.set' asks: '{shown}' is like '{ASKED}'"
    )
    assert "`kind: decontaminate` with `data: asked`" in problem.next
    assert site.done == []


def test_what_is_apart_or_seen_or_beyond_the_limit_is_trained_on(site: Site) -> None:
    asked, apart = read("asked", ASKED), read("apart", "Why?")
    site.run(apart, read("test", ASKED), *trained(apart))
    test = read("test", "When?", ASKED)
    site.run(asked, test, *trained(asked, seen=["set"]))
    assert site.done == ["rl", "evaluate", "rl"]
    limited = [stage("dpo", "dpo", "model", {"data": "asked"})]
    limited.append(
        stage("evaluate", "evaluate", "evaluation", {"models": {"m": "dpo"}, "prompts": {"set": "test"}}, limit=1)
    )
    site.run(asked, test, *limited)
    assert site.done[3:] == ["dpo", "evaluate"]


def test_rows_that_are_only_measured_are_not_learnt(site: Site) -> None:
    asked = read("asked", "Why?", ASKED)
    mix = stage("mix", "mix", "prompts", {"data": "asked"})
    site.run(asked, mix, read("test", ASKED), *trained(mix))
    assert site.done == ["rl", "evaluate"]


def test_no_model_is_asked_about_rows_that_no_training_may_have(site: Site) -> None:
    asked, test = read("asked", ASKED), read("test", ASKED)
    sample = stage("sample", "sample", "candidates", {"data": "asked"})
    judged = stage("mix", "mix", "comparisons", {"data": "sample"})
    with pytest.raises(SpecError) as error:
        site.run(asked, test, sample, judged, *trained(judged))
    assert [problem.where for problem in error.value.problems] == ["sample.data"]
    assert site.store.find("sample", sample.key) is None


def test_rows_that_are_left_out_later_may_be_sampled(site: Site) -> None:
    asked, test = read("asked", ASKED, "Why?"), read("test", ASKED)
    sample = stage("sample", "sample", "prompts", {"data": "asked"})
    clean = stage("clean", "decontaminate", "prompts", {"data": "sample", "against": ["test"]})
    with pytest.raises(SpecError, match=r"rl\.prompts: of 'clean' 1 row asks"):
        # What is called so here leaves nothing out, and the training sees that.
        site.run(asked, test, sample, clean, *trained(clean))
    assert site.store.find("sample", sample.key) is not None


def test_of_what_is_only_evaluated_anything_may_be_made(site: Site) -> None:
    sample = stage("sample", "sample", "prompts", {"data": "test"})
    apart = read("apart", "How?")
    site.run(read("test", ASKED), sample, apart, *trained(apart))
    assert site.done == ["rl", "evaluate"]


def test_a_set_that_is_read_later_is_looked_at_all_the_same(site: Site) -> None:
    asked, test = read("asked", ASKED), read("test", ASKED)
    rl, evaluate = trained(asked)
    with pytest.raises(SpecError, match="asks nearly what"):
        site.run(asked, rl, test, evaluate)
    assert site.done == []
