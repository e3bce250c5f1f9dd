"""What planning finds for the NeMo engine: each case is one experiment that is right but for one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cai.engines import engine_of
from cai.engines.nemo_aligner import check_layout
from cai.engines.nemo_aligner.checks import NOT_CHECKED
from cai.engines.nemo_aligner.survey import survey_plan
from tests.support.nemo_experiment import LEAST, OVER, SLURM, UPSTREAM, notes, plan, problems, put

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    # method
    ("lora", {"stages/sft/training/lora": {"rank": 4}}, "stages.sft.training.lora", "train all weights"),
    ("lora of rl", {"stages/rl/training/lora": {"rank": 4}}, "stages.rl.training.lora", "train all weights"),
    ("warmup", {"stages/sft/training/warmup_fraction": 0.1}, "stages.sft.training.warmup_fraction", "not a share"),
    ("linear", {"stages/reward/training/schedule": "linear"}, "stages.reward.training.schedule", "cosine"),
    ("epochs", {"stages/sft/training/epochs": 1.5}, "stages.sft.training.epochs", "whole"),
    ("loss", {"stages/sft/loss": "last"}, "stages.sft.loss", "every answer"),
    (
        "centre",
        {"stages/reward/training/center_coefficient": 0.1},
        "stages.reward.training.center_coefficient",
        "centre",
    ),
    ("ppo epochs", {"stages/rl/training/ppo_epochs": 2}, "stages.rl.training.ppo_epochs", "one pass"),
    ("critic", {"stages/rl/training/critic": "policy"}, "stages.rl.training.critic", "starts from the reward model"),
    ("normal", {"stages/rl/training/normalize_reward": True}, "stages.rl.training.normalize_reward", "as it is"),
    ("kl limit", {"stages/rl/training/kl_limit": 5.0}, "stages.rl.training.kl_limit", "does not stop"),
    ("end", {"stages/rl/training/missing_end_penalty": 1.0}, "stages.rl.training.missing_end_penalty", "no penalty"),
    ("val", {"stages/sl_mix/val": 0.0}, "stages.sl_mix.val", "validation rows"),
    ("no mix", {"stages/sft/data": "revise"}, "stages.sft.data", "'revise' has none"),
    ("template", {"template/name": "chatml"}, "template", "'chatml' is another"),
    ("scoring", {"stages/evaluate/reward": "reward"}, "stages.evaluate.reward", "cannot score"),
    (
        "rate",
        {"engine/steps/rl/critic/overrides": {"model.optim.sched.min_lr": 1.0}},
        "stages.rl.training.critic_learning_rate",
        "below",
    ),
    (
        "cosine with constant steps",
        {
            "stages/sft/training/learning_rate": 1e-6,
            OVER.format("sft"): {"model.optim.sched.constant_steps": 5, "model.optim.sched.min_lr": 1e-6},
        },
        "stages.sft.training.learning_rate",
        "needs a rate above its min_lr",
    ),
    # layout
    (
        "nodes",
        {"engine/steps/sft/nodes": 2, **SLURM, "engine/cluster": {"nodes": 1}},
        "engine.steps.sft.nodes",
        "has 1",
    ),
    ("devices", {"engine/steps/sft/devices": 16}, "engine.steps.sft.devices", "a node has 8"),
    ("local", {"engine/steps/sft/nodes": 2, "engine/cluster": {"nodes": 2}}, "engine.steps.sft.nodes", "one node"),
    ("tensor", {"engine/steps/sft/tensor_parallel": 4}, "engine.steps.sft.devices", "no multiple of tensor"),
    ("server", {"engine/servers/default/devices": 2}, "engine.servers.default.devices", "exactly tensor"),
    (
        "sequence",
        {"engine/steps/sft/sequence_parallel": True},
        "engine.steps.sft.sequence_parallel",
        "tensor_parallel is 1",
    ),
    ("servers", {"engine/servers/default/count": 9}, "engine.servers.default.devices", "9 GPUs of this machine"),
    ("ppo gpus", {"engine/steps/rl/devices": 8}, "engine.steps.rl.devices", "critic + actor take 10 GPUs"),
    ("ppo nodes", {**SLURM, "engine/cluster": {"nodes": 1}}, "engine.steps.rl.nodes", "need 2 nodes together"),
    ("batch", {"stages/sft/training/batch_size": 6}, "stages.sft.training.batch_size", "no multiple of micro batch 4"),
    ("rm batch", {"stages/reward/training/batch_size": 6}, "stages.reward.training.batch_size", "data parallel 2"),
    ("critic batch", {"engine/steps/rl/critic/devices": 3}, "stages.rl.training.batch_size", "critic: global batch 32"),
    ("rollouts", {"stages/rl/training/rollouts": 48}, "stages.rl.training.rollouts", "actor's global batch 32"),
    (
        "rollout micro",
        {"engine/steps/rl/rollout_micro_batch": 24},
        "stages.rl.training.rollouts",
        "rollout_micro_batch 24",
    ),
    ("val samples", {"engine/steps/rl/val_samples": 12}, "engine.steps.rl.val_samples", "12 validation prompts"),
    # lengths
    ("answers", {"stages/sample/sampling": {"max_tokens": 1024}}, "stages.sample.sampling.max_tokens", "do not fit"),
    (
        "revisions",
        {"stages/revise/revision_sampling": {"max_tokens": 2000}},
        "stages.revise.revision_sampling.max_tokens",
        "max_length 1024 of 'sft'",
    ),
    # agreement
    (
        "lengths of PPO",
        {"engine/steps/rl/critic/overrides": {"model.encoder_seq_length": 99}},
        "engine.steps.rl.overrides",
        "the critic's model.encoder_seq_length is 99",
    ),
    (
        "padding",
        {OVER.format("rl"): {"remote_critic_rm.pad_to_length": 99}},
        "engine.steps.rl.overrides",
        "pad_to_length is 99",
    ),
    (
        "flags",
        {OVER.format("rl"): {"remote_critic_rm.combine_rm_and_critic_server": False}},
        "engine.steps.rl.overrides",
        "a reward server of its own",
    ),
    (
        "ports",
        {OVER.format("rl"): {"remote_critic_rm.critic.port": 99}},
        "engine.steps.rl.overrides",
        "port is 99, the",
    ),
    (
        "room for prompts",
        {OVER.format("rl"): {"model.ppo.length_params.max_length": 400}},
        "engine.steps.rl.overrides",
        "answers of 400 tokens are longer",
    ),
    (
        "last port",
        {"engine/cluster/gpus_per_node": 600, "engine/servers/default": {"devices": 1, "count": 540, "port": 65000}},
        "engine.servers.default.port",
        "would listen on port 65536",
    ),
    (
        "port of the batches",
        {
            "engine/steps/rl/critic/port": 5557,
            OVER.format("rl"): {"trainer.ppo.batch_iterator.use_flask": True},
        },
        "engine.steps.rl.critic.port",
        "are both 5557",
    ),
    ("prompts", {"stages/rl/limit": 100}, "stages.rl.prompts", "100 prompts, but one iteration takes 64"),
    # overrides and names
    ("key", {OVER.format("sft"): {"model.foo": 1}}, "engine.steps.sft.overrides", "has no model.foo"),
    ("key of a server", {"engine/servers/default/overrides": {"foo": 1}}, "engine.servers.default.overrides", "no foo"),
    ("type", {OVER.format("sft"): {"model.seed": "banana"}}, "engine.steps.sft.overrides", "cannot be banana"),
    ("plus", {OVER.format("sft"): {"++model.seed": 1}}, "engine.steps.sft.overrides", "'++' is not needed"),
    ("decided", {OVER.format("sft"): {"model.data.chat": False}}, "engine.steps.sft.overrides", "decided by the plan"),
    ("field", {OVER.format("sft"): {"trainer.devices": 4}}, "engine.steps.sft.overrides", "set by a field"),
    (
        "precision",
        {"engine/servers/default/overrides": {"trainer.precision": 16}},
        "engine.servers.default.overrides",
        "field",
    ),
    ("step", {"engine/steps/sftt": {}}, "engine.steps.sftt", "trains nothing in a step 'sftt'"),
    ("model", {"engine/servers/bass": {}}, "engine.servers.bass", "makes no model 'bass'"),
    ("critic of sft", {"engine/steps/sft/critic": {"port": 6000}}, "engine.steps.sft.critic", "has no critic"),
    ("folder", {"engine/upstream": "nowhere"}, "engine.upstream", "no folder nowhere"),
    # inputs
    (
        "file",
        {OVER.format("sft"): {"model.peft_path": "adapters/a.nemo"}},
        "engine.steps.sft.overrides",
        "no step makes",
    ),
    ("memory", {"models/base/parameters": 70e9}, "engine.steps.sft.tensor_parallel", "needs at least"),
    ("server memory", {"models/base/parameters": 70e9}, "engine.servers.default.tensor_parallel", "server needs"),
]


def test_a_right_experiment_has_no_problem(raw):
    made = plan(raw)
    assert not [note for step in made.steps for note in step.notes if NOT_CHECKED in note]
    plan(put(raw, SLURM))


@pytest.mark.parametrize(("changes", "where", "what"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_is_wrong_is_found_at_its_field(raw, changes, where, what):
    found = problems(put(raw, changes))
    hits = [p for p in found if p.where == where and what in p.message]
    assert hits, [str(p) for p in found]
    assert all(p.next for p in hits)


def test_all_problems_come_at_once_and_each_once(raw):
    changes = {path: value for _, change, _, _ in CASES[:12] for path, value in change.items()}
    found = problems(put(raw, changes))
    assert len(found) == len(set(found)) >= 12


def test_a_problem_of_the_default_layout_points_at_default(raw):
    raw = put(raw, {"engine/steps": {"default": {"devices": 2, "tensor_parallel": 3, "critic": {"devices": 2}}}})
    assert {p.where for p in problems(raw)} == {"engine.steps.default.devices"}


def test_without_configs_overrides_are_not_checked_and_the_plan_says_so_once(raw):
    made = plan(put(raw, {"engine/upstream": "", OVER.format("sft"): {"model.foo": 1}}))
    told = [step.name for step in made.steps for note in step.notes if NOT_CHECKED in note]
    assert told == ["respond"]


def test_an_own_override_that_upstream_lacks_is_reported_at_the_stage(raw, tmp_path):
    file = tmp_path / "upstream" / "training_rm.yaml"
    file.write_text(file.read_text().replace("reward_model_type: binary_ranking, ", ""))
    (found,) = problems(raw)
    assert found.where == "stages.reward"
    assert "has no model.reward_model_type" in found.message


def test_servers_of_two_models_may_share_ports_as_they_run_in_turn(raw):
    plan(put(raw, {"engine/servers/default/count": 3}))


def test_two_commands_on_one_port_of_one_host_are_found(raw):
    for launcher in ({}, SLURM):
        made = plan(put(raw, launcher))
        found = survey_plan(engine_of(made.engine)[1], made, str)
        (server,) = (c for c in found.compiled["respond"] if c.command.background)
        check_layout._ports(found, "respond", (server, server))
        (problem,) = found.problems
        assert problem.where == "engine.servers.default.port"
        assert "listen on port 5656 of one host" in problem.message
        elsewhere = replace(server, command=replace(server.command, relative=1))
        found.problems.clear()
        check_layout._ports(found, "respond", (server, elsewhere))
        assert bool(found.problems) is (not launcher)


def test_validation_rows_that_fill_no_batch_are_told(raw):
    assert "about 20 rows are for validation" in notes(put(raw, {"stages/sft/training/batch_size": 32}), "sft")


def test_servers_that_share_a_node_must_fit_on_it(raw):
    layout = {"devices": 3, "tensor_parallel": 3, "count": 3}
    found = problems(put(raw, {**SLURM, "engine/servers/default": layout}))
    assert any(p.where == "engine.servers.default.devices" and "share a node" in p.message for p in found)


def test_tensor_parallel_across_nodes_is_a_note(raw):
    layout = {"nodes": 2, "devices": 4, "tensor_parallel": 8}
    shown = notes(put(raw, {**SLURM, "engine/steps/sft": layout}), "sft")
    assert "crosses nodes of 4 devices" in shown


def test_a_value_overridden_in_the_config_counts_for_divisibility(raw):
    found = problems(put(raw, {OVER.format("reward"): {"model.micro_batch_size": 5}}))
    assert any("micro batch 5 x data parallel 2" in p.message for p in found)


def test_context_parallel_takes_from_data_parallel(raw):
    raw = put(raw, {OVER.format("sft"): {"model.context_parallel_size": 2}, "stages/sft/training/batch_size": 4})
    plan(raw)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({}, "pairs within 0.1 of 0.5 are left out, the others count as their likelier order"),
        ({"margin": 0.0}, "each pair counts as its likelier order"),
        ({"how": "replicas", "replicas": 3}, "each pair is written 3 times, in an order drawn with its probability"),
    ],
)
def test_the_plan_says_what_becomes_of_soft_labels(raw, labels, told):
    shown = notes(put(raw, {"engine/labels": labels}), "reward")
    assert f"'judge' gives soft labels: NeMo-Aligner takes hard labels only: {told}" in shown
    assert "soft" not in notes(put(raw, {"stages/judge/labels": "hard"}), "reward")


def test_rows_that_training_leaves_out_are_told(raw):
    changes = {"stages/sl_mix/model": "base", "stages/sl_mix/max_tokens": 4096}
    assert "'sl_mix' keeps rows of up to 4096 tokens; those longer than 1024" in notes(put(raw, changes), "sft")


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_sentencepiece_model_is_refused(raw, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"max_position_embeddings": 64}')
    raw = put(raw, {"models/base": {"source": "hf:./hf"}})
    found = problems(raw)
    assert ("models.base.source", "./hf has no tokenizer.model, whose tokens this engine counts") in [
        (p.where, p.message) for p in found
    ]
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"x")
    found = problems(raw)
    assert {p.where for p in found if "no room for a prompt in the context 64" in p.message} >= {
        "stages.respond.sampling.max_tokens",
        "stages.sample.sampling.max_tokens",
        "stages.evaluate.sampling.max_tokens",
    }


def test_a_gguf_file_is_no_source_of_this_engine(raw, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x")
    found = problems(put(raw, {"models/base": {"source": "gguf:m.gguf"}}))
    assert any(p.where == "models.base.source" and "nemo" in p.message for p in found)


def test_a_file_that_may_exist_only_on_the_cluster_is_a_note(raw):
    shown = notes(put(raw, {OVER.format("sft"): {"++model.peft_path": "/lustre/a.nemo"}}), "sft")
    assert "/lustre/a.nemo, which is not on this machine" in shown


def test_a_file_in_the_store_that_no_step_makes_is_a_problem(raw, tmp_path):
    lost = str(tmp_path / "home" / "store" / "sft-0123456789abcdef" / "model.nemo")
    found = problems(put(raw, {OVER.format("sft"): {"++model.peft_path": lost}}))
    assert any("which no step makes" in p.message for p in found)


def test_the_plan_tells_the_memory_or_what_it_needs_to_know(raw):
    assert "train: about " in notes(raw, "sft")
    unknown = put(raw, {"models/base/source": "hf:org/base"})
    assert "set models.base.parameters" in notes(unknown, "sft")
    assert "train: about" in notes(put(unknown, {"models/base/parameters": 1e9}), "reward")
    assert "critic: about" in notes(raw, "rl")


# ---- the real configs ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not UPSTREAM, reason="CAI_UPSTREAM names no folder with upstream's configs")
def test_every_command_of_a_plan_is_right_by_upstream_s_own_configs(raw):
    layout = {"devices": 4, "tensor_parallel": 2, "activation_checkpointing": "full", "overrides": LEAST}
    steps = {
        "default": layout,
        "sft": {**layout, "sequence_parallel": True},
        "rl": {**layout, "sequence_parallel": True, "critic": layout, "rollout_micro_batch": 4},
    }
    raw = put(raw, {"engine/upstream": UPSTREAM, "engine/steps": steps})
    for launcher in ({}, SLURM):
        plan(put(raw, launcher))
    banana = {"engine/servers/default/overrides": {"inference.top_k": "banana"}}
    assert any("cannot be banana" in p.message for p in problems(put(raw, banana)))
