"""NVIDIA's guide and the plan differ where docs/nemo_parity.yaml says so and why, and docs/nemo.md shows it.

CAI_WRITE_GOLDEN=1 pytest tests/engines/nemo_aligner/test_parity.py writes the tables anew; read what changed in them.
CAI_UPSTREAM names upstream's configs, CAI_GUIDE the guide's own text (docs/user-guide/cai.rst of NeMo-Aligner v0.7.0).
"""

from __future__ import annotations

import copy
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cai.commands.planning import compile_plan
from cai.engines.nemo_aligner.schedule import curve_of
from cai.engines.nemo_aligner.survey import survey_plan
from cai.engines.nemo_aligner.upstream import Configs, find
from cai.plan import Plan
from tests.support.nemo_guide import guide_commands
from tests.support.nemo_parity import DATA, DOC, GuideCommand, Parity, Row, Verdict, document, equal, load

pytestmark = pytest.mark.long

UPSTREAM, GUIDE = os.environ.get("CAI_UPSTREAM", ""), os.environ.get("CAI_GUIDE", "")
EXPERIMENT = "experiment=mistral_rl_cai"


@cache
def plan_of(*changes: str) -> Plan:
    return compile_plan([EXPERIMENT, *changes])


@cache
def parity() -> Parity:
    return Parity(load(), plan_of())


def laid_out(step: str, part: str, **overrides: Any) -> Plan:
    """The plan with other overrides of upstream's config; ``__`` stands for a dot, None leaves a key out."""
    plan = plan_of()
    engine = copy.deepcopy(plan.engine)
    here = engine["steps"][step][part] if part else engine["steps"][step]
    for name, value in overrides.items():
        key = name.replace("__", ".")
        if value is None:
            del here["overrides"][key]
        else:
            here["overrides"][key] = value
    return replace(plan, engine=engine)


def changed(name: str, flag: str, **fields: Any) -> tuple[GuideCommand, ...]:
    """The table with one row changed; a field of None is left out."""
    made = []
    for command in load():
        rows = [
            _row(row, fields) if command.name == name and flag in (row.flag, row.what) else row for row in command.rows
        ]
        made.append(replace(command, rows=tuple(rows)))
    return tuple(made)


def _row(row: Row, fields: dict[str, Any]) -> Row:
    named = (row.given | fields.keys()) - {key for key, value in fields.items() if value is None}
    blank = {field: getattr(Row(row.verdict), field) for field, value in fields.items() if value is None}
    return replace(row, **{**fields, **blank, "given": frozenset(named)})


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_every_difference_from_the_guide_has_a_reason() -> None:
    assert parity().problems() == []


def test_the_page_shows_the_table() -> None:
    shown = document(DOC.read_text(encoding="utf-8"), parity().markdown())
    if os.environ.get("CAI_WRITE_GOLDEN"):
        DOC.write_text(shown, encoding="utf-8")
    assert DOC.read_text(encoding="utf-8") == shown, (
        "run CAI_WRITE_GOLDEN=1 pytest tests/engines/nemo_aligner/test_parity.py"
    )


