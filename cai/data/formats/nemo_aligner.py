"""NeMo-Aligner's data files, written so that upstream reads every line of them as it was meant.

Upstream never says that it lost a row: it replaces, masks, cuts or crashes. So each rule it has is applied here first,
and what breaks one is left out and counted by reason. Facts, read in NeMo-Aligner v0.7.0 and NeMo v2.1.0, and tried
against their real classes by tests/lab/test_training.py; those of conversations are in nemo_chat.py beside this:

- Comparisons (``RewardModelDataset``): lines 2i and 2i + 1 are the chosen and the rejected text of pair i. A pair with
  a side longer than the sequence is replaced by the pair two places on, which then counts twice; at the end of the file
  that is an IndexError. The reward is read at a text's last token, so both sides must end alike.
- Prompts (``RLHFDataset``): a prompt longer than sequence - max_length is replaced by the next one, with its loss
  multiplied by 0; when all are, it is an error.
- ``FILE.idx.npy`` and ``FILE.idx.info``, which the chat data set leaves beside its file, are never checked against it:
  a file written anew is read by the old line ends. They are removed here.
- Samplers drop the last partial batch; fewer rows than one global batch (for PPO: than ``num_rollout_samples``) end in
  a division by zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from cai.chat import ChatTemplate, Message, Span
from cai.data.formats.base import (
    Count,
    Dropped,
    Lines,
    Written,
    distinct_prompts,
    hard_labels,
    json_line,
    rendered,
    write_lines,
)
from cai.data.formats.nemo_chat import (
    ANSWER_END,
    ANSWER_HEADER,
    CONTROL,
    SYSTEM_START,
    TURN_START,
    chat_record,
    chat_spans,
    folded,
    header_text,
    joined,
    turn_text,
)
from cai.data.rows import Comparison, Conversation, Row


class ChatText(Protocol):
    """A conversation: as rendered spans, which say what is learnt, and as the turns they were rendered from."""

    @property
    def spans(self) -> Sequence[Span]:
        """The rendered text in pieces."""
        ...

    @property
    def messages(self) -> Sequence[Message]:
        """The turns, made harmless as text."""
        ...


class PromptLike(Protocol):
    """A rendered prompt, ending with the assistant header."""

    @property
    def prompt(self) -> str:
        """The text."""
        ...


@dataclass(frozen=True, slots=True)
class HardPair:
    """A rendered prompt, the answer that counts as better and the other one; ``replica`` above 0 repeats a row."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    replica: int = 0


def write_chat(
    path: Path, texts: Iterable[ChatText], count: Count, *, max_length: int, at_least: int = 1, dataset: str = "cai"
) -> Written:
    """SFT conversations, one JSON object a line; ``max_length`` is ``max_seq_length`` (tokens), as upstream counts.

    Where the spans learn the last answer alone, the turns before it are folded into the first user turn, which renders
    the same text and is never learnt: upstream has no other way to say it.

    Raises:
        SpecError: fewer conversations than ``at_least`` are left; ``path`` is then as it was.
    """

    nul = count("\0")

    def alone(text: str) -> int:
        return count("\0" + text) - nul

    end_of_last, name_tokens = alone(TURN_START), alone(ANSWER_HEADER)
    header_tokens = lru_cache(maxsize=256)(lambda system: count(header_text(system)))

    def lines(text: ChatText) -> Lines:
        record = _checked(text, dataset)
        line = json_line(record)
        turns = [turn_text(turn["from"], turn["value"]) for turn in record["conversations"]]
        tokens = count(header_text(record["system"]) + "".join(turns) + TURN_START)
        if tokens > max_length + 1:
            raise Dropped("too long")
        # As upstream counts to place the loss; where the parts are not the whole, the mask is shifted.
        parts = [alone(turn) for turn in turns]
        if header_tokens(record["system"]) + sum(parts) + end_of_last != tokens:
            raise Dropped("tokens merge across turns")
        for turn, part in zip(record["conversations"], parts, strict=True):
            if turn["from"] == "Assistant" and name_tokens + alone(turn["value"] + "\n") != part:
                raise Dropped("tokens merge across turns")
        return [line], [tokens]

    return write_lines(path, ((text, True) for text in texts), lines, at_least=at_least, noun="conversations")


