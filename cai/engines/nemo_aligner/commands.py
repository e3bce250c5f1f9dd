"""A step's commands: one pure function, used while planning and while running, so that a plan shows what is executed.

Key names and defaults are those of NeMo-Aligner v0.7.0 (examples/nlp/gpt/conf) and NeMo v2.1.0
(megatron_gpt_inference.yaml). ``++`` stands exactly before the keys that those configs lack: they come from the
checkpoint's own config, so strict mode would refuse them. Off is written as off: upstream lays a checkpoint's config
beneath each script's YAML, so what a command leaves unsaid goes on as the model was trained before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate
from cai.data.formats.nemo_chat import CHAT_TOKENS
from cai.engines.base import Places
from cai.engines.methods.base import Precision, Schedule
from cai.engines.methods.base import SupervisedSettings as Method
from cai.engines.methods.ppo import RlSettings
from cai.engines.methods.reward import RewardSettings
from cai.engines.methods.sft import SftSettings
from cai.engines.nemo_aligner.archive import ARCHIVE, model_in
from cai.engines.nemo_aligner.methods import PPO_TRAINER, REWARD_TRAINER, SFT_TRAINER, trainer_of
from cai.engines.nemo_aligner.overrides import Env, Override, merged, words
from cai.engines.nemo_aligner.settings import Checkpointing, Layout, NemoAlignerSettings, ServerLayout, TrainingLayout
from cai.engines.nemo_aligner.time_limit import per_run
from cai.files.paths import user_path
from cai.launchers.base import Command, Ready, Resources
from cai.launchers.settings import Slurm
from cai.launchers.slurm_wrap import wrap
from cai.plan import Plan, Step

CRITIC_HOST = "CAI_CRITIC_HOST"
GPT = "examples/nlp/gpt"
EVAL = "examples/nlp/language_modeling/megatron_gpt_eval.py"
STARTS = {name: token for name, token in CHAT_TOKENS.items() if name.endswith("_start")}
"""What of NeMo's chat format must be said: upstream's own ends of turns and names are line ends too."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A command, and what it was made from: the upstream config that reads the overrides, and the layout.

    ``model`` is the .nemo that a server loads. ``step`` names the plan's step whose layout it is, for messages.
    """

    command: Command
    config: str = ""
    overrides: tuple[Override, ...] = ()
    layout: Layout | None = None
    model: Path | None = None
    setting: str = ""


def commands(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    """Every command of a step, in the order in which they start. First this program's own (``work``)."""
    step_commands = _BY_KIND[step.kind](settings, plan, step, places) if step.kind in _BY_KIND else ()
    everything = (Compiled(_work(settings, step, places)), *step_commands)
    if not isinstance(settings.launcher, Slurm):
        return everything
    components = 1 + max(c.command.component for c in everything)
    return tuple(replace(c, command=wrap(settings.launcher, c.command, components)) for c in everything)


def serve_alone(settings: NemoAlignerSettings, name: str, model: Path) -> tuple[Compiled, ...]:
    """One server of the model that step ``name`` has made, outside of any step (``chat``, ``serve``)."""
    (server, *_) = _servers(settings, name, model, turn=0, component=0)
    if isinstance(settings.launcher, Slurm):
        return (replace(server, command=wrap(settings.launcher, server.command, 1)),)
    return (server,)


def program(settings: NemoAlignerSettings) -> str:
    """The interpreter that runs this program in a job."""
    return settings.program or sys.executable


def _work(settings: NemoAlignerSettings, step: Step, places: Places) -> Command:
    return Command("work", (program(settings), "-m", "cai", "step", places.plan, step.name))


# ---- models ----------------------------------------------------------------------------------------------------------


