"""Lengths and learning rates: upstream's samplers, trainers and scheduler against what the plan says of them.

Rows are as many as the plan expects, unscaled; a data set of that length stands in for the rows themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cai.data.nemo_tokens import open_tokenizer
from cai.engines import engine_of
from cai.engines.methods.ppo import RlSettings
from cai.engines.nemo_aligner.commands import CHAT_TOKENS, Compiled
from cai.engines.nemo_aligner.schedule import curve_of, updates_of
from cai.engines.nemo_aligner.survey import PlanSurvey, survey_plan
from cai.plan import Step
from tests.lab import samples
from tests.lab.building import SECTIONS, Built
from tests.lab.chain import CHAIN, ChainRun
from tests.lab.planned import plan_of
from tests.lab.validated import Validated


class Rows:
    """A data set of a length."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> int:
        return index


@pytest.fixture
def looked(run: ChainRun, monkeypatch: pytest.MonkeyPatch) -> PlanSurvey:
    plan = plan_of(run.experiment)
    _, settings = engine_of(plan.engine)
    return survey_plan(settings, plan, str)


@pytest.fixture(autouse=True)
def _ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data-parallel ranks need processes; here their number is what the model was built for, and this is the first."""
    from megatron.core import parallel_state as core
    from nemo.utils import AppState
    from nemo_aligner.utils import parallel_state

    for module in (core, parallel_state):
        monkeypatch.setattr(module, "get_data_parallel_world_size", lambda *a, **k: AppState().data_parallel_size)
        monkeypatch.setattr(module, "get_data_parallel_rank", lambda *a, **k: 0)


def _training_rows(looked: PlanSurvey, step: Step, command: Compiled) -> int:
    """Lines of the training file, as many as the plan expects."""
    if step.kind == "rl":
        method = RlSettings.model_validate(step.spec["training"])
        return method.iterations * method.rollouts
    return updates_of(looked, step, command) * int(step.spec["training"]["batch_size"]) + 5


@pytest.mark.parametrize(("name", "start"), CHAIN)
def test_the_plan_tells_the_rate_of_every_update(
    run: ChainRun, looked: PlanSurvey, name: str, start: str, validated: Validated
) -> None:
    import torch
    from nemo.core.optim.lr_scheduler import prepare_lr_scheduler

    made, command = run.build(name, start) if start == "converted" else _on(run, name, start), run.commands[name]
    step = plan_of(run.experiment).step(name.partition(".")[0])
    found = looked.role(step, command.command.role)
    assert found is not None
    told = curve_of(looked, step, found)
    assert told is not None
    config = made.config
    rows = Rows(_training_rows(looked, step, found))
    total = _max_steps(made, step, rows)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.model.optim.lr)
    sched = OmegaConf.to_container(config.model.optim.sched, resolve=True)
    assert isinstance(sched, dict)
    if sched.get("max_steps") is None:
        sched["max_steps"] = total
    schedule = prepare_lr_scheduler(optimizer, sched)["scheduler"]
    rates = []
    for _ in range(told.updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([told.rate(i) for i in range(told.updates)], rel=1e-9)
    assert sum(rates) / len(rates) == pytest.approx(told.mean)
    validated.lines.append(f"{run.experiment}: {name}: {told.words()}: the real scheduler's")


def _on(run: ChainRun, name: str, start: str) -> Built:
    run.chain(*next(link for link in CHAIN if link[0] == start))
    return run.build(name, start)


def _max_steps(made: Built, step: Step, rows: Rows) -> int:
    """For how many updates upstream lays its schedule out: by the very calls of its scripts."""
    import torch
    from nemo_aligner.data.nlp.builders import build_dataloader
    from nemo_aligner.utils import parallel_state

    config, model = made.config, made.model
    if step.kind == "rl":
        share = config.model.global_batch_size // parallel_state.get_data_parallel_world_size()
        model._train_dl = torch.utils.data.DataLoader(dataset=rows, batch_size=share)
    else:
        sizes = config.model.data.train_ds if step.kind == "sft" else config.model
        model._train_dl = build_dataloader(
            cfg=config,
            dataset=rows,
            consumed_samples=0,
            mbs=sizes.micro_batch_size,
            gbs=sizes.global_batch_size,
            load_gbs=True,
        )
    return int(model._get_max_steps())


def test_ppo_makes_the_iterations_that_are_asked_for(run: ChainRun, looked: PlanSurvey) -> None:
    from nemo_aligner.algorithms.ppo import PPOTrainer
    from nemo_aligner.data.nlp.builders import build_dataloader
    from nemo_aligner.utils.trainer_utils import compute_num_steps_per_epoch

    made = _on(run, "rl.actor", "sft.train")
    step = plan_of(run.experiment).step("rl")
    method = RlSettings.model_validate(step.spec["training"])
    config = made.config
    loader = build_dataloader(
        cfg=config,
        dataset=Rows(method.iterations * method.rollouts),
        consumed_samples=0,
        mbs=config.model.ppo.rollout_micro_batch_size,
        gbs=config.model.ppo.num_rollout_samples,
        load_gbs=False,
    )
    trainer = PPOTrainer.__new__(PPOTrainer)
    trainer.cfg = config.trainer.ppo
    trainer.num_steps_per_epoch = compute_num_steps_per_epoch(loader.batch_sampler)
    trainer.set_max_steps()
    assert trainer.max_steps == method.iterations
    # What each of them trains: upstream's schedule is laid out for exactly that.
    updates = method.iterations * (method.rollouts // method.batch_size)
    assert config.model.optim.sched.max_steps == updates
    if config.trainer.devices == config.model.tensor_model_parallel_size:
        assert _max_steps(made, step, Rows(method.iterations * method.rollouts)) == updates


@pytest.mark.parametrize(("name", "start"), [link for link in CHAIN if link[0] != "rl.critic"])
def test_our_files_are_read_with_the_planned_settings(
    run: ChainRun, name: str, start: str, tmp_path: Path, validated: Validated
) -> None:
    made = _on(run, name, start) if start != "converted" else run.build(name, start)
    files = samples.write(tmp_path / "files", open_tokenizer(run.checkpoints["converted"]))
    data = _data_set(made, name, files)
    assert len(data) == samples.ROWS
    items = [data[i] for i in range(samples.ROWS)]
    if name == "sft.train":
        assert all(0 < int(item["mask"].sum()) < len(item["mask"]) for item in items)
    elif name == "reward.train":
        assert all(int(item["chosen_length"]) > 1 and int(item["rejected_length"]) > 1 for item in items)
    else:
        assert all(float(item["loss_multiplier"]) == 1.0 for item in items)
    validated.files.update(samples.digests(files))
    validated.lines.append(f"{run.experiment}: {name}: {type(data).__name__}: {len(data)} rows")


def _data_set(made: Built, name: str, files: dict[str, Path]) -> Any:
    from nemo_aligner.data.nlp import builders

    config = made.config
    if name == "sft.train":
        assert dict(config.model.data.chat_prompt_tokens) == dict(CHAT_TOKENS)
        config.model.data.train_ds.file_path = str(files["sft"])
        return builders.build_sft_dataset(
            config.model.data.train_ds,
            made.model.tokenizer,
            None,
            answer_only_loss=True,
            is_chat=config.model.data.chat,
            special_tokens=config.model.data.chat_prompt_tokens,
            model_cfg=config.model,
        )
    path = str(files["pairs" if name == "reward.train" else "prompts"])
    build = "rm" if name == "reward.train" else "rlhf"
    train, _, _ = getattr(builders, f"build_train_valid_test_{build}_datasets")(
        cfg=config.model,
        data_prefix=OmegaConf.create({part: [path] for part in ("train", "validation", "test")}),
        data_impl=config.model.data.data_impl,
        splits_string=config.model.data.splits_string,
        train_valid_test_num_samples=[-1, -1, -1],
        seq_length=config.model.data.seq_length,
        seed=config.model.seed,
        tokenizer=made.model.tokenizer,
    )
    return train


def test_the_trainer_section_is_the_one_that_the_script_takes_out(run: ChainRun) -> None:
    for command in run.commands.values():
        if section := SECTIONS.get(command.config):
            assert any(o.key.startswith(f"trainer.{section}.") for o in command.overrides)
