"""The NeMo-Aligner engine: writes upstream's files, runs its commands, keeps what they make.

The commands are those of the plan (``cai.engines.nemo_aligner.commands``), taken up when a step begins. A training
step lies in ``work`` until it is whole: upstream resumes from its own checkpoints there, and a marker says that the
command has ended well, so that a .nemo which was being written when the machine stopped is never taken for one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cai.clients.base import Client, Completion, Request, Score, ScoreRequest
from cai.data.nemo_tokens import open_tokenizer
from cai.engines.base import Attempt, ModelSource, Places, Progress, RewardScorer, Trained
from cai.engines.methods.base import D, Method, S
from cai.engines.methods.ppo import PPO, PpoData, RlSettings
from cai.engines.methods.reward import REWARD, RewardData, RewardSettings
from cai.engines.methods.sft import SFT, SftData, SftSettings
from cai.engines.nemo_aligner.archive import ARCHIVE, MODEL, model_in, unpack
from cai.engines.nemo_aligner.checkpoints import CriticRun, Logs
from cai.engines.nemo_aligner.commands import Compiled, commands, result_file, serve_alone
from cai.engines.nemo_aligner.datasets import write_pairs, write_prompts, write_sft
from cai.engines.nemo_aligner.methods import trainer_of
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.errors import Incomplete, OutOfTime, PrerequisiteError, Problem, SpecError, StepFailed
from cai.files.home import cai_home
from cai.files.paths import is_dir, user_path
from cai.identity import file_digest
from cai.launchers.base import Command, Runner, Server
from cai.models.config_file import check_model
from cai.plan import Plan, Step

TRAINED = "trained"
RESUMED_AT = "resumed_at"
"""Beside it: the step that an attempt began after, for the half of a step that finds its commands done."""
_PROGRESS = re.compile(r"([A-Za-z_]+)=(-?[0-9.]+(?:e-?[0-9]+)?)(?=[-.]|$)")


class _Fleet:
    """The servers of one model, and how many clients speak to them now."""

    def __init__(self, argvs: tuple[Any, ...], servers: list[Server]) -> None:
        self.argvs = argvs
        self.servers = servers
        self.clients = 0

    def runs(self) -> bool:
        """Whether all of them are alive."""
        try:
            for server in self.servers:
                server.check()
        except StepFailed:
            return False
        return True

    def stop(self) -> None:
        """Take them down."""
        for server in self.servers:
            server.stop()


class NemoAlignerEngine:
    """See ``cai.engines.base.Engine``. ``plan`` and ``run_dir`` are None where only a finished model is served."""

    def __init__(
        self, settings: NemoAlignerSettings, plan: Plan | None, run_dir: Path | None, runner: Runner | None = None
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.run_dir = (run_dir or cai_home() / "cache" / "serving").absolute()
        self._runner = runner
        self._sessions: list[NemoSession] = []
        self._fleets: list[_Fleet] = []

    @property
    def runner(self) -> Runner:
        """Who starts the commands; made when first asked for."""
        if self._runner is None:
            self._runner = make_runner(self.settings)
        return self._runner

    @property
    def places(self) -> Places:
        """Where the files of the plan's steps lie."""
        return Places(cai_home() / "store", str(self.run_dir / "plan.json"))

    def session(self, step: Step | None) -> NemoSession:
        """Take up the commands of a step. A server stays up only where a step at work needs the same one."""
        assert step is None or self.plan is not None
        session = NemoSession(self, step)
        self._sessions.append(session)
        needed = {argv for open_session in self._sessions for argv in open_session.server_argvs}
        self._stop_idle(lambda fleet: all(argv in needed for argv in fleet.argvs))
        return session

    def end(self, session: NemoSession) -> None:
        """A session has been closed."""
        if session in self._sessions:
            self._sessions.remove(session)

    def fleet(self, compiled: Sequence[Compiled], log: Callable[[Command], Path]) -> _Fleet:
        """The servers of a model: those that run, or new ones in place of any that nobody speaks to."""
        argvs = tuple(c.command.argv for c in compiled)
        self._stop_idle(lambda fleet: fleet.argvs == argvs and fleet.runs())
        same = next((fleet for fleet in self._fleets if fleet.argvs == argvs), None)
        if same is None:
            same = _Fleet(argvs, self._started(compiled, log))
            self._fleets.append(same)
        return same

    def _started(self, compiled: Sequence[Compiled], log: Callable[[Command], Path]) -> list[Server]:
        servers: list[Server] = []
        try:
            for each in compiled:
                servers.append(self.runner.start(each.command, log(each.command)))
            for server in servers:
                server.wait_ready()
        except BaseException:
            for server in servers:
                server.stop()
            raise
        return servers

    def _stop_idle(self, stays: Callable[[_Fleet], bool]) -> None:
        for fleet in [fleet for fleet in self._fleets if not fleet.clients and not stays(fleet)]:
            self._fleets.remove(fleet)
            fleet.stop()

    def close(self) -> None:
        """Take everything down."""
        self._fleets.clear()
        if self._runner is not None:
            self._runner.close()


