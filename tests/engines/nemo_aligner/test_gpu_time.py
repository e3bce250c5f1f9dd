"""Times of GPU steps: against calculations by hand and a published one, and what is said where they are not known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cai.commands.planning import compile_plan
from cai.engines import engine_of, gpu_times, step_commands
from cai.engines.base import GpuTime, Places
from cai.engines.nemo_aligner import gpu_time
from cai.engines.nemo_aligner.gpu_time import PEAKS, Rates, drawing, step_bytes
from cai.engines.nemo_aligner.memory import Shape
from cai.engines.nemo_aligner.settings import Gpu, ServerLayout
from cai.files.library import Library, shipped_root
from cai.plan import Plan
from cai.planning.rates import with_times
from cai.run.status import Action, StepStatus, statuses
from cai.store.artifacts import RECORD_FORMAT, Store
from cai.terminal.plan_view import plan_data, print_plan, render_plan

pytestmark = pytest.mark.long

MISTRAL = Shape(7.24e9, 32, 4096, 32, 8, exact=True)
H100 = Rates(PEAKS[Gpu.H100], 0.4)
SLURM = ["engine.cluster.nodes=2", "engine.launcher={kind: slurm, partition: gpu, cpu_partition: cpu}"]


HUNDRED = "stages.rl.training.iterations=100"
"""Iterations of PPO in these sums, however many the shipped experiment has."""


def compiled(*overrides: str, name: str = "mistral_rl_cai") -> Plan:
    words = [f"experiment={name}", "engine.program=python", HUNDRED, *overrides]
    return compile_plan(words, Library((shipped_root(),)))


def times(*overrides: str, name: str = "mistral_rl_cai") -> dict[str, GpuTime]:
    return dict(gpu_times(compiled(*overrides, name=name)).steps)


def shown(plan: Plan, store: Store, width: int = 80) -> str:
    out = StringIO()
    print_plan(with_times(plan, store), statuses(plan, store), console=Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.prepare()
    return store


# The formula


def test_training_takes_as_long_as_the_papers_say() -> None:
    """arXiv 2104.04473 (5.1): GPT-3, 175B parameters, 300B tokens, 1024 A100s at 140 TFLOP/s each: 34 days."""
    reached = Rates(PEAKS[Gpu.A100], 140 / 312)
    days = reached.computing(gpu_time.RECOMPUTED * 175e9 * 300e9, 1024) / 86400
    assert days == pytest.approx(34, rel=0.01)


def test_a_step_of_drawing_reads_weights_and_cache_once() -> None:
    # 14.48 GB of weights, and 128 texts of 560 tokens with 128 KiB each: 9.4 GB.
    size = 2 * 7.24e9 + 128 * 560 * 128 * 1024
    assert step_bytes(MISTRAL, ServerLayout(), 128, 560) == pytest.approx(size)
    assert step_bytes(MISTRAL, ServerLayout(tensor_parallel=4), 128, 560) == pytest.approx(size / 4)
    # Stages of a pipeline wait for each other.
    assert step_bytes(MISTRAL, ServerLayout(pipeline_parallel=4), 128, 560) == pytest.approx(size)
    # 0.4 of 3.35 TB/s: 17.9 ms a step; 1,024 tokens for 1,024 texts on 8 servers are 1,024 steps.
    seconds = drawing(H100, MISTRAL, ServerLayout(), tokens=1024 * 1024, batch=128, copies=8, length=560)
    assert seconds == pytest.approx(1024 * size / (0.4 * 3.35e12))
    assert seconds == pytest.approx(18.2, rel=0.01)


def test_twice_the_gpus_or_the_utilisation_halve_the_time() -> None:
    assert H100.computing(1e18, 16) == pytest.approx(H100.computing(1e18, 8) / 2)
    assert Rates(PEAKS[Gpu.H100], 0.8).reading(1e12) == pytest.approx(H100.reading(1e12) / 2)
    assert {gpu.value: (peak.flops, peak.bandwidth) for gpu, peak in PEAKS.items()} == {
        "A100": (312e12, 2.039e12),
        "H100": (989e12, 3.35e12),
        "H200": (989e12, 4.8e12),
    }


# The steps of a plan


def test_a_reward_model_is_trained_on_padded_pairs() -> None:
    found = times()["reward"]
    plan = compiled()
    rows = plan.step("reward").estimate.rows
    reached = 0.4 * 989e12 * 8
    # 80 % of the pairs train, two texts of 4,096 tokens each, 8 FLOP: all layers are recomputed.
    assert found.parts["training"] == pytest.approx(8 * 7.24e9 * rows * 0.8 * 2 * 4096 / reached)
    # 212 updates of 512 pairs, measured every 25 and at the end: 9 times the other 20 %.
    assert int(rows * 0.8 // 512) == 212
    assert found.parts["validation"] == pytest.approx(2 * 7.24e9 * rows * 0.2 * 9 * 2 * 4096 / reached)
    assert (found.gpus, found.nodes) == (8, 1)
    assert found.seconds == pytest.approx(7.07 * 3600, rel=0.01)
    assert "padded to 4,096 tokens" in found.assumes


def test_supervised_training_reads_the_tokens_that_the_plan_counts() -> None:
    step, found = compiled().step("sft"), times()["sft"]
    reached = 0.4 * 989e12 * 8
    assert found.parts["training"] == pytest.approx(6 * 7.24e9 * step.estimate.tokens * 0.95 / reached)
    # 1,080 updates, measured every 50: 22 times 40 batches of 128 rows of 96 tokens.
    assert found.parts["validation"] == pytest.approx(2 * 7.24e9 * 22 * 40 * 128 * 96 / reached, rel=0.01)
    assert found.assumes == "rows of 96 tokens; 43 times as much where every row has 4,096"
    twice = times("stages.sft.training.epochs=2")["sft"]
    assert twice.parts["training"] == pytest.approx(2 * found.parts["training"])


def test_pairs_that_are_written_several_times_count_as_often() -> None:
    four = times(name="paper_rl_cai")["reward"]
    one = times("engine.labels={how: margin}", name="paper_rl_cai")["reward"]
    assert four.parts["training"] == pytest.approx(4 * one.parts["training"])


def test_answers_are_drawn_by_all_servers_and_prompts_read_before() -> None:
    step, found = compiled().step("respond"), times()["respond"]
    prompts = step.estimate.prompt_tokens
    assert found.parts["reading"] == pytest.approx(2 * 7.24e9 * prompts / (0.4 * 989e12 * 8))
    # 17,532 answers of 1,024 tokens in batches of 128 on 8 servers; the cache is at half of the answers on average.
    shape = gpu_time.fetched_shape(compiled().step("helpful"))
    assert shape is not None
    size = step_bytes(shape, ServerLayout(), 128, 48 + 512)
    assert found.parts["drawing"] == pytest.approx(17_532 * 1024 / (128 * 8) * size / (0.4 * 3.35e12))
    half = times("engine.servers.default.count=4")["respond"]
    assert half.gpus == 4
    assert half.parts["drawing"] == pytest.approx(2 * found.parts["drawing"])
    # 256 rows at once are 32 for each of 8 servers.
    fewer = times("stages.respond.chunk=256")["respond"]
    size = step_bytes(shape, ServerLayout(), 32, 48 + 512)
    assert fewer.parts["drawing"] == pytest.approx(17_532 * 1024 / (32 * 8) * size / (0.4 * 3.35e12))


def test_a_judge_that_is_read_by_likelihoods_draws_nothing() -> None:
    found = times(name="paper_rl_cai")["judge"]
    assert found.parts["drawing"] == 0
    assert found.parts["reading"] > 0
    assert found.assumes == "prompts of 220 tokens"


def test_ppo_draws_scores_and_trains() -> None:
    step, found = compiled().step("rl"), times()["rl"]
    texts, reached = 512 * (48 + 1024), 0.4 * 989e12 * 4
    shape = gpu_time.fetched_shape(compiled().step("base"))
    assert shape is not None
    size = step_bytes(shape, ServerLayout(tensor_parallel=4), 8, 48 + 512)
    read = 2 * 7.24e9 * 512 * 48 / reached
    answers = read + 512 * 1024 / 8 * size / (0.4 * 3.35e12)
    assert found.parts["drawing"] == pytest.approx(100 * answers)
    # Two forward passes on either side; those of critic and reward model end while the actor draws.
    assert found.parts["scoring"] == pytest.approx(100 * 2 * 2 * 7.24e9 * texts / reached)
    # Actor and critic train side by side on four GPUs each.
    assert found.parts["training"] == pytest.approx(100 * 6 * 7.24e9 * texts / reached)
    validation = found.parts["validation"] / 10
    assert validation == pytest.approx(answers / 4 + 2 * 7.24e9 * texts / 4 / reached)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.gpus == 8
    warm = times("stages.rl.training.critic_warmup=10")["rl"]
    assert warm.parts["drawing"] == pytest.approx(1.1 * found.parts["drawing"])
    assert step.estimate.calls == 51_200


def test_gpus_are_those_that_the_commands_hold_at_once() -> None:
    local, cluster = times(), times(*SLURM)
    assert {name: (t.gpus, t.nodes) for name, t in local.items()} == {
        "helpful": (1, 1),
        "base": (1, 1),
        **dict.fromkeys(("respond", "revise", "sft", "sample", "reward", "rl", "evaluate"), (8, 1)),
    }
    # Critic and actor are parts of one heterogeneous job, which share no node.
    assert (cluster["rl"].gpus, cluster["rl"].nodes) == (8, 2)
    assert (cluster["respond"].gpus, cluster["respond"].nodes) == (8, 1)
    assert "mixtral" not in local
    assert "judge" not in local


# What is not known


@pytest.mark.parametrize(
    ("overrides", "step", "why"),
    [
        ([], "base", "converting a model has no estimate"),
        (
            ["models.helpful.source=hf:org/unnamed", "models.helpful.parameters=null"],
            "respond",
            "how large 'helpful' is is not known; set models.helpful.parameters",
        ),
        (["engine.servers.default.precision='32'"], "sample", "the peaks are those of bf16, and this is float32"),
        (["stages.sft.training.precision=float32"], "sft", "the peaks are those of bf16, and this is float32"),
        (
            ["stages.evaluate.models={helpful: helpful, mixtral: mixtral}"],
            "evaluate",
            "some of its models are endpoints, whose time is not known",
        ),
    ],
)
def test_what_is_not_known_is_not_invented(overrides: Sequence[str], step: str, why: str) -> None:
    found = times(*overrides)[step]
    assert (found.seconds, found.parts, found.unknown) == (None, {}, why)
    assert found.gpus > 0


def test_without_a_number_of_rows_there_is_no_time() -> None:
    plan = compiled()
    steps = [
        replace(step, estimate=replace(step.estimate, rows=None, calls=0, tokens=0))
        if step.name in ("respond", "sft")
        else step
        for step in plan.steps
    ]
    found = gpu_times(replace(plan, steps=tuple(steps))).steps
    assert found["respond"].unknown == found["sft"].unknown == "how many rows there will be is not known"
    assert found["reward"].seconds is not None


def test_a_plan_that_cannot_be_run_has_no_times() -> None:
    plan = compiled()
    bare = replace(plan, steps=tuple(replace(step, resources={}) for step in plan.steps))
    assert gpu_times(bare).steps == {}
    assert gpu_times(replace(plan, engine={"kind": "embedded"})).steps == {}


# What a person and a program read


def test_the_plan_marks_estimates_and_shows_their_formula_once(store: Store) -> None:
    text = shown(compiled(), store)
    flat = " ".join(text.split())
    assert "~7.1 h" in text
    assert "about 57 GPU-hours: 7.1 h on 8 GPUs (estimate for both texts of a pair padded to 4,096 tokens" in flat
    assert "time at least 14 h, 111 GPU-hours (not known of helpful, base, judge)" in flat
    assert flat.count("training: 6 x parameters x tokens FLOP (8 x with full recomputation)") == 1
    assert flat.count("~ is an estimate: H100 of 989 TFLOP/s (bf16) and 3.35 TB/s, 40% of both reached") == 1
    assert "GPU-hours not known: converting a model has no estimate" in flat
    assert "node-hours" not in text
    markdown = render_plan(with_times(compiled(), store), statuses(compiled(), store), "md")
    assert "| \\~7.1 h |" in markdown
    assert "- reward: about 57 GPU-hours: 7.1 h on 8 GPUs" in markdown
    assert "\\~ is an estimate: H100" in markdown


def test_under_slurm_node_hours_are_told_too(store: Store) -> None:
    flat = " ".join(shown(compiled(*SLURM), store, width=300).split())
    assert "about 48 GPU-hours, 12 node-hours: 6.0 h on 8 GPUs of 2 nodes" in flat
    assert "111 GPU-hours, 20 node-hours (not known of" in flat


def test_the_gpu_and_its_utilisation_are_settings_that_change_no_key(store: Store) -> None:
    plan, other = compiled(), compiled("engine.cluster.gpu=A100", "engine.cluster.utilisation=0.5")
    assert [step.key for step in plan.steps] == [step.key for step in other.steps]
    before, after = gpu_times(plan).steps["reward"], gpu_times(other).steps["reward"]
    assert before.seconds is not None
    assert after.seconds == pytest.approx(before.seconds * (989 * 0.4) / (312 * 0.5))
    assert "A100 of 312 TFLOP/s (bf16) and 2.039 TB/s, 50% of both reached" in " ".join(shown(other, store).split())


def test_the_json_plan_has_gpu_hours_their_basis_and_the_formula(store: Store) -> None:
    plan = with_times(compiled(*SLURM), store)
    data = json.loads(render_plan(plan, statuses(plan, store), "json"))
    steps = {step["name"]: step for step in data["steps"]}
    rl = steps["rl"]
    assert rl["estimate"]["gpu_hours"] == pytest.approx(rl["estimate"]["seconds"] * 8 / 3600, abs=0.001)
    assert rl["gpu_time"] | {"parts": {}} == {
        "basis": "estimate",
        "gpus": 8,
        "nodes": 2,
        "node_hours": pytest.approx(rl["estimate"]["seconds"] * 2 / 3600, abs=0.001),
        "parts": {},
        "assumes": "prompts of 48 tokens, answers of 1,024",
        "unknown": "",
    }
    assert sum(rl["gpu_time"]["parts"].values()) == pytest.approx(rl["estimate"]["seconds"], abs=0.1)
    assert steps["base"]["estimate"]["gpu_hours"] is None
    assert steps["base"]["gpu_time"]["unknown"] == "converting a model has no estimate"
    assert steps["judge"]["gpu_time"] is None
    used = data["engine"]["uses"]["gpu_time"]
    assert (used["gpu"], used["peak_tflops"], used["bandwidth_tb_s"], used["utilisation"]) == ("H100", 989, 3.35, 0.4)
    assert used["formula"] == list(gpu_time.FORMULA)
    totals = data["totals"]
    assert totals["seconds"] is None
    assert totals["gpu_hours"] is None
    hours = [step["estimate"]["gpu_hours"] for step in data["steps"]]
    assert totals["known"]["gpu_hours"] == pytest.approx(sum(h for h in hours if h is not None))
    assert totals["known"]["node_hours"] == pytest.approx(19.8, abs=0.1)
    assert totals["unknown"] == {"seconds": ["helpful", "base", "judge"], "gpu_hours": ["helpful", "base"]}


def test_what_was_measured_here_wins(store: Store) -> None:
    plan = compiled()
    rows = plan.step("reward").estimate.rows
    record = {
        "format": RECORD_FORMAT,
        "kind": "reward",
        "key": "0" * 64,
        "makes": "reward_model",
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 1000.0,
        "outcome": {"ledger": {"rows_in": rows // 10}},
        "files": {},
        "ingredients": {"engine": {"kind": "nemo_aligner"}},
    }
    (store.root / f"reward-{'0' * 16}.json").write_text(json.dumps(record))
    timed = with_times(plan, store).step("reward").estimate
    assert timed.seconds == pytest.approx(10_000, rel=0.001)
    assert timed.gpu_hours == pytest.approx(10_000 * 8 / 3600, rel=0.001)
    assert (timed.gpu_time.basis, timed.gpu_time.parts) == ("measured", {})
    text = shown(plan, store)
    assert "2 h 46 min" in text
    assert "22 GPU-hours: 2 h 46 min on 8 GPUs, as steps of this kind took here before" in " ".join(text.split())
    # A record that counts no rows tells no time of this one, and no small model's rates stand in for it.
    (store.root / f"reward-{'0' * 16}.json").write_text(json.dumps({**record, "outcome": {"ledger": {"rows_in": 0}}}))
    assert with_times(plan, store).step("reward").estimate.gpu_time.basis == "estimate"


def test_what_is_in_the_store_takes_nothing(store: Store) -> None:
    plan = with_times(compiled(), store)
    reused = [StepStatus(step, Action.REUSE, "in the store") for step in plan.steps]
    commands = step_commands(plan, Places(store.root))
    data = plan_data(plan, reused, commands)
    assert data["totals"]["known"] == {"seconds": 0}
    assert data["steps"][0]["commands"] != []
    out = StringIO()
    print_plan(plan, reused, console=Console(file=out, width=80), commands=commands)
    assert "nothing to do" in out.getvalue()
    for word in ("GPU-hours", "~", "python"):
        assert word not in out.getvalue()


def test_every_cell_of_a_sweep_is_estimated_in_its_own_plan(store: Store) -> None:
    from cai.sweep.plan import _gpu_times

    class Cell:
        def __init__(self, plan: Plan) -> None:
            self.plan = plan

    class Cells:
        cells = (
            Cell(compiled()),
            Cell(compiled("models.helpful.source=hf:org/helpful-14.48B", "models.helpful.parameters=null")),
        )

    found = _gpu_times(Cells())  # type: ignore[arg-type]
    one, two = (found[cell.plan.step("respond").key] for cell in Cells.cells)
    assert one.seconds is not None
    assert two.seconds is not None
    assert 1.3 * one.seconds < two.seconds < 2 * one.seconds


def test_the_settings_of_a_plan_say_which_gpu(store: Store) -> None:
    _, settings = engine_of(compiled("engine.cluster.gpu=H200").engine)
    assert gpu_time.assumptions(settings)["bandwidth_tb_s"] == 4.8
