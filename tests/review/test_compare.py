"""Changes that are easily misread: layouts of a cluster, principles under another name, what nothing reads."""

from dataclasses import replace
from pathlib import Path

import pytest

from cai.commands.planning import compile_plan
from cai.files.library import Library, shipped_root
from cai.plan import Plan, StepEstimate
from cai.review.changes import paired, same_key
from cai.review.compare import compare
from cai.review.reruns import effects, totals
from cai.store.artifacts import Store
from tests.support.review_project import edit, plan, project

SMALL, HOUSE = "experiments/small.yaml", "constitutions/house.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path / "project"))
    return tmp_path


def words(before, after, counts=True):
    return [change.words for change in compare(before, after) if change.counts is counts]


def test_layouts_of_a_cluster_change_no_result_and_overrides_do(monkeypatch):
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)  # these overrides are not upstream's

    def nemo(*overrides):
        return compile_plan(["experiment=mistral_rl_cai", *overrides], Library((shipped_root(),)))

    before = nemo()
    layout = nemo("engine.servers.base.count=4")
    assert words(before, layout) == []
    assert [w.partition(":")[0] for w in words(before, layout, False)] == ["engine.servers.base added"]
    after = nemo(
        "+engine.servers.default.overrides.y=1", "+engine.steps.rl.critic.overrides.z=2", "engine.labels.margin=0.2"
    )
    changes = {c.words: c.steps for c in compare(before, after) if c.section == "engine"}
    assert changes["engine.steps.rl.critic.overrides.z added: 2"] == ("rl",)
    assert changes["engine.labels.margin: 0.1 -> 0.2"] == ("reward",)
    assert set(changes["engine.servers.default.overrides.y added: 1"]) >= {"respond", "sample", "evaluate"}
    assert len(changes) == 3


def test_a_setting_that_is_switched_off_is_one_change():
    (said,) = words(plan(), plan("stages.sft.training.lora=null"))
    assert said.startswith("stages.sft.training.lora: {rank: 16, alpha: 32,")
    assert said.endswith(" -> none")


def test_a_source_that_is_added_is_told_with_its_share():
    before, after = plan(), plan("stages.sl_mix.sources=[{from: revise}, {from: respond, ratio: 0.5}]")
    assert words(before, after) == [
        "stages.sl_mix.sources[1] added: {rows: none, ratio: 0.5}",
        "stages.sl_mix.sources: respond added",
    ]


def test_a_principle_under_another_name_is_not_another_principle():
    before = plan()
    edit(HOUSE, ("id: kindness", "id: warmth"))
    (said,) = words(before, plan())
    assert said.startswith("principle kindness is now called warmth")


def test_a_principle_of_weight_nought_is_switched_off_and_its_words_count_no_more():
    before = plan()
    edit(HOUSE, ("  - id: kindness\n", "  - id: kindness\n    weight: 0\n"))
    off = plan()
    assert words(before, off) == ["principle kindness: weight 1 -> 0 (switched off)"]
    edit(HOUSE, ("rude", "cruel"))
    assert words(off, plan()) == []
    assert words(off, plan(), False) == ["principle kindness: critique reworded (no stage reads this)"]


def test_a_comparison_counts_for_judges_and_a_critique_for_revisions():
    before = plan()
    edit(HOUSE, ("sounds friendlier", "is friendlier"))
    (change,) = compare(before, plan())
    assert change.steps == ("judge",)
    edit(HOUSE, ("is friendlier", "sounds friendlier"), ("rude", "cruel"))
    (change,) = compare(before, plan())
    assert change.steps == ("revise",)


def test_models_and_data_that_nothing_reads_are_said_to_change_nothing():
    before = plan()
    edit(SMALL, ("models:\n", 'models:\n  spare: {source: "hf:house/spare", revision: abc}\n'))
    assert words(before, plan()) == []
    assert words(before, plan(), False) == ["models.spare added; no stage reads it"]


def test_a_moved_file_of_the_same_rows_changes_nothing():
    before = plan()
    Path("data/asked.jsonl").rename("data/questions.jsonl")
    edit(SMALL, ("data/asked.jsonl", "data/questions.jsonl"))
    assert words(before, plan()) == []
    assert words(before, plan(), False) == ["data.asked.path: data/asked.jsonl -> data/questions.jsonl"]


def test_stages_are_matched_by_name_then_by_key_then_by_what_they_do():
    before = plan()
    edit(
        SMALL,
        ("  respond: {", "  first: {kind: respond, "),
        ("responses: respond", "responses: first"),
        ("epochs: 2", "epochs: 3"),
    )
    edit(SMALL, ("  sample: {", "  pairs: {kind: sample, "), ("candidates: sample", "candidates: pairs"))
    match = paired(before, plan())
    assert match.renamed["respond"] == "first"
    assert match.renamed["sample"] == "pairs"  # another key, since the model is another
    assert (match.gone, match.came) == ((), ())
    assert words(before, plan()) == ["stages.sft.training.epochs: 2 -> 3"]


def test_a_reordered_comparison_of_models_is_no_silent_rerun():
    before = plan()
    edit(SMALL, ("models: {base: base, rl: rl}", "models: {rl: rl, base: base}"))
    assert words(before, plan()) == ["stages.evaluate.models: base, rl -> rl, base"]


def test_another_version_of_a_stage_is_told():
    before = plan()
    steps = tuple(
        replace(s, ingredients=replace(s.ingredients, version=99), key="f" * 64) if s.name == "evaluate" else s
        for s in before.steps
    )
    (said,) = words(before, replace(before, steps=steps))
    assert said.startswith("stages.evaluate: this program makes it in another way (version ")
    assert said.endswith(" -> 99)")


def test_no_rerun_is_without_a_reason(here):
    store = Store(here / "home")
    before, after = plan(), plan("stages.respond.sampling.top_p=0.5", "stages.rl.training.gamma=0.9")
    found = effects(before, after, compare(before, after), store)
    reasons = {e.name: (e.cause, e.why) for e in found if e.action == "rerun"}
    assert reasons["respond"] == ("respond", "stages.respond.sampling.top_p: 1 -> 0.5")
    assert reasons["evaluate"] == ("respond", "respond and rl are made anew")
    assert all(cause and why for cause, why in reasons.values())
    assert {e.name for e in found if e.action == "same"} == {"base", "asked.sl", "asked.rl", "judging"}


def test_an_unheard_of_ingredient_is_still_told():
    before = plan()
    steps = tuple(
        replace(s, ingredients=replace(s.ingredients, other={"moon": "full"}), key="e" * 64) if s.name == "rl" else s
        for s in before.steps
    )
    assert words(before, replace(before, steps=steps)) == ["rl: moon added: full"]


def test_costs_of_the_unknown_are_at_least_what_is_known(here):
    before = plan()
    nothing = Plan("small", 0, before.engine, ())
    steps = tuple(replace(s, estimate=StepEstimate()) if s.name == "rl" else s for s in before.steps)
    found = totals(effects(nothing, replace(before, steps=steps), (), Store(here / "home")))
    assert found["new"] == len(before.steps)
    assert {"rows", "calls", "tokens"} <= set(found["unknown"])
    assert found["cost"]["calls"] > 0


def test_keys_agree_as_far_as_both_are_known():
    assert same_key("a" * 64, "a" * 16)
    assert not same_key("a" * 64, "a" * 15 + "b")
    assert not same_key("", "a" * 64)
