"""Export: rows as files that other trainers read, streamed; what does not fit a format is left out and counted.

One table from a format's name to what it takes and how a row becomes lines. Those of NeMo-Aligner hold rendered text
and go through cai/data/nemo.py, which knows its rules; those of NeMo-RL and of OpenAI-style trainers hold messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cai.chat import ChatTemplate, Message, Span
from cai.data.nemo import (
    Count,
    Dropped,
    HardPair,
    Written,
    json_line,
    write_chat,
    write_lines,
    write_pairs,
    write_prompts,
)
from cai.data.rows import Comparison, Conversation, Row
from cai.data.seen import Seen
from cai.errors import SpecError

REFUSED = "refused by the template"
SOFT = "soft label within margin"
"""As the engine ``nemo_aligner`` calls a label that says nothing."""
R = TypeVar("R", bound=Row)
S = TypeVar("S")
T = TypeVar("T")
_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The texts of a format: the chat template, and (both or neither) how tokens are counted and how many may be."""

    template: ChatTemplate
    count: Count = lambda text: len(text.encode())  # Bytes add up as a tokenizer's counts must; nothing is too long.
    max_tokens: int = _NO_LIMIT


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format. ``takes`` are the kinds of rows; empty where any will do, since only the prompt is written.

    ``rendered``: a chat template is needed. ``write`` streams; it counts in the tally what the file cannot say.
    """

    takes: tuple[str, ...]
    rendered: bool
    about: str
    write: Callable[[Path, Iterable[Row], TextOptions, Counter[str]], Written]


@dataclass(frozen=True, slots=True)
class _Chat:
    spans: tuple[Span, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class _Prompt:
    prompt: str


def export(path: Path, rows: Iterable[Row], form: str, text: TextOptions) -> Written:
    """Write rows to ``path`` in the format ``form`` (of ``FORMATS``); the file appears when it is whole.

    A label in a comparison becomes hard: the likelier answer is written as the better one, and a tie is left out.

    Raises:
        SpecError: when no row is left.
    """
    tally: Counter[str] = Counter()
    written = FORMATS[form].write(path, rows, text, tally)
    return replace(written, dropped=dict(sorted((tally + Counter(written.dropped)).items())))


def _nemo_sft_chat(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    def chat(row: Conversation) -> _Chat:
        return _Chat(text.template.spans(row.messages), text.template.harmless(row.messages))

    return write_chat(path, _rendered(_only(rows, Conversation), chat, tally), text.count, max_length=text.max_tokens)


def _nemo_reward(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    def pair(row: Comparison) -> HardPair:
        chosen, rejected = (text.template.answer(row.messages, answer) for answer in (row.chosen, row.rejected))
        return HardPair(row.id, text.template.prompt(row.messages), chosen, rejected)

    return write_pairs(path, _rendered(_hard(rows, tally), pair, tally), text.count, max_length=text.max_tokens)


def _nemo_prompts(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    prompts = _rendered(_distinct_prompts(rows, tally), lambda messages: _Prompt(text.template.prompt(messages)), tally)
    return write_prompts(path, prompts, text.count, max_length=text.max_tokens)


def _openai_messages(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    return _messages_file(path, _only(rows, Conversation), lambda row: {"messages": _plain(row.messages)})


def _nemo_rl_preference(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    def record(row: Comparison) -> dict[str, Any]:
        ranked = [
            {"rank": rank, "completion": _plain((Message("assistant", answer),))}
            for rank, answer in enumerate((row.chosen, row.rejected))
        ]
        return {"context": _plain(row.messages), "completions": ranked}

    return _messages_file(path, _hard(rows, tally), record)


def _nemo_rl_prompts(path: Path, rows: Iterable[Row], text: TextOptions, tally: Counter[str]) -> Written:
    def record(messages: tuple[Message, ...]) -> dict[str, Any]:
        # NeMo-RL's ResponseDataset makes one user turn of the text, so it cannot say what was said before.
        if len(messages) > 1:
            raise Dropped("more than one turn")
        return {"input": messages[0].content, "output": ""}

    return _messages_file(path, _distinct_prompts(rows, tally), record)


FORMATS: dict[str, ExportFormat] = {
    "nemo_sft_chat": ExportFormat(
        ("conversations",), True, "NeMo-Aligner SFT: system, conversations, mask", _nemo_sft_chat
    ),
    "nemo_reward": ExportFormat(
        ("comparisons",), True, "NeMo-Aligner reward: lines of chosen, rejected text", _nemo_reward
    ),
    "nemo_prompts": ExportFormat((), True, "NeMo-Aligner PPO: text of prompts", _nemo_prompts),
    "openai_messages": ExportFormat(
        ("conversations",), False, "NeMo-RL SFT (openai_format): messages", _openai_messages
    ),
    "nemo_rl_preference": ExportFormat(
        ("comparisons",), False, "NeMo-RL: context, ranked completions", _nemo_rl_preference
    ),
    "nemo_rl_prompts": ExportFormat((), False, "NeMo-RL RL (ResponseDataset): input, output", _nemo_rl_prompts),
}


def _messages_file(path: Path, rows: Iterable[T], record: Callable[[T], dict[str, Any]]) -> Written:
    return write_lines(
        path, ((row, True) for row in rows), lambda row: ([json_line(record(row))], [0]), at_least=1, noun="rows"
    )


def _rendered(rows: Iterable[T], render: Callable[[T], S], tally: Counter[str]) -> Iterator[S]:
    for row in rows:
        try:
            yield render(row)
        except SpecError:
            tally[REFUSED] += 1


def _only(rows: Iterable[Row], kind: type[R]) -> Iterator[R]:
    for row in rows:
        if not isinstance(row, kind):
            raise TypeError(f"row {row.id} is one of {row.MAKES}, not of {kind.MAKES}")
        yield row


def _hard(rows: Iterable[Row], tally: Counter[str]) -> Iterator[Comparison]:
    for row in _only(rows, Comparison):
        if row.p_chosen == 0.5:
            tally[SOFT] += 1
        elif row.p_chosen < 0.5:
            yield replace(row, chosen=row.rejected, rejected=row.chosen, p_chosen=1 - row.p_chosen)
        else:
            yield row


def _distinct_prompts(rows: Iterable[Row], tally: Counter[str]) -> Iterator[tuple[Message, ...]]:
    """What was asked, each once: a comparison of the same prompt would only ask it again."""
    seen_prompts = Seen()
    for row in rows:
        messages = row.prompt if isinstance(row, Conversation) else row.messages
        if seen_prompts.add("\x1f".join(text for m in messages for text in (m.role, m.content))):
            yield messages
        else:
            tally["repeated prompt"] += 1


def _plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
