"""A small experiment in which the NeMo engine finds nothing wrong, configs like upstream's, and ways to change it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cai.engines import step_commands
from cai.engines.base import Places
from cai.errors import Problem, SpecError
from cai.experiment.model import parse
from cai.plan import Plan
from cai.planning.resolver import resolve

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
            "evaluate": {"models": {"base": "base", "rl": "rl"}, "prompts": {"all": "asked.rl"}, "seen": ["all"]},
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