class NemoSession:
    """See ``cai.engines.base.Session``: the commands of one step, or of none where a finished model is served."""

    flows = False

    def __init__(self, engine: NemoAlignerEngine, step: Step | None) -> None:
        self._engine = engine
        self._settings = engine.settings
        self._step = step
        self._compiled: tuple[Compiled, ...] = ()
        if step is not None and engine.plan is not None:
            self._compiled = commands(engine.settings, engine.plan, step, engine.places)

    @property
    def server_argvs(self) -> set[tuple[str, ...]]:
        """The command lines of the servers that the step needs."""
        return {c.command.argv for c in self._compiled if c.model is not None}

    def close(self) -> None:
        """The step has ended; its servers stay up for the one that may need them next."""
        self._engine.end(self)

    def _command(self, role: str) -> Command:
        return next(c.command for c in self._compiled if c.command.role == role)

    def _log(self, command: Command, about: Path) -> Path:
        return self._engine.run_dir / "logs" / f"{about.name.removesuffix('.partial')}-{command.role}.log"

    # ---- models ------------------------------------------------------------------------------------------------------

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest`` as an unpacked ``.nemo``; returns source, digest, size."""
        assert self._step is not None
        work = self._engine.places.work(self._step)
        scheme, _, name = source.source.partition(":")
        about: dict[str, Any] = {"source": source.source, "format": "nemo"}
        if scheme == "nemo":
            nemo_file = user_path(name)
            if not nemo_file.is_file():
                raise PrerequisiteError(f"{source.source}: no such file; give the path of a .nemo file")
            if source.sha256:
                about["digest"] = file_digest(nemo_file)
                if about["digest"] != source.sha256:
                    raise PrerequisiteError(
                        f"{source.source}: SHA-256 is {about['digest']}, the experiment says {source.sha256}"
                    )
            about["bytes"] = unpack(nemo_file, dest / MODEL)
        elif scheme == "hf":
            if is_dir(user_path(name)):
                check_model(user_path(name))  # one from the hub is looked at by ``download``
            archive = work / ARCHIVE
            if not _done_outside():
                archive.unlink(missing_ok=True)  # the converter may have been stopped while it wrote
            for compiled in self._compiled:
                if compiled.command.role in ("download", "convert"):
                    progress.note(f"nemo.{compiled.command.role}", log=str(self._log(compiled.command, work.parent)))
                    self._engine.runner.run(compiled.command, self._log(compiled.command, work.parent))
            if not archive.is_file():
                raise StepFailed(f"the converter ended without {archive}; see {self._engine.run_dir / 'logs'}")
            about["bytes"] = unpack(archive, dest / MODEL)
        else:
            raise SpecError(
                Problem("models", f"'{source.source}' cannot become a .nemo", "use hf:NAME, hf:/FOLDER or nemo:FILE")
            )
        return about

    def client(self, model: Path) -> Client:
        """Serve a model with as many servers as its layout says; they stay up until another model is asked for."""
        compiled = [c for c in self._compiled if c.model == model_in(model)] if self._step else []
        if not compiled:
            steps = self._engine.plan.steps if self._engine.plan else ()
            name = next((step.name for step in steps if self._engine.places.artifact(step) == model), "default")
            compiled = list(serve_alone(self._settings, name, model_in(model)))
        fleet = self._engine.fleet(compiled, lambda command: self._log(command, model))
        layout = compiled[0].layout
        from cai.clients.nemo_generate import NemoGenerateClient

        client = NemoGenerateClient(
            [f"http://{server.host}:{server.port}" for server in fleet.servers],
            open_tokenizer(model),
            batch=getattr(layout, "batch", 128),
        )
        return _Served(client, fleet)

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Not offered: planning refuses it too."""
        raise SpecError(Problem("evaluate.reward", "nemo_aligner cannot score with a reward model", "leave it out"))

    # ---- training ----------------------------------------------------------------------------------------------------

    def train(self, method: Method[D, S], data: D, settings: S, attempt: Attempt) -> Trained:
        """Train by one of upstream's trainers and write the model to ``attempt.dest``."""
        return TRAINERS[method.name](self, data, settings, attempt)

    def _sft(self, data: SftData, settings: SftSettings, attempt: Attempt) -> Trained:
        written = write_sft(attempt.work / "data", data, settings, open_tokenizer(data.model))
        return self._train(written, attempt, self._run_of("train"))

    def _reward(self, data: RewardData, settings: RewardSettings, attempt: Attempt) -> Trained:
        """Soft labels become hard as the engine's ``labels`` say."""
        written = write_pairs(
            attempt.work / "data",
            data,
            settings,
            tokens=open_tokenizer(data.model),
            labels=self._settings.labels,
            seed=attempt.seed,
        )
        return self._train(written, attempt, self._run_of("train"))

    def _ppo(self, data: PpoData, settings: RlSettings, attempt: Attempt) -> Trained:
        assert self._step is not None
        layout = self._settings.step(self._step.name)
        tokens, work = open_tokenizer(data.policy), attempt.work
        written = write_prompts(
            work / "data", data.prompts, settings, tokens=tokens, val_samples=layout.val_samples, seed=attempt.seed
        )

        def run() -> None:
            critic, actor = self._command("critic"), self._command("actor")
            server = self._engine.runner.start(critic, self._log(critic, work.parent))
            try:
                server.wait_ready()
                self._engine.runner.run(actor, self._log(actor, work.parent), beside=[server])
            finally:
                server.stop()

        return self._train(written, attempt, run)

    def _run_of(self, role: str) -> Callable[[], None]:
        def run() -> None:
            assert self._step is not None
            command = self._command(role)
            self._engine.runner.run(command, self._log(command, self._engine.places.work(self._step).parent))

        return run

    def _train(self, written: Trained, attempt: Attempt, run: Callable[[], None]) -> Trained:
        assert self._step is not None
        work, progress = attempt.work, attempt.progress
        result, marker = result_file(self._engine.places, self._step), work / TRAINED
        if not (marker.exists() and result.is_file()):
            if not _done_outside():
                result.unlink(missing_ok=True)
            progress.note("nemo.training", rows=written.metrics["train rows"], logs=str(self._engine.run_dir / "logs"))
            self._run_to_end(run, result, attempt)
            if not result.is_file():
                raise StepFailed(f"training ended without {result}; there is {_listing(result.parent)}")
            marker.write_text("the command ended with code 0\n", encoding="utf-8")
        metrics = {**written.metrics, **_checkpoint_metrics(result.parent)}
        unpack(result, attempt.dest / MODEL)
        return Trained(metrics, written.dropped)

    def _run_to_end(self, run: Callable[[], None], result: Path, attempt: Attempt) -> None:
        """Run a training's commands, and tell apart the three ways in which they end well without a model.

        Further than where they began, they ended at their time limit. As far as that, an earlier attempt was stopped
        after its last checkpoint and before the model, and upstream finds nothing to do: it goes back one checkpoint.
        Where there is none, the caller knows no reason.

        Raises:
            OutOfTime: when the limit ended it; the next attempt goes on.
        """
        assert self._step is not None
        logs, resumed_at = self._logs(result.parent.parent, attempt.work), attempt.work / RESUMED_AT
        if not _done_outside():
            if not logs.mend():
                why = "stopped while they saved, actor and critic have no checkpoints that belong together"
                attempt.progress.note("nemo.apart", why=why, step=logs.step)
            resumed_at.write_text(f"{logs.step}\n", encoding="utf-8")
        began = int(resumed_at.read_text(encoding="utf-8")) if resumed_at.exists() else 0
        run()
        if not result.is_file() and logs.step == began > 0:
            logs.go_back()
            began = logs.step
            attempt.progress.note("nemo.again", why="an attempt was stopped before the .nemo was whole", step=began)
            if _done_outside():
                raise Incomplete(f"{self._step.name}: no .nemo was written; do it again, from step {began}")
            run()
        if not result.is_file() and logs.step > began:
            raise OutOfTime(
                f"{self._step.name}: training ended at its time limit, after step {logs.step}; "
                "run the same command again to go on"
            )

    def _logs(self, log: Path, work: Path) -> Logs:
        assert self._step is not None
        trainer = trainer_of(self._step.kind)
        if trainer is None or not trainer.critic:
            return Logs(log)
        values = {c.command.role: {o.key: o.value for o in c.overrides} for c in self._compiled}
        actor, critic = values["actor"], values["critic"]
        updates = math.ceil(actor["model.ppo.num_rollout_samples"] / critic["model.global_batch_size"])
        warmup = actor["trainer.ppo.critic_warmup_steps"]
        end = int(self._step.spec["training"]["iterations"])
        return Logs(log, CriticRun(work / "critic", lambda step: updates * (step + warmup), end))


