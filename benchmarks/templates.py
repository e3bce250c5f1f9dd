"""Rendering a chat: shipped templates against transformers' own renderer, others against a pool of one process.

    python -m benchmarks.templates [--seconds 0.5] [--rounds 5]

transformers compiles the same file once and renders it, without looking for forged turns; ours looks. A template that
did not ship renders in a process of its own: there the baseline is ``ProcessPoolExecutor(1)`` around transformers'
renderer, which bounds neither time nor memory. Both sides run in turn, and each figure is the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from cai.chat import ChatTemplate, Message
from cai.files.library import shipped_root

NAMES = ("chatml", "llama3", "smollm2", "mistral_instruct", "nemo_extra_id")
CHAT = (
    Message("user", "What do bees do in winter? " * 8),
    Message("assistant", "They stay in the hive and keep the queen warm. " * 8),
    Message("user", "And wasps?"),
)
TURNS = [{"role": message.role, "content": message.content} for message in CHAT]
AT_LEAST_HERE, AT_LEAST_APART = 0.6, 1.0


def theirs(text: str, bos: str, eos: str) -> str:
    """transformers' rendering, its compiled template cached by itself."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(text)
    rendered: str = template.render(messages=TURNS, add_generation_prompt=True, bos_token=bos, eos_token=eos)
    return rendered


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second."""
    start, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        work()
        calls += 1
    return calls / spent


def compare(
    ours: Callable[[], object], baseline: Callable[[], object], args: argparse.Namespace
) -> tuple[float, float]:
    """The best rate of each, in turn."""
    ours(), baseline()
    pairs = [(rate(ours, args.seconds), rate(baseline, args.seconds)) for _ in range(args.rounds)]
    return max(a for a, _ in pairs), max(b for _, b in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    result: dict[str, object] = {"benchmark": "templates"}
    ratios = []
    for name in NAMES:
        path = shipped_root() / "prompt_templates" / f"{name}.jinja"
        shipped = ChatTemplate.from_file(path)
        tokens = (shipped.header.bos_token, shipped.header.eos_token)
        assert shipped.prompt(CHAT) == theirs(shipped.text, *tokens)
        ours, baseline = compare(partial(shipped.prompt, CHAT), partial(theirs, shipped.text, *tokens), args)
        ratios.append(ours / baseline)
        print(f"{name:18} {ours:8.0f} a second   transformers {baseline:8.0f}   ratio {ours / baseline:.2f}")
    mine = ChatTemplate.from_text("mine", shipped.text + "{# mine #}")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        ours, baseline = compare(
            partial(mine.prompt, CHAT), lambda: pool.submit(theirs, shipped.text, *tokens).result(), args
        )
    print(f"{'one of your own':18} {ours:8.0f} a second   pool of one  {baseline:8.0f}   ratio {ours / baseline:.2f}")
    result |= {
        "shipped_lowest_ratio": round(min(ratios), 3),
        "shipped_at_least": AT_LEAST_HERE,
        "own_per_second": round(ours),
        "own_ratio": round(ours / baseline, 3),
        "own_at_least": AT_LEAST_APART,
    }
    print(json.dumps(result))
    sys.exit(int(min(ratios) < AT_LEAST_HERE or ours / baseline < AT_LEAST_APART))


if __name__ == "__main__":
    main()