def _fetch(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    scheme, _, name = str(step.spec["source"]).partition(":")
    if scheme != "hf":
        return ()  # an endpoint, or a .nemo that is there already
    work, fetch_commands = places.work(step), []
    folder = user_path(name) if (local := is_folder(name)) else work / "hf"
    if not local:
        fetch = (program(settings), "-m", "cai", "download", f"hf:{name}@{step.spec['revision']}", "--to", str(folder))
        fetch_commands.append(Compiled(Command("download", fetch)))
    paths = ("--input_name_or_path", str(folder), "--output_path", str(work / ARCHIVE))
    argv = (settings.python, f"{settings.nemo}/{settings.converter}", *paths)
    fetch_commands.append(Compiled(Command("convert", argv, resources=Resources(1, 1, 1))))
    return tuple(fetch_commands)


def is_folder(name: str) -> bool:
    """Whether what follows ``hf:`` is a folder and no name on the hub."""
    return name.startswith(("/", "./", "../", "~"))


def models_of(step: Step) -> tuple[str, ...]:
    """Names of the steps that make the models which a step asks."""
    return step.sources("models") or step.sources("model")


# ---- servers ---------------------------------------------------------------------------------------------------------


def _generate(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    models = map(plan.step, dict.fromkeys(models_of(step)))
    served = [model for model in models if not str(model.spec.get("source", "")).startswith("api:")]
    servers: list[Compiled] = []
    for turn, model in enumerate(served):
        servers += _servers(settings, model.name, model_in(places.artifact(model)), turn=turn, component=1)
    return tuple(servers)


def _servers(
    settings: NemoAlignerSettings, name: str, model: Path, *, turn: int, component: int
) -> tuple[Compiled, ...]:
    """``count`` servers of one model, side by side on consecutive ports."""
    layout = settings.server(name)
    devices = min(settings.devices(layout), layout.tensor_parallel * layout.pipeline_parallel // layout.nodes or 1)
    devices = layout.devices or devices
    servers = []
    for i in range(layout.count):
        port, first_gpu = layout.port + i, i * devices % settings.cluster.gpus_per_node
        overrides = merged(
            [
                Override("gpt_model_file", str(model)),
                Override("server", True),
                Override("port", port),
                Override("trainer.devices", devices),
                Override("trainer.num_nodes", layout.nodes),
                Override("trainer.precision", layout.precision),
                # Without it a converted checkpoint is served with weights of 32 bits: twice the memory.
                Override("megatron_amp_O2", layout.precision.startswith("bf16")),
                Override("tensor_model_parallel_size", layout.tensor_parallel),
                Override("pipeline_model_parallel_size", layout.pipeline_parallel),
                # Below 0, its default, upstream takes all three sizes from the checkpoint: those of its training.
                Override("pipeline_model_parallel_split_rank", 0),
            ],
            layout.overrides,
        )
        command = Command(
            role=f"server-{i}" if i else "server",
            argv=(settings.python, f"{settings.nemo}/{EVAL}", *words(overrides)),
            env=_master_port(settings, port)
            | _env(settings, layout, range(first_gpu, first_gpu + devices) if layout.count > 1 else None),
            background=True,
            ready=Ready(port, layout.ready_timeout),
            resources=Resources(layout.nodes, devices, devices, layout.time),
            component=component,
            relative=_node(settings, layout, i, devices),
            turn=turn,
        )
        config = "megatron_gpt_inference.yaml"
        servers.append(Compiled(command, config, overrides, layout, model, f"engine.servers.{name}"))
    return tuple(servers)


def _node(settings: NemoAlignerSettings, layout: ServerLayout, i: int, devices: int) -> int:
    if layout.nodes > 1:
        return i * layout.nodes
    return i * devices // settings.cluster.gpus_per_node


def _env(settings: NemoAlignerSettings, layout: Layout, gpus: range | None) -> dict[str, str]:
    """A process that shares a machine's GPUs is told which are its own, unless Slurm divides them."""
    divided = isinstance(settings.launcher, Slurm) and settings.launcher.gpus
    if gpus is None or divided:
        return dict(layout.env)
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)), **layout.env}


def _master_port(settings: NemoAlignerSettings, port: int) -> dict[str, str]:
    """Under Slurm, Lightning takes its rendezvous port from the job's id: the same for every server of a job."""
    return {"MASTER_PORT": str(20000 + port % 40000)} if isinstance(settings.launcher, Slurm) else {}


# ---- training --------------------------------------------------------------------------------------------------------


def data_files(places: Places, step: Step) -> tuple[Path, Path]:
    """The training and the validation file of a training step, in upstream's format."""
    folder = places.work(step) / "data"
    return folder / "train.jsonl", folder / "val.jsonl"


def result_file(places: Places, step: Step) -> Path:
    """The .nemo that upstream writes when a training step ends: ``<explicit_log_dir>/checkpoints/<name>.nemo``."""
    trainer = trainer_of(step.kind)
    assert trainer is not None
    return places.work(step) / "log" / "checkpoints" / f"{trainer.result}.nemo"


def _input(plan: Plan, places: Places, step: Step, role: str) -> str:
    name = step.source(role)
    assert name is not None
    return str(model_in(places.artifact(plan.step(name))))