class _Served:
    """A client whose errors tell of a server that has died, with the tail of its log."""

    def __init__(self, client: Client, fleet: _Fleet) -> None:
        self._client = client
        self._fleet = fleet
        self._open = True
        fleet.clients += 1

    @property
    def name(self) -> str:
        """The inner client's."""
        return self._client.name

    @property
    def lanes(self) -> int:
        """The inner client's."""
        return int(getattr(self._client, "lanes", 1))

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Complete every request."""
        try:
            yield from self._client.generate(requests)
        except StepFailed:
            self._check()
            raise

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Score every request."""
        try:
            yield from self._client.score(requests)
        except StepFailed:
            self._check()
            raise

    def _check(self) -> None:
        for server in self._fleet.servers:
            server.check()

    def close(self) -> None:
        """Close the connections; the servers stay up for whoever needs them next."""
        if self._open:
            self._open = False
            self._fleet.clients -= 1
        self._client.close()


TRAINERS: dict[str, Callable[[NemoSession, Any, Any, Attempt], Trained]] = {
    SFT.name: NemoSession._sft,
    REWARD.name: NemoSession._reward,
    PPO.name: NemoSession._ppo,
}
"""The methods that upstream's trainers have."""


def _done_outside() -> bool:
    """Whether a script has run this step's commands already, so that what they made is whole."""
    from cai.launchers.outside import COMMANDS, Half

    return os.environ.get(COMMANDS) == Half.FINISH.value