def test_the_guide_has_fifteen_commands_and_each_of_its_flags_a_row() -> None:
    table = load()
    assert len(table) == 15
    for command in table:
        assert set(command.flags) == {row.flag for row in command.rows if row.flag and "guide" in row.given}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("stages.rl.training.kl_coefficient=0.05", "initial_policy_kl_penalty: 'same', but the guide has 0.02"),
        ("stages.sft.training.learning_rate=2e-6", "model.optim.lr: 'same', but the guide has 1e-06"),
        ("stages.rl.training.gamma=0.99", "rl.actor: trainer.ppo.discount_factor=0.99, upstream's default is 1.0"),
        ("stages.sample.sampling.top_k=40", "--top_k: 'same', but the guide has 50 and the plan 40"),
        ("stages.respond.sampling.repetition_penalty=1.0", "--greedy: 'mended', but both have True"),
        (
            "stages.revise.critique_sampling.max_tokens=512",
            "revise.critique_sampling: tokens_to_generate is 512, not 1024",
        ),
        ("stages.sample.temperatures=[1.0,1.0,1.0,1.0]", "--temperature: 'same'"),
        ("stages.revise.rounds=4", "rounds: 'same', but the guide has 1 and the plan 4"),
        ("stages.sft.model=helpful", "model.restore_from_path: 'same', but the guide has base/model"),
        ("engine.steps.sft.val_batches=0", "the plan has no 'override sft.train trainer.sft.limit_val_batches'"),
        ("engine.servers.default.port=6000", "port: 'same', but the guide has 5999 and the plan 6000"),
        ("+engine.servers.default.overrides.chat=true", "respond.server.helpful: chat=True is in no row"),
    ],
)
def test_another_value_of_the_experiment_is_found(change: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    problems = Parity(load(), plan_of(change)).problems()
    assert any(problem in each for each in problems), problems


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ("reward", "", {"model__optim__overlap_grad_sync": True}),
            "reward.train: model.optim.overlap_grad_sync=True is in",
        ),
        (("reward", "", {"model__optim__bucket_cap_mb": 100}), "does not leave model.optim.bucket_cap_mb"),
        (
            ("rl", "critic", {"model__offload_adam_states": None}),
            "the plan has no 'override rl.critic model.offload_adam",
        ),
        (
            ("rl", "", {"model__optim__sched__constant_steps": 0}),
            "rl.actor: model.optim.sched.constant_steps=0, upstream",
        ),
        (("sft", "", {"model__optim__sched__min_lr": None}), "sft.train: model.optim.sched.min_lr is said no more"),
    ],
)
def test_another_override_is_found(overrides: tuple[str, str, dict[str, Any]], problem: str) -> None:
    step, part, values = overrides
    problems = Parity(load(), laid_out(step, part, **values)).problems()
    assert any(problem in each for each in problems), problems


