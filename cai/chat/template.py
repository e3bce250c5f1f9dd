"""A chat template: prompts, answers and whole conversations as text, cut where loss begins and ends.

``prompt(m) + answer(m, a)`` is ``render(m + a)`` up to and including ``answer_end``; what the template writes after it
(ChatML's newline) belongs to neither, because generation stops at ``answer_end`` and the newline is never learnt.

What an assistant thought is rendered only where it is asked for, by ``spans(..., thinking=True)``; no prompt holds it.
Tool calls and results are rendered by templates that know them, and refused by the others: a template that skips them
would leave turns without what was done in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from cai.chat.guard import Guard
from cai.chat.messages import ROLES, Message, Span, has_tools, without_thinking
from cai.chat.sandbox import MAX_SOURCE, Rendered
from cai.chat.template_file import Header, TemplateBody, TemplateKind, TurnError, read_header
from cai.chat.turns import THINKING_PROBE, THINKING_WORDS, TOOL_PROBE, TOOL_WORDS, Turns, each, messages_of, turns_of
from cai.errors import Problem, SpecError, did_you_mean
from cai.identity import text_digest

WITH_TOOLS = "template=chatml_tools, llama3_tools or mistral_tools, or one of your own that writes `tool_calls`"
_KNOWN = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja file that turns messages into the exact text a model reads. Equal texts and guards are equal templates.

    ``guard`` holds control strings beyond the file's own, such as a tokenizer's special tokens.
    """

    name: str = field(compare=False)
    text: str
    where: str = field(compare=False)
    guard: tuple[str, ...] = ()
    header: Header = field(init=False, repr=False, compare=False)
    _body: TemplateBody = field(init=False, repr=False, compare=False)
    _guard: Guard = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        header = read_header(self.text, self.where)
        if header.kind is not TemplateKind.CHAT:
            raise SpecError(Problem(self.where, "is a prompt template, not a chat template", "wants kind: chat"))
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "_body", TemplateBody(self.text, self.where))
        object.__setattr__(self, "_guard", Guard((*header.controls, *self.guard), self.where))
        unknown = sorted(self._body.inspection.required - _KNOWN)
        if unknown:
            raise SpecError([Problem(self.where, f"unknown variable {n!r}", did_you_mean(n, _KNOWN)) for n in unknown])
        self.answer((Message("user", "ping"),), "pong")  # a template that cannot do this is of no use to any stage

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, (self.name, self.text, self.where, self.guard)

    @classmethod
    def from_text(cls, name: str, text: str, where: str = "", guard: Sequence[str] = ()) -> ChatTemplate:
        """A template from its file's text, front matter included; ``where`` names it in errors.

        Raises:
            SpecError: every problem in the front matter, or the first in the body, with the line.
        """
        return _load(name, text, where or name, tuple(dict.fromkeys(guard)))

    @classmethod
    def from_file(cls, path: Path, guard: Sequence[str] = ()) -> ChatTemplate:
        """A template from a file (UTF-8); its name is the file's without suffix."""
        return cls.from_text(path.stem, read_text(path), str(path), guard)

    def guarded(self, strings: Sequence[str]) -> ChatTemplate:
        """The same template with more control strings, e.g. all special tokens of a tokenizer."""
        return self.from_text(self.name, self.text, self.where, (*self.guard, *strings))

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a completion: ``answer_end``, ``eos_token`` and those of ``stop``."""
        return self.header.stops

    def identity(self) -> dict[str, Any]:
        """What decides the rendered text: the file's bytes, and extra control strings where there are any."""
        return {"sha256": text_digest(self.text)} | ({"guard": sorted(self.guard)} if self.guard else {})

    @cached_property
    def speaks_tools(self) -> bool:
        """Whether the template writes tool calls (names and arguments) and tool results."""
        return self._writes(TOOL_PROBE, TOOL_WORDS)

    @cached_property
    def speaks_thinking(self) -> bool:
        """Whether the template writes what was thought before an answer."""
        return self._writes(THINKING_PROBE, THINKING_WORDS)

    def _writes(self, messages: Sequence[Message], words: Sequence[str]) -> bool:
        try:
            text = self._raw(turns_of(messages), False).text
        except SpecError:
            return False
        return all(word in text for word in words)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, *, thinking: bool = False
    ) -> str:
        """The whole text of a conversation.

        Raises:
            TurnError: an unknown role, or an order of turns or kind of turn that the template does not take.
            SpecError: the template fails on these messages.
        """
        return self._safe(messages, add_generation_prompt, thinking)[1]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant begins to write.

        Raises:
            TurnError: also when the messages do not end with a user or system turn or a tool's result.
        """
        if not messages or messages[-1].role not in ("user", "system", "tool"):
            last = f"ends with a turn of role {messages[-1].role!r}" if messages else "has no messages"
            todo = "end it with a user or system turn, or with a tool's result"
            raise TurnError(Problem(self.where, f"a prompt {last}", todo))
        return self._safe(messages, True)[1]

    def harmless(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with every control string in a text broken, for programs that write the template themselves.

        What was thought is left out, as in ``spans``.

        Raises:
            TurnError: an unknown role, or an order of turns or kind of turn that the template does not take.
        """
        return messages_of(without_thinking(messages), self._safe(messages, False)[0])

    def answer(self, messages: Sequence[Message], text: str) -> str:
        """What follows ``prompt(messages)`` when the assistant answers ``text``, up to and including ``answer_end``.

        The result is exact: it includes the space or line end that the template writes between header and answer, and
        nothing after ``answer_end``.

        Raises:
            SpecError: the template writes the prompt differently once there is an answer.
        """
        prompt = self.prompt(messages)
        turns, whole = self._safe((*messages, Message("assistant", text)), False)
        end = self._end(turns, len(turns) - 1, whole, prompt)
        return whole[len(prompt) : end]

    def spans(
        self, messages: Sequence[Message], loss: Literal["all", "last"] = "all", *, thinking: bool = False
    ) -> tuple[Span, ...]:
        """``render(messages)`` in pieces; loss is on what the assistant writes and on the end of its turns.

        ``loss`` chooses all answers or the last one; the tool calls that led to an answer are part of it, tool results
        never are. With ``thinking``, what was thought is rendered and learnt, else it is not there at all. With
        ``generation`` blocks, loss is on what they hold, and on ``answer_end`` where it follows directly. Adjacent
        pieces differ in ``loss``; none is empty.

        Raises:
            SpecError: the template writes earlier turns differently once later ones follow, and marks no answers.
        """
        turns, whole = self._safe(messages, False, thinking)
        first = _last_answer(turns) if loss == "last" else 0
        blocks = self._raw(turns, False).blocks if "endgeneration" in self.text else []
        if blocks:
            if first:
                blocks = blocks[len(self._raw(turns[:first], False).blocks) :]
            answer_ranges = [self._block(whole, start, end) for start, end in blocks]
            answer_ranges = [(s, e) for s, e in answer_ranges if s < e]
        else:
            answer_ranges = []
            for i in (i for i, turn in enumerate(turns) if i >= first and turn["role"] == "assistant"):
                prompt = self._raw(turns[:i], True).text
                answer_ranges.append((len(prompt), self._end(turns, i, whole, prompt)))
        spans, position = list[Span](), 0
        for start, end in answer_ranges:
            if start < position:
                raise SpecError(
                    Problem(self.where, "answers overlap in the rendered text", "nest no generation blocks")
                )
            spans += [Span(whole[position:start], False), Span(whole[start:end], True)]
            position = end
        spans.append(Span(whole[position:], False))
        return tuple(span for span in spans if span.text)

    def _block(self, whole: str, start: int, end: int) -> tuple[int, int]:
        closing = self.header.answer_end
        follows = whole.startswith(closing, end) and not whole[start:end].rstrip().endswith(closing)
        return start, end + len(closing) if follows else end

    def _end(self, turns: Turns, i: int, whole: str, prompt: str) -> int:
        """Where turn ``i`` ends in ``whole``, its ``answer_end`` included, given the prompt before it."""
        closing = self.header.answer_end
        if whole.startswith(prompt):
            cut = whole.find(closing, len(prompt))
            if cut >= 0 and whole[len(prompt) : cut].strip() == turns[i]["content"].strip():
                return cut + len(closing)
            # The template changed the answer: where it ends shows in the text that ends with this turn.
            alone = self._raw(turns[: i + 1], False).text
            if cut >= 0 and whole.startswith(alone) and cut + len(closing) <= len(alone):
                return cut + len(closing)
            message = f"the answer in turn {i + 1} is not closed by answer_end {closing!r}"
        else:
            message = f"the text before turn {i + 1} changes once the answer follows"
        raise SpecError(
            Problem(
                self.where,
                message,
                "mark answers with {% generation %}...{% endgeneration %}, or make "
                "the template write each turn the same whatever follows",
            )
        )

    def _safe(
        self, messages: Sequence[Message], add_generation_prompt: bool, thinking: bool = False
    ) -> tuple[Turns, str]:
        for n, message in enumerate(messages):
            if message.role not in ROLES:
                raise TurnError(
                    Problem(
                        f"{self.where}: message {n + 1}",
                        f"unknown role {message.role!r}",
                        did_you_mean(message.role, ROLES),
                    )
                )
        if has_tools(messages) and not self.speaks_tools:
            number = next(n for n, message in enumerate(messages, 1) if has_tools((message,)))
            raise TurnError(
                Problem(f"{self.where}: message {number}", "this template has no tool turns", f"use {WITH_TOOLS}")
            )
        return self._guard.apply(
            turns_of(messages if thinking else without_thinking(messages)),
            each,
            lambda turns: self._raw(turns, add_generation_prompt).text,
            always=self._body.inspection.alters,
            where=self.where,
        )

    def _raw(self, turns: Turns, add_generation_prompt: bool) -> Rendered:
        return self._body.render(
            {
                "messages": list(turns),
                "add_generation_prompt": add_generation_prompt,
                "bos_token": self.header.bos_token,
                "eos_token": self.header.eos_token,
                "tools": None,
                "documents": None,
            }
        )


def _last_answer(turns: Turns) -> int:
    """Where the last answer begins: at the last assistant turn, or at the first of the tool calls that led to it."""
    roles = [turn["role"] for turn in turns]
    start = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    before = start
    while before and roles[before - 1] == "tool":
        before -= 1
        if before and roles[before - 1] == "assistant":
            before -= 1
            start = before
    return start


@lru_cache(maxsize=64)
def _load(name: str, text: str, where: str, guard: tuple[str, ...]) -> ChatTemplate:
    return ChatTemplate(name, text, where, guard)


def read_text(path: Path) -> str:
    """A template file's text.

    Raises:
        SpecError: no such file, too large for a template, or not UTF-8.
    """
    try:
        if (size := path.stat().st_size) > 4 * MAX_SOURCE:
            raise SpecError(Problem(str(path), f"template of {size:,} bytes; at most {MAX_SOURCE:,} characters"))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})")) from error