def make_runner(settings: NemoAlignerSettings) -> Runner:
    """The launcher's runner; with ``CAI_COMMANDS`` set, one that leaves the commands to a script."""
    from cai.launchers.outside import COMMANDS, Half, OutsideRunner
    from cai.launchers.settings import Local

    if half := os.environ.get(COMMANDS):
        return OutsideRunner(Half(half))
    if isinstance(settings.launcher, Local):
        from cai.launchers.local import LocalRunner

        return LocalRunner(settings.launcher)
    from cai.launchers.slurm_runner import SrunRunner

    return SrunRunner(settings.launcher)


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*"))[:10]) or f"nothing in {folder}"


def _checkpoint_metrics(folder: Path) -> dict[str, Any]:
    """What upstream writes into its checkpoints' names: ``megatron_gpt--val_loss=0.532-step=100-....ckpt``."""
    best: dict[str, float] = {}
    for path in sorted(folder.glob("*=*")):
        metrics = {name: float(value.rstrip(".")) for name, value in _PROGRESS.findall(path.name.replace(".ckpt", ""))}
        if metrics.get("step", -1) >= best.get("step", -1):
            best = metrics
    return {
        name: value for name, value in best.items() if name in ("step", "val_loss", "val_rewards", "consumed_samples")
    }
