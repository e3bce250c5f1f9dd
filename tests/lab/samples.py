"""The same few rows every time, written by this program's own writers: what upstream's data sets read in the lab."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cai.chat import ChatTemplate
from cai.data.formats.nemo_aligner import HardPair, write_chat, write_pairs, write_prompts
from cai.data.nemo_tokens import Pieces
from cai.engines.methods.base import PromptText, TrainText
from tests.support.nemo_rows import TEMPLATES, hard_pair, prompt_text, train_text

LENGTH = 4096
ROWS = 160


def write(folder: Path, tokens: Pieces) -> dict[str, Path]:
    """``sft``, ``pairs`` and ``prompts`` as JSON lines."""
    folder.mkdir(parents=True)
    template = ChatTemplate.from_file(TEMPLATES / "nemo_extra_id.jinja")
    conversations = []
    for i in range(ROWS):
        text = train_text(template, f"What is {i}?", f"It is {i}, one more than {i - 1}.", system="" if i % 2 else "s")
        conversations.append(TrainText(f"row{i}", text.spans, text.messages))
    pairs = [HardPair(f"row{i}", *_texts(template, i)) for i in range(ROWS)]
    prompts = [PromptText(f"row{i}", prompt_text(template, f"How is {i} made?").prompt) for i in range(ROWS)]
    files = {name: folder / f"{name}.jsonl" for name in ("sft", "pairs", "prompts")}
    write_chat(files["sft"], conversations, tokens.count, max_length=LENGTH)
    write_pairs(files["pairs"], pairs, tokens.count, max_length=LENGTH)
    write_prompts(files["prompts"], prompts, tokens.count, max_length=LENGTH)
    return files


def _texts(template: ChatTemplate, i: int) -> tuple[str, str, str]:
    made = hard_pair(template, f"Is {i} even?", "Yes, it is." if i % 2 == 0 else "No.", "I do not know.")
    return made.prompt, made.chosen, made.rejected


def digests(files: dict[str, Path]) -> dict[str, str]:
    """The files by name."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()}
