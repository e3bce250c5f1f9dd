"""How fast SFT and reward training are against TRL's trainers: same model, data, LoRA, batches, precision, one run.

Both sides train the same examples in bfloat16 (autocast in TRL) with the same adapters; TRL's gradient checkpointing
is off, as ours is. The sides take turns, the first step of each turn is warm-up and left out, tokens are the real ones
of the examples (a pair's prompt counts for both answers, as TRL computes it). The last line is one JSON object whose
``ratio`` is the smaller of ``sft_ratio`` and ``reward_ratio``; the goal is 1.

    python -m benchmarks.training [--model FOLDER] [--examples 48] [--last-layers 0] [--turns 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.generation import SHA256, SOURCE
from cai.chat import Span
from cai.engines.base import Attempt, ModelSource
from cai.engines.methods.base import Lora, PairText, TrainText
from cai.engines.methods.reward import RewardData, RewardSettings
from cai.engines.methods.sft import SftData, SftSettings

BATCH, MICRO, LENGTH = 8, 4, 512
_SUBJECTS = ("rivers", "lanterns", "harvests", "bridges", "winters", "gardens", "letters", "kitchens")
_SENTENCE = "Tell me how people once thought about {} and what they would do with them on a quiet day. "
_ANSWER = "People cared for {} with patience, talked about them in the evening, and passed on what they had learnt. "


class Silent:
    """Progress that nobody watches."""

    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """Nothing to show."""

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """Nothing to show."""

    def note(self, event: str, **fields: Any) -> None:
        """Nothing to log."""


def dialogues(count: int) -> list[tuple[str, str, str]]:
    """(prompt, better answer, worse answer), rendered; from about 50 to 250 tokens, as chat data is spread."""
    found = []
    for i in range(count):
        subject = _SUBJECTS[i % len(_SUBJECTS)]
        asked = _SENTENCE.format(subject) * (1 + i % 3)
        prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        better, worse = (_ANSWER.format(subject) * (1 + (i * k) % 5) for k in (3, 2))
        found.append((prompt, f"{better}<|im_end|>\n", f"No. {worse}<|im_end|>\n"))
    return found


def ours(kind: str, model: Path, rows: list[tuple[str, str, str]], lora: Lora, folder: Path) -> list[float]:
    """Seconds of each optimizer step of our loop."""
    from cai.engines.embedded.reward import train as train_reward
    from cai.engines.embedded.sft import train as train_sft

    common: dict[str, Any] = {"batch_size": BATCH, "micro_batch_size": MICRO, "max_length": LENGTH, "lora": lora}
    attempt = Attempt(0, folder / "out", folder / "work", Silent())
    if kind == "sft":
        texts = [TrainText(str(i), (Span(p, False), Span(a, True))) for i, (p, a, _) in enumerate(rows)]
        train_sft(SftData(model, texts, []), SftSettings(**common), attempt)
    else:
        pairs = [PairText(str(i), *row, 1.0) for i, row in enumerate(rows)]
        train_reward(RewardData(model, pairs, []), RewardSettings(**common), attempt)
    lines = (folder / "work" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["seconds"] for row in map(json.loads, lines) if "seconds" in row]


def theirs(kind: str, model: Path, rows: list[tuple[str, str, str]], lora: Lora, folder: Path) -> list[float]:
    """Seconds of each optimizer step of TRL's trainer."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            """Start the clock."""
            self._began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            """Stop it."""
            self.seconds.append(time.perf_counter() - self._began)

    cuda = torch.cuda.is_available()
    config: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": BATCH // MICRO,
        "num_train_epochs": 1,
        "max_length": LENGTH,
        "bf16": True,
        "use_cpu": not cuda,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
    }
    layers = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    chosen = list(range(layers - lora.last_layers, layers)) if lora.last_layers else None
    adapters: dict[str, Any] = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "layers_to_transform": chosen,
    }
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    clock = Clock()
    if kind == "sft":
        data = Dataset.from_list([{"prompt": p, "completion": a} for p, a, _ in rows])
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=SFTConfig(**config, completion_only_loss=True),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **adapters),
            callbacks=[clock],
        )
    else:
        data = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows])
        classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(
            model=classifier,
            args=RewardConfig(**config, center_rewards_coefficient=0.01),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **adapters),
            callbacks=[clock],
        )
    trainer.train()
    return clock.seconds


def tokens_per_step(kind: str, model: Path, rows: list[tuple[str, str, str]]) -> float:
    """Mean real tokens of an optimizer step."""
    from cai.engines.embedded.models import encode, load_tokenizer

    tokenizer = load_tokenizer(model)
    texts = [p + a for p, a, _ in rows] + ([p + b for p, _, b in rows] if kind == "reward" else [])
    return sum(map(len, encode(tokenizer, texts))) / len(rows) * BATCH


def benchmark_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in ``folder``, fetched when it is not there."""
    from cai.engines.embedded.engine import EmbeddedEngine

    EmbeddedEngine().session(None).fetch(ModelSource(SOURCE, sha256=SHA256), folder, Silent())
    return folder


def main() -> None:
    """Run both sides in turns and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--last-layers", type=int, default=0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", choices=("sft", "reward"))
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="cai-bench-"))
    try:
        model = args.model or benchmark_model(scratch / "model")
        rows = dialogues(args.examples)
        lora = Lora(last_layers=args.last_layers)
        result: dict[str, Any] = {"benchmark": "training", "last_layers": args.last_layers}
        for kind in [args.only] if args.only else ["sft", "reward"]:
            seconds: dict[str, list[float]] = {"ours": [], "trl": []}
            for turn in range(args.turns):
                for name, side in (("ours", ours), ("trl", theirs)):
                    seconds[name] += side(kind, model, rows, lora, scratch / f"{kind}-{name}-{turn}")[1:]
            tokens = tokens_per_step(kind, model, rows)
            rates = {name: tokens / statistics.mean(times) for name, times in seconds.items()}
            print(f"{kind}: ours {rates['ours']:.0f} tokens/s, TRL {rates['trl']:.0f} tokens/s", flush=True)
            result |= {f"{kind}_{name}_tokens_per_s": round(rate, 1) for name, rate in rates.items()}
            result[f"{kind}_ratio"] = round(rates["ours"] / rates["trl"], 3)
        result["ratio"] = min(v for k, v in result.items() if k.endswith("_ratio"))
        result["peak_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        print(json.dumps(result))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
