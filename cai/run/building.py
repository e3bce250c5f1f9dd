"""One step's artifact: found in the store, or built there under its lock. What every way of running has in common."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cai.clients.metering import Meter
from cai.clients.served_models import read_work
from cai.clients.spending import spent_by_others
from cai.engines.base import Progress
from cai.errors import CaiError, Incomplete, PrerequisiteError, Problem, SpecError, StepFailed
from cai.figures.usage import FlowUsage
from cai.files.durable import disk_full, is_disk_full
from cai.files.home import accounts, request_cache, served_models
from cai.launchers.outside import Prepared
from cai.plan import Plan, Step, by_role
from cai.run.checks import StageWork, check_ledger, servers_of
from cai.run.engines import Engines, LazySession
from cai.run.faults import keep_traceback
from cai.run.judged import check_judges
from cai.run.overlap import check_overlap
from cai.run.results import StepResult
from cai.run.shards import Merging, ShardProgress, check_shard, run_shards, shards_of, with_spent, with_usage
from cai.run.stopping import StopSign, stopped_error
from cai.run.watch import Recorded, Silent, Watcher
from cai.stages.base import Artifact, Context, Outcome, Shard, StageSpec
from cai.stages.flow.served import SERVED_FILE
from cai.store.artifacts import Build, Store, Stored
from cai.store.events import EventLog, plain_json

Artifacts = Mapping[str, Artifact]
"""Those that are there, by the name of the step that made them."""


@dataclass(frozen=True)
class Books:
    """Where it is kept what is asked and paid, for work that is not kept itself.

    ``home`` has the request cache and the accounts, ``keys`` (by step) are those under which calls are paid, and the
    ``meter`` is told what each row's calls read and write.
    """

    home: Path
    keys: Mapping[str, str]
    meter: Meter


@dataclass(frozen=True)
class Site:
    """Where a plan's steps are built: the store, the run's folder and log, who does the work and who watches.

    The request cache and the accounts are those beside the store, where no ``books`` say otherwise.
    """

    plan: Plan
    store: Store
    run_dir: Path
    kinds: Mapping[str, StageWork]
    specs: Mapping[str, StageSpec]
    watch: Watcher
    engines: Engines
    log: EventLog
    stop: StopSign | None = None
    """For a step that is to stop when another, beside it, has failed."""
    books: Books | None = None

    @property
    def home(self) -> Path:
        """The home folder of the request cache and of the accounts."""
        return self.store.home if self.books is None else self.books.home

    def paid_under(self, step: Step) -> str:
        """The key under which a step's calls are paid."""
        return step.key if self.books is None else self.books.keys.get(step.name, step.key)


@dataclass(frozen=True, slots=True)
class StepBuild:
    """A step whose artifact is being made: where, of which artifacts, and in which folders of the store."""

    site: Site
    step: Step
    artifacts: Artifacts
    build: Build


def artifact_of(step: Step, stored: Stored) -> Artifact:
    """A finished step's artifact, as other steps read it."""
    former = dict.fromkeys(key for key in (step.former, str(stored.record.get("former", ""))) if key)
    return Artifact(step.key, stored.makes, stored.path, stored.record, tuple(former))


def find_inputs(site: Site, step: Step) -> dict[str, Artifact]:
    """The artifacts that a step reads, which must be in the store.

    Raises:
        SpecError: with every step that has to run first.
    """
    artifacts: dict[str, Artifact] = {}
    problems: list[Problem] = []
    for name in step.needs():
        needed = site.plan.step(name)
        stored = site.store.find(needed.kind, needed.key)
        if stored is None:
            where_looked = f"reads '{name}', which is not in the store at {site.store.home}"
            problems.append(Problem(step.name, where_looked, f"run step '{name}' first"))
        else:
            site.store.note_use(stored)
            artifacts[name] = artifact_of(needed, stored)
    if problems:
        raise SpecError(problems)
    return artifacts


