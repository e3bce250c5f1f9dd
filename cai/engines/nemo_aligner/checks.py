"""Everything that NeMo-Aligner would refuse, silently change or run out of memory on, found before anything runs.

All problems are gathered, each at a field of the experiment; what a person should know besides goes into notes, which
the plan shows under the step.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cai.engines.base import PlanCheck
from cai.engines.nemo_aligner import check_layout, check_method, check_time, disk, memory, schedule, upstream
from cai.engines.nemo_aligner.commands import Compiled, is_folder
from cai.engines.nemo_aligner.methods import REWARD_TRAINER, SFT_TRAINER
from cai.engines.nemo_aligner.overrides import Override
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.survey import PlanSurvey, survey_plan
from cai.errors import Problem, did_you_mean
from cai.files.home import cai_home
from cai.files.paths import is_file, user_path
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
    survey = survey_plan(settings, plan, where)
    _names(survey)
    _overrides(survey)
    _inputs(survey)
    check_method.check(survey)
    check_layout.check(survey)
    schedule.check(survey)
    check_time.check(survey)
    memory.check(survey)
    disk.check(survey)
    _mounts(survey)
    _shards(survey)
    return PlanCheck(tuple(dict.fromkeys(survey.problems)), survey.notes)


def _mounts(survey: PlanSurvey) -> None:
    """Commands in a container read and write under ``$CAI_HOME`` by the same path as this program does."""
    launcher = survey.settings.launcher
    placed = [step for step, every in survey.compiled.items() if any(c.command.resources.nodes for c in every)]
    if isinstance(launcher, Local) or not launcher.container or not placed:
        return
    home = cai_home()
    for mount in launcher.mounts:
        source, _, rest = mount.partition(":")
        target = rest.partition(":")[0] or source
        if source == target and home.is_relative_to(source):
            return
    message = f"the container sees {home} (CAI_HOME) under no path or another one"
    survey.note(placed[0], f"{message}; add it to engine.launcher.mounts as FOLDER:FOLDER")


def _shards(survey: PlanSurvey) -> None:
    """Every shard of a step would start the step's servers again."""
    for step in survey.plan.steps:
        served = any(c.command.background for c in survey.compiled.get(step.name, ()))
        if served and step.spec.get("shards", 1) > 1:
            message = f"{step.spec['shards']} shards would each start the servers of the step's model"
            model = step.source("model") or "default"
            hint = f"leave it at 1 and raise engine.servers.{model}.count: one process keeps all of them busy"
            survey.wrong(f"stages.{step.name}.shards", message, hint)


def _names(survey: PlanSurvey) -> None:
    """Every layout must be of a step (or of a model that is served) that the plan has."""
    trained = [step.name for step in survey.trained()]
    api = {s.name for s in survey.steps("fetch") if str(s.spec.get("source", "")).startswith("api:")}
    served = {s.name for s in survey.plan.steps if s.makes == "model" and not s.engine} - api
    for head, names, valid_names, predicate in (
        ("steps", survey.settings.steps, trained, "trains nothing in a step"),
        ("servers", survey.settings.servers, served, "makes no model"),
    ):
        for name in names:
            if name != "default" and name not in valid_names:
                hint = did_you_mean(name, [*valid_names, "default"])
                survey.wrong(f"engine.{head}.{name}", f"the plan {predicate} '{name}'", hint)
    for step in survey.trained(SFT_TRAINER, REWARD_TRAINER):
        layout = survey.settings.steps.get(step.name)
        if layout is not None and "critic" in layout.model_fields_set and layout.critic != type(layout.critic)():
            survey.wrong(f"engine.steps.{step.name}.critic", f"'{step.name}' has no critic", "only rl reads it")


# ---- overrides -------------------------------------------------------------------------------------------------------


