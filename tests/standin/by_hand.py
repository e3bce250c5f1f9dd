"""The stand-in NeMo for tests: where its roots are, a source model, and running its scripts by hand."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

_FOLDER = Path(__file__).parent
CONVERTER = "scripts/checkpoint_converters/convert_mistral_7b_hf_to_nemo.py"
EVAL = "examples/nlp/language_modeling/megatron_gpt_eval.py"
SFT, REWARD = "examples/nlp/gpt/train_gpt_sft.py", "examples/nlp/gpt/train_reward_model.py"
CRITIC, ACTOR = "examples/nlp/gpt/serve_ppo_critic.py", "examples/nlp/gpt/train_gpt_ppo_actor.py"


def standin_roots() -> tuple[Path, Path]:
    """(NeMo-Aligner's root, NeMo's root)."""
    return _FOLDER / "aligner", _FOLDER / "nemo"


def hf_model(tmp_path: Path, seed: int = 0, texts: tuple[str, ...] = ()) -> Path:
    """A Hugging Face folder of the tiny model, which the converter takes."""
    from tests.standin.tiny import make_hf_folder

    return make_hf_folder(tmp_path / f"hf-{seed}", texts, seed)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def argv(script: str, *overrides: str) -> list[str]:
    """The command line of a script of either root."""
    aligner, nemo = standin_roots()
    root = aligner if (aligner / script).exists() else nemo
    return [sys.executable, str(root / script), *overrides]


def environment(**env: str) -> dict[str, str]:
    """The environment of a script, free of this process's Slurm job and stand-in faults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "STANDIN_"))}
    return kept | env


