"""What planning finds for the NeMo engine: each case is one experiment that is right but for one thing."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cai.engines import engine_of, step_commands
from cai.engines.base import Places
from cai.engines.nemo_aligner import check_layout
from cai.engines.nemo_aligner.checks import NOT_CHECKED
from cai.engines.nemo_aligner.survey import survey
from cai.errors import Problem, SpecError
from cai.experiment import parse
from cai.plan import Plan
from cai.resolver import resolve

UPSTREAM = os.environ.get("CAI_UPSTREAM", "")
"""Read before the fixture hides it."""
SCHED = "{name: CosineAnnealing, warmup_steps: 10, constant_steps: 0, min_lr: 1.0e-9}"
MODEL = f"optim: {{name: adam, lr: 1.0e-6, weight_decay: 0.1, betas: [0.9, 0.98], sched: {SCHED}}}"
SAVED = "checkpoint_callback_params: {save_nemo_on_train_end: true, save_top_k: 3}"
EXP = f"{{explicit_log_dir: null, name: x, resume_if_exists: true, {SAVED}}}"
TRAINER = "num_nodes: 1, devices: 1, precision: bf16"
EVERY = "val_check_interval: 10, save_interval: 10, limit_val_batches: 1.0"
RUN = f"max_epochs: 1, max_steps: -1, {EVERY}, gradient_clip_val: 1.0"
ADDED = "encoder_seq_length: 4096, global_batch_size: 64, micro_batch_size: 1, megatron_amp_O2: true, seed: 1"
CONFIGS = {
    "gpt_sft.yaml": f"""
trainer: {{{TRAINER}, sft: {{{RUN}}}}}
exp_manager: {EXP}
model:
  {{restore_from_path: '???', seed: 1, encoder_seq_length: 4096, answer_only_loss: false, megatron_amp_O2: false,
  tensor_model_parallel_size: 1, pipeline_model_parallel_size: 1, context_parallel_size: 1, sequence_parallel: false,
  activations_checkpoint_granularity: null, activations_checkpoint_method: null,
  activations_checkpoint_num_layers: null, activations_checkpoint_layers_per_pipeline: null,
  data: {{chat: false, num_workers: 0, chat_prompt_tokens: {{system_turn_start: a, turn_start: b, label_start: c}},
    train_ds: {{file_path: '???', global_batch_size: 128, micro_batch_size: 1, max_seq_length: 4096}},
    validation_ds: {{file_path: '???', global_batch_size: "${{model.data.train_ds.global_batch_size}}",
      micro_batch_size: "${{model.data.train_ds.micro_batch_size}}"}}}},
  {MODEL}}}
""",
    "training_rm.yaml": f"""
trainer: {{{TRAINER}, rm: {{{RUN}}}}}
exp_manager: {EXP[:-1]}, max_time_per_run: null}}
pretrained_checkpoint: {{restore_from_path: null}}
model: {{{ADDED}, reward_model_type: binary_ranking, data: {{data_prefix: null}}, {MODEL}}}
""",
    "gpt_ppo_actor.yaml": f"""
trainer:
  {{{TRAINER}, ppo: {{{RUN}, critic_warmup_steps: 0, initial_policy_kl_penalty: 0.1, discount_factor: 1.0,
  gae_lambda: 0.95, normalize_advantages: true, batch_iterator: {{use_flask: false, port: 5557}}}}}}
exp_manager: {EXP}
pretrained_checkpoint: {{restore_from_path: null}}
remote_critic_rm:
  {{pad_to_length: "${{model.encoder_seq_length}}", combine_rm_and_critic_server: true,
  critic: {{ip: localhost, port: 5556}}}}
model:
  {{{ADDED}, sequence_parallel: false, data: {{data_prefix: null}}, {MODEL},
  ppo: {{rollout_micro_batch_size: 8, num_rollout_samples: 512,
    val_rollout_micro_batch_size: "${{.rollout_micro_batch_size}}",
    num_val_samples: 512, entropy_bonus: 0.0, ratio_eps: 0.2, offload_adam_states: true,
    sampling_params: {{temperature: 1.0, end_strings: [x]}}, length_params: {{max_length: 1, min_length: 1}}}}}}
""",
    "gpt_ppo_critic.yaml": f"""
trainer:
  {{{TRAINER}, ppo: {{port: 5556, combine_rm_and_critic_server: true, gradient_clip_val: 1.0, max_steps: 10000}}}}
exp_manager: {EXP}
pretrained_checkpoint: {{restore_from_path: null}}
model: {{{ADDED}, loss_clip_val: 0.2, {MODEL}}}
""",
    "megatron_gpt_inference.yaml": """