def _trainer(settings: NemoAlignerSettings, layout: Layout, precision: Precision) -> list[Override]:
    return [
        Override("trainer.num_nodes", layout.nodes),
        Override("trainer.devices", settings.devices(layout)),
        Override("trainer.precision", 32 if precision is Precision.FLOAT32 else "bf16"),
        Override("model.megatron_amp_O2", precision is not Precision.FLOAT32),
    ]


def _spread(layout: TrainingLayout, config: str) -> list[Override]:
    """Every size, sequence parallelism and recomputation, what is off as well.

    Upstream lays the checkpoint's own config beneath the YAML, so what a command leaves unsaid goes on as the model
    was trained before: a reward model would inherit sequence parallelism from SFT, which its head refuses.
    """
    full = layout.activation_checkpointing is Checkpointing.FULL
    recomputed = layout.activation_checkpointing
    values: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "sequence_parallel": layout.sequence_parallel,
        "activations_checkpoint_granularity": None if recomputed is Checkpointing.NONE else recomputed.value,
        "activations_checkpoint_method": "uniform" if full else None,
        "activations_checkpoint_num_layers": 1 if full else None,
        "activations_checkpoint_layers_per_pipeline": None,
    }
    return [Override(f"model.{name}", value, name not in _CONFIG_KEYS[config]) for name, value in values.items()]


_CONFIG_KEYS: dict[str, frozenset[str]] = {
    "gpt_sft.yaml": frozenset(
        {
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "sequence_parallel",
            "activations_checkpoint_granularity",
            "activations_checkpoint_method",
            "activations_checkpoint_num_layers",
            "activations_checkpoint_layers_per_pipeline",
        }
    ),
    "training_rm.yaml": frozenset(),
    "gpt_ppo_critic.yaml": frozenset(),
    "gpt_ppo_actor.yaml": frozenset({"sequence_parallel"}),
}
"""By upstream's config, which of a layout's keys it has itself; the others are the checkpoint's and need ``++``."""


def _optimizer(method: Method) -> list[Override]:
    overrides = [
        Override("model.optim.lr", method.learning_rate),
        Override("model.optim.weight_decay", method.weight_decay),
    ]
    return overrides + _schedule(method.learning_rate if method.schedule is Schedule.CONSTANT else None)


def _schedule(constant: float | None) -> list[Override]:
    """Upstream's only schedule is a cosine; one that ends where it began is constant.

    Upstream keeps ``min_lr`` for its last ``constant_steps``, 1000 by default: a shorter run would be at it from the
    start, and a constant rate would fail its assertion.
    """
    overrides = [Override("model.optim.sched.warmup_steps", 0), Override("model.optim.sched.constant_steps", 0)]
    return overrides if constant is None else [*overrides, Override("model.optim.sched.min_lr", constant)]


def _intervals(prefix: str, method: Method, val_batches: int) -> list[Override]:
    overrides = [
        Override(f"{prefix}.max_epochs", int(method.epochs)),
        Override(f"{prefix}.max_steps", -1),
        Override(f"{prefix}.gradient_clip_val", method.max_grad_norm),
    ]
    if method.val_every:
        overrides.append(Override(f"{prefix}.val_check_interval", method.val_every))
        overrides.append(Override(f"{prefix}.save_interval", method.val_every))
    if val_batches:
        overrides.append(Override(f"{prefix}.limit_val_batches", val_batches))
    return overrides


def _saving(log: Path) -> list[Override]:
    """``save_top_k`` is NVIDIA's guide's: upstream's own 5 and 3 keep 14 bytes a parameter each."""
    return [
        Override("exp_manager.explicit_log_dir", str(log)),
        Override("exp_manager.resume_if_exists", True),
        Override("exp_manager.checkpoint_callback_params.save_nemo_on_train_end", True),
        Override("exp_manager.checkpoint_callback_params.save_top_k", 1),
    ]


def _ending(settings: NemoAlignerSettings, step: Step, has_key: bool = False) -> list[Override]:
    """When upstream saves and ends by itself: before its job's time limit. ``has_key`` where the config has it."""
    limit = per_run(settings, step.name, step.kind)
    return [Override("exp_manager.max_time_per_run", limit, not has_key)] if limit else []