def build_step(site: Site, step: Step, artifacts: Artifacts, *, spread: bool = False) -> StepResult:
    """Make or reuse a step's artifact. With ``spread`` its shards run as processes of this machine.

    Raises:
        PrerequisiteError, SpecError, StepFailed, Incomplete: as the step's work; what is done of it is kept.
    """
    try:
        stored = site.store.find(step.kind, step.key)
        reused = stored is not None
        if stored is None:
            stored, reused = _build(site, step, artifacts, spread)
    except BaseException as raised:
        stopped = stopped_error(f"{step.name} ({step.kind})", raised)
        with suppress(Incomplete):
            event = "step.prepared" if isinstance(stopped, Prepared) else "step.failed"
            site.log.write(event, step.name, error=str(stopped))
        site.watch.step_failed(step, stopped)
        if stopped is raised:
            raise
        raise stopped from raised
    site.store.note_use(stored)
    outcome = {} if reused else stored.record["outcome"]
    site.log.write("step.done", step.name, reused=reused, key=step.key, outcome=outcome)
    site.watch.step_done(step, stored.record, reused)
    return StepResult(step, artifact_of(step, stored), reused)


def build_part(site: Site, step: Step, artifacts: Artifacts, shard: Shard) -> FlowUsage:
    """Do one shard of a step's rows; what it asked of its model. Nothing where the step is done already.

    Raises:
        SpecError: when a step of this kind is not done in parts.
        PrerequisiteError, StepFailed, Incomplete: as ``build_step``.
    """
    from cai.stages.flow.base import ShardDone

    with site.store.sharing(step.kind, step.key, lambda holder: site.watch.waiting(step, holder)) as build:
        if build.stored is not None:
            return FlowUsage()
        progress = Recorded(step, site.watch.step_started(step, build.resumed), site.log)
        try:
            step_build = StepBuild(site, step, artifacts, build)
            _work(step_build, ShardProgress(progress, shard, build.work), shard=shard)
        except ShardDone as done:
            return done.flow.tally.usage()
        except BaseException as raised:
            site.watch.step_failed(step, stopped_error(f"{step.name} ({step.kind})", raised))
            raise
        raise StepFailed(f"{step.name} ({step.kind}): its work knows no parts; leave --shard out")


def check_parts(site: Site, step: Step) -> None:
    """As ``cai.run.shards.check_shard``."""
    check_shard(site.specs[step.name], step)


def _build(site: Site, step: Step, artifacts: Artifacts, spread: bool) -> tuple[Stored, bool]:
    def on_wait(holder: str) -> None:
        site.log.write("step.waiting", step.name, holder=holder)
        site.watch.waiting(step, holder)

    shards = shards_of(step) if spread else 1
    with site.store.building(step.kind, step.key, on_wait) as build:
        if build.stored is not None:
            return build.stored, True
        began = time.perf_counter()
        if build.aside is not None:
            site.log.write("artifact.damaged", step.name, moved_to=str(build.aside))
        site.log.write("step.started", step.name, resumed=build.resumed, shards=shards)
        progress: Progress = Recorded(step, site.watch.step_started(step, build.resumed), site.log, site.stop)
        if shards == 1:
            return _make(StepBuild(site, step, artifacts, build), progress, began=began), False
    # A model that this process holds would only take memory from the shards.
    site.engines.rest()
    rows, _ = run_shards(step, site.store, site.run_dir, progress)
    with site.store.building(step.kind, step.key, on_wait) as build:
        if build.stored is not None:
            return build.stored, True
        return _make(StepBuild(site, step, artifacts, build), Merging(progress, rows), began=began), False


