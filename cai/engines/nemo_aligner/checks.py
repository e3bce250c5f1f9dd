"""Everything that NeMo-Aligner would refuse, silently change or run out of memory on, found before anything runs.

All problems are gathered, each at a field of the experiment; what a person should know besides goes into notes, which
the plan shows under the step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cai.engines.base import PlanCheck
from cai.engines.nemo_aligner import check_layout, check_method, check_time, disk, memory, schedule, upstream
from cai.engines.nemo_aligner.commands import Compiled, is_folder
from cai.engines.nemo_aligner.methods import REWARD_TRAINER, SFT_TRAINER
from cai.engines.nemo_aligner.overrides import Override
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.survey import PlanSurvey, survey
from cai.errors import Problem, did_you_mean
from cai.files.home import cai_home
from cai.launchers.settings import Local
from cai.plan import Plan, Step

NOT_CHECKED = "overrides were not checked against upstream's configs: none here; set engine.upstream or CAI_UPSTREAM"
DECIDED = (
    "model.restore_from_path",
    "pretrained_checkpoint.restore_from_path",
    "gpt_model_file",
    "server",
    "model.data.train_ds.file_path",
    "model.data.validation_ds.file_path",
    "model.data.data_prefix",
    "model.data.chat",
    "exp_manager.explicit_log_dir",
    "exp_manager.name",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end",
    "remote_critic_rm.critic.ip",
)
"""Keys that the plan's wiring decides; another value would break it."""
SPREAD = {"trainer.devices": "devices", "trainer.num_nodes": "nodes"}
TRAINED = SPREAD | {
    "model.tensor_model_parallel_size": "tensor_parallel",
    "model.pipeline_model_parallel_size": "pipeline_parallel",
}
SERVED = SPREAD | {
    "tensor_model_parallel_size": "tensor_parallel",
    "pipeline_model_parallel_size": "pipeline_parallel",
    "trainer.precision": "precision",
    "port": "port",
}
FIELDS = {
    "megatron_gpt_inference.yaml": SERVED,
    "gpt_sft.yaml": TRAINED,
    "training_rm.yaml": TRAINED,
    "gpt_ppo_critic.yaml": TRAINED | {"trainer.ppo.port": "port"},
    "gpt_ppo_actor.yaml": TRAINED | {"remote_critic_rm.critic.port": "critic.port"},
}
"""By config, keys that a field of the layout sets, on which more than the override depends."""


def check(settings: NemoAlignerSettings, plan: Plan, where: Callable[[str], str] = str) -> PlanCheck:
    """Check a plan for this engine. ``where`` turns a field's path into a place in the experiment's files."""
    found = survey(settings, plan, where)
    _names(found)
    _overrides(found)
    _inputs(found)
    check_method.check(found)
    check_layout.check(found)
    schedule.check(found)
    check_time.check(found)
    memory.check(found)
    disk.check(found)
    _mounts(found)
    _shards(found)
    return PlanCheck(tuple(dict.fromkeys(found.problems)), found.notes)


def _mounts(found: PlanSurvey) -> None:
    """Commands in a container read and write under ``$CAI_HOME`` by the same path as this program does."""
    launcher = found.settings.launcher
    placed = [step for step, every in found.compiled.items() if any(c.command.resources.nodes for c in every)]
    if isinstance(launcher, Local) or not launcher.container or not placed:
        return
    home = cai_home()
    for mount in launcher.mounts:
        source, _, rest = mount.partition(":")
        target = rest.partition(":")[0] or source
        if source == target and home.is_relative_to(source):
            return
    what = f"the container sees {home} (CAI_HOME) under no path or another one"
    found.note(placed[0], f"{what}; add it to engine.launcher.mounts as FOLDER:FOLDER")


def _shards(found: PlanSurvey) -> None:
    """Every shard of a step would start the step's servers again."""
    for step in found.plan.steps:
        served = any(c.command.background for c in found.compiled.get(step.name, ()))
        if served and step.spec.get("shards", 1) > 1:
            what = f"{step.spec['shards']} shards would each start the servers of the step's model"
            model = step.source("model") or "default"
            hint = f"leave it at 1 and raise engine.servers.{model}.count: one process keeps all of them busy"
            found.wrong(f"stages.{step.name}.shards", what, hint)


def _names(found: PlanSurvey) -> None:
    """Every layout must be of a step (or of a model that is served) that the plan has."""
    trained = [step.name for step in found.trained()]
    api = {s.name for s in found.steps("fetch") if str(s.spec.get("source", "")).startswith("api:")}
    served = {s.name for s in found.plan.steps if s.makes == "model" and not s.engine} - api
    for head, names, known, what in (
        ("steps", found.settings.steps, trained, "trains nothing in a step"),
        ("servers", found.settings.servers, served, "makes no model"),
    ):
        for name in names:
            if name != "default" and name not in known:
                hint = did_you_mean(name, [*known, "default"])
                found.wrong(f"engine.{head}.{name}", f"the plan {what} '{name}'", hint)
    for step in found.trained(SFT_TRAINER, REWARD_TRAINER):
        layout = found.settings.steps.get(step.name)
        if layout is not None and "critic" in layout.model_fields_set and layout.critic != type(layout.critic)():
            found.wrong(f"engine.steps.{step.name}.critic", f"'{step.name}' has no critic", "only rl reads it")


