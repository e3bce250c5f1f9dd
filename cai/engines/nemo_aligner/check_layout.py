"""Whether every command fits: GPUs and nodes, parallel sizes, batches, lengths, ports, and critic against actor.

Megatron gives devices x nodes GPUs to tensor x pipeline (x context) parallel groups; what remains is data parallel, and
a global batch must fill every data-parallel rank with whole micro batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cai.engines.methods.ppo import RlSettings
from cai.engines.nemo_aligner.commands import Compiled, is_folder, models_of
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SFT_TRAINER, trainer_of
from cai.engines.nemo_aligner.settings import ServerLayout, TrainingLayout
from cai.engines.nemo_aligner.survey import PlanSurvey
from cai.engines.nemo_aligner.upstream import UNKNOWN
from cai.files.paths import user_path
from cai.identity import parse_json
from cai.launchers.settings import Local
from cai.plan import Step

SAMPLING = {
    "respond": ("sampling",),
    "sample": ("sampling",),
    "revise": ("critique_sampling", "revision_sampling"),
    "judge": ("sampling",),
    "grade": ("sampling",),
    "evaluate": ("sampling",),
}
"""Fields that hold how a stage draws tokens."""
ANSWERS = {"respond": "sampling", "sample": "sampling", "revise": "revision_sampling"}
"""Whose max_tokens is the length of an answer that is trained on."""


HEADED = ("training_rm.yaml", "gpt_ppo_critic.yaml")
"""Configs whose model has a reward head (``RewardModelHead``: a row-parallel layer with its input whole)."""


def check(survey: PlanSurvey) -> None:
    """Every rule, over every step."""
    checked_settings: set[str] = set()
    for name, every in survey.compiled.items():
        for compiled in every:
            if compiled.layout is None:
                continue
            if isinstance(compiled.layout, ServerLayout) and compiled.setting in checked_settings:
                continue
            checked_settings.add(compiled.setting)
            _parallel(survey, name, compiled)
            if isinstance(compiled.layout, TrainingLayout):
                _sequence_parallel(survey, compiled)
                _recomputation(survey, compiled)
        _room(survey, name, every)
        _ports(survey, name, every)
    for step in survey.trained(SFT_TRAINER, REWARD_TRAINER):
        _batches(survey, step)
        _lengths(survey, step)
        _enough_rows(survey, step)
    for step in survey.trained(PPO_TRAINER):
        _rollouts(survey, step)
        _agreement(survey, step)
        _enough_prompts(survey, step)
    for step in survey.steps(*SAMPLING):
        _context(survey, step)


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def _sizes(survey: PlanSurvey, compiled: Compiled) -> tuple[int, int]:
    """GPUs of a command, and GPUs of one copy of its model."""
    layout, values = compiled.layout, survey.effective(compiled)
    assert layout is not None
    more = values.whole("expert_model_parallel_size", 1)
    if isinstance(layout, TrainingLayout):
        more = values.whole("model.context_parallel_size", 1)
    resources = compiled.command.resources
    copy = layout.tensor_parallel * layout.pipeline_parallel * more
    return layout.nodes * max(resources.gpus_per_node, 1), copy


def data_parallel(survey: PlanSurvey, compiled: Compiled) -> int:
    """How many copies of the model a command has; 0 where the sizes do not fit (a problem of its own)."""
    world, copy = _sizes(survey, compiled)
    return world // copy if world % copy == 0 else 0


def _parallel(survey: PlanSurvey, step: str, compiled: Compiled) -> None:
    layout, cluster, layout_path = compiled.layout, survey.settings.cluster, survey.layout_path(compiled.setting)
    assert layout is not None
    devices = compiled.command.resources.gpus_per_node
    if layout.nodes > cluster.nodes:
        message = f"asks for {layout.nodes} nodes, and the cluster has {cluster.nodes}"
        survey.wrong(f"{layout_path}.nodes", message, "set fewer, or engine.cluster.nodes")
    if devices > cluster.gpus_per_node:
        message = f"asks for {devices} GPUs a node, and a node has {cluster.gpus_per_node}"
        survey.wrong(f"{layout_path}.devices", message, "set fewer, or engine.cluster.gpus_per_node")
    if isinstance(survey.settings.launcher, Local) and layout.nodes > 1:
        message = f"the local launcher has one node, and this asks for {layout.nodes}"
        survey.wrong(f"{layout_path}.nodes", message, "set nodes: 1, or engine.launcher.kind: slurm")
    world, copy = _sizes(survey, compiled)
    gpu_summary = f"{devices} devices x {layout.nodes} nodes = {world} GPUs"
    if isinstance(layout, ServerLayout):
        if world != copy:
            message = f"{gpu_summary}, and a server takes exactly tensor x pipeline (x expert) parallel = {copy}"
            survey.wrong(f"{layout_path}.devices", message, "make them equal; for more answers at once set count")
    elif world % copy:
        message = f"{gpu_summary} is no multiple of tensor x pipeline (x context) parallel = {copy}"
        survey.wrong(f"{layout_path}.devices", message, "change devices, nodes or the parallel sizes")
    if layout.tensor_parallel > 1 and devices % layout.tensor_parallel and world % copy == 0:
        message = f"tensor parallel {layout.tensor_parallel} crosses nodes of {devices} devices, which is slow"
        survey.note(step, f"{layout_path}: {message}; keep it within a node and use pipeline_parallel between nodes")


def _sequence_parallel(survey: PlanSurvey, compiled: Compiled) -> None:
    layout, layout_path = compiled.layout, survey.layout_path(compiled.setting)
    assert isinstance(layout, TrainingLayout)
    sequence_parallel = survey.effective(compiled)("model.sequence_parallel") is True
    path = f"{layout_path}.sequence_parallel" if layout.sequence_parallel else f"{layout_path}.overrides"
    if sequence_parallel and compiled.config in HEADED:
        message = "upstream's reward head refuses sequence parallelism, and a reward model and a critic have one"
        hint = "set it to false; the command then says so, or upstream would take the checkpoint's"
        survey.wrong(path, message, hint)
    elif sequence_parallel and layout.tensor_parallel == 1:
        message = "sequence parallel splits what tensor parallel leaves whole, and tensor_parallel is 1"
        survey.wrong(path, message, "raise tensor_parallel, or set it to false")


def _recomputation(survey: PlanSurvey, compiled: Compiled) -> None:
    """Megatron-Core's rules; a plan's own settings keep them, so only overrides can break one."""
    values, overrides_path = survey.effective(compiled), f"{survey.layout_path(compiled.setting)}.overrides"
    key = "model.activations_checkpoint"
    granularity, method, layers = (values(f"{key}_{name}") for name in ("granularity", "method", "num_layers"))
    if granularity == "selective" and isinstance(layers, int):
        message = f"{key}_num_layers is {layers}, and selective recomputation takes no number of layers"
        hint = f"leave {key}_num_layers out; a method beside selective is ignored upstream"
        survey.wrong(overrides_path, message, hint)
    if granularity == "full" and method is None:
        survey.wrong(overrides_path, f"full recomputation needs {key}_method", "give uniform or block")
    if granularity == "full" and layers is None:
        survey.wrong(overrides_path, f"full recomputation needs {key}_num_layers", "give a number from 1")


def _room(survey: PlanSurvey, step: str, every: Sequence[Compiled]) -> None:
    """Commands of a step that run side by side must find GPUs: critic with actor, the servers of one model."""
    cluster = survey.settings.cluster
    groups: dict[str, list[Compiled]] = defaultdict(list)
    for compiled in every:
        if compiled.layout is not None:
            groups[str(compiled.model or "")].append(compiled)
    for group in groups.values():
        setting = group[0].setting if isinstance(group[0].layout, ServerLayout) else f"engine.steps.{step}"
        layout_path = survey.layout_path(setting)
        fewer = " or a lower count" if group[0].model else ""
        roles = " + ".join(c.command.role for c in group) if len(group) < 4 else f"{len(group)} servers"
        if isinstance(survey.settings.launcher, Local):
            gpus = sum(c.command.resources.gpus_per_node for c in group)
            if len(group) > 1 and gpus > cluster.gpus_per_node:
                message = f"{roles} take {gpus} GPUs of this machine together, and it has {cluster.gpus_per_node}"
                survey.wrong(f"{layout_path}.devices", message, f"set fewer devices{fewer}")
            continue
        launcher = survey.settings.launcher
        if group[0].model and not launcher.cpu_partition:
            # Parts of a heterogeneous job never share a node: this program, which asks the servers, needs one too.
            needed = 1 + max(c.command.relative + c.command.resources.nodes for c in group)
            if needed > cluster.nodes:
                message = f"servers and the program that asks them need {needed} nodes, the cluster has {cluster.nodes}"
                hint = "set engine.launcher.cpu_partition, or a larger engine.cluster.nodes"
                survey.wrong(f"{layout_path}.nodes", message, hint)
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
            message = f"{roles} need {sum(ends.values())} nodes together, and the cluster has {cluster.nodes}"
            survey.wrong(f"{layout_path}.nodes", message, f"set fewer nodes{fewer}, or a larger engine.cluster.nodes")
        if max(used.values()) > cluster.gpus_per_node:
            message = f"{roles} would share a node and need {max(used.values())} of its {cluster.gpus_per_node} GPUs"
            survey.wrong(f"{layout_path}.devices", message, "choose devices that divide the GPUs of a node")


def _ports(survey: PlanSurvey, step: str, every: Sequence[Compiled]) -> None:
    local = isinstance(survey.settings.launcher, Local)
    # Servers of one model run side by side, those of different models in turn.
    listeners: dict[tuple[str, int, int, int], Compiled] = {}
    for compiled in every:
        command = compiled.command
        if command.ready is None:
            continue
        port, port_path = command.ready.port, f"{survey.layout_path(compiled.setting)}.port"
        if not 1024 <= port <= 65535:
            survey.wrong(port_path, f"{command.role} of '{step}' would listen on port {port}", "use 1024 to 65535")
        host = (0, 0) if local else (command.component, command.relative)
        place = (str(compiled.model or ""), *host, port)
        if place in listeners:
            first_role = listeners[place].command.role
            message = f"{command.role} and {first_role} of '{step}' would listen on port {port} of one host"
            survey.wrong(port_path, message, "give them ports of their own, further apart than count")
        listeners.setdefault(place, compiled)


# ---- batches ---------------------------------------------------------------------------------------------------------


def _whole_batches(survey: PlanSurvey, compiled: Compiled, path: str, prefix: str = "model") -> None:
    values, data = survey.effective(compiled), data_parallel(survey, compiled)
    total, micro = values.whole(f"{prefix}.global_batch_size"), values.whole(f"{prefix}.micro_batch_size")
    if total and micro and data and total % (micro * data):
        role = compiled.command.role
        message = f"{role}: global batch {total} is no multiple of micro batch {micro} x data parallel {data}"
        layout_path = survey.layout_path(compiled.setting)
        survey.wrong(path, message, f"make it a multiple of {micro * data}, or change {layout_path}")


def _batches(survey: PlanSurvey, step: Step) -> None:
    compiled, path = survey.role(step, "train"), f"stages.{step.name}.training.batch_size"
    if compiled is None:
        return
    trainer = trainer_of(step.kind)
    assert trainer is not None
    for prefix in trainer.batches:
        _whole_batches(survey, compiled, path, prefix)


def _rollouts(survey: PlanSurvey, step: Step) -> None:
    actor, critic = survey.role(step, "actor"), survey.role(step, "critic")
    assert actor is not None
    assert critic is not None
    path, layout_path = f"stages.{step.name}.training", survey.layout_path(f"engine.steps.{step.name}")
    _whole_batches(survey, actor, f"{path}.batch_size")
    _whole_batches(survey, critic, f"{path}.batch_size")
    values, data = survey.effective(actor), data_parallel(survey, actor)
    rollouts = values.whole("model.ppo.num_rollout_samples")
    for role, total in (
        ("actor", values.whole("model.global_batch_size")),
        ("critic", survey.effective(critic).whole("model.global_batch_size")),
    ):
        if rollouts and total and rollouts % total:
            message = f"{rollouts} rollouts are no multiple of the {role}'s global batch {total}"
            survey.wrong(f"{path}.rollouts", message, f"make it a multiple of {total}")
    micro = values.whole("model.ppo.rollout_micro_batch_size")
    if rollouts and micro and data and rollouts % (micro * data):
        message = f"{rollouts} rollouts are no multiple of rollout_micro_batch {micro} x data parallel {data}"
        hint = f"make it a multiple of {micro * data}, or lower {layout_path}.rollout_micro_batch"
        survey.wrong(f"{path}.rollouts", message, hint)
    samples = values.whole("model.ppo.num_val_samples")
    micro = values.whole("model.ppo.val_rollout_micro_batch_size", micro)
    same = samples == rollouts and micro == values.whole("model.ppo.rollout_micro_batch_size")
    if samples and micro and data and samples % (micro * data) and not same:
        message = f"{samples} validation prompts are no multiple of their micro batch {micro} x data parallel {data}"
        survey.wrong(f"{layout_path}.val_samples", message, f"make it a multiple of {micro * data}")


def _enough_rows(survey: PlanSurvey, step: Step) -> None:
    """Upstream drops a batch that is not full, so training and validation need one whole batch each."""
    rows, batch = step.estimate.rows, int(step.spec["training"]["batch_size"])
    name = step.source("data")
    share = float(survey.plan.step(name).spec.get("val") or 0.0) if name is not None else 0.0
    if rows and share and rows * share < batch:
        message = f"about {rows * share:.0f} rows are for validation, and upstream needs a whole batch of {batch}"
        survey.note(step.name, f"{message}: give more rows, a larger stages.{name}.val or a smaller batch_size")


def _enough_prompts(survey: PlanSurvey, step: Step) -> None:
    rows, rollouts = step.estimate.rows, int(step.spec["training"]["rollouts"])
    val_samples = survey.settings.step(step.name).val_samples or rollouts
    if rows is not None and rows < rollouts + val_samples:
        message = f"{rows} prompts, but one iteration takes {rollouts} and validation {val_samples} others"
        layout_path = survey.layout_path(f"engine.steps.{step.name}")
        hint = f"give more prompts, fewer rollouts or fewer {layout_path}.val_samples"
        survey.wrong(f"stages.{step.name}.prompts", message, hint)


# ---- critic against actor --------------------------------------------------------------------------------------------


def _agreement(survey: PlanSurvey, step: Step) -> None:
    """What the two processes of PPO must say alike, with the users' overrides in."""
    actor, critic = survey.role(step, "actor"), survey.role(step, "critic")
    assert actor is not None
    assert critic is not None
    of, there = survey.effective(actor), survey.effective(critic)
    layout_path = survey.layout_path(f"engine.steps.{step.name}")

    def alike(mine: str, theirs: str, following: str) -> None:
        a, c = of(mine), there(theirs)
        if UNKNOWN not in (a, c) and a != c:
            message = f"the actor's {mine} is {a}, the critic's {theirs} is {c}"
            survey.wrong(f"{layout_path}.overrides", message, following)

    alike("remote_critic_rm.critic.port", "trainer.ppo.port", f"set {layout_path}.critic.port, which gives both")
    flag = "combine_rm_and_critic_server"
    alike(f"remote_critic_rm.{flag}", f"trainer.ppo.{flag}", "give both the same")
    length = "model.encoder_seq_length"
    alike(length, length, "give both the same")
    if of(f"remote_critic_rm.{flag}") is False:
        message = f"with {flag}: false the actor asks a reward server of its own, which the plan does not start"
        survey.wrong(f"{layout_path}.overrides", message, "leave it true")
    padded, whole = of("remote_critic_rm.pad_to_length"), of(length)
    if isinstance(padded, int) and isinstance(whole, int) and padded != whole:
        message = f"remote_critic_rm.pad_to_length is {padded} and {length} is {whole}"
        survey.wrong(f"{layout_path}.overrides", message, "make them equal")
    method = RlSettings.model_validate(step.spec["training"])
    answer = of.whole("model.ppo.length_params.max_length")
    if isinstance(whole, int) and answer and method.max_prompt_tokens + answer > whole:
        message = (
            f"prompts of {method.max_prompt_tokens} and answers of {answer} tokens are longer than {length} {whole}"
        )
        survey.wrong(f"{layout_path}.overrides", message, f"raise {length} of actor and critic, or shorten them")
    flask = of("trainer.ppo.batch_iterator.use_flask")
    port = of("trainer.ppo.batch_iterator.port")
    if flask is True and port == there("trainer.ppo.port") and isinstance(survey.settings.launcher, Local):
        message = f"trainer.ppo.batch_iterator.port and the critic's port are both {port}"
        survey.wrong(f"{layout_path}.critic.port", message, "change one of them")


