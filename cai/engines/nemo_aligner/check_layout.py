"""Whether every command fits: GPUs and nodes, parallel sizes, batches, lengths, ports, and critic against actor.

Megatron gives devices x nodes GPUs to tensor x pipeline (x context) parallel groups; what remains is data parallel, and
a global batch must fill every data-parallel rank with whole micro batches.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.engines.methods.ppo import RlSettings
from cai.engines.nemo_aligner.commands import Compiled, is_folder, models_of
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SFT_TRAINER, trainer_of
from cai.engines.nemo_aligner.settings import ServerLayout, TrainingLayout
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.engines.nemo_aligner.upstream import UNKNOWN
from cai.launchers.settings import Local
from cai.plan import Step

SAMPLING = {
    "respond": ("sampling",),
    "sample": ("sampling",),
    "revise": ("critique_sampling", "revision_sampling"),
    "judge": ("sampling",),
    "evaluate": ("sampling",),
}
"""Fields that hold how a stage draws tokens."""
ANSWERS = {"respond": "sampling", "sample": "sampling", "revise": "revision_sampling"}
"""Whose max_tokens is the length of an answer that is trained on."""


HEADED = ("training_rm.yaml", "gpt_ppo_critic.yaml")
"""Configs whose model has a reward head (``RewardModelHead``: a row-parallel layer with its input whole)."""


def check(found: PlanSurvey) -> None:
    """Every rule, over every step."""
    seen: set[str] = set()
    for name, every in found.compiled.items():
        for compiled in every:
            if compiled.layout is None:
                continue
            if isinstance(compiled.layout, ServerLayout) and compiled.setting in seen:
                continue
            seen.add(compiled.setting)
            _parallel(found, name, compiled)
            if isinstance(compiled.layout, TrainingLayout):
                _sequence_parallel(found, compiled)
                _recomputation(found, compiled)
        _room(found, name, every)
        _ports(found, name, every)
    for step in found.trained(SFT_TRAINER, REWARD_TRAINER):
        _batches(found, step)
        _lengths(found, step)
        _enough_rows(found, step)
    for step in found.trained(PPO_TRAINER):
        _rollouts(found, step)
        _agreement(found, step)
        _enough_prompts(found, step)
    for step in found.steps(*SAMPLING):
        _context(found, step)


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def _sizes(found: PlanSurvey, compiled: Compiled) -> tuple[int, int]:
    """GPUs of a command, and GPUs of one copy of its model."""
    layout, values = compiled.layout, found.effective(compiled)
    assert layout is not None
    more = values.whole("expert_model_parallel_size", 1)
    if isinstance(layout, TrainingLayout):
        more = values.whole("model.context_parallel_size", 1)
    resources = compiled.command.resources
    copy = layout.tensor_parallel * layout.pipeline_parallel * more
    return layout.nodes * max(resources.gpus_per_node, 1), copy


def data_parallel(found: PlanSurvey, compiled: Compiled) -> int:
    """How many copies of the model a command has; 0 where the sizes do not fit (a problem of its own)."""
    world, copy = _sizes(found, compiled)
    return world // copy if world % copy == 0 else 0


def _parallel(found: PlanSurvey, step: str, compiled: Compiled) -> None:
    layout, cluster, at = compiled.layout, found.settings.cluster, found.at(compiled.setting)
    assert layout is not None
    devices = compiled.command.resources.gpus_per_node
    if layout.nodes > cluster.nodes:
        what = f"asks for {layout.nodes} nodes, and the cluster has {cluster.nodes}"
        found.wrong(f"{at}.nodes", what, "set fewer, or engine.cluster.nodes")
    if devices > cluster.gpus_per_node:
        what = f"asks for {devices} GPUs a node, and a node has {cluster.gpus_per_node}"
        found.wrong(f"{at}.devices", what, "set fewer, or engine.cluster.gpus_per_node")
    if isinstance(found.settings.launcher, Local) and layout.nodes > 1:
        what = f"the local launcher has one node, and this asks for {layout.nodes}"
        found.wrong(f"{at}.nodes", what, "set nodes: 1, or engine.launcher.kind: slurm")
    world, copy = _sizes(found, compiled)
    shown = f"{devices} devices x {layout.nodes} nodes = {world} GPUs"
    if isinstance(layout, ServerLayout):
        if world != copy:
            what = f"{shown}, and a server takes exactly tensor x pipeline (x expert) parallel = {copy}"
            found.wrong(f"{at}.devices", what, "make them equal; for more answers at once set count")
    elif world % copy:
        what = f"{shown} is no multiple of tensor x pipeline (x context) parallel = {copy}"
        found.wrong(f"{at}.devices", what, "change devices, nodes or the parallel sizes")
    if layout.tensor_parallel > 1 and devices % layout.tensor_parallel and world % copy == 0:
        what = f"tensor parallel {layout.tensor_parallel} crosses nodes of {devices} devices, which is slow"
        found.note(step, f"{at}: {what}; keep it within a node and use pipeline_parallel between nodes")


def _sequence_parallel(found: PlanSurvey, compiled: Compiled) -> None:
    layout, at = compiled.layout, found.at(compiled.setting)
    assert isinstance(layout, TrainingLayout)
    wanted = found.effective(compiled)("model.sequence_parallel") is True
    path = f"{at}.sequence_parallel" if layout.sequence_parallel else f"{at}.overrides"
    if wanted and compiled.config in HEADED:
        what = "upstream's reward head refuses sequence parallelism, and a reward model and a critic have one"
        found.wrong(path, what, "set it to false; the command then says so, or upstream would take the checkpoint's")
    elif wanted and layout.tensor_parallel == 1:
        what = "sequence parallel splits what tensor parallel leaves whole, and tensor_parallel is 1"
        found.wrong(path, what, "raise tensor_parallel, or set it to false")


def _recomputation(found: PlanSurvey, compiled: Compiled) -> None:
    """Megatron-Core's rules; a plan's own settings keep them, so only overrides can break one."""
    values, at = found.effective(compiled), f"{found.at(compiled.setting)}.overrides"
    key = "model.activations_checkpoint"
    granularity, method, layers = (values(f"{key}_{name}") for name in ("granularity", "method", "num_layers"))
    if granularity == "selective" and isinstance(layers, int):
        what = f"{key}_num_layers is {layers}, and selective recomputation takes no number of layers"
        found.wrong(at, what, f"leave {key}_num_layers out; a method beside selective is ignored upstream")
    if granularity == "full" and method is None:
        found.wrong(at, f"full recomputation needs {key}_method", "give uniform or block")
    if granularity == "full" and layers is None:
        found.wrong(at, f"full recomputation needs {key}_num_layers", "give a number from 1")


def _room(found: PlanSurvey, step: str, every: Sequence[Compiled]) -> None:
    """Commands of a step that run side by side must find GPUs: critic with actor, the servers of one model."""
    cluster = found.settings.cluster
    groups: dict[str, list[Compiled]] = defaultdict(list)
    for compiled in every:
        if compiled.layout is not None:
            groups[str(compiled.model or "")].append(compiled)
    for group in groups.values():
        at = found.at(group[0].setting if isinstance(group[0].layout, ServerLayout) else f"engine.steps.{step}")
        fewer = " or a lower count" if group[0].model else ""
        roles = " + ".join(c.command.role for c in group) if len(group) < 4 else f"{len(group)} servers"
        if isinstance(found.settings.launcher, Local):
            gpus = sum(c.command.resources.gpus_per_node for c in group)
            if len(group) > 1 and gpus > cluster.gpus_per_node:
                what = f"{roles} take {gpus} GPUs of this machine together, and it has {cluster.gpus_per_node}"
                found.wrong(f"{at}.devices", what, f"set fewer devices{fewer}")
            continue
        launcher = found.settings.launcher
        if group[0].model and not launcher.cpu_partition:
            # Parts of a heterogeneous job never share a node: this program, which asks the servers, needs one too.
            needed = 1 + max(c.command.relative + c.command.resources.nodes for c in group)
            if needed > cluster.nodes:
                what = f"servers and the program that asks them need {needed} nodes, the cluster has {cluster.nodes}"
                found.wrong(f"{at}.nodes", what, "set engine.launcher.cpu_partition, or a larger engine.cluster.nodes")
        if len(group) < 2:
            continue
        ends: dict[int, int] = defaultdict(int)
        used: dict[tuple[int, int], int] = defaultdict(int)
        for c in group:
            first, resources = c.command.relative, c.command.resources
            ends[c.command.component] = max(ends[c.command.component], first + resources.nodes)
            for node in range(first, first + resources.nodes):
                used[(c.command.component, node)] += resources.gpus_per_node
        if sum(ends.values()) > cluster.nodes:
            what = f"{roles} need {sum(ends.values())} nodes together, and the cluster has {cluster.nodes}"
            found.wrong(f"{at}.nodes", what, f"set fewer nodes{fewer}, or a larger engine.cluster.nodes")
        if max(used.values()) > cluster.gpus_per_node:
            what = f"{roles} would share a node and need {max(used.values())} of its {cluster.gpus_per_node} GPUs"
            found.wrong(f"{at}.devices", what, "choose devices that divide the GPUs of a node")


def _ports(found: PlanSurvey, step: str, every: Sequence[Compiled]) -> None:
    local = isinstance(found.settings.launcher, Local)
    # Servers of one model run side by side, those of different models in turn.
    taken: dict[tuple[str, int, int, int], Compiled] = {}
    for compiled in every:
        command = compiled.command
        if command.ready is None:
            continue
        port, at = command.ready.port, f"{found.at(compiled.setting)}.port"
        if not 1024 <= port <= 65535:
            found.wrong(at, f"{command.role} of '{step}' would listen on port {port}", "use 1024 to 65535")
        host = (0, 0) if local else (command.component, command.relative)
        place = (str(compiled.model or ""), *host, port)
        if place in taken:
            other = taken[place].command.role
            what = f"{command.role} and {other} of '{step}' would listen on port {port} of one host"
            found.wrong(at, what, "give them ports of their own, further apart than count")
        taken.setdefault(place, compiled)


# ---- batches ---------------------------------------------------------------------------------------------------------


def _whole_batches(found: PlanSurvey, compiled: Compiled, path: str, prefix: str = "model") -> None:
    values, data = found.effective(compiled), data_parallel(found, compiled)
    total, micro = values.whole(f"{prefix}.global_batch_size"), values.whole(f"{prefix}.micro_batch_size")
    if total and micro and data and total % (micro * data):
        role = compiled.command.role
        what = f"{role}: global batch {total} is no multiple of micro batch {micro} x data parallel {data}"
        found.wrong(path, what, f"make it a multiple of {micro * data}, or change {found.at(compiled.setting)}")


def _batches(found: PlanSurvey, step: Step) -> None:
    compiled, path = found.role(step, "train"), f"stages.{step.name}.training.batch_size"
    if compiled is None:
        return
    trainer = trainer_of(step.kind)
    assert trainer is not None
    for prefix in trainer.batches:
        _whole_batches(found, compiled, path, prefix)


def _rollouts(found: PlanSurvey, step: Step) -> None:
    actor, critic = found.role(step, "actor"), found.role(step, "critic")
    assert actor is not None
    assert critic is not None
    path, at = f"stages.{step.name}.training", found.at(f"engine.steps.{step.name}")
    _whole_batches(found, actor, f"{path}.batch_size")
    _whole_batches(found, critic, f"{path}.batch_size")
    values, data = found.effective(actor), data_parallel(found, actor)
    rollouts = values.whole("model.ppo.num_rollout_samples")
    for role, total in (
        ("actor", values.whole("model.global_batch_size")),
        ("critic", found.effective(critic).whole("model.global_batch_size")),
    ):
        if rollouts and total and rollouts % total:
            what = f"{rollouts} rollouts are no multiple of the {role}'s global batch {total}"
            found.wrong(f"{path}.rollouts", what, f"make it a multiple of {total}")
    micro = values.whole("model.ppo.rollout_micro_batch_size")
    if rollouts and micro and data and rollouts % (micro * data):
        what = f"{rollouts} rollouts are no multiple of rollout_micro_batch {micro} x data parallel {data}"
        found.wrong(
            f"{path}.rollouts", what, f"make it a multiple of {micro * data}, or lower {at}.rollout_micro_batch"
        )
    samples = values.whole("model.ppo.num_val_samples")
    micro = values.whole("model.ppo.val_rollout_micro_batch_size", micro)
    same = samples == rollouts and micro == values.whole("model.ppo.rollout_micro_batch_size")
    if samples and micro and data and samples % (micro * data) and not same:
        what = f"{samples} validation prompts are no multiple of their micro batch {micro} x data parallel {data}"
        found.wrong(f"{at}.val_samples", what, f"make it a multiple of {micro * data}")


def _enough_rows(found: PlanSurvey, step: Step) -> None:
    """Upstream drops a batch that is not full, so training and validation need one whole batch each."""
    rows, batch = step.estimate.get("rows"), int(step.spec["training"]["batch_size"])
    name = step.source("data")
    share = float(found.plan.step(name).spec.get("val") or 0.0) if name is not None else 0.0
    if rows and share and rows * share < batch:
        what = f"about {rows * share:.0f} rows are for validation, and upstream needs a whole batch of {batch}"
        found.note(step.name, f"{what}: give more rows, a larger stages.{name}.val or a smaller batch_size")


def _enough_prompts(found: PlanSurvey, step: Step) -> None:
    rows, rollouts = step.estimate.get("rows"), int(step.spec["training"]["rollouts"])
    held = found.settings.step(step.name).val_samples or rollouts
    if rows is not None and rows < rollouts + held:
        what = f"{rows} prompts, but one iteration takes {rollouts} and validation {held} others"
        hint = f"give more prompts, fewer rollouts or fewer {found.at(f'engine.steps.{step.name}')}.val_samples"
        found.wrong(f"stages.{step.name}.prompts", what, hint)


# ---- critic against actor --------------------------------------------------------------------------------------------


def _agreement(found: PlanSurvey, step: Step) -> None:
    """What the two processes of PPO must say alike, with the users' overrides in."""
    actor, critic = found.role(step, "actor"), found.role(step, "critic")
    assert actor is not None
    assert critic is not None
    of, there = found.effective(actor), found.effective(critic)
    at = found.at(f"engine.steps.{step.name}")

    def alike(mine: str, theirs: str, following: str) -> None:
        a, c = of(mine), there(theirs)
        if UNKNOWN not in (a, c) and a != c:
            found.wrong(f"{at}.overrides", f"the actor's {mine} is {a}, the critic's {theirs} is {c}", following)

    alike("remote_critic_rm.critic.port", "trainer.ppo.port", f"set {at}.critic.port, which gives both")
    flag = "combine_rm_and_critic_server"
    alike(f"remote_critic_rm.{flag}", f"trainer.ppo.{flag}", "give both the same")
    length = "model.encoder_seq_length"
    alike(length, length, "give both the same")
    if of(f"remote_critic_rm.{flag}") is False:
        what = f"with {flag}: false the actor asks a reward server of its own, which the plan does not start"
        found.wrong(f"{at}.overrides", what, "leave it true")
    padded, whole = of("remote_critic_rm.pad_to_length"), of(length)
    if isinstance(padded, int) and isinstance(whole, int) and padded != whole:
        what = f"remote_critic_rm.pad_to_length is {padded} and {length} is {whole}"
        found.wrong(f"{at}.overrides", what, "make them equal")
    method = RlSettings.model_validate(step.spec["training"])
    answer = of.whole("model.ppo.length_params.max_length")
    if isinstance(whole, int) and answer and method.max_prompt_tokens + answer > whole:
        what = f"prompts of {method.max_prompt_tokens} and answers of {answer} tokens are longer than {length} {whole}"
        found.wrong(f"{at}.overrides", what, f"raise {length} of actor and critic, or shorten them")
    flask = of("trainer.ppo.batch_iterator.use_flask")
    port = of("trainer.ppo.batch_iterator.port")
    if flask is True and port == there("trainer.ppo.port") and isinstance(found.settings.launcher, Local):
        what = f"trainer.ppo.batch_iterator.port and the critic's port are both {port}"
        found.wrong(f"{at}.critic.port", what, "change one of them")