trainer: {devices: 1, num_nodes: 1, precision: 16}
tensor_model_parallel_size: -1
pipeline_model_parallel_size: -1
pipeline_model_parallel_split_rank: -1
expert_model_parallel_size: -1
megatron_amp_O2: false
gpt_model_file: null
server: false
port: 5555
""",
}
METHOD = {"lora": None, "warmup_fraction": 0.0, "schedule": "cosine"}
RL = {"lora": None, "ppo_epochs": 1, "critic": "reward", "normalize_reward": False}


@pytest.fixture
def raw(tmp_path, monkeypatch) -> dict[str, Any]:
    """An experiment in which this engine finds nothing wrong, with configs of its own that are like upstream's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    lines = [json.dumps({"prompt": f"question {i}", "topic": f"t{i % 4}"}) + "\n" for i in range(400)]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    (tmp_path / "upstream").mkdir()
    for name, text in CONFIGS.items():
        (tmp_path / "upstream" / name).write_text(text)
    law = {"critique": "Is it legal?", "revision": "Make it legal.", "comparison": "Which one is legal?"}
    return {
        "name": "small",
        "seed": 0,
        "engine": {
            "kind": "nemo_aligner",
            "aligner": str(tmp_path / "aligner"),
            "nemo": str(tmp_path / "nemo"),
            "upstream": "upstream",
            "servers": {"default": {"devices": 1}},
            "steps": {
                "sft": {"devices": 2},
                "reward": {"devices": 2},
                "rl": {"devices": 2, "rollout_micro_batch": 4, "critic": {"devices": 2}},
            },
        },
        "constitution": {"name": "own", "principles": [{"id": "a", **law}]},
        "template": {"name": "nemo_extra_id"},
        "models": {"base": {"source": "hf:org/base-1B", "revision": "0" * 40}},
        "data": {"asked": {"path": "prompts.jsonl", "makes": "prompts", "splits": {"sl": 0.5, "rl": 0.5}}},
        "stages": {
            "respond": {"model": "base", "prompts": "asked.sl"},
            "revise": {"model": "base", "responses": "respond"},
            "sl_mix": {"kind": "mix", "sources": [{"from": "revise"}]},
            "sft": {"model": "base", "data": "sl_mix", "loss": "all", "training": dict(METHOD)},
            "sample": {"model": "sft", "prompts": "asked.rl"},
            "judge": {"model": "base", "candidates": "sample"},
            "rm_mix": {"kind": "mix", "sources": [{"from": "judge"}]},
            "reward": {"model": "sft", "data": "rm_mix", "training": {**METHOD, "center_coefficient": 0.0}},
            "rl": {"model": "sft", "reward": "reward", "prompts": "asked.rl", "training": dict(RL)},
            "evaluate": {"models": {"base": "base", "rl": "rl"}, "prompts": {"all": "asked.rl"}},
        },
    }