def _overrides(survey: PlanSurvey) -> None:
    for field, message, following in survey.configs.problems:
        path = survey.where(field) if field.startswith("engine.") else field
        survey.problems.append(Problem(path, message, following))
    reported: set[tuple[str, str]] = set()
    configured = [(step, c) for step, every in survey.compiled.items() for c in every if c.config]
    unchecked = [(step, c.config) for step, c in configured if c.config not in survey.configs.files]
    if unchecked and not survey.configs.problems:
        some = len({c.config for _, c in configured}) > len({config for _, config in unchecked})
        names = ", ".join(sorted({config for _, config in unchecked}))
        survey.note(unchecked[0][0], f"{NOT_CHECKED} ({names})" if some else NOT_CHECKED)
    for step, compiled in configured:
        assert compiled.layout is not None
        own = {name.removeprefix("++"): name for name in compiled.layout.overrides}
        config = survey.configs.files.get(compiled.config)
        for override in compiled.overrides:
            setting = survey.layout_path(compiled.setting)
            path = f"{setting}.overrides" if override.key in own else f"{_stage(survey, step)}"
            if (path, override.text()) in reported:
                continue
            reported.add((path, override.text()))
            if override.key in own:
                _reserved_override(survey, setting, compiled, override)
            wrong = upstream.check_override(config, compiled.config, override) if config is not None else None
            if wrong is not None:
                survey.wrong(path, *wrong)


def _stage(survey: PlanSurvey, step: str) -> str:
    return f"models.{step}" if survey.plan.step(step).kind == "fetch" else f"stages.{step}"


def _reserved_override(survey: PlanSurvey, setting: str, compiled: Compiled, override: Override) -> None:
    key = override.key
    if any(key == decided or key.startswith(f"{decided}.") for decided in DECIDED):
        survey.wrong(f"{setting}.overrides", f"{key} is decided by the plan", "leave it out")
    elif key in FIELDS[compiled.config]:
        instead = f"{setting}.{FIELDS[compiled.config][key]}"
        survey.wrong(f"{setting}.overrides", f"{key} is set by a field that more depends on", f"set {instead} instead")


# ---- what is read ----------------------------------------------------------------------------------------------------


def _inputs(survey: PlanSurvey) -> None:
    for step in survey.steps("fetch"):
        _source(survey, step)
    produced_paths = {str(survey.places.artifact(step)) for step in survey.plan.steps}
    produced_paths |= {str(survey.places.work(step).parent) for step in survey.plan.steps}
    for name, every in survey.compiled.items():
        for compiled in every:
            own = {key.removeprefix("++") for key in compiled.layout.overrides} if compiled.layout else set()
            for override in compiled.overrides:
                if override.key in own:
                    path = f"{survey.layout_path(compiled.setting)}.overrides"
                    for value in _paths(override):
                        _exists(survey, name, path=path, key=override.key, value=value, produced_paths=produced_paths)


def _paths(override: Override) -> list[str]:
    """The files and folders that an override says are read."""
    values = override.value if isinstance(override.value, list | tuple) else [override.value]
    last = override.key.rpartition(".")[2]
    reads = any(word in last for word in ("path", "file", "checkpoint_dir")) and "log" not in last
    return [value for value in values if reads and isinstance(value, str) and value]


def _exists(survey: PlanSurvey, step: str, *, path: str, key: str, value: str, produced_paths: set[str]) -> None:
    place = user_path(value)
    if place.exists():
        return
    inside = [folder for folder in produced_paths if value == folder or value.startswith(f"{folder}{os.sep}")]
    store = str(survey.places.store)
    if place.is_absolute() and not value.startswith(f"{store}{os.sep}"):
        survey.note(step, f"{key} is {value}, which is not on this machine; it must be where the step runs")
    elif not inside:
        survey.wrong(path, f"{key} is {value}, which no step makes and is not there", "give a file that exists")


def _source(survey: PlanSurvey, step: Step) -> None:
    source = str(step.spec.get("source", ""))
    scheme, _, name = source.partition(":")
    path = f"models.{step.name}.source"
    if scheme in ("gguf", "pypi"):
        survey.wrong(path, f"nemo_aligner cannot read '{source}'", "use hf:NAME, hf:/FOLDER or nemo:FILE")
    elif scheme == "hf" and is_folder(name):
        folder = user_path(name)
        if not folder.is_dir():
            survey.note(step.name, f"{name} is not on this machine; it must be where the step runs")
        elif not (folder / "tokenizer.model").is_file():
            message = f"{name} has no tokenizer.model, whose tokens this engine counts"
            survey.wrong(path, message, "take a model with a SentencePiece tokenizer, or add the file")
    elif scheme == "nemo" and not is_file(user_path(name)):
        survey.note(step.name, f"{name} is not on this machine; it must be where the step runs")
