"""The formats of files that trainers read: one table, for the exports and for the engines that write such files.

A format says what it takes and what it cannot say, how rows become its items, and how items become lines. Those of
NeMo-Aligner hold rendered text and apply its rules (nemo_aligner.py); those of NeMo-RL and of OpenAI-style trainers
hold messages (messages.py). What does not fit is left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate
from cai.chat.messages import without_thinking
from cai.data.formats import messages, nemo_aligner
from cai.data.formats.base import Count, FileFormat, Written
from cai.data.rows import Row

_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The texts of a format: the chat template, and (both or neither) how tokens are counted and how many may be.

    ``drop_thinking`` leaves out what was thought before anything is written, and so keeps the rows that think in
    formats without a place for it.
    """

    template: ChatTemplate
    count: Count = lambda text: len(text.encode())  # Bytes add up as a tokenizer's counts must; nothing is too long.
    max_tokens: int = _NO_LIMIT
    drop_thinking: bool = False


FORMATS: dict[str, FileFormat[Any]] = {
    "nemo_sft_chat": FileFormat(
        ("conversations",),
        True,
        "NeMo-Aligner SFT: system, conversations, mask",
        nemo_aligner.chats,
        nemo_aligner.write_chat,
    ),
    "nemo_reward": FileFormat(
        ("comparisons",),
        True,
        "NeMo-Aligner reward: lines of chosen, rejected text",
        nemo_aligner.pairs,
        nemo_aligner.write_pairs,
    ),
    "nemo_prompts": FileFormat(
        (),
        True,
        "NeMo-Aligner PPO: text of prompts",
        nemo_aligner.prompts,
        nemo_aligner.write_prompts,
    ),
    "openai_messages": FileFormat(
        ("conversations",),
        False,
        "NeMo-RL SFT (openai_format): messages",
        messages.conversations,
        messages.write_records,
        tools=True,
        thinking=True,
    ),
    "nemo_rl_preference": FileFormat(
        ("comparisons",),
        False,
        "NeMo-RL: context, ranked completions",
        messages.preferences,
        messages.write_records,
    ),
    "nemo_rl_prompts": FileFormat(
        (),
        False,
        "NeMo-RL RL (ResponseDataset): input, output",
        messages.prompts,
        messages.write_inputs,
    ),
}


def export(path: Path, rows: Iterable[Row], form: str, text: TextOptions) -> Written:
    """Write rows to ``path`` in the format ``form`` (of ``FORMATS``); the file appears when it is whole.

    A label in a comparison becomes hard: the likelier answer is written as the better one, and a tie is left out.

    Raises:
        SpecError: when no row is left.
    """
    tally: Counter[str] = Counter()
    form_spec = FORMATS[form]
    if text.drop_thinking:
        rows = (replace(row, messages=without_thinking(row.messages)) for row in rows)
    items = form_spec.items(form_spec.fitting(rows, tally), text.template, tally)
    written = form_spec.write(path, items, text.count, max_length=text.max_tokens)
    return replace(written, dropped=dict(sorted((tally + Counter(written.dropped)).items())))