def put(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with values set by path: steps are parted by '/', as names of overrides hold dots."""
    raw = copy.deepcopy(raw)
    for path, value in changes.items():
        *parts, last = path.split("/")
        here = raw
        for part in parts:
            here = here.setdefault(part, {})
        here[last] = value
    return raw


def plan(raw: dict[str, Any]) -> Plan:
    return resolve(parse(raw))


def problems(raw: dict[str, Any]) -> list[Problem]:
    with pytest.raises(SpecError) as raised:
        plan(raw)
    return list(raised.value.problems)


def commands_of(raw: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every command's words, by ``step.role``."""
    made = step_commands(plan(raw), Places(Path("store")))
    return {f"{step}.{command.role}": command.argv for step, commands in made.items() for command in commands}


def notes(raw: dict[str, Any], step: str) -> str:
    return "\n".join(plan(raw).step(step).notes)


SLURM = {"engine/launcher": {"kind": "slurm"}, "engine/cluster": {"nodes": 2}}
OVER = "engine/steps/{}/overrides"
LEAST = {"model.optim.sched.min_lr": 1e-9}
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
    hits = [p for p in found if p.where == where and what in p.what]
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
    assert "has no model.reward_model_type" in found.what


def test_servers_of_two_models_may_share_ports_as_they_run_in_turn(raw):
    plan(put(raw, {"engine/servers/default/count": 3}))


def test_two_commands_on_one_port_of_one_host_are_found(raw):
    for launcher in ({}, SLURM):
        made = plan(put(raw, launcher))
        found = survey(engine_of(made.engine)[1], made, str)
        (server,) = (c for c in found.compiled["respond"] if c.command.background)
        check_layout._ports(found, "respond", (server, server))
        (problem,) = found.problems
        assert problem.where == "engine.servers.default.port"
        assert "listen on port 5656 of one host" in problem.what
        elsewhere = replace(server, command=replace(server.command, relative=1))
        found.problems.clear()
        check_layout._ports(found, "respond", (server, elsewhere))
        assert bool(found.problems) is (not launcher)


def test_validation_rows_that_fill_no_batch_are_told(raw):
    assert "about 20 rows are for validation" in notes(put(raw, {"stages/sft/training/batch_size": 32}), "sft")


def test_servers_that_share_a_node_must_fit_on_it(raw):
    layout = {"devices": 3, "tensor_parallel": 3, "count": 3}
    found = problems(put(raw, {**SLURM, "engine/servers/default": layout}))
    assert any(p.where == "engine.servers.default.devices" and "share a node" in p.what for p in found)


def test_tensor_parallel_across_nodes_is_a_note(raw):
    layout = {"nodes": 2, "devices": 4, "tensor_parallel": 8}
    shown = notes(put(raw, {**SLURM, "engine/steps/sft": layout}), "sft")
    assert "crosses nodes of 4 devices" in shown


def test_a_value_overridden_in_the_config_counts_for_divisibility(raw):
    found = problems(put(raw, {OVER.format("reward"): {"model.micro_batch_size": 5}}))
    assert any("micro batch 5 x data parallel 2" in p.what for p in found)


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


def test_the_plan_says_what_every_schedule_will_be(raw):
    lower = {"model.optim.sched.min_lr": 1e-9}
    shown = notes(put(raw, {OVER.format("rl"): lower}), "rl")
    assert "actor: 20 updates, no warm-up, mean learning rate 5.3e-05" in shown
    assert "critic: 20 updates, no warm-up, mean learning rate 0.0001" in shown
    assert "nearly all updates are at min_lr" not in shown
    late = {OVER.format("rl"): {**lower, "model.optim.sched.constant_steps": 1000}}
    assert "actor: nearly all updates are at min_lr 1e-09; set model.optim.sched.constant_steps: 0" in notes(
        put(raw, late), "rl"
    )
    assert "train: " in notes(raw, "sft")


def test_what_a_layout_leaves_off_is_written_as_off(raw):
    """Upstream lays the checkpoint's config beneath: SFT's sequence parallelism must not reach the reward model."""
    off = ("sequence_parallel=False", "activations_checkpoint_granularity=null", "activations_checkpoint_method=null")
    off += ("activations_checkpoint_num_layers=null", "context_parallel_size=1")
    at = "engine/steps/sft"
    commands = commands_of(put(raw, {f"{at}/tensor_parallel": 2, f"{at}/sequence_parallel": True}))
    for role in ("reward.train", "rl.critic"):
        assert {f"++model.{word}" for word in off} <= set(commands[role]), role
    assert {"model.sequence_parallel=False", f"++model.{off[1]}"} <= set(commands["rl.actor"])
    assert {"model.sequence_parallel=True", f"model.{off[1]}"} <= set(commands["sft.train"])


@pytest.mark.parametrize("step", ["reward", "rl/critic"])
def test_sequence_parallelism_is_refused_where_upstream_has_a_reward_head(raw, step):
    at = f"engine/steps/{step}"
    for changes in ({f"{at}/sequence_parallel": True}, {f"{at}/overrides": LEAST | {"model.sequence_parallel": True}}):
        (found,) = problems(put(raw, changes))
        assert "reward head refuses sequence parallelism" in found.what


@pytest.mark.parametrize("step", ["sft", "reward", "rl", "rl/critic"])
def test_selective_recomputation_with_a_number_of_layers_is_refused(raw, step):
    at, key = f"engine/steps/{step}", "model.activations_checkpoint"
    selective = {f"{at}/activation_checkpointing": "selective"}
    (found,) = problems(put(raw, {**selective, f"{at}/overrides": LEAST | {f"{key}_num_layers": 1}}))
    assert "selective recomputation takes no number of layers" in found.what
    assert plan(put(raw, {**selective, f"{at}/overrides": LEAST | {f"{key}_method": "uniform"}}))
    missing = problems(put(raw, {f"{at}/overrides": LEAST | {f"{key}_granularity": "full"}}))
    assert [f"{key}_{name}" in found.what for name, found in zip(("method", "num_layers"), missing, strict=True)]


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_sentencepiece_model_is_refused(raw, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"max_position_embeddings": 64}')
    raw = put(raw, {"models/base": {"source": "hf:./hf"}})
    found = problems(raw)
    assert ("models.base.source", "./hf has no tokenizer.model, whose tokens this engine counts") in [
        (p.where, p.what) for p in found
    ]
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"x")
    found = problems(raw)
    assert {p.where for p in found if "no room for a prompt in the context 64" in p.what} >= {
        "stages.respond.sampling.max_tokens",
        "stages.sample.sampling.max_tokens",
        "stages.evaluate.sampling.max_tokens",
    }


def test_a_gguf_file_is_no_source_of_this_engine(raw, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x")
    found = problems(put(raw, {"models/base": {"source": "gguf:m.gguf"}}))
    assert any(p.where == "models.base.source" and "nemo" in p.what for p in found)


def test_a_file_that_may_exist_only_on_the_cluster_is_a_note(raw):
    shown = notes(put(raw, {OVER.format("sft"): {"++model.peft_path": "/lustre/a.nemo"}}), "sft")
    assert "/lustre/a.nemo, which is not on this machine" in shown


def test_a_file_in_the_store_that_no_step_makes_is_a_problem(raw, tmp_path):
    lost = str(tmp_path / "home" / "store" / "sft-0123456789abcdef" / "model.nemo")
    found = problems(put(raw, {OVER.format("sft"): {"++model.peft_path": lost}}))
    assert any("which no step makes" in p.what for p in found)


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
    assert any("cannot be banana" in p.what for p in problems(put(raw, banana)))