def write_pairs(path: Path, pairs: Iterable[HardPair], count: Count, *, max_length: int, at_least: int = 1) -> Written:
    """Comparisons, two lines each: the chosen text, then the rejected one. ``max_length`` tokens per text.

    Raises:
        SpecError: fewer pairs, replicas included, than ``at_least`` are left; ``path`` is then as it was.
    """

    counted = lru_cache(maxsize=2)(count)  # replicas come one after another

    def lines_of(pair: HardPair) -> Lines:
        _check_prompt(pair.prompt)
        for answer in (pair.chosen, pair.rejected):
            if not answer.endswith(ANSWER_END):
                raise Dropped("answer without end of turn")
            if not (answer_text := answer.removesuffix(ANSWER_END)).strip():
                raise Dropped("empty answer")
            _no_control(answer_text)
        if pair.chosen == pair.rejected:
            raise Dropped("identical answers")
        texts = [pair.prompt + answer for answer in (pair.chosen, pair.rejected)]
        lines = [json_line({"text": text}) for text in texts]
        tokens = [counted(text) for text in texts]
        if max(tokens) > max_length:
            raise Dropped("too long")
        return lines, tokens

    return write_lines(path, ((pair, pair.replica == 0) for pair in pairs), lines_of, at_least=at_least, noun="pairs")


def write_prompts(
    path: Path, prompts: Iterable[PromptLike], count: Count, *, max_length: int, at_least: int = 1
) -> Written:
    """PPO's prompts, one a line. ``max_length`` is the sequence length minus the answer's ``length_params.max_length``.

    A prompt that comes again is a sample more and no row more.

    Raises:
        SpecError: fewer prompts than ``at_least`` are left; ``path`` is then as it was.
    """
    seen_ids: set[int] = set()

    def first(prompt: PromptLike) -> bool:
        new = id(prompt) not in seen_ids
        seen_ids.add(id(prompt))
        return new

    return write_lines(
        path,
        ((prompt, first(prompt)) for prompt in prompts),
        lambda prompt: prompt_lines(prompt, count, max_length),
        at_least=at_least,
        noun="prompts",
    )


def prompt_lines(prompt: PromptLike, count: Count, max_length: int) -> Lines:
    """The line of one prompt.

    Raises:
        Dropped: upstream would replace or mask it.
    """
    _check_prompt(prompt.prompt)
    line, tokens = json_line({"text": prompt.prompt}), count(prompt.prompt)
    if tokens > max_length:
        raise Dropped("too long")
    return [line], [tokens]


def _checked(text: ChatText, dataset: str) -> dict[str, Any]:
    messages = tuple(text.messages)
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if any(turn.role == "system" for turn in turns):
        raise Dropped("system turn not first")
    if not any(turn.role == "user" for turn in turns):
        raise Dropped("no user turn")
    if any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        raise Dropped("roles out of order")
    if turns[-1].role != "assistant":
        raise Dropped("ends with a user turn")
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
        raise Dropped("empty answer")
    for message in messages:
        _no_control(message.content)
    expected_spans = joined(text.spans)
    record = chat_record(messages, dataset)
    if chat_spans(record) != expected_spans:
        record = folded(record)
    if chat_spans(record) != expected_spans:
        raise Dropped("rendered otherwise than NeMo does")
    return record


def _check_prompt(prompt: str) -> None:
    """A system header, then turns that alternate from the user's, the assistant's last one only begun."""
    system, *turns = prompt.split(TURN_START)
    if not turns or turns[-1] != "Assistant\n":
        raise Dropped("prompt without assistant header")
    if not system.startswith(f"{SYSTEM_START}System\n"):
        raise Dropped("prompt without system header")
    if not "".join(turn.partition("\n")[2] for turn in turns).strip():
        raise Dropped("empty prompt")
    names = [turn.partition("\n")[0] for turn in turns]
    if len(turns) % 2 or names != ["User", "Assistant"] * (len(turns) // 2):
        raise Dropped("roles out of order")
    for part in (system.removeprefix(SYSTEM_START), *turns):
        _no_control(part)


def _no_control(text: str) -> None:
    if "<extra_id_" in text and any(control in text for control in CONTROL):
        raise Dropped("control token in text")


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation of the data as ``write_chat`` takes it."""

    spans: tuple[Span, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt of the data as ``write_prompts`` takes it."""

    prompt: str


def chats(rows: Iterable[Conversation], template: ChatTemplate, tally: Counter[str]) -> Iterator[RenderedChat]:
    """Conversations as texts; what the template refuses is counted."""

    def chat(row: Conversation) -> RenderedChat:
        return RenderedChat(template.spans(row.messages), template.harmless(row.messages))

    return rendered(rows, chat, tally)


def pairs(rows: Iterable[Comparison], template: ChatTemplate, tally: Counter[str]) -> Iterator[HardPair]:
    """Comparisons as texts with hard labels; ties, and what the template refuses, are counted."""

    def pair(row: Comparison) -> HardPair:
        chosen, rejected = (template.answer(row.messages, answer) for answer in (row.chosen, row.rejected))
        return HardPair(row.id, template.prompt(row.messages), chosen, rejected)

    return rendered(hard_labels(rows, tally), pair, tally)


def prompts(rows: Iterable[Row], template: ChatTemplate, tally: Counter[str]) -> Iterator[RenderedPrompt]:
    """The prompts of any rows as texts, each once."""
    return rendered(distinct_prompts(rows, tally), lambda messages: RenderedPrompt(template.prompt(messages)), tally)