def _train(
    settings: NemoAlignerSettings,
    layout: TrainingLayout,
    step: Step,
    planned: Sequence[Override],
    *,
    script: str,
    config: str,
) -> Compiled:
    overrides = merged(planned, layout.overrides)
    devices = settings.devices(layout)
    command = Command(
        "train",
        (settings.python, f"{settings.aligner}/{GPT}/{script}", *words(overrides)),
        env=dict(layout.env),
        resources=Resources(layout.nodes, devices, devices, layout.time),
    )
    return Compiled(command, config, overrides, layout, None, f"engine.steps.{step.name}")


def _sft(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    method, layout = SftSettings.model_validate(step.spec["training"]), settings.step(step.name)
    train, val = data_files(places, step)
    data = "model.data"
    planned = [
        *_trainer(settings, layout, method.precision),
        *_intervals("trainer.sft", method, layout.val_batches),
        *_spread(layout, "gpt_sft.yaml"),
        Override("model.restore_from_path", _input(plan, places, step, "model")),
        Override("model.seed", seed_of(step)),
        Override("model.encoder_seq_length", method.max_length),
        Override("model.answer_only_loss", True),
        *_optimizer(method),
        Override(f"{data}.chat", True),
        *(Override(f"{data}.chat_prompt_tokens.{name}", token) for name, token in STARTS.items()),
        Override(f"{data}.num_workers", 0),
        Override(f"{data}.train_ds.file_path", str(train)),
        Override(f"{data}.train_ds.global_batch_size", method.batch_size),
        Override(f"{data}.train_ds.micro_batch_size", method.micro_batch_size),
        Override(f"{data}.train_ds.max_seq_length", method.max_length),
        Override(f"{data}.validation_ds.file_path", str(val)),
        *_saving(places.work(step) / "log"),
        *_ending(settings, step),
    ]
    return (_train(settings, layout, step, planned, script="train_gpt_sft.py", config="gpt_sft.yaml"),)


def seed_of(step: Step) -> int:
    """A step's seed as upstream takes it: from 1, and below what numpy takes; 0 has the largest in its place."""
    largest = 2**31 - 1
    return step.seed % largest or largest


def _prefix(train: Path, val: Path) -> Override:
    files = {"train": [str(train)], "validation": [str(val)], "test": [str(val)]}
    return Override("model.data.data_prefix", files)


def _reward(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    method, layout = RewardSettings.model_validate(step.spec["training"]), settings.step(step.name)
    planned = [
        *_trainer(settings, layout, method.precision),
        *_intervals("trainer.rm", method, layout.val_batches),
        *_spread(layout, "training_rm.yaml"),
        Override("pretrained_checkpoint.restore_from_path", _input(plan, places, step, "model")),
        Override("model.seed", seed_of(step)),
        Override("model.encoder_seq_length", method.max_length),
        Override("model.global_batch_size", method.batch_size),
        Override("model.micro_batch_size", method.micro_batch_size),
        Override("model.reward_model_type", "binary_ranking"),
        *_optimizer(method),
        _prefix(*data_files(places, step)),
        *_saving(places.work(step) / "log"),
        *_ending(settings, step, has_key=True),
    ]
    return (_train(settings, layout, step, planned, script="train_reward_model.py", config="training_rm.yaml"),)


def _rl(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Compiled, ...]:
    method = RlSettings.model_validate(step.spec["training"])
    length = method.max_prompt_tokens + method.max_tokens
    return (
        _critic(settings, plan, step, places, method=method, length=length),
        _actor(settings, plan, step, places, method=method, length=length),
    )


def _critic(
    settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places, *, method: RlSettings, length: int
) -> Compiled:
    layout = settings.step(step.name).critic
    actor, devices = settings.devices(settings.step(step.name)), settings.devices(layout)
    planned = [
        *_trainer(settings, layout, method.precision),
        Override("trainer.ppo.port", layout.port),
        Override("trainer.ppo.combine_rm_and_critic_server", True),
        Override("trainer.ppo.gradient_clip_val", method.max_grad_norm),
        *_spread(layout, "gpt_ppo_critic.yaml"),
        Override("pretrained_checkpoint.restore_from_path", _input(plan, places, step, "reward")),
        Override("model.seed", seed_of(step)),
        Override("model.encoder_seq_length", length),
        Override("model.global_batch_size", method.batch_size),
        Override("model.micro_batch_size", method.micro_batch_size),
        Override("model.loss_clip_val", method.value_clip),
        Override("model.optim.lr", method.critic_learning_rate),
        *_schedule(method.critic_learning_rate),
        *_saving(places.work(step) / "critic"),
        Override("exp_manager.checkpoint_callback_params.save_top_k", 0),
    ]
    overrides = merged(planned, layout.overrides)
    command = Command(
        "critic",
        (settings.python, f"{settings.aligner}/{GPT}/serve_ppo_critic.py", *words(overrides)),
        env=_env(settings, layout, range(actor, actor + devices)),
        background=True,
        ready=Ready(layout.port, layout.ready_timeout),
        resources=Resources(layout.nodes, devices, devices, layout.time),
        component=1,
    )
    return Compiled(command, "gpt_ppo_critic.yaml", overrides, layout, None, f"engine.steps.{step.name}.critic")


def _actor(
    settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places, *, method: RlSettings, length: int
) -> Compiled:
    layout = settings.step(step.name)
    template = step.resources["template"]
    stops = ChatTemplate.from_text(template["name"], template["text"]).stops
    devices = settings.devices(layout)
    sampling = "model.ppo.sampling_params"
    planned = [
        *_trainer(settings, layout, method.precision),
        # The file holds exactly the prompts of all iterations. A limit here would also be the end of the learning
        # rate's schedule, which counts updates: with 8 of them an iteration, an eighth of the training.
        Override("trainer.ppo.max_steps", -1),
        Override("trainer.ppo.max_epochs", 1),
        Override("trainer.ppo.val_check_interval", method.checkpoint_every),
        Override("trainer.ppo.save_interval", method.checkpoint_every),
        Override("trainer.ppo.gradient_clip_val", method.max_grad_norm),
        Override("trainer.ppo.critic_warmup_steps", method.critic_warmup),
        Override("trainer.ppo.initial_policy_kl_penalty", method.kl_coefficient),
        Override("trainer.ppo.discount_factor", method.gamma),
        Override("trainer.ppo.gae_lambda", method.gae_lambda),
        Override("trainer.ppo.normalize_advantages", method.whiten_advantages),
        *_spread(layout, "gpt_ppo_actor.yaml"),
        Override("pretrained_checkpoint.restore_from_path", _input(plan, places, step, "model")),
        Override("remote_critic_rm.combine_rm_and_critic_server", True),
        Override("remote_critic_rm.critic.ip", Env(CRITIC_HOST)),
        Override("remote_critic_rm.critic.port", layout.critic.port),
        Override("remote_critic_rm.pad_to_length", length),
        Override("model.seed", seed_of(step)),
        Override("model.encoder_seq_length", length),
        Override("model.global_batch_size", method.batch_size),
        Override("model.micro_batch_size", method.micro_batch_size),
        Override("model.optim.lr", method.learning_rate),
        *_schedule(method.learning_rate),
        # Said, because upstream takes the data-parallel size times as many, and layout must not change the method.
        Override("model.optim.sched.max_steps", method.iterations * (method.rollouts // method.batch_size), True),
        Override("model.ppo.num_rollout_samples", method.rollouts),
        Override("model.ppo.rollout_micro_batch_size", layout.rollout_micro_batch),
        Override("model.ppo.num_val_samples", layout.val_samples or method.rollouts),
        Override("model.ppo.entropy_bonus", method.entropy_bonus),
        Override("model.ppo.ratio_eps", method.clip),
        Override("model.ppo.length_params.max_length", method.max_tokens),
        Override(f"{sampling}.temperature", method.temperature),
        Override(f"{sampling}.end_strings", list(stops)),
        _prefix(*data_files(places, step)),
        *_saving(places.work(step) / "log"),
        *_ending(settings, step),
    ]
    overrides = merged(planned, layout.overrides)
    command = Command(
        "actor",
        (settings.python, f"{settings.aligner}/{GPT}/train_gpt_ppo_actor.py", *words(overrides)),
        env=_env(settings, layout, range(devices)),
        resources=Resources(layout.nodes, devices, devices, layout.time),
        addresses={CRITIC_HOST: "critic"},
    )
    return Compiled(command, "gpt_ppo_actor.yaml", overrides, layout, None, f"engine.steps.{step.name}")


_BY_KIND: dict[str, Callable[[NemoAlignerSettings, Plan, Step, Places], tuple[Compiled, ...]]] = {
    "fetch": _fetch,
    "respond": _generate,
    "revise": _generate,
    "sample": _generate,
    "judge": _generate,
    "grade": _generate,
    "evaluate": _generate,
    SFT_TRAINER.method.stage: _sft,
    REWARD_TRAINER.method.stage: _reward,
    PPO_TRAINER.method.stage: _rl,
}