# ---- lengths ---------------------------------------------------------------------------------------------------------


def _lengths(found: PlanSurvey, step: Step) -> None:
    """Answers that cannot fit, and rows that training will leave out."""
    longest = int(step.spec["training"]["max_length"])
    for above in found.above(step, "data"):
        field = ANSWERS.get(above.kind)
        if field is not None:
            budget = int(above.spec.get(field, {}).get("max_tokens", 0))
            if budget >= longest:
                what = f"answers of up to {budget} tokens do not fit the max_length {longest} of '{step.name}'"
                path = f"stages.{above.name}.{field}.max_tokens"
                found.wrong(path, what, f"lower it, or raise stages.{step.name}.training.max_length")
        kept = above.spec.get("max_tokens") if above.kind == "mix" else None
        if kept is not None and kept > longest:
            what = (
                f"'{above.name}' keeps rows of up to {kept} tokens; those longer than {longest} are left out, counted"
            )
            found.note(step.name, what)


def _context(found: PlanSurvey, step: Step) -> None:
    """An answer's budget against the context of the model that writes it, where that is known here."""
    for name in models_of(step):
        origin = found.origin(name)
        context = _positions(origin) if origin is not None else 0
        for field in SAMPLING[step.kind]:
            budget = int(step.spec.get(field, {}).get("max_tokens", 0))
            if context and budget >= context:
                what = f"{budget} tokens leave no room for a prompt in the context {context} of '{name}'"
                found.wrong(f"stages.{step.name}.{field}.max_tokens", what, "lower it")


def _positions(step: Step) -> int:
    """The context of a model whose Hugging Face folder is on this machine; 0 where it is not known."""
    return int(model_config(step).get("max_position_embeddings") or 0)


def model_config(step: Step) -> dict[str, Any]:
    """The ``config.json`` of a fetched model whose folder is on this machine; empty where it is not."""
    scheme, _, name = str(step.spec.get("source", "")).partition(":")
    if scheme != "hf" or not is_folder(name):
        return {}
    try:
        read = json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
