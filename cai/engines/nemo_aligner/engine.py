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
from cai.engines.base import (
    Attempt,
    ModelSource,
    PairText,
    Places,
    Progress,
    PromptText,
    RewardScorer,
    RewardSettings,
    RlSettings,
    SftSettings,
    Trained,
    TrainText,
)
from cai.engines.nemo_aligner.archive import ARCHIVE, MODEL, model_in, unpack
from cai.engines.nemo_aligner.checkpoints import CriticRun, Logs
from cai.engines.nemo_aligner.commands import Compiled, commands, result_file, serve_alone
from cai.engines.nemo_aligner.datasets import write_pairs, write_prompts, write_sft
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.errors import Incomplete, OutOfTime, PrerequisiteError, Problem, SpecError, StepFailed
from cai.files.home import cai_home
from cai.identity import file_digest
from cai.launchers.base import Command, Runner, Server
from cai.plan import Plan, Step

TRAINED = "trained"
RESUMED_AT = "resumed_at"
"""Beside it: the step that an attempt began after, for the half of a step that finds its commands done."""
_PROGRESS = re.compile(r"([A-Za-z_]+)=(-?[0-9.]+(?:e-?[0-9]+)?)(?=[-.]|$)")


class NemoAlignerEngine:
    """See ``cai.engines.base.Engine``. ``plan`` and ``run_dir`` are None where only a finished model is served."""

    def __init__(
        self, settings: NemoAlignerSettings, plan: Plan | None, run_dir: Path | None, runner: Runner | None = None
    ) -> None:
        self.settings, self._plan = settings, plan
        self._run_dir = (run_dir or cai_home() / "cache" / "serving").absolute()
        self._runner = runner
        self._step: Step | None = None
        self._compiled: tuple[Compiled, ...] = ()
        self._served: tuple[tuple[Any, ...], list[Server]] = ((), [])

    @property
    def runner(self) -> Runner:
        """Who starts the commands; made when first asked for."""
        if self._runner is None:
            self._runner = make_runner(self.settings)
        return self._runner

    def begin(self, step: Step) -> None:
        """Take up the commands of a step. A server stays up only where the step needs the same one."""
        assert self._plan is not None
        self._step = step
        self._compiled = commands(self.settings, self._plan, step, self._places)
        keep = {c.command.argv for c in self._compiled if c.model is not None}
        if not all(argv in keep for argv in self._served[0]):
            self._stop_servers()

    def close(self) -> None:
        """Take everything down."""
        self._served = ((), [])
        if self._runner is not None:
            self._runner.close()

    @property
    def _places(self) -> Places:
        return Places(cai_home() / "store", str(self._run_dir / "plan.json"))

    def _command(self, role: str) -> Command:
        return next(c.command for c in self._compiled if c.command.role == role)

    def _log(self, command: Command, about: Path) -> Path:
        return self._run_dir / "logs" / f"{about.name.removesuffix('.partial')}-{command.role}.log"

    # ---- models ------------------------------------------------------------------------------------------------------

    def fetch(self, source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
        """Bring a model into ``dest`` as an unpacked ``.nemo``; returns source, digest, size."""
        assert self._step is not None
        work = self._places.work(self._step)
        scheme, _, name = source.source.partition(":")
        about: dict[str, Any] = {"source": source.source, "format": "nemo"}
        if scheme == "nemo":
            given = Path(name).expanduser()
            if not given.is_file():
                raise PrerequisiteError(f"{source.source}: no such file; give the path of a .nemo file")
            if source.sha256:
                about["digest"] = file_digest(given)
                if about["digest"] != source.sha256:
                    raise PrerequisiteError(
                        f"{source.source}: SHA-256 is {about['digest']}, the experiment says {source.sha256}"
                    )
            about["bytes"] = unpack(given, dest / MODEL)
        elif scheme == "hf":
            made = work / ARCHIVE
            if not _done_outside():
                made.unlink(missing_ok=True)  # the converter may have been stopped while it wrote
            for compiled in self._compiled:
                if compiled.command.role in ("download", "convert"):
                    progress.note(f"nemo.{compiled.command.role}", log=str(self._log(compiled.command, work.parent)))
                    self.runner.run(compiled.command, self._log(compiled.command, work.parent))
            if not made.is_file():
                raise StepFailed(f"the converter ended without {made}; see {self._run_dir / 'logs'}")
            about["bytes"] = unpack(made, dest / MODEL)
        else:
            raise SpecError(
                Problem("models", f"'{source.source}' cannot become a .nemo", "use hf:NAME, hf:/FOLDER or nemo:FILE")
            )
        return about

    def client(self, model: Path) -> Client:
        """Serve a model with as many servers as its layout says; they stay up until another model is asked for."""
        compiled = [c for c in self._compiled if c.model == model_in(model)] if self._step else []
        if not compiled:
            steps = self._plan.steps if self._plan else ()
            name = next((step.name for step in steps if self._places.artifact(step) == model), "default")
            compiled = list(serve_alone(self.settings, name, model_in(model)))
        argvs = tuple(c.command.argv for c in compiled)
        if argvs != self._served[0] or not self._alive():
            self._stop_servers()
            self._start_servers(compiled, model, argvs)
        layout = compiled[0].layout
        from cai.clients.nemo_generate import NemoGenerateClient

        client = NemoGenerateClient(
            [f"http://{server.host}:{server.port}" for server in self._served[1]],
            open_tokenizer(model),
            batch=getattr(layout, "batch", 128),
        )
        return _Served(client, self._served[1])

    def _alive(self) -> bool:
        try:
            for server in self._served[1]:
                server.check()
        except StepFailed:
            return False
        return True

    def _start_servers(self, compiled: Sequence[Compiled], model: Path, argvs: tuple[Any, ...]) -> None:
        servers: list[Server] = []
        try:
            for each in compiled:
                servers.append(self.runner.start(each.command, self._log(each.command, model)))
            for server in servers:
                server.wait_ready()
        except BaseException:
            for server in servers:
                server.stop()
            raise
        self._served = (argvs, servers)

    def _stop_servers(self) -> None:
        servers = self._served[1]
        self._served = ((), [])
        for server in servers:
            server.stop()

    def reward_scorer(self, model: Path) -> RewardScorer:
        """Not offered: planning refuses it too."""
        raise SpecError(Problem("evaluate.reward", "nemo_aligner cannot score with a reward model", "leave it out"))

    # ---- training ----------------------------------------------------------------------------------------------------

    def sft(
        self,
        model: Path,
        train: Sequence[TrainText],
        val: Sequence[TrainText],
        settings: SftSettings,
        attempt: Attempt,
    ) -> Trained:
        """Fine-tune with train_gpt_sft.py."""
        written = write_sft(attempt.work / "data", train, val, settings, open_tokenizer(model))
        return self._train(written, attempt, self._one("train"))

    def reward(
        self,
        model: Path,
        train: Sequence[PairText],
        val: Sequence[PairText],
        settings: RewardSettings,
        attempt: Attempt,
    ) -> Trained:
        """Train a reward model with train_reward_model.py; soft labels become hard as the engine's ``labels`` say."""
        tokens, labels = open_tokenizer(model), self.settings.labels
        written = write_pairs(attempt.work / "data", train, val, settings, tokens, labels, attempt.seed)
        return self._train(written, attempt, self._one("train"))

    def rl(
        self,
        policy: Path,
        reward: Path,
        prompts: Sequence[PromptText],
        stop: tuple[str, ...],
        settings: RlSettings,
        attempt: Attempt,
    ) -> Trained:
        """Improve the policy with serve_ppo_critic.py and train_gpt_ppo_actor.py."""
        assert self._step is not None
        layout = self.settings.step(self._step.name)
        tokens, work = open_tokenizer(policy), attempt.work
        written = write_prompts(work / "data", prompts, settings, tokens, layout.val_samples, attempt.seed)

        def run() -> None:
            critic, actor = self._command("critic"), self._command("actor")
            server = self.runner.start(critic, self._log(critic, work.parent))
            try:
                server.wait_ready()
                self.runner.run(actor, self._log(actor, work.parent), beside=[server])
            finally:
                server.stop()

        return self._train(written, attempt, run)

    def _one(self, role: str) -> Callable[[], None]:
        def run() -> None:
            assert self._step is not None
            command = self._command(role)
            self.runner.run(command, self._log(command, self._places.work(self._step).parent))

        return run

    def _train(self, written: Trained, attempt: Attempt, run: Callable[[], None]) -> Trained:
        assert self._step is not None
        work, progress = attempt.work, attempt.progress
        result, marker = result_file(self._places, self._step), work / TRAINED
        if not (marker.exists() and result.is_file()):
            if not _done_outside():
                result.unlink(missing_ok=True)
            progress.note("nemo.training", rows=written.metrics["train rows"], logs=str(self._run_dir / "logs"))
            self._run_to_end(run, result, attempt)
            if not result.is_file():
                raise StepFailed(f"training ended without {result}; there is {_listing(result.parent)}")
            marker.write_text("the command ended with code 0\n", encoding="utf-8")
        metrics = {**written.metrics, **_told_by(result.parent)}
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
        if self._step.kind != "rl":
            return Logs(log)
        values = {c.command.role: {o.key: o.value for o in c.overrides} for c in self._compiled}
        actor, critic = values["actor"], values["critic"]
        updates = math.ceil(actor["model.ppo.num_rollout_samples"] / critic["model.global_batch_size"])
        warmup = actor["trainer.ppo.critic_warmup_steps"]
        end = int(self._step.spec["training"]["iterations"])
        return Logs(log, CriticRun(work / "critic", lambda step: updates * (step + warmup), end))


class _Served:
    """A client whose errors tell of a server that has died, with the tail of its log."""

    def __init__(self, client: Client, servers: Sequence[Server]) -> None:
        self._client, self._servers = client, servers

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
        for server in self._servers:
            server.check()

    def close(self) -> None:
        """Close the connections; the servers stay up for whoever needs them next."""
        self._client.close()


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


def _told_by(folder: Path) -> dict[str, Any]:
    """What upstream writes into its checkpoints' names: ``megatron_gpt--val_loss=0.532-step=100-....ckpt``."""
    best: dict[str, float] = {}
    for path in sorted(folder.glob("*=*")):
        found = {name: float(value.rstrip(".")) for name, value in _PROGRESS.findall(path.name.replace(".ckpt", ""))}
        if found.get("step", -1) >= best.get("step", -1):
            best = found
    return {
        name: value for name, value in best.items() if name in ("step", "val_loss", "val_rewards", "consumed_samples")
    }
