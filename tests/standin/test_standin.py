"""The stand-in NeMo: upstream's keys, formats, quirks and files; each script once for real; kills and resumes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.standin import by_hand as standin
from tests.standin import experiment, rows
from tests.standin.drawing import Sampling, draw
from tests.standin.generate import Generate
from tests.standin.tiny import Nemo, Tiny, Words, load_nemo, save_nemo


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_nemo(path).state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder of the tiny model."""
    return standin.hf_model(tmp_path_factory.mktemp("hf"), 1)


@pytest.fixture(scope="module")
def nemo(source: Path) -> Nemo:
    from safetensors.torch import load_file

    words = Words((source / "tokenizer.model").read_bytes())
    config = {"encoder_seq_length": 1024, "tokenizer": {"library": "sentencepiece"}}
    return Nemo(config, load_file(source / "model.safetensors"), words)


@pytest.fixture(scope="module")
def model(nemo: Nemo) -> Tiny:
    return nemo.model()


@pytest.fixture(scope="module")
def service(nemo: Nemo, model: Tiny) -> Generate:
    return Generate(model, nemo.words)


# --- configs ---


@pytest.mark.parametrize("name", standin.CONFIGS)
def test_configs_have_upstreams_keys_defaults_and_types(name: str) -> None:
    if not (upstream := os.environ.get("CAI_UPSTREAM")):
        pytest.skip("CAI_UPSTREAM names no folder with upstream's configs")
    theirs = next(Path(upstream).glob(f"**/{name}.yaml"))
    ours = Path(standin.argv(standin.CONFIGS[name])[1]).parent / "conf" / f"{name}.yaml"
    a, b = (standin.flat(yaml.safe_load(path.read_text())) for path in (ours, theirs))
    assert a.keys() == b.keys()
    assert {k: (type(v), v) for k, v in a.items()} == {k: (type(v), v) for k, v in b.items()}


@pytest.mark.parametrize("script", standin.CONFIGS.values())
def test_a_key_that_upstream_lacks_is_refused(script: str, tmp_path: Path) -> None:
    done = standin.run_script(script, "trainer.no_such_key=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "Key 'no_such_key' is not in struct" in done.stdout
    assert not list(tmp_path.iterdir())


def test_plus_plus_is_needed_where_upstream_needs_it(tmp_path: Path) -> None:
    key = "model.activations_checkpoint_granularity=full"
    refused = standin.run_script(standin.REWARD, key, cwd=tmp_path)
    assert "Could not override" in refused.stdout
    # Composed, it goes on to look for the model.
    composed = standin.run_script(standin.REWARD, f"++{key}", "--cfg", "job", cwd=tmp_path)
    assert composed.returncode == 0
    assert "activations_checkpoint_granularity: full" in composed.stdout


def test_eval_wants_as_many_devices_as_model_parallel_ranks(tmp_path: Path) -> None:
    sizes = ("tensor_model_parallel_size=2", "pipeline_model_parallel_size=1", "trainer.devices=4")
    done = standin.run_script(standin.EVAL, *sizes, cwd=tmp_path)
    assert done.returncode == 1
    assert "devices * num_nodes should equal" in done.stdout


def test_tasks_of_srun_must_match_devices(tmp_path: Path) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_NNODES": "1"}
    done = standin.run_script(standin.SFT, "trainer.devices=2", cwd=tmp_path, SLURM_NTASKS_PER_NODE="4", **job)
    assert done.returncode == 1
    assert "does not match srun's --ntasks-per-node=4" in done.stdout
    done = standin.run_script(standin.SFT, "trainer.devices=4", cwd=tmp_path, SLURM_NTASKS_PER_NODE="4", **job)
    assert done.returncode == 0


def test_the_converters_old_flags_are_gone(tmp_path: Path) -> None:
    done = standin.run_script(standin.CONVERTER, "--in-file", "a", "--out-file", "b", cwd=tmp_path)
    assert done.returncode == 2
    assert "--input_name_or_path" in done.stdout


def test_a_script_can_be_asked_to_fail_once(tmp_path: Path) -> None:
    env = {"STANDIN_FAIL": "train_gpt_sft:start", "STANDIN_MARKS": str(tmp_path / "marks")}
    done = standin.run_script(standin.SFT, "--cfg", "job", cwd=tmp_path, **env)
    assert done.returncode == 1
    assert "asked to fail at the start" in done.stdout
    assert standin.run_script(standin.SFT, "--cfg", "job", cwd=tmp_path, **env).returncode == 0


# --- data ---


def test_chat_rows_put_the_loss_on_answers_and_their_end(tmp_path: Path, nemo: Nemo) -> None:
    row = standin.conversation(7)
    row["conversations"] += [{"from": "User", "value": "And then?"}, {"from": "Assistant", "value": "Wait."}]
    chat = rows.chat_rows(standin.data_config(tmp_path, [row]), OmegaConf.create(standin.TOKENS), nemo.words, "train")[
        0
    ]
    text = nemo.words.decode(chat.ids)
    assert text.endswith("<extra_id_1>Assistant\nWait.\n<extra_id_1>")
    pieces = nemo.words.pieces(chat.ids)
    counted = "".join(p for p, m in zip(pieces, chat.mask, strict=True) if m)
    assert counted.replace("▁", " ") == "Mix 7 g.<0x0A><extra_id_1>Wait.<0x0A><extra_id_1>"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"extra": 1}, "unknown keys"),
        ({"mask": "Human"}, "mask role not in the conversation"),
        ({"conversations": [{"from": "User", "value": "Hi"}]}, "mask is empty"),
        ({"conversations": [{"from": "User", "text": "Hi"}]}, "unknown keys"),
    ],
)
def test_chat_rows_that_upstream_cannot_use_are_errors(
    tmp_path: Path, nemo: Nemo, change: dict[str, Any], error: str
) -> None:
    config = standin.data_config(tmp_path, [standin.conversation(1) | change])
    with pytest.raises((KeyError, AssertionError), match=error):
        rows.chat_rows(config, OmegaConf.create(standin.TOKENS), nemo.words, "train")


