"""Policies kept on the way of RL: those of training that ends there, also after a kill; checked while planning."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.engines.embedded.ppo import train as train_ppo
from cai.engines.embedded.settings import Hardware
from cai.engines.methods.ppo import PpoData, RlSettings
from cai.engines.rewards import RewardModel
from cai.errors import SpecError, StepFailed
from cai.experiment.model import parse
from cai.files.library import Library, shipped_root
from cai.plan import by_role
from cai.planning.resolver import resolve
from cai.stages import KINDS
from cai.stages.base import take_apart
from tests.support.stage_doubles import Memory, artifact, context
from tests.support.training import PPO_SETTINGS, Interrupted, Watch, attempt_at, likes_kind, questions, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def ppo(model: Path, at: Path, snapshots: tuple[int, ...] = (), progress: Watch | None = None, **changes: Any) -> Any:
    raw = {**PPO_SETTINGS.model_dump(), **changes}
    settings = RlSettings(**{**raw, "snapshots": snapshots})
    data = PpoData(model, RewardModel(model), questions(10))
    return train_ppo(data, settings, attempt_at(at, progress), Hardware(threads=1), score=likes_kind)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def trained(folder: Path) -> dict[str, str]:
    """The files of a model, without what is told of its training."""
    return {name: digest for name, digest in digests(folder).items() if not name.endswith(".jsonl")}


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("whole")
    metrics = ppo(model, at, (2, 4)).metrics
    assert metrics["snapshots"] == {"2": 2, "4": 4}
    return at


def test_a_snapshot_is_what_training_that_ends_there_makes(model: Path, whole: Path, tmp_path: Path) -> None:
    assert trained(whole / "out/snapshots/4") == trained(whole / "out")
    ppo(model, tmp_path, iterations=2)
    assert trained(whole / "out/snapshots/2") == trained(tmp_path / "out")
    assert trained(whole / "out/snapshots/2") != trained(whole / "out")


def test_snapshots_change_nothing_of_the_training_itself(model: Path, whole: Path, tmp_path: Path) -> None:
    ppo(model, tmp_path)
    assert digests(tmp_path / "out") == digests(whole / "out")
    assert not (tmp_path / "out/snapshots").exists()


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 3])
def test_after_a_kill_the_snapshots_are_the_same(
    after: int, every: int, model: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        ppo(model, tmp_path, (2, 4), Watch("rl.iteration", after), checkpoint_every=every)
    ppo(model, tmp_path, (2, 4), checkpoint_every=every)
    for name in ("out", "out/snapshots/2", "out/snapshots/4"):
        assert digests(tmp_path / name) == digests(whole / name)


def test_a_kill_after_the_last_iteration_loses_no_snapshot(model: Path, whole: Path, tmp_path: Path) -> None:
    ppo(model, tmp_path, (2, 4))
    (tmp_path / "out").rename(tmp_path / "lost")  # an artifact without a record is begun anew; its work is kept
    ppo(model, tmp_path, (2, 4))
    assert digests(tmp_path / "out/snapshots/2") == digests(whole / "out/snapshots/2")


def test_where_training_stops_early_its_result_stands_for_later_snapshots(model: Path, tmp_path: Path) -> None:
    metrics = ppo(model, tmp_path, (1, 2, 4), kl_limit=1e-3).metrics
    assert metrics["stopped_by_kl"]
    last = max(metrics["snapshots"].values())
    assert last < 4
    assert metrics["snapshots"]["4"] == last
    assert trained(tmp_path / "out/snapshots/4") == trained(tmp_path / "out")


def test_snapshots_count_only_where_there_are_any() -> None:
    spec = KINDS["rl"].spec
    named = {"kind": "rl", "model": "m", "reward": "r", "prompts": "p"}
    without = take_apart(spec.model_validate(named)).semantic
    assert take_apart(spec.model_validate({**named, "training": {"snapshots": []}})).semantic == without
    assert "snapshots" not in without["training"]
    kept = spec.model_validate({**named, "training": {"iterations": 4, "snapshots": [2, 4]}})
    assert take_apart(kept).semantic["training"]["snapshots"] == [2, 4]
    assert spec.model_validate(json.loads(json.dumps(kept.model_dump(mode="json")))) == kept


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"iterations": 3, "snapshots": [4]}, "stages.rl.training: snapshots names iteration 4"),
        ({"snapshots": [2, 2]}, "twice"),
        ({"snapshots": [0]}, "stages.rl.training.snapshots"),
        ({"snapshots": [2], "gama": 1.0}, "did you mean 'gamma'"),
        ({"gama": 1.0}, "did you mean 'gamma'"),
    ],
)
def test_wrong_settings_are_named_by_their_field(training: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words.replace("[", r"\[")):
        parse(raw(training))


def raw(training: dict[str, Any], **stages: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "engine": {"kind": "embedded", "generator": "transformers", "device": "cpu", "generation_precision": "float32"},
        "template": {"name": "chatml"},
        "models": {"base": {"source": "pypi:package==1.0/model.gguf", "sha256": "0" * 64}},
        "data": {
            "asked": {"path": "shipped:quickstart/red_team.jsonl", "makes": "prompts"},
            "pairs": {"path": "shipped:quickstart/helpful_comparisons.jsonl", "makes": "comparisons"},
        },
        "stages": {
            "reward": {"model": "base", "data": "pairs"},
            "rl": {"model": "base", "reward": "reward", "prompts": "asked", "training": training},
            **stages,
        },
    }


def plan(experiment: dict[str, Any]) -> Any:
    return resolve(parse(copy.deepcopy(experiment)), Library((shipped_root(),)))


def test_a_snapshot_is_a_model_like_any_other() -> None:
    made = plan(
        raw(
            {"iterations": 4, "snapshots": [2, 4]},
            early={"kind": "snapshot", "of": "rl", "iteration": 2},
            late={"kind": "snapshot", "of": "rl", "iteration": 4},
            evaluate={
                "models": {"two": "early", "four": "late", "end": "rl"},
                "prompts": {"all": "asked"},
                "seen": ["all"],
            },
        )
    )
    assert made.step("early").makes == "model"
    assert made.step("early").key != made.step("late").key
    assert by_role(made.step("evaluate").inputs)["models"] == {"two": "early", "four": "late", "end": "rl"}
    assert made.outputs["model"] == "rl"  # what `chat` and `serve` take: the end of the training


@pytest.mark.parametrize(
    ("training", "of", "words"),
    [
        ({"snapshots": [2, 4]}, "rl", ["stages.early.iteration", "no policy of iteration 3", "2, 4"]),
        ({}, "rl", ["stages.early.iteration", "keeps no snapshots", "stages.rl.training.snapshots: [3]"]),
        ({}, "base", ["stages.early.of", "'base' is of kind fetch", "kind rl"]),
    ],
)
def test_a_snapshot_that_nothing_keeps_is_found_while_planning(
    training: dict[str, Any], of: str, words: list[str]
) -> None:
    with pytest.raises(SpecError) as error:
        plan(raw(training, early={"kind": "snapshot", "of": of, "iteration": 3}))
    for word in words:
        assert word in str(error.value)


def test_an_engine_that_keeps_none_says_so_while_planning() -> None:
    asked = raw({"snapshots": [2]}, early={"kind": "snapshot", "of": "rl", "iteration": 2})
    asked["engine"] = {"kind": "nemo_aligner"}
    asked["template"] = {"name": "nemo_extra_id"}
    asked["models"] = {"base": {"source": "hf:some/model", "revision": "0" * 40}}
    with pytest.raises(SpecError) as error:
        plan(asked)
    assert "stages.rl.training.snapshots: engine nemo_aligner keeps only the last policy" in str(error.value)
    assert "stages.early" in str(error.value)


def test_the_stage_puts_the_models_files_in_place(whole: Path, tmp_path: Path) -> None:
    of = replace(
        artifact(tmp_path / "rl", "model"),
        path=whole / "out",
        record={"outcome": {"metrics": {"snapshots": {"2": 2}}}},
    )
    spec = KINDS["snapshot"].spec.model_validate({"kind": "snapshot", "of": "rl", "iteration": 2})
    outcome = KINDS["snapshot"].run(spec, context(tmp_path, Memory(), {"of": of}))
    assert digests(tmp_path / "out") == digests(whole / "out/snapshots/2")
    assert outcome.metrics == {"iteration": 2}
    missing = KINDS["snapshot"].spec.model_validate({"kind": "snapshot", "of": "rl", "iteration": 3})
    with pytest.raises(StepFailed, match="it keeps 2, 4"):
        KINDS["snapshot"].run(missing, context(tmp_path / "no", Memory(), {"of": of}))