def _make(step_build: StepBuild, progress: Progress, *, began: float) -> Stored:
    step = step_build.step
    outcome = _work(step_build, progress)
    site = step_build.site
    own = FlowUsage.from_metrics(outcome.metrics)
    metrics = with_usage(outcome.metrics, site.run_dir, step.name)
    outcome = replace(outcome, metrics=with_spent(metrics, own, spent_by_others(accounts(site.store.home), step.key)))
    if served := _served(step_build.build.work):
        outcome = replace(outcome, metrics={**outcome.metrics, "served": served})
    return step_build.build.commit(
        makes=step.makes,
        seed=step.seed,
        seconds=time.perf_counter() - began,
        ingredients=step.ingredients.to_json(),
        outcome=plain_json(asdict(outcome)),
    )


def _served(work: Path) -> dict[str, list[dict[str, str]]]:
    """Which models have answered, by role, whichever process asked."""
    by_role: dict[str, list[dict[str, str]]] = {}
    for path in sorted(work.rglob(SERVED_FILE)):
        by_role |= read_work(path)
    return by_role


def _work(step_build: StepBuild, progress: Progress, *, shard: Shard | None = None) -> Outcome:
    from cai.stages.flow.base import ShardDone

    site, step, partial = step_build.site, step_build.step, step_build.build.partial
    spec = site.specs[step.name]
    session = site.engines.session(step)
    try:
        check_judges(site.plan, step, site.specs, site.store)
        check_overlap(site.plan, step, step_build.artifacts, site.store)
        context = replace(_context(step_build, session), progress=progress, shard=shard)
        outcome = site.kinds[step.kind].run(spec, context)
        check_ledger(spec, outcome.ledger)
        return outcome
    except (Incomplete, PrerequisiteError, SpecError, ShardDone):
        raise
    except Exception as error:
        if is_disk_full(error, partial):
            raise disk_full(partial, error) from error
        expected = isinstance(error, CaiError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        fault = "" if expected else f" ({keep_traceback(site.run_dir, step.name, error)})"
        # Of a step that is thrown away only its answers are kept.
        work_left = f"its work is kept in {partial}" if site.books is None else "what was answered is kept"
        raise StepFailed(
            f"{step.name} ({step.kind}): {reason}; {work_left}, and the same command goes on from there{fault}"
        ) from error
    finally:
        session.close()


def _context(step_build: StepBuild, session: LazySession) -> Context:
    from cai.chat import ChatTemplate
    from cai.constitution import Constitution

    def chat_template(frozen: Mapping[str, str]) -> ChatTemplate:
        return ChatTemplate.from_text(frozen["name"], frozen["text"], frozen["name"])

    site, step, build = step_build.site, step_build.step, step_build.build
    template, constitution = step.resources.get("template"), step.resources.get("constitution")
    chat = chat_template(template) if template else None
    return Context(
        name=step.name,
        seed=step.seed,
        inputs=_inputs(step, step_build.artifacts),
        out=build.out,
        work=build.work,
        engine=session,
        progress=Silent().step_started(step, False),
        template=chat,
        constitution=Constitution.from_json(constitution) if constitution else None,
        texts=step.resources.get("texts", {}),
        stops=chat.stops if chat else (),
        templates={label: chat_template(own) for label, own in step.resources.get("templates", {}).items()},
        api_keys=step.resources.get("api_keys", {}),
        servers=servers_of(site.plan, step),
        key=site.paid_under(step),
        planned_model=step.ingredients.model or {},
        serves=step.ingredients.engine or {},
        cache=request_cache(site.home),
        accounts=accounts(site.home),
        plan_keys=tuple(map(site.paid_under, site.plan.steps)),
        served=served_models(site.home),
        meter=site.books.meter if site.books is not None else None,
    )


def _inputs(step: Step, artifacts: Artifacts) -> dict[str, Artifact | tuple[Artifact, ...] | dict[str, Artifact]]:
    shaped: dict[str, Artifact | tuple[Artifact, ...] | dict[str, Artifact]] = {}
    for role, names in by_role(step.inputs).items():
        if isinstance(names, str):
            shaped[role] = artifacts[names]
        elif isinstance(names, dict):
            shaped[role] = {label: artifacts[name] for label, name in names.items()}
        else:
            shaped[role] = tuple(artifacts[name] for name in names)
    return shaped