# ---- lengths ---------------------------------------------------------------------------------------------------------


def _lengths(survey: PlanSurvey, step: Step) -> None:
    """Answers that cannot fit, and rows that training will leave out."""
    longest = int(step.spec["training"]["max_length"])
    for above in survey.above(step, "data"):
        field = ANSWERS.get(above.kind)
        if field is not None:
            budget = int(above.spec.get(field, {}).get("max_tokens", 0))
            if budget >= longest:
                message = f"answers of up to {budget} tokens do not fit the max_length {longest} of '{step.name}'"
                path = f"stages.{above.name}.{field}.max_tokens"
                survey.wrong(path, message, f"lower it, or raise stages.{step.name}.training.max_length")
        mix_max_tokens = above.spec.get("max_tokens") if above.kind == "mix" else None
        if mix_max_tokens is not None and mix_max_tokens > longest:
            message = f"'{above.name}' keeps rows of up to {mix_max_tokens} tokens"
            survey.note(step.name, f"{message}; those longer than {longest} are left out, counted")


def _context(survey: PlanSurvey, step: Step) -> None:
    """An answer's budget against the context of the model that writes it, where that is known here."""
    for name in models_of(step):
        origin = survey.origin(name)
        context = _positions(origin) if origin is not None else 0
        for field in SAMPLING[step.kind]:
            budget = int(step.spec.get(field, {}).get("max_tokens", 0))
            if context and budget >= context:
                message = f"{budget} tokens leave no room for a prompt in the context {context} of '{name}'"
                survey.wrong(f"stages.{step.name}.{field}.max_tokens", message, "lower it")


def _positions(step: Step) -> int:
    """The context of a model whose Hugging Face folder is on this machine; 0 where it is not known."""
    return int(model_config(step).get("max_position_embeddings") or 0)


def model_config(step: Step) -> dict[str, Any]:
    """The ``config.json`` of a fetched model whose folder is on this machine; empty where it is not."""
    scheme, _, name = str(step.spec.get("source", "")).partition(":")
    if scheme != "hf" or not is_folder(name):
        return {}
    try:
        config = parse_json((user_path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
