"""The settings of the NeMo engine: what counts, what is refused, and what is not repeated."""

from __future__ import annotations

import pytest

from cai.commands.planning import compile_plan
from cai.errors import SpecError
from cai.files.library import Library, shipped_root


def test_layout_and_launcher_change_no_key_and_overrides_change_theirs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    library = Library((shipped_root(),))

    def keys(*more: str) -> dict[str, str]:
        return {s.name: s.key for s in compile_plan(["experiment=mistral_rl_cai", *more], library).steps}

    before = keys()
    elsewhere = [
        "engine.cluster.nodes=4",
        "engine.launcher={kind: slurm, cpu_partition: cpu}",
        "engine.aligner=/elsewhere",
        "engine.servers.default.count=2",
        "engine.steps.sft.tensor_parallel=2",
        "engine.steps.rl.critic.port=6001",
    ]
    assert keys(*elsewhere) == before
    changed = keys("+engine.steps.reward.overrides={model.optim.weight_decay: 0.2}")
    assert {name for name in before if changed[name] != before[name]} == {"reward", "rl", "evaluate"}
    labelled = keys("engine.labels.margin=0.2")
    assert {name for name in before if labelled[name] != before[name]} == {"reward", "rl", "evaluate"}


@pytest.mark.parametrize(
    ("mounts", "said"),
    [("[]", True), ("['/elsewhere:/elsewhere']", True), ("['HOME:/cai']", True), ("['HOME:HOME']", False)],
)
def test_the_container_must_see_the_store_by_its_own_path(tmp_path, monkeypatch, mounts, said):
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    launcher = f"{{kind: slurm, cpu_partition: cpu, container: image, mounts: {mounts.replace('HOME', str(tmp_path))}}}"
    plan = compile_plan(["experiment=mistral_rl_cai", "engine.cluster.nodes=2", f"engine.launcher={launcher}"])
    notes = [note for step in plan.steps for note in step.notes if "engine.launcher.mounts" in note]
    assert bool(notes) == said


def test_a_secret_is_no_setting_and_its_value_is_not_repeated():
    with pytest.raises(SpecError, match="looks like a secret: HF_TOKEN") as caught:
        compile_plan(["experiment=mistral_rl_cai", "+engine.steps.sft.env={HF_TOKEN: hf_abcdef}"])
    assert "hf_abcdef" not in str(caught.value)
    compile_plan(["experiment=mistral_rl_cai", "+engine.steps.sft.env={TOKENIZERS_PARALLELISM: 'false'}"])


def test_a_model_that_is_converted_has_no_file_to_compare_a_digest_with():
    with pytest.raises(SpecError, match=r"models\.base\.sha256: the model is converted"):
        compile_plan(["experiment=mistral_rl_cai", f"models.base.sha256={'0' * 64}"])
