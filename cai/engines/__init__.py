"""Engines: who trains and serves. One line in the table for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai.engines.base import Engine, GpuTime, GpuTimes, Places, PlanCheck
from cai.engines.embedded.settings import EmbeddedSettings, choose, describe
from cai.engines.embedded.trainers import TRAINERS as EMBEDDED_TRAINERS
from cai.engines.methods import METHODS
from cai.engines.nemo_aligner.methods import TRAINED_BY
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.launchers.base import Command
from cai.launchers.settings import Local, Slurm
from cai.plan import Plan, Step
from cai.settings import Settings, semantic

Where = Callable[[str], str]
Inputs = Mapping[str, Any]


def _nothing_to_check(settings: Any, plan: Plan, where: Where) -> PlanCheck:
    return PlanCheck()


def _no_commands(settings: Any, plan: Plan, step: Step, places: Places) -> tuple[Command, ...]:
    return ()


@dataclass(frozen=True)
class EngineKind:
    """An engine as the resolver sees it.

    ``methods`` are the training methods that it has, by name; ``snapshots`` says that it can keep models on the way of
    training. ``identity(settings, kind, name, inputs)`` is what of the settings decides the result of one step, and
    ``model_format`` what it makes of a fetched model (empty: a Hugging Face folder). ``sources`` are the schemes of
    models that it can fetch.

    ``check`` finds what is wrong before anything runs, ``commands`` are the processes of a step, and
    ``times(settings, plan)`` estimates what they take of GPUs; all three are given the plan as the engine sees it
    (``Plan.seen_by``). ``make(settings, plan, run_dir)`` opens the engine.
    """

    settings: type[Settings]
    methods: tuple[str, ...]
    identity: Callable[[Any, str, str, Inputs], Mapping[str, Any]]
    describe: Callable[[Any], Mapping[str, Any]]
    make: Callable[[Any, Plan | None, Path | None], Engine]
    snapshots: bool = False
    model_format: str = ""
    sources: tuple[str, ...] = ("hf", "gguf", "pypi", "api")
    check: Callable[[Any, Plan, Where], PlanCheck] = _nothing_to_check
    commands: Callable[[Any, Plan, Step, Places], tuple[Command, ...]] = _no_commands
    launcher: Callable[[Any], Local | Slurm] = lambda settings: Local()
    times: Callable[[Any, Plan], GpuTimes] = lambda settings, plan: GpuTimes()


def _embedded_identity(settings: EmbeddedSettings, kind: str, name: str, inputs: Inputs) -> dict[str, Any]:
    # Versions of packages are told in the plan but do not count: an upgrade must not rerun a night's work.
    chosen = choose(settings)
    decided = settings.model_copy(
        update={
            "device": chosen.device,
            "generator": chosen.generator,
            "generation_precision": chosen.precision,
            "scoring_precision": chosen.scoring,
        }
    )
    decides = semantic(decided)
    return decides | {"arithmetic": ARITHMETIC} if kind in TRAINING else decides


TRAINING = frozenset(method.stage for method in METHODS.values())
ARITHMETIC = 2
"""Bump when the embedded trainers would make other bytes of the same settings and data."""


def _embedded(settings: EmbeddedSettings, plan: Plan | None, run_dir: Path | None) -> Engine:
    from cai.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine(settings)


def _embedded_check(settings: EmbeddedSettings, plan: Plan, where: Where) -> PlanCheck:
    from cai.engines.embedded.checks import check

    return check(settings, plan, where)


def _nemo_identity(settings: NemoAlignerSettings, kind: str, name: str, inputs: Inputs) -> dict[str, Any]:
    from cai.engines.nemo_aligner.describing import identity

    return identity(settings, kind, name, inputs)


def _nemo_describe(settings: NemoAlignerSettings) -> dict[str, Any]:
    from cai.engines.nemo_aligner.describing import describe

    return describe(settings)


def _nemo_check(settings: NemoAlignerSettings, plan: Plan, where: Where) -> PlanCheck:
    from cai.engines.nemo_aligner.checks import check

    return check(settings, plan, where)


def _nemo_commands(settings: NemoAlignerSettings, plan: Plan, step: Step, places: Places) -> tuple[Command, ...]:
    from cai.engines.nemo_aligner.commands import commands

    return tuple(compiled.command for compiled in commands(settings, plan, step, places))


def _nemo_times(settings: NemoAlignerSettings, plan: Plan) -> GpuTimes:
    from cai.engines.nemo_aligner.gpu_time import times

    return times(settings, plan)


def _nemo(settings: NemoAlignerSettings, plan: Plan | None, run_dir: Path | None) -> Engine:
    from cai.engines.nemo_aligner.engine import NemoAlignerEngine

    return NemoAlignerEngine(settings, plan, run_dir)


ENGINES: dict[str, EngineKind] = {
    "embedded": EngineKind(
        settings=EmbeddedSettings,
        methods=tuple(EMBEDDED_TRAINERS),
        identity=_embedded_identity,
        describe=describe,
        make=_embedded,
        snapshots=True,
        check=_embedded_check,
    ),
    "nemo_aligner": EngineKind(
        settings=NemoAlignerSettings,
        methods=tuple(TRAINED_BY),
        identity=_nemo_identity,
        describe=_nemo_describe,
        make=_nemo,
        model_format="nemo",
        sources=("hf", "nemo", "api"),
        check=_nemo_check,
        commands=_nemo_commands,
        launcher=lambda settings: settings.launcher,
        times=_nemo_times,
    ),
}


def engine_of(config: Mapping[str, Any]) -> tuple[EngineKind, Any]:
    """The kind and the settings of a plan's ``engine`` block."""
    data = dict(config)
    data.pop("uses", None)  # what the plan tells a person about this machine
    kind = ENGINES[data.pop("kind")]
    return kind, kind.settings.model_validate(data)


def make_engine(config: Mapping[str, Any], plan: Plan | None = None, run_dir: Path | None = None) -> Engine:
    """The engine of a plan's ``engine`` block. ``run_dir`` is where the logs of its processes go."""
    kind, settings = engine_of(config)
    return kind.make(settings, plan, run_dir)


def commands_of(plan: Plan, step: Step, places: Places) -> tuple[Command, ...]:
    """A step's commands, exactly as they would be executed."""
    kind, settings = engine_of(plan.engine_of(step))
    return kind.commands(settings, plan, step, places)


def step_commands(plan: Plan, places: Places) -> dict[str, tuple[Command, ...]]:
    """Every step's commands by name, exactly as they would be executed."""
    return {step.name: commands_of(plan, step, places) for step in plan.steps}


def gpu_times(plan: Plan) -> GpuTimes:
    """What a plan's steps take of GPUs, estimated; nothing for one that cannot be run (of another version, a lock)."""
    steps: dict[str, GpuTime] = {}
    assumptions: dict[str, Any] = {}
    for name in ("", *plan.engines):
        try:
            engine_plan = plan.seen_by(name)
            kind, settings = engine_of(engine_plan.engine)
            times = kind.times(settings, engine_plan)
        except (ValidationError, KeyError, TypeError, ValueError):
            continue
        steps |= times.steps
        assumptions |= times.assumptions
    return GpuTimes(steps, assumptions)