# ---- overrides -------------------------------------------------------------------------------------------------------


def _overrides(found: PlanSurvey) -> None:
    for at, what, following in found.configs.problems:
        path = found.where(at) if at.startswith("engine.") else at
        found.problems.append(Problem(path, what, following))
    said: set[tuple[str, str]] = set()
    wanted = [(step, c) for step, every in found.compiled.items() for c in every if c.config]
    unchecked = [(step, c.config) for step, c in wanted if c.config not in found.configs.files]
    if unchecked and not found.configs.problems:
        some = len({c.config for _, c in wanted}) > len({config for _, config in unchecked})
        names = ", ".join(sorted({config for _, config in unchecked}))
        found.note(unchecked[0][0], f"{NOT_CHECKED} ({names})" if some else NOT_CHECKED)
    for step, compiled in wanted:
        assert compiled.layout is not None
        own = {name.removeprefix("++"): name for name in compiled.layout.overrides}
        config = found.configs.files.get(compiled.config)
        for override in compiled.overrides:
            setting = found.at(compiled.setting)
            path = f"{setting}.overrides" if override.key in own else f"{_stage(found, step)}"
            if (path, override.text()) in said:
                continue
            said.add((path, override.text()))
            if override.key in own:
                _taken(found, setting, compiled, override)
            wrong = upstream.check_override(config, compiled.config, override) if config is not None else None
            if wrong is not None:
                found.wrong(path, *wrong)


def _stage(found: PlanSurvey, step: str) -> str:
    return f"models.{step}" if found.plan.step(step).kind == "fetch" else f"stages.{step}"


def _taken(found: PlanSurvey, setting: str, compiled: Compiled, override: Override) -> None:
    key = override.key
    if any(key == decided or key.startswith(f"{decided}.") for decided in DECIDED):
        found.wrong(f"{setting}.overrides", f"{key} is decided by the plan", "leave it out")
    elif key in FIELDS[compiled.config]:
        instead = f"{setting}.{FIELDS[compiled.config][key]}"
        found.wrong(f"{setting}.overrides", f"{key} is set by a field that more depends on", f"set {instead} instead")


# ---- what is read ----------------------------------------------------------------------------------------------------


def _inputs(found: PlanSurvey) -> None:
    for step in found.steps("fetch"):
        _source(found, step)
    made = {str(found.places.artifact(step)) for step in found.plan.steps}
    made |= {str(found.places.work(step).parent) for step in found.plan.steps}
    for name, every in found.compiled.items():
        for compiled in every:
            own = {key.removeprefix("++") for key in compiled.layout.overrides} if compiled.layout else set()
            for override in compiled.overrides:
                if override.key in own:
                    path = f"{found.at(compiled.setting)}.overrides"
                    for value in _paths(override):
                        _exists(found, name, path, override.key, value, made)


def _paths(override: Override) -> list[str]:
    """The files and folders that an override says are read."""
    values = override.value if isinstance(override.value, list | tuple) else [override.value]
    last = override.key.rpartition(".")[2]
    reads = any(word in last for word in ("path", "file", "checkpoint_dir")) and "log" not in last
    return [value for value in values if reads and isinstance(value, str) and value]


def _exists(found: PlanSurvey, step: str, path: str, key: str, value: str, made: set[str]) -> None:
    place = Path(value).expanduser()
    if place.exists():
        return
    inside = [folder for folder in made if value == folder or value.startswith(f"{folder}{os.sep}")]
    store = str(found.places.store)
    if place.is_absolute() and not value.startswith(f"{store}{os.sep}"):
        found.note(step, f"{key} is {value}, which is not on this machine; it must be where the step runs")
    elif not inside:
        found.wrong(path, f"{key} is {value}, which no step makes and is not there", "give a file that exists")


def _source(found: PlanSurvey, step: Step) -> None:
    source = str(step.spec.get("source", ""))
    scheme, _, name = source.partition(":")
    path = f"models.{step.name}.source"
    if scheme in ("gguf", "pypi"):
        found.wrong(path, f"nemo_aligner cannot read '{source}'", "use hf:NAME, hf:/FOLDER or nemo:FILE")
    elif scheme == "hf" and is_folder(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            found.note(step.name, f"{name} is not on this machine; it must be where the step runs")
        elif not (folder / "tokenizer.model").is_file():
            what = f"{name} has no tokenizer.model, whose tokens this engine counts"
            found.wrong(path, what, "take a model with a SentencePiece tokenizer, or add the file")
    elif scheme == "nemo" and not Path(name).expanduser().is_file():
        found.note(step.name, f"{name} is not on this machine; it must be where the step runs")