def run_script(script: str, *overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one to its end; a failure is returned, not raised."""
    return subprocess.run(
        argv(script, *overrides),
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


class Background:
    """A server of the stand-in, waited for until its port opens, and taken down at the end of the block."""

    def __init__(self, script: str, port: int, *overrides: str, cwd: Path, **env: str) -> None:
        self.port, self.log = port, cwd / f"{Path(script).stem}-{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv(script, *overrides), cwd=cwd, env=environment(**env), stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Background:
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.log.read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError(f"never opened {self.port}:\n{self.log.read_text()}")

    def __exit__(self, *_raised: object) -> None:
        self.process.kill()
        self.process.wait()


CONFIGS = {
    "gpt_sft": SFT,
    "training_rm": REWARD,
    "gpt_ppo_critic": CRITIC,
    "gpt_ppo_actor": ACTOR,
    "megatron_gpt_inference": EVAL,
}
TOKENS = {
    "system_turn_start": "<extra_id_0>",
    "turn_start": "<extra_id_1>",
    "label_start": "<extra_id_2>",
    "end_of_turn": "\n",
    "end_of_name": "\n",
}
FAST = ("model.optim.lr=2e-3", "model.optim.sched.constant_steps=0", "model.optim.sched.warmup_steps=0")
CHAT = tuple(f"model.data.chat_prompt_tokens.{k}='{v}'" for k, v in TOKENS.items() if v != "\n")


def written(path: Path, lines: list[Any]) -> Path:
    """JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prompt(i: int) -> str:
    """A prompt that ends with the assistant's header."""
    return f"<extra_id_0>System\n\n<extra_id_1>User\nHow do I bake {i} bread?\n<extra_id_1>Assistant\n"


def conversation(i: int) -> dict[str, Any]:
    """A row of upstream's SFT chat format."""
    turns = [{"from": "User", "value": f"How do I bake {i} bread?"}, {"from": "Assistant", "value": f"Mix {i} g."}]
    return {"system": "", "conversations": turns, "mask": "User", "dataset": "cai"}


def prefix(name: str) -> str:
    """``data_prefix`` with one file as every split."""
    return f"model.data.data_prefix={{train:[{name}],validation:[{name}],test:[{name}]}}"


def sft(folder: str, *more: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """train_gpt_sft.py from base.nemo on sft.jsonl, both in ``cwd``."""
    return run_script(
        SFT,
        "model.restore_from_path=base.nemo",
        "model.data.chat=True",
        *CHAT,
        "model.data.train_ds.file_path=sft.jsonl",
        "model.data.validation_ds.file_path=sft.jsonl",
        "model.data.train_ds.global_batch_size=8",
        "trainer.sft.val_check_interval=2",
        "trainer.sft.limit_val_batches=2",
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True",
        f"exp_manager.explicit_log_dir={folder}",
        *FAST,
        *more,
        cwd=cwd,
        **env,
    )


def reward(folder: str, model: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """train_reward_model.py on pairs.jsonl in ``cwd``."""
    return run_script(
        REWARD,
        f"pretrained_checkpoint.restore_from_path={model}",
        prefix("pairs.jsonl"),
        f"exp_manager.explicit_log_dir={folder}",
        *("trainer.devices=1", "trainer.num_nodes=1", "model.global_batch_size=8", "model.micro_batch_size=1"),
        *("trainer.rm.val_check_interval=2", "trainer.rm.save_interval=2", "trainer.rm.limit_val_batches=2"),
        *FAST,
        cwd=cwd,
    )


@contextlib.contextmanager
def critic(name: str, model: Path, cwd: Path) -> Iterator[Background]:
    """serve_ppo_critic.py on a free port."""
    port = free_port()
    with Background(
        CRITIC,
        port,
        f"pretrained_checkpoint.restore_from_path={model}",
        f"trainer.ppo.port={port}",
        f"exp_manager.explicit_log_dir={name}",
        *("trainer.devices=1", "model.global_batch_size=8"),
        *FAST,
        cwd=cwd,
    ) as server:
        yield server


def actor(name: str, model: Path, port: int, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """train_gpt_ppo_actor.py on prompts.jsonl in ``cwd``."""
    return run_script(
        ACTOR,
        f"pretrained_checkpoint.restore_from_path={model}",
        prefix("prompts.jsonl"),
        f"remote_critic_rm.critic.port={port}",
        f"exp_manager.explicit_log_dir={name}",
        *("trainer.devices=1", "trainer.num_nodes=1", "model.global_batch_size=8"),
        *("model.ppo.num_rollout_samples=16", "model.ppo.num_val_samples=8", "model.ppo.length_params.max_length=8"),
        *("trainer.ppo.val_check_interval=1", *FAST),
        cwd=cwd,
        **env,
    )


def put(port: int, data: Any, method: str = "PUT") -> tuple[int, Any]:
    """(status, JSON) of a request to /generate."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate",
        json.dumps(data).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def data_config(tmp_path: Path, lines: list[Any], limit: int = 1024) -> Any:
    """``train_ds`` of a file with these rows."""
    path = written(tmp_path / "rows.jsonl", lines)
    return OmegaConf.create({"file_path": str(path), "index_mapping_dir": None, "max_seq_length": limit})


def model_config(path: Path, limit: int, answer: int = 8) -> Any:
    """``model`` of reward and PPO training, with one file as every split."""
    prefix = {split: [str(path)] for split in ("train", "validation", "test")}
    data = {"data_prefix": prefix, "data_impl": "jsonl", "seq_length": limit}
    return OmegaConf.create({"seed": 3, "data": data, "ppo": {"length_params": {"max_length": answer}}})


def manager(folder: Path, **more: Any) -> Any:
    """``exp_manager`` of a run in ``folder``."""
    best = {"monitor": "val_loss", "save_top_k": 2, "mode": "min", "filename": "m--{val_loss:.3f}-{step}"}
    base = {"name": "m", "explicit_log_dir": str(folder), "resume_if_exists": True, "resume_ignore_no_checkpoint": True}
    return OmegaConf.create(base | {"checkpoint_callback_params": best} | more)


def children(pid: int) -> list[int]:
    """Process ids."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process is alive and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a config, its defaults list left out."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if not prefix and key == "defaults":
            continue
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
