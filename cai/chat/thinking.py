"""Thinking is never an answer: what a model wrote before it spoke is split off the text, in every form models use.

A thought stands between a pair of marks (``<think>`` and ``</think>``), or ends with its closing mark alone where the
chat template wrote the opening one, or has a channel of its own (harmony). Marks are looked for at the beginning of a
text, where a model that thinks puts them; a complete pair also counts later. An opening mark in the middle that nothing
closes is taken for a word: an answer may speak of marks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cai.chat.messages import ToolCall

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
)
"""The marks that open and close a thought: DeepSeek, Qwen and most others; models told to think; Magistral; Seed;
OpenThinker; Command A; Kimi."""

THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The names under which servers and files keep a thought beside its answer: DeepSeek, SGLang and vLLM; vLLM since 0.12,
OpenRouter and Ollama; others."""

_CLOSING = dict(MARKS)
_OPENS = re.compile("|".join(re.escape(opening) for opening, _ in MARKS))
_CLOSES = re.compile("|".join(re.escape(closing) for _, closing in MARKS))

_HARMONY = re.compile(r"\s*(?:<\|start\|>assistant)?<\|channel\|>")
_CHANNEL = re.compile(
    r"<\|channel\|>(?P<name>\w{1,32})(?P<to>[^<]{0,200})(?:<\|constrain\|>[^<]{0,32})?<\|message\|>"
    r"(?P<text>(?:[^<]|<(?!\|))*)"
)
_TOOL = re.compile(r"to=(?:functions\.)?([\w.-]+)")
# The same where the server leaves special tokens out: the names of the channels stand bare in the text.
_BARE = re.compile(r"\s*analysis(?=[A-Z\"'(])")
_BARE_FINAL = "assistantfinal"


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text taken apart: what was said, what was thought, whether the thought was still open where the text ends, and
    the tools that a channel of its own calls."""

    text: str
    thinking: str = ""
    open: bool = False
    tool_calls: tuple[ToolCall, ...] = ()


def prefilled(prompt: str) -> bool:
    """Whether a rendered prompt has opened the thought already, so that its answer begins inside it."""
    end = prompt.rstrip()
    return any(end.endswith(opening) for opening, _ in MARKS)


def spoken(text: str, opened: bool = False, *, leading: bool = False) -> Spoken:
    """Split a completion's text; ``opened`` says that the prompt ended with an opening mark.

    With ``leading`` only what stands before the first word that was said is a thought: a person's text may speak of
    marks. The text keeps its bytes where nothing was thought.
    """
    if _HARMONY.match(text):
        return _channels(text)
    if bare := _BARE.match(text):
        thought, final, said = text[bare.end() :].partition(_BARE_FINAL)
        return Spoken(said, thought.strip(), open=not final)
    begins = _OPENS.match(text.lstrip())
    first = _CLOSES.search(text)
    if first is None:
        if opened or begins:
            return Spoken("", _without_opening(text), open=True)
        return Spoken(text)
    thoughts: list[str] = []
    rest = text
    if opened or begins is None:
        # The closing mark alone, where the template, or the server, has kept the opening one.
        opening = _OPENS.search(text, 0, first.start())
        if opened or opening is None or _CLOSING[opening.group()] != first.group():
            thoughts.append(_without_opening(text[: first.start()]))
            rest = text[first.end() :]
    rest = _without_pairs(rest, thoughts, leading)
    if _OPENS.match(rest.lstrip()):
        thoughts.append(_without_opening(rest))
        return Spoken("", _joined(thoughts), open=True)
    return Spoken(rest.lstrip(), _joined(thoughts)) if thoughts else Spoken(text)


_BEGINNINGS = (*(opening for opening, _ in MARKS), "<|channel|>", "<|start|>assistant<|channel|>", "analysis")


def said_so_far(text: str, opened: bool = False) -> str:
    """What is certain to be said of a text that still grows: nothing while a thought is open or may be opening.

    Where a closing mark comes alone and ``opened`` did not say so, what was before it has been let through.
    """
    begins = text.lstrip()
    if any(len(begins) < len(mark) + 1 and mark.startswith(begins[: len(mark)]) for mark in _BEGINNINGS):
        return ""
    parts = spoken(text, opened)
    if parts.open:
        return ""
    said = parts.text
    for opening, _ in MARKS:
        at = said.find(opening)
        while at < 0 and opening:  # the beginning of a mark at the end may become one
            opening = opening[:-1]
            at = len(said) - len(opening) if opening and said.endswith(opening) else -1
        said = said[:at] if at >= 0 else said
    return said


def _without_opening(text: str) -> str:
    text = text.lstrip()
    opening = _OPENS.match(text)
    return text[opening.end() :].strip() if opening else text.strip()


def _without_pairs(text: str, thoughts: list[str], leading: bool) -> str:
    """A text without what stands between marks, which is added to ``thoughts``. Goes through the text once; with
    ``leading`` no further than to the first word beside them."""
    kept: list[str] = []
    position = 0
    unclosed: set[str] = set()
    for opening in _OPENS.finditer(text):
        closing = _CLOSING[opening.group()]
        if opening.start() < position or closing in unclosed:
            continue
        if leading and text[position : opening.start()].strip():
            break
        end = text.find(closing, opening.end())
        if end < 0:
            unclosed.add(closing)
            continue
        kept.append(text[position : opening.start()])
        thoughts.append(text[opening.end() : end])
        position = end + len(closing)
    return "".join([*kept, text[position:]])


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip())


def _channels(text: str) -> Spoken:
    """Harmony's channels: ``final`` is said, ``commentary`` to a tool calls it, the others are thought."""
    said: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    final = False
    for channel in _CHANNEL.finditer(text):
        tool = _TOOL.search(channel["to"])
        if tool is not None:
            calls.append(ToolCall(tool[1], channel["text"].strip()))
        elif channel["name"] == "final":
            final = True
            said.append(channel["text"])
        else:
            thoughts.append(channel["text"])
    return Spoken("".join(said), _joined(thoughts), open=not final and not calls, tool_calls=tuple(calls))
