"""The NeMo engine around a runner that starts nothing: what it writes before a command, what it keeps after."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from cai.chat import ChatTemplate, Message
from cai.commands.planning import compile_plan
from cai.data.nemo_tokens import open_tokenizer
from cai.engines import engine_of, step_commands
from cai.engines.base import Attempt, ModelSource, Places, Trained
from cai.engines.methods.base import PairText, PromptText, TrainText
from cai.engines.methods.ppo import PPO, PpoData, RlSettings
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.methods.sft import SFT, SftData, SftSettings
from cai.engines.nemo_aligner.commands import commands, result_file
from cai.engines.nemo_aligner.datasets import write_prompts
from cai.engines.nemo_aligner.engine import NemoAlignerEngine, NemoSession, make_runner
from cai.engines.rewards import RewardModel
from cai.errors import Incomplete, OutOfTime, PrerequisiteError, SpecError, StepFailed
from cai.files.library import Library, shipped_root
from cai.launchers.base import Command, Server
from cai.launchers.outside import COMMANDS, Prepared
from cai.plan import Plan
from cai.run.watch import Silent
from tests.support.nemo_archives import config_member, nemo_archive
from tests.support.small_tokenizers import quickstart_spm


class Up:
    """A server that is up until it is stopped."""

    host = "127.0.0.1"

    def __init__(self, runner: Recorder, command: Command) -> None:
        self._runner, self._command = runner, command
        self.port = command.ready.port if command.ready else 0

    def wait_ready(self) -> None:
        self._runner.done.append(f"ready {self._command.role}")

    def check(self) -> None:
        if self._command in self._runner.dead:
            raise StepFailed(f"{self._command.role} is dead")

    def stop(self) -> None:
        self._runner.done.append(f"stop {self._command.role}")


class Recorder:
    """A runner that notes what it is asked; ``work`` is done for each command that is run."""

    def __init__(self, work: Callable[[Command], None] = lambda command: None) -> None:
        self.done: list[str] = []
        self.dead: list[Command] = []
        self.work = work

    def start(self, command: Command, log: Path) -> Server:
        self.done.append(f"start {command.role}")
        return Up(self, command)

    def run(self, command: Command, log: Path, beside: Sequence[Server] = ()) -> None:
        self.done.append(f"run {command.role}")
        self.work(command)

    def close(self) -> None:
        self.done.append("close")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    small = [
        "stages.sft.training.batch_size=8",
        "stages.reward.training.batch_size=8",
        "stages.rl.training.rollouts=64",
        "engine.steps.rl.val_samples=64",
    ]
    return compile_plan(["experiment=mistral_rl_cai", *small], Library((shipped_root(),)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    nemo_archive(folder / "model.nemo", [config_member(model="nemo:a.model"), ("a.model", quickstart_spm())])
    return folder


def opened(plan: Plan, runner: Recorder, tmp_path: Path) -> NemoAlignerEngine:
    return NemoAlignerEngine(engine_of(plan.engine)[1], plan, tmp_path / "run", runner)


def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "home" / "store")


def folders(plan: Plan, name: str, tmp_path: Path) -> tuple[Path, Path]:
    out, work = places(tmp_path).out(plan.step(name)), places(tmp_path).work(plan.step(name))
    out.mkdir(parents=True)
    work.mkdir(parents=True)
    return out, work


def chat() -> ChatTemplate:
    return ChatTemplate.from_file(shipped_root() / "prompt_templates" / "nemo_extra_id.jinja")


def conversations(n: int) -> list[TrainText]:
    template = chat()
    rows = [(Message("user", f"Question {i}?"), Message("assistant", f"Answer {i}.")) for i in range(n)]
    return [TrainText(str(i), template.spans(row), row) for i, row in enumerate(rows)]


def writes_result(plan: Plan, name: str, tmp_path: Path, text: str = "weights") -> Callable[[Command], None]:
    def work(command: Command) -> None:
        result = result_file(places(tmp_path), plan.step(name))
        result.parent.mkdir(parents=True, exist_ok=True)
        nemo_archive(result, [config_member(model="nemo:a.model"), ("model_weights.ckpt", text.encode())])
        (result.parent / "megatron_gpt_sft--val_loss=0.532-step=12-consumed_samples=96-epoch=0-last.ckpt").touch()

    return work


def weights(out: Path) -> str:
    return (out / "model" / "model_weights.ckpt").read_text()


def train_sft(session: NemoSession, model: Path, out: Path, work: Path):  # type: ignore[no-untyped-def]
    settings = SftSettings(batch_size=8, max_length=512)
    quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
    data = SftData(model, conversations(16), conversations(8))
    return session.train(SFT, data, settings, Attempt(1, out, work, quiet))


def test_training_writes_the_data_runs_the_command_and_keeps_the_result(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder(writes_result(plan, "sft", tmp_path))
    engine = opened(plan, runner, tmp_path)
    session = engine.session(plan.step("sft"))
    out, work = folders(plan, "sft", tmp_path)
    trained = train_sft(session, model, out, work)
    assert runner.done == ["run train"]
    assert weights(out) == "weights"
    lines = [json.loads(line) for line in (work / "data" / "train.jsonl").read_text().splitlines()]
    assert [line["conversations"][1]["value"] for line in lines] == [f"Answer {i}." for i in range(16)]
    assert trained.metrics["val_loss"] == 0.532
    assert trained.metrics["step"] == 12
    assert trained.metrics["train rows"] == 16


def test_a_finished_command_is_not_run_again_when_the_step_died_after_it(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder(writes_result(plan, "sft", tmp_path))
    engine = opened(plan, runner, tmp_path)
    session = engine.session(plan.step("sft"))
    out, work = folders(plan, "sft", tmp_path)
    train_sft(session, model, out, work)
    shutil.rmtree(out / "model")  # stopped before the artifact was whole
    train_sft(session, model, out, work)
    assert runner.done == ["run train"]
    assert weights(out) == "weights"


@pytest.mark.parametrize("before", [(), ("megatron_gpt_sft--val_loss=0.7-step=6-consumed_samples=48-epoch=0",)])
def test_a_result_that_was_being_written_when_it_died_is_not_taken(
    plan: Plan, model: Path, tmp_path: Path, before: tuple[str, ...]
):
    out, work = folders(plan, "sft", tmp_path)
    result = result_file(places(tmp_path), plan.step("sft"))
    for name in (*before, "megatron_gpt_sft--val_loss=0.5-step=12-consumed_samples=96-epoch=0-last"):
        (result.parent / name).mkdir(parents=True)
    result.write_text("half")
    attempts: list[list[str]] = []

    def work_of(command: Command) -> None:
        attempts.append(sorted(path.name for path in result.parent.glob("*-last")))
        if len(attempts) == 2:  # the first attempt resumes at the end of training and writes nothing, as upstream does
            writes_result(plan, "sft", tmp_path)(command)

    engine = opened(plan, Recorder(work_of), tmp_path)
    session = engine.session(plan.step("sft"))
    train_sft(session, model, out, work)
    assert [len(lasts) for lasts in attempts] == [1, len(before)]
    assert weights(out) == "weights"


def test_training_that_ends_at_its_time_limit_is_incomplete_and_goes_on(plan: Plan, model: Path, tmp_path: Path):
    out, work = folders(plan, "sft", tmp_path)
    checkpoints = result_file(places(tmp_path), plan.step("sft")).parent
    attempts: list[list[str]] = []

    def work_of(command: Command) -> None:
        attempts.append(sorted(path.name for path in checkpoints.glob("*-last")))
        if len(attempts) == 3:
            return writes_result(plan, "sft", tmp_path)(command)
        (checkpoints / f"megatron_gpt_sft--val_loss=0.5-step={5 * len(attempts)}-epoch=0-last").mkdir(parents=True)
        return None

    engine = opened(plan, Recorder(work_of), tmp_path)
    session = engine.session(plan.step("sft"))
    for step in (5, 10):
        with pytest.raises(OutOfTime, match=f"sft: training ended at its time limit, after step {step}; run the same"):
            train_sft(session, model, out, work)
    train_sft(session, model, out, work)
    assert [len(lasts) for lasts in attempts] == [0, 1, 1]
    assert weights(out) == "weights"


def test_commands_that_a_script_ran_are_told_apart_in_the_same_way(
    plan: Plan, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, work = folders(plan, "sft", tmp_path)
    checkpoints = result_file(places(tmp_path), plan.step("sft")).parent
    engine = opened(plan, Recorder(), tmp_path)
    session = engine.session(plan.step("sft"))

    def half(which: str, error: type[Exception], match: str) -> None:
        monkeypatch.setenv(COMMANDS, which)
        engine._runner = make_runner(engine.settings) if which == "prepare" else Recorder()
        with pytest.raises(error, match=match):
            train_sft(session, model, out, work)

    last = checkpoints / "megatron_gpt_sft--val_loss=0.5-step={}-epoch=0-last"
    half("prepare", Prepared, "run it now")
    Path(str(last).format(5)).mkdir(parents=True)
    half("finish", OutOfTime, "after step 5")
    Path(str(last).format(9)).mkdir()
    half("prepare", Prepared, "run it now")
    assert [path.name for path in checkpoints.iterdir()] == [last.name.format(9)]
    half("finish", Incomplete, r"sft: no \.nemo was written; do it again, from step 0")
    assert not checkpoints.exists()


def test_a_command_that_ends_well_without_a_result_is_an_error(plan: Plan, model: Path, tmp_path: Path):
    engine = opened(plan, Recorder(), tmp_path)
    session = engine.session(plan.step("sft"))
    with pytest.raises(StepFailed, match=r"training ended without .*megatron_gpt_sft\.nemo"):
        train_sft(session, model, *folders(plan, "sft", tmp_path))


def test_too_few_rows_for_a_batch_are_an_error_before_anything_runs(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder()
    engine = opened(plan, runner, tmp_path)
    session = engine.session(plan.step("sft"))
    out, work = folders(plan, "sft", tmp_path)
    quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
    data = SftData(model, conversations(7), conversations(8))
    with pytest.raises(SpecError, match="batch of 8"):
        session.train(SFT, data, SftSettings(batch_size=8), Attempt(1, out, work, quiet))
    assert runner.done == []


def test_the_critic_is_up_before_the_actor_and_down_after_it(plan: Plan, model: Path, tmp_path: Path):
    for fails in (False, True):
        runner = Recorder(writes_result(plan, "rl", tmp_path))
        if fails:
            runner.work = _raises
        engine = opened(plan, runner, tmp_path)
        session = engine.session(plan.step("rl"))
        out, work = places(tmp_path).out(plan.step("rl")), places(tmp_path).work(plan.step("rl"))
        out.mkdir(parents=True, exist_ok=True)
        (work / "trained").unlink(missing_ok=True)
        template = chat()
        prompts = [PromptText(str(i), template.prompt((Message("user", f"Q {i}?"),))) for i in range(200)]
        quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
        settings = RlSettings(rollouts=64, max_prompt_tokens=256)

        def go(session=session, prompts=prompts, settings=settings, out=out, work=work, quiet=quiet):  # type: ignore[no-untyped-def]
            data = PpoData(model, RewardModel(model), prompts)
            return session.train(PPO, data, settings, Attempt(3, out, work, quiet))

        if fails:
            with pytest.raises(StepFailed, match="no luck"):
                go()
        else:
            told = go()
            assert told.metrics["val rows"] == 64
            assert told.metrics["train rows"] == 136
        assert runner.done == ["start critic", "ready critic", "run actor", "stop critic"]


def _raises(command: Command) -> None:
    raise StepFailed("no luck")


def ppo_files(tmp_path: Path, model: Path, prompts: int, iterations: int) -> tuple[list[str], list[str], Trained]:
    """Training and validation prompts for ``iterations`` of 16 rollouts."""
    template, folder = chat(), tmp_path / f"{prompts}-{iterations}"
    texts = [PromptText(str(i), template.prompt((Message("user", f"Q {i}?"),))) for i in range(prompts)]
    settings = RlSettings(iterations=iterations, rollouts=16, max_prompt_tokens=256)
    told = write_prompts(folder, texts, settings, tokens=open_tokenizer(model), val_samples=16, seed=5)
    train, held = ((folder / f"{part}.jsonl").read_text().splitlines() for part in ("train", "val"))
    return train, held, told


def test_a_held_out_prompt_is_in_one_file_only_and_adding_one_moves_few(model: Path, tmp_path: Path):
    drawn = []
    for prompts in (100, 101):
        train, held, _ = ppo_files(tmp_path, model, prompts, 3)
        assert not set(train) & set(held)
        drawn.append(set(held))
    assert len(drawn[0] - drawn[1]) <= 1


def test_ppo_has_exactly_the_prompts_of_its_iterations(model: Path, tmp_path: Path):
    """Upstream's training is one pass over the file, and its learning rate's schedule as long as that."""
    train, held, told = ppo_files(tmp_path, model, 100, 3)
    assert (len(train), len(set(train)), len(held)) == (48, 48, 16)
    assert told.metrics["prompts not drawn"] == 100 - 16 - 48
    again, _, told = ppo_files(tmp_path, model, 100, 12)
    times = Counter(Counter(again).values())
    assert len(again) == 12 * 16
    assert times == {2: 84 - 24, 3: 24}  # 84 prompts twice, 24 of them once more
    assert (told.metrics["train rows"], told.metrics["train samples"]) == (84, 192)
    assert set(train) <= set(again)


def test_soft_labels_of_validation_pairs_are_counted_once(plan: Plan, model: Path, tmp_path: Path):
    from cai.data.nemo_tokens import open_tokenizer
    from cai.engines.nemo_aligner.datasets import write_pairs
    from cai.engines.nemo_aligner.settings import Hard, LabelSettings

    template, asked = chat(), (Message("user", "Q?"),)
    prompt = template.prompt(asked)
    pairs = [
        PairText(str(i), prompt, template.answer(asked, f"good {i}"), template.answer(asked, f"bad {i}"), 0.7)
        for i in range(20)
    ]
    labels = LabelSettings(how=Hard.REPLICAS, replicas=4)
    settings = RewardSettings(batch_size=4, max_length=512)
    data = RewardData(model, pairs, pairs)
    told = write_pairs(tmp_path / "data", data, settings, tokens=open_tokenizer(model), labels=labels, seed=0)
    assert len((tmp_path / "data" / "train.jsonl").read_text().splitlines()) == 20 * 4 * 2
    assert len((tmp_path / "data" / "val.jsonl").read_text().splitlines()) == 20 * 2
    assert told.metrics["train samples"] == 80
    assert told.dropped == {}


def test_servers_stay_for_the_next_step_that_needs_the_same_and_go_for_training(
    plan: Plan, model: Path, tmp_path: Path
):
    runner = Recorder()
    engine = opened(plan, runner, tmp_path)
    helpful = places(tmp_path).artifact(plan.step("helpful"))
    helpful.parent.mkdir(parents=True)
    model.rename(helpful)
    session = engine.session(plan.step("respond"))
    session.client(helpful).close()
    started = [f"start server{'' if i == 0 else f'-{i}'}" for i in range(8)]
    assert runner.done[:8] == started
    before = len(runner.done)
    session.close()
    session = engine.session(plan.step("revise"))
    session.client(helpful).close()
    assert len(runner.done) == before
    session.close()
    session = engine.session(plan.step("sft"))
    assert [line for line in runner.done[before:] if line.startswith("stop")] == [
        s.replace("start", "stop") for s in started
    ]


def test_servers_that_died_between_two_steps_are_started_again(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder()
    engine = opened(plan, runner, tmp_path)
    helpful = places(tmp_path).artifact(plan.step("helpful"))
    helpful.parent.mkdir(parents=True)
    model.rename(helpful)
    session = engine.session(plan.step("respond"))
    session.client(helpful).close()
    runner.dead.append(
        step_commands(plan, Places(places(tmp_path).store, str(tmp_path / "run" / "plan.json")))["respond"][1]
    )
    session.close()
    session = engine.session(plan.step("revise"))
    session.client(helpful).close()
    assert runner.done.count("start server") == 2


def test_two_sessions_at_once_each_keep_the_servers_they_speak_to(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder()
    engine = opened(plan, runner, tmp_path)
    helpful, tuned = (places(tmp_path).artifact(plan.step(name)) for name in ("helpful", "sft"))
    helpful.parent.mkdir(parents=True)
    shutil.copytree(model, helpful)
    shutil.copytree(model, tuned)
    first, second = engine.session(plan.step("respond")), engine.session(plan.step("sample"))
    asked = first.client(helpful)
    other = second.client(tuned)
    assert not [line for line in runner.done if line.startswith("stop")]
    asked.close()
    first.close()
    engine.session(plan.step("sample")).client(tuned).close()
    assert len([line for line in runner.done if line.startswith("stop")]) == 8
    other.close()


def test_a_nemo_file_is_unpacked_once_and_its_digest_checked(plan: Plan, model: Path, tmp_path: Path):
    runner = Recorder()
    engine = opened(plan, runner, tmp_path)
    session = engine.session(plan.step("base"))
    out, _ = folders(plan, "base", tmp_path)
    quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
    about = session.fetch(ModelSource(f"nemo:{model / 'model.nemo'}"), out, quiet)
    assert {path.name for path in (out / "model").iterdir()} == {"model_config.yaml", "a.model"}
    assert (out / "model" / "a.model").read_bytes() == quickstart_spm()
    assert open_tokenizer(out).ids("How") == open_tokenizer(model).ids("How")
    assert about["format"] == "nemo"
    with pytest.raises(PrerequisiteError, match="SHA-256"):
        session.fetch(ModelSource(f"nemo:{model / 'model.nemo'}", sha256="0" * 64), out, quiet)
    with pytest.raises(PrerequisiteError, match="no such file"):
        session.fetch(ModelSource("nemo:/nowhere/x.nemo"), out, quiet)
    assert runner.done == []


def test_a_folder_that_brings_code_is_not_given_to_upstreams_converter(plan: Plan, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "x.X"}}))
    runner = Recorder()
    session = opened(plan, runner, tmp_path).session(plan.step("base"))
    out, _ = folders(plan, "base", tmp_path)
    quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
    with pytest.raises(PrerequisiteError, match="auto_map"):
        session.fetch(ModelSource(f"hf:{folder}"), out, quiet)
    assert runner.done == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_nemo_file_cannot_write_outside_of_its_folder(plan: Plan, tmp_path: Path, name: str):
    engine = opened(plan, Recorder(), tmp_path)
    session = engine.session(plan.step("base"))
    out, _ = folders(plan, "base", tmp_path)
    bad = nemo_archive(tmp_path / "bad" / "x.nemo", [config_member(model="nemo:a.model"), (name, b"x")])
    quiet = Silent().step_started(None, False)  # type: ignore[arg-type]
    with suppress(PrerequisiteError):  # an absolute name is taken as one below the folder, the others are refused
        session.fetch(ModelSource(f"nemo:{bad}"), out, quiet)
    assert [path for path in tmp_path.rglob("outside") if path.parent != out / "model"] == []
    assert not Path("/outside").exists()
    (tmp_path / "text.nemo").write_text("no archive")
    with pytest.raises(PrerequisiteError, match=r"no \.nemo that can be unpacked"):
        session.fetch(ModelSource(f"nemo:{tmp_path / 'text.nemo'}"), out, quiet)


def test_a_model_of_an_older_store_is_loaded_from_its_archive(plan: Plan, tmp_path: Path):
    """Artifacts that hold a packed .nemo keep their keys; their commands name the file."""
    settings, step = engine_of(plan.engine)[1], plan.step("sft")
    base = places(tmp_path).artifact(plan.step("base"))

    def restored() -> str:
        (train,) = [c for c in commands(settings, plan, step, places(tmp_path)) if c.command.role == "train"]
        return str(next(o.value for o in train.overrides if o.key == "model.restore_from_path"))

    assert restored() == str(base / "model")
    nemo_archive(base / "model.nemo", [config_member(model="nemo:a.model"), ("a.model", quickstart_spm())])
    assert restored() == str(base / "model.nemo")
    assert open_tokenizer(base).ids("How")