def test_a_value_that_differs_with_a_reason_is_seen_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reason may no longer hold, so that somebody must look at it."""
    monkeypatch.delenv("CAI_UPSTREAM", raising=False)
    servers = "+engine.servers.helpful={count: 4, devices: 2, tensor_parallel: 2, port: 5999}"
    for change in ("stages.rl.training.iterations=260", "stages.rm_mix.val=0.1", servers):
        changed_parity = Parity(load(), plan_of(change))
        assert changed_parity.problems() == []
        assert changed_parity.markdown() != parity().markdown()


# ---- the table -------------------------------------------------------------------------------------------------------

SFT, RM = "3. train_gpt_sft.py", "5. train_reward_model.py"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            (SFT, "trainer.devices", {"verdict": Verdict.SAME}),
            "trainer.devices: 'same', but the guide has 1 and the plan 8",
        ),
        ((SFT, "trainer.devices", {"reason": ""}), "trainer.devices: 'departed' without a reason"),
        (
            (SFT, "model.optim.lr", {"verdict": Verdict.MENDED, "reason": "x"}),
            "model.optim.lr: 'mended', but both have",
        ),
        ((SFT, "model.optim.lr", {"guide": None, "default": 1e-6}), "model.optim.lr of the guide has no row"),
        (
            (SFT, "trainer.devices", {"guide": 1, "default": None}),
            "trainer.devices has a row with a value of the guide too",
        ),
        ((RM, "updates", {"planned": "updates sfd.train"}), "the plan has no 'updates sfd.train'"),
        ((RM, "updates", {"reason": "{field stages.rm.val}"}), "the plan has no 'field stages.rm.val'"),
    ],
)
def test_a_table_that_is_wrong_is_found(row: tuple[str, str, dict[str, Any]], problem: str) -> None:
    name, flag, fields = row
    problems = Parity(changed(name, flag, **fields), plan_of()).problems()
    assert any(problem in each for each in problems), problems


def test_a_command_that_no_row_is_about_is_found() -> None:
    table = tuple(command for command in load() if command.name != RM)
    assert "reward.train: a command of the plan that is in no row" in list(Parity(table, plan_of())._overrides())


def test_an_unknown_field_of_a_row_is_refused() -> None:
    text = DATA.read_text(encoding="utf-8").replace("verdict: mended, reason: ", "verdict: mended, raeson: ", 1)
    with pytest.raises(TypeError, match="raeson"):
        load(text)


@pytest.mark.parametrize(
    ("left", "right", "alike"),
    [
        (1e-6, 1.0e-06, True),
        ("1e-06", 1e-6, True),
        (True, "True", True),
        ("'<extra_id_0>'", "<extra_id_0>", True),
        (None, "null", True),
        (1, 1.0, True),
        (1, True, False),
        (0, None, False),
        ([1, "a"], [1.0, "a"], True),
        ("bf16", "bf16-mixed", False),
    ],
)
def test_values_are_compared_as_hydra_reads_them(left: Any, right: Any, alike: bool) -> None:
    assert equal(left, right) is alike


def test_every_reason_is_short() -> None:
    for command in load():
        for row in command.rows:
            assert len(row.reason) < 240, (command.name, row.flag or row.what)
            assert not row.reason.endswith("."), (command.name, row.flag or row.what)


# ---- upstream --------------------------------------------------------------------------------------------------------


def configs() -> Configs:
    return find(parity().reading.settings, {command.config for command in load() if command.config})


@pytest.mark.skipif(not UPSTREAM, reason="CAI_UPSTREAM names no folder with upstream's configs")
def test_upstream_has_the_defaults_that_the_table_names() -> None:
    assert parity().upstream_problems(configs()) == []


@pytest.mark.skipif(not UPSTREAM, reason="CAI_UPSTREAM names no folder with upstream's configs")
def test_another_default_of_upstream_is_found() -> None:
    files: dict[str, Any] = dict(configs().files)
    files["training_rm.yaml"] = OmegaConf.merge(
        files["training_rm.yaml"],
        {"trainer": {"num_nodes": 4}, "model": {"optim": {"weight_decay": 0.2}, "sequence_parallel": False}},
    )
    assert parity().upstream_problems(replace(configs(), files=files)) == [
        "training_rm.yaml: model.optim.weight_decay is 0.2, not 0.1",
        "training_rm.yaml: trainer.num_nodes is 4, not 8",
        "training_rm.yaml: model.sequence_parallel is there: False",
    ]


@pytest.mark.skipif(not UPSTREAM, reason="CAI_UPSTREAM names no folder with upstream's configs")
def test_the_rates_are_those_that_the_plan_tells() -> None:
    surveyed = survey_plan(parity().reading.settings, plan_of(), str)
    for name in ("sft.train", "reward.train", "rl.critic", "rl.actor"):
        step, _, role = name.partition(".")
        trainer = surveyed.role(plan_of().step(step), role)
        assert trainer is not None
        assert curve_of(surveyed, plan_of().step(step), trainer) == parity().reading.curve(name)


@pytest.mark.skipif(not GUIDE, reason="CAI_GUIDE does not name the guide's text")
def test_the_guide_says_what_the_table_says_of_it() -> None:
    guide, table = guide_commands(Path(GUIDE).read_text(encoding="utf-8")), load()
    assert len(guide) == len(table)
    for (script, flags), command in zip(guide, table, strict=True):
        assert script in command.name
        assert list(command.flags) == list(flags)
        for row in command.rows:
            if row.flag and "guide" in row.given:
                assert _as_written(row.guide, flags[row.flag]), (command.name, row.flag, flags[row.flag])


def _as_written(value: Any, written: Any) -> bool:
    """Equal, or where the table cuts a long value with three dots, its beginning."""
    if isinstance(value, str) and value.endswith("..."):
        return re.sub(r"\s+", " ", str(written)).startswith(value.removesuffix("..."))
    return equal(value, written)