def test_long_chat_rows_are_truncated_and_counted(
    tmp_path: Path, nemo: Nemo, capsys: pytest.CaptureFixture[str]
) -> None:
    long = standin.conversation(1) | {"system": "be kind " * 40}
    config = standin.data_config(tmp_path, [standin.conversation(1), long], limit=100)
    chats = rows.chat_rows(config, OmegaConf.create(standin.TOKENS), nemo.words, "train")
    assert [len(chat.ids) <= 101 for chat in chats] == [True, True]
    assert "2 rows, 1 too long and truncated, 1 without a target" in capsys.readouterr().out


def test_long_pairs_are_replaced_by_others_and_counted(
    tmp_path: Path, nemo: Nemo, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [t for i in range(6) for t in (f"chosen {i}", "rejected " + "bad " * (60 if i == 2 else 1))]
    path = standin.written(tmp_path / "pairs.jsonl", [{"text": t} for t in texts])
    pairs = rows.Pairs(standin.model_config(path, 40), nemo.words, "train")
    found = []
    for i in range(4):
        chosen, rejected = pairs[i]
        found.append(nemo.words.decode(chosen))
        assert len(rejected) <= 40
    assert "6 pairs, 1 too long and replaced" in capsys.readouterr().out
    assert len(set(found)) < 4 or "chosen 2" not in found


def test_an_odd_number_of_comparison_lines_is_an_error(tmp_path: Path, nemo: Nemo) -> None:
    path = standin.written(tmp_path / "pairs.jsonl", [{"text": "a"}] * 3)
    with pytest.raises(ValueError, match="do not alternate"):
        rows.Pairs(standin.model_config(path, 40), nemo.words, "train")


def test_data_prefix_must_hold_lists(tmp_path: Path, nemo: Nemo) -> None:
    config = standin.model_config(standin.written(tmp_path / "p.jsonl", [{"text": "a"}] * 2), 40)
    config.data.data_prefix.train = "p.jsonl"
    with pytest.raises(AssertionError, match="must be a list"):
        rows.Pairs(config, nemo.words, "train")


def test_long_prompts_are_replaced_and_their_loss_masked(tmp_path: Path, nemo: Nemo) -> None:
    path = standin.written(tmp_path / "p.jsonl", [{"text": "a " * (90 if i == 1 else 3)} for i in range(5)])
    prompts = rows.Prompts(standin.model_config(path, 40), nemo.words, "train")
    assert sorted(prompts[i].masked for i in range(5)) == [False] * 4 + [True]
    with pytest.raises(AssertionError, match="must be greater than 0"):
        rows.Prompts(standin.model_config(path, 8), nemo.words, "train")


# --- generation ---


def test_cached_generation_equals_the_whole_model(nemo: Nemo, model: Tiny) -> None:
    prompts = [nemo.words.encode(text) for text in ("How do I bake", "What is the capital of France? The")]
    drawn = draw(model, nemo.words, prompts, 10, Sampling(greedy=True, compute_logprob=True, end_strings=("\0",)))
    assert drawn.logprob is not None
    torch.testing.assert_close(drawn.logprob, model.logprobs(drawn.tokens), atol=1e-4, rtol=1e-4)
    best = model(drawn.tokens).argmax(-1)
    for row, ids in enumerate(prompts):
        end = drawn.ends[row]
        assert drawn.tokens[row, len(ids) : end].tolist() == best[row, len(ids) - 1 : end - 1].tolist()


def test_the_budget_counts_from_the_longest_prompt(service: Generate, nemo: Nemo) -> None:
    texts = ["Mix", "What is the capital of France? The capital of France is Paris, a city"]
    ask = {"sentences": texts, "tokens_to_generate": 5, "min_tokens_to_generate": 400, "end_strings": ["\0"]}
    ids = service("PUT", "/generate", ask)[1]["token_ids"]
    longest = len(nemo.words.encode(texts[1]))
    assert [len(row) for row in ids] == [longest + 5] * 2


def test_sentences_echo_the_prompt_with_other_white_space(service: Generate) -> None:
    ask = {"sentences": ["How  do   I\nbake"], "tokens_to_generate": 4, "random_seed": 3}
    status, data = service("PUT", "/generate", ask)
    assert status == 200
    assert data["sentences"][0].startswith("How do I\nbake")
    assert data["logprob"] is None
    assert len(data["tokens"][0]) == len(data["token_ids"][0]) == len(data["offsets"][0])
    assert service("PUT", "/generate", ask)[1] == data
    assert service("PUT", "/generate", ask | {"random_seed": 4})[1] != data


def test_an_end_string_ends_its_row_and_stays_in_the_text(service: Generate, nemo: Nemo) -> None:
    ask = {"sentences": ["How do I bake"], "tokens_to_generate": 40, "greedy": True, "end_strings": ["\0"]}
    free = service("PUT", "/generate", ask)[1]["sentences"][0]
    end = free[16:18]
    stopped = service("PUT", "/generate", ask | {"end_strings": [end]})[1]["sentences"][0]
    assert stopped.endswith(end)
    assert free.startswith(stopped)
    assert len(stopped) < len(free)


def test_the_repetition_penalty_works_only_while_sampling_with_logprobs(service: Generate) -> None:
    ask = {"sentences": ["How do I bake"], "tokens_to_generate": 24, "random_seed": 1, "end_strings": ["\0"]}
    answers = {}
    for key, more in {"greedy": {"greedy": True}, "sampled": {}, "logprobs": {"compute_logprob": True}}.items():
        pair = [service("PUT", "/generate", ask | more | {"repetition_penalty": p})[1]["token_ids"] for p in (1, 9)]
        answers[key] = pair[0] == pair[1]
    assert answers == {"greedy": True, "sampled": True, "logprobs": False}


def test_sampling_obeys_top_k_top_p_and_the_minimum(service: Generate) -> None:
    ask = {"sentences": ["How do I bake"], "tokens_to_generate": 12, "end_strings": ["\0"]}
    greedy = service("PUT", "/generate", ask | {"greedy": True})[1]["token_ids"]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert service("PUT", "/generate", ask | narrow)[1]["token_ids"] == greedy


@pytest.mark.parametrize(
    ("ask", "status", "answer"),
    [
        ({"sentences": ["a"] * 129}, 400, "Maximum number of sentences is 128"),
        ({"temperature": 0}, 200, "temperature must be a positive number less than or equal to 100.0"),
        ({"tokens_to_generate": 0}, 200, "tokens_to_generate must be an integer greater than 0"),
        ({"end_strings": "</s>"}, 200, "expect end_strings to be a list of strings"),
        ({"top_p": 1.5}, 200, "top_p must be a positive number less than or equal to 1.0"),
    ],
)
def test_wrong_values_are_answered_with_a_string(
    service: Generate, ask: dict[str, Any], status: int, answer: str
) -> None:
    assert service("PUT", "/generate", {"sentences": ["a"]} | ask) == (status, answer)


def test_unknown_keys_are_ignored_and_a_post_raises(service: Generate) -> None:
    ask = {"sentences": ["a"], "tokens_to_generate": 1, "colour": "red"}
    assert service("PUT", "/generate", ask)[0] == 200
    with pytest.raises(RuntimeError):
        service("POST", "/generate", ask)
    with pytest.raises(KeyError):
        service("PUT", "/generate", {})


# --- files ---


def test_a_nemo_file_reads_back_and_a_head_is_no_part_of_a_language_model(tmp_path: Path, nemo: Nemo) -> None:
    save_nemo(tmp_path / "m.nemo", nemo)
    again = load_nemo(tmp_path / "m.nemo")
    assert same(again.state, nemo.state)
    assert again.config["tokenizer"]["model"].startswith("nemo:")
    reward = again.model(head=True, base_only=True)
    with pytest.raises(RuntimeError, match="rm_head"):
        Nemo(again.config, reward.state_dict(), nemo.words).model()
    with pytest.raises(RuntimeError, match="rm_head"):
        again.model(head=True)


def test_constant_steps_eat_up_a_short_run(nemo: Nemo) -> None:
    sched = {"name": "CosineAnnealing", "warmup_steps": 2, "constant_steps": 1000, "min_lr": 1.0}
    optim = {"name": "distributed_fused_adam", "lr": 9.0, "betas": [0.9, 0.98], "weight_decay": 0.0, "sched": sched}
    long = experiment.Descent(nemo.model(), OmegaConf.create(optim), 10, 1.0)
    assert [long.rate(step) for step in range(5)] == [3.0, 6.0, 9.0, 1.0, 1.0]
    optim["sched"] = sched | {"constant_steps": 0}
    cosine = experiment.Descent(nemo.model(), OmegaConf.create(optim), 10, 1.0)
    assert cosine.rate(6) == pytest.approx(5.0)
    assert cosine.rate(9) < cosine.rate(8)


# --- every script, for real ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """A folder with data and the converted model."""
    folder = tmp_path_factory.mktemp("standin")
    standin.written(folder / "sft.jsonl", [standin.conversation(i) for i in range(40)])
    answers = ("Mix flour.\n<extra_id_1>", "No.\n<extra_id_1>")
    standin.written(folder / "pairs.jsonl", [{"text": standin.prompt(i // 2) + answers[i % 2]} for i in range(64)])
    standin.written(folder / "prompts.jsonl", [{"text": standin.prompt(i)} for i in range(32)])
    done = standin.run_script(
        standin.CONVERTER, f"--input_name_or_path={source}", "--output_path=base.nemo", cwd=folder
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def helpful(place: Path) -> Path:
    done = standin.sft("sft", cwd=place)
    assert done.returncode == 0, done.stdout
    assert "step 5/5 loss" in done.stdout
    return place / "sft/checkpoints/megatron_gpt_sft.nemo"


@pytest.fixture(scope="module")
def reward(place: Path, helpful: Path) -> Path:
    done = standin.reward("rm", helpful, cwd=place)
    assert done.returncode == 0, done.stdout
    assert "val_accuracy 1.000" in done.stdout
    return place / "rm/checkpoints/megatron_gpt.nemo"


@pytest.fixture(scope="module")
def aligned(place: Path, helpful: Path, reward: Path) -> Path:
    with standin.critic("critic", reward, place) as server:
        done = standin.actor("actor", helpful, server.port, place)
        assert done.returncode == 0, f"{done.stdout}\n{server.log.read_text()}"
    assert "step 2/2 loss" in done.stdout
    return place / "actor/checkpoints/megatron_gpt_ppo_actor.nemo"


@pytest.mark.long
def test_supervised_training_learns_and_leaves_upstreams_files(place: Path, helpful: Path) -> None:
    names = {p.name for p in helpful.parent.iterdir()}
    assert "megatron_gpt_sft.nemo" in names
    last = [n for n in names if n.endswith("-step=5-consumed_samples=40-epoch=1-last")]
    assert len(last) == 1
    assert last[0].startswith("megatron_gpt_sft--val_loss=")
    assert load_nemo(helpful).config["data"]["chat_prompt_tokens"]["turn_start"] == "<extra_id_1>"
    losses = [float(n.split("val_loss=")[1].split("-")[0]) for n in names if "val_loss" in n]
    assert min(losses) < max(losses)


@pytest.mark.long
def test_a_killed_training_resumes_to_the_same_weights(place: Path, helpful: Path) -> None:
    env = {"STANDIN_FAIL": "train_gpt_sft:die-after=3", "STANDIN_MARKS": str(place / "marks")}
    assert standin.sft("killed", cwd=place, **env).returncode == -signal.SIGKILL
    done = standin.sft("killed", cwd=place, **env)
    assert "resuming from" in done.stdout
    assert "step 3/5" in done.stdout
    assert "step 2/5" not in done.stdout
    again = place / "killed/checkpoints/megatron_gpt_sft.nemo"
    assert again.read_bytes() == helpful.read_bytes()
    # A run that finds its training complete writes no model.
    again.unlink()
    assert standin.sft("killed", cwd=place).returncode == 0
    assert not again.exists()


@pytest.mark.long
def test_fewer_rows_than_a_global_batch_train_nothing_and_fail(place: Path) -> None:
    done = standin.sft("few", "model.data.train_ds.global_batch_size=64", cwd=place)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    assert not list((place / "few/checkpoints").iterdir())


@pytest.mark.long
def test_batches_must_fit_the_data_parallel_size(place: Path) -> None:
    done = standin.sft("unfit", "trainer.devices=6", "model.tensor_model_parallel_size=2", cwd=place)
    assert done.returncode == 1
    assert "is not divisible by micro batch size (1) x data parallel size (3)" in done.stdout


@pytest.mark.long
def test_ppo_moves_the_actor_and_saves_the_critic(place: Path, helpful: Path, aligned: Path) -> None:
    assert not same(weights(aligned), weights(helpful))
    names = {p.name for p in aligned.parent.iterdir()}
    assert any(n.startswith("megatron_gpt-step=2-consumed_samples=32-ppo_optimization_step=4-epoch=1-") for n in names)
    assert {p.name for p in (place / "critic/checkpoints").iterdir()} == {"megatron_gpt-step=4-last"}


@pytest.mark.long
def test_a_killed_ppo_resumes_to_the_same_weights(place: Path, helpful: Path, reward: Path, aligned: Path) -> None:
    env = {"STANDIN_FAIL": "train_gpt_ppo_actor:die-after=1", "STANDIN_MARKS": str(place / "marks")}
    for code in (-signal.SIGKILL, 0):
        with standin.critic("critic-killed", reward, place) as server:
            done = standin.actor("actor-killed", helpful, server.port, place, **env)
        assert done.returncode == code, done.stdout
    assert "step 1/2" not in done.stdout
    again = place / "actor-killed/checkpoints/megatron_gpt_ppo_actor.nemo"
    assert same(weights(again), weights(aligned))


@pytest.mark.long
def test_an_actor_without_its_critic_fails(place: Path, helpful: Path) -> None:
    done = standin.actor("alone", helpful, standin.free_port(), place, STANDIN_CONNECT_SECONDS="0.5")
    assert done.returncode == 1
    assert "no critic at" in done.stdout


@pytest.mark.long
def test_the_server_answers_fails_and_goes_when_told(place: Path, aligned: Path) -> None:
    port = standin.free_port()
    serve = (f"gpt_model_file={aligned}", "server=True", f"port={port}", "trainer.devices=2")
    sizes = [f"{what}_model_parallel_{size}" for what, size in (("tensor", "size=2"), ("pipeline", "size=1"))]
    sizes.append("pipeline_model_parallel_split_rank=0")
    env = {"STANDIN_FAIL": "megatron_gpt_eval:errors=1", "STANDIN_MARKS": str(place / "marks")}
    with standin.Background(standin.EVAL, port, *serve, *sizes, cwd=place, **env) as server:
        ask = {"sentences": [standin.prompt(1), "Hi"], "tokens_to_generate": 4}
        assert standin.put(port, ask)[0] == 500
        status, data = standin.put(port, ask)
        assert status == 200
        assert data["sentences"][0].startswith(standin.prompt(1))
        assert standin.put(port, ask | {"end_strings": "x"}) == (200, "expect end_strings to be a list of strings")
        assert standin.put(port, {"sentences": ["a"] * 129})[0] == 400
        assert standin.put(port, {})[0] == 500
        assert standin.put(port, ask, "POST")[0] == 500
        assert "Q: How are you?" in server.log.read_text()  # answered before the port opened
        children = standin.children(server.process.pid)
        assert len(children) == 1
        server.process.terminate()
        assert server.process.wait(10) == 143
        assert not any(standin.runs(pid) for pid in children)


@pytest.mark.long
def test_sizes_left_open_are_the_checkpoint_s_whatever_was_asked(place: Path) -> None:
    asked = ("trainer.devices=2", "tensor_model_parallel_size=2", "pipeline_model_parallel_size=1")
    done = standin.run_script(standin.EVAL, "gpt_model_file=base.nemo", *asked, cwd=place)
    assert "devices * num_nodes should equal" in done.stdout


@pytest.mark.long
def test_a_server_can_be_asked_never_to_open_its_port(place: Path) -> None:
    port = standin.free_port()
    words = standin.argv(
        standin.EVAL,
        *("gpt_model_file=base.nemo", "server=True", f"port={port}"),
        *("tensor_model_parallel_size=1", "pipeline_model_parallel_size=1"),
    )
    env = standin.environment(STANDIN_FAIL="megatron_gpt_eval:no-port")
    process = subprocess.Popen(words, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        answered = "".join(process.stdout.readline() for _ in range(3))
        assert "Q: How are you?" in answered
        assert process.poll() is None
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        process.kill()
        process.communicate()
