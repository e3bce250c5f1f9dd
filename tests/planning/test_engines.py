"""Several engines in one plan: which step works with which, what its key knows, and what does not fit together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cai.engines import ENGINES, step_commands
from cai.engines.base import Places
from cai.engines.methods import METHODS
from cai.errors import SpecError
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import Plan, plan_from_json
from cai.planning.resolver import resolve
from tests.support.model_files import model_folder
from tests.support.small_experiment import raw_experiment

TORCH = {"kind": "embedded", "generator": "transformers", "device": "cpu", "generation_precision": "float32"}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return raw_experiment(tmp_path, monkeypatch)


def plan(raw: dict[str, Any]) -> Plan:
    return resolve(parse(raw), Library((Path.cwd(), shipped_root())))


def problems(raw: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as error:
        plan(raw)
    return str(error.value)


def edited(raw: dict[str, Any], **paths: Any) -> dict[str, Any]:
    """A copy with values at dotted paths (``__`` for a dot)."""
    changed = copy.deepcopy(raw)
    for path, value in paths.items():
        *folders, leaf = path.split("__")
        place = changed
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return changed


def keys(made: Plan) -> dict[str, str]:
    return {step.name: step.key for step in made.steps}


def test_naming_the_experiments_own_engine_changes_nothing(raw: dict[str, Any]) -> None:
    before = plan(raw)
    named = plan(edited(raw, stages__rl__engine="embedded"))
    assert keys(named) == keys(before)
    assert named.engines == {}
    assert [step.engine for step in named.steps] == [""] * len(named.steps)
    assert "engines" not in before.to_json()
    assert '"engine": ""' not in before.to_json()


def test_another_engine_of_the_same_kind_counts_for_the_steps_that_name_it_and_those_after(
    raw: dict[str, Any],
) -> None:
    before = plan(raw)
    after = plan(edited(raw, engines={"quick": {**TORCH, "generation_batch": 8}}, stages__sample__engine="quick"))
    moved = {name for name, key in keys(before).items() if keys(after)[name] != key}
    assert moved == {"sample", "judge", "reward", "rl", "evaluate"}
    assert after.step("sample").engine == "quick"
    assert after.engine_of(after.step("sample"))["generation_batch"] == 8
    assert after.engine_of(after.step("judge"))["generation_batch"] == 64
    assert plan_from_json(after.to_json()) == after


def test_a_generations_key_does_not_know_who_trains(raw: dict[str, Any]) -> None:
    """The trainer of a later stage may change: what was written before it is there still."""
    before = keys(plan(raw))
    after = keys(plan(edited(raw, engines={"other": {**TORCH, "generation_batch": 8}}, stages__sft__engine="other")))
    assert {n: after[n] for n in ("base", "respond", "revise", "sl_mix")} == {
        n: before[n] for n in ("base", "respond", "revise", "sl_mix")
    }
    assert after["sft"] != before["sft"]


def test_a_step_of_another_engine_has_the_key_that_it_has_where_that_engine_is_the_experiments(
    raw: dict[str, Any],
) -> None:
    alone = plan(edited(raw, engine={**TORCH, "generation_batch": 8}))
    beside = plan(edited(raw, engines={"quick": {**TORCH, "generation_batch": 8}}, stages__respond__engine="quick"))
    assert beside.step("respond").key == alone.step("respond").key


def test_an_engine_that_is_not_there_is_named_with_what_is(raw: dict[str, Any]) -> None:
    told = problems(edited(raw, engines={"quick": TORCH}, stages__sample__engine="qick"))
    assert "stages.sample.engine: no engine is called 'qick'" in told
    assert "did you mean 'quick'" in told


def test_engines_are_checked_like_the_experiments_own(raw: dict[str, Any]) -> None:
    told = problems(edited(raw, engines={"a": {"kind": "embeded"}, "b": {**TORCH, "devise": "cpu"}, "1": {}}))
    assert "engines.a.kind: unknown engine 'embeded'; did you mean 'embedded'" in told
    assert "engines.b.devise: unknown field; did you mean 'device'" in told
    assert "engines.1: '1' is no name" in told
    assert "engines.nemo_aligner: is called like the engine nemo_aligner" in problems(
        edited(raw, engines={"nemo_aligner": TORCH})
    )


def test_only_stages_that_ask_or_train_a_model_name_an_engine(raw: dict[str, Any]) -> None:
    assert "stages.sl_mix.engine: unknown field" in problems(edited(raw, stages__sl_mix__engine="embedded"))


def test_an_engine_without_the_method_is_refused_with_one_that_has_it(raw: dict[str, Any]) -> None:
    dpo = {"model": "sft", "data": "judge", "engine": "nemo_aligner"}
    told = problems(edited(raw, stages__dpo=dpo))
    assert "stages.dpo: engine nemo_aligner does not train by dpo, only by sft, reward, ppo" in told
    assert "name one that does: engine: embedded" in told


def test_a_model_of_another_format_is_refused(raw: dict[str, Any]) -> None:
    rl = {"model": "sft", "reward": "reward", "prompts": "asked.rl", "engine": "nemo_aligner"}
    told = problems(edited(raw, stages__rl=rl))
    assert "stages.rl.model: 'sft' is a model of another engine" in told
    assert "give both stages the same engine" in told


def test_a_fetched_model_is_there_in_the_format_of_each_engine(raw: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_text("")
    small = edited(raw, models__base={"source": f"hf:{folder}"})
    small["stages"] = {"respond": small["stages"]["respond"]}
    small["stages"]["other"] = {"kind": "respond", "model": "base", "prompts": "asked.rl", "engine": "nemo"}
    small["engines"] = {"nemo": {"kind": "nemo_aligner"}}
    made = plan(small)
    assert [(step.name, step.engine, step.ingredients.format) for step in made.steps if step.kind == "fetch"] == [
        ("base", "", None),
        ("base.nemo", "nemo", "nemo"),
    ]
    assert made.step("other").source("model") == "base.nemo"
    commands = step_commands(made, Places(tmp_path / "store"))
    assert [command.role for command in commands["other"]] == ["work", "server"]
    assert commands["respond"] == ()


def test_a_cluster_for_some_steps_only_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "weights")
    small = edited(raw, models__base={"source": f"hf:{folder}"})
    small["stages"] = {"respond": {**raw["stages"]["respond"], "engine": "nemo"}}
    small["engines"] = {"nemo": {"kind": "nemo_aligner", "launcher": {"kind": "slurm"}}}
    assert "engines.nemo.launcher: is a cluster's, but the experiment's own engine runs on this machine" in problems(
        small
    )


def test_every_method_has_an_engine_and_a_stage_of_its_name() -> None:
    from cai.stages import KINDS

    for name, method in METHODS.items():
        assert any(name in engine.methods for engine in ENGINES.values())
        assert method.makes == KINDS[method.stage].spec.MAKES
        assert KINDS[method.stage].spec.model_fields["training"].annotation is method.settings


def test_a_plan_and_a_lock_say_which_engine_does_which_step(raw: dict[str, Any]) -> None:
    from cai.review.lock import lock_data, plan_of_lock
    from cai.run.status import Action, StepStatus
    from cai.terminal.plan_view import plan_data

    made = plan(edited(raw, engines={"quick": {**TORCH, "generation_batch": 8}}, stages__sample__engine="quick"))
    data = plan_data(made, [StepStatus(step, Action.RUN, ()) for step in made.steps])
    assert data["engines"]["quick"]["generation_batch"] == 8
    assert next(step for step in data["steps"] if step["name"] == "sample")["notes"] == ["with engine quick"]
    locked = plan_of_lock(lock_data(made), "lock")
    assert locked.step("sample").engine == "quick"
    assert locked.engine_of(locked.step("sample"))["generation_batch"] == 8
    assert {step.name for step in locked.steps if step.engine} == {"sample"}
