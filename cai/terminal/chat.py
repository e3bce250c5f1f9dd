"""Talk to a model in the terminal: a conversation that fits the model's context, and answers shown as they come.

The same code answers a person at a terminal, lines from a pipe, and the questions of ``--message``. What the model
writes is shown as plain text: control characters and markup in it do nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TextIO, runtime_checkable

from rich.console import Console
from rich.text import Text

from cai.chat import Message
from cai.clients.base import Client, Completion, Finish, Request, Sampling
from cai.errors import Problem, SpecError
from cai.identity import sampling_seed
from cai.terminal.output import make_console
from cai.text import plain

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /help shows this, /quit leaves"
CHAT_SAMPLING = Sampling(max_tokens=256, temperature=0.7, top_p=0.95)


class Template(Protocol):
    """The part of a chat template that talking needs (``cai.chat.ChatTemplate`` has it)."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        ...

    def prompt(self, messages: Sequence[Message]) -> str:
        """The exact text the model reads before it answers."""
        ...


@runtime_checkable
class StreamingClient(Protocol):
    """What a client offers on top of ``Client`` when it can show an answer while it is being made."""

    def stream(self, request: Request) -> Generator[str, None, Completion]:
        """Pieces of the answer as they come; joined they are ``generate``'s text. The return value is the completion.

        Closing the generator stops the model.
        """
        ...


def pieces(text: str) -> list[str]:
    """A finished text in word-sized pieces; joined they are the text."""
    return re.findall(r"\s*\S+|\s+", text)


def stream(client: Client, request: Request) -> Generator[str, None, Completion]:
    """An answer piece by piece: as the model makes it if the client can, else whole and then cut into words."""
    if isinstance(client, StreamingClient):
        return (yield from client.stream(request))
    completion = next(iter(client.generate([request])))
    yield from pieces(completion.text)
    return completion


def estimate_tokens(text: str) -> int:
    """Tokens of a text when nobody can count them: three bytes each, which is more than common tokenizers make."""
    return len(text.encode(errors="replace")) // 3 + 1


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model to talk to. ``context`` is in tokens, prompt and answer together; None when it is not known."""

    client: Client
    template: Template
    name: str = "model"
    sampling: Sampling = CHAT_SAMPLING
    seed: int = 0
    context: int | None = None
    count: Callable[[str], int] = estimate_tokens

    def request(self, messages: Sequence[Message], turn: int) -> Request:
        """The request for the next answer; the draw depends on the seed and the turn alone."""
        stop = tuple(dict.fromkeys((*self.sampling.stop, *self.template.stops)))
        return Request(
            id=f"turn-{turn}",
            prompt=self.template.prompt(list(messages)),
            sampling=replace(self.sampling, stop=stop),
            seed=sampling_seed(self.seed, str(turn), "chat"),
        )

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt and a full answer fit into the context."""
        if self.context is None:
            return True
        prompt = self.template.prompt(list(messages))
        return self.count(prompt) + self.sampling.max_tokens <= self.context


@dataclass(slots=True)
class ChatHistory:
    """The turns so far; whole exchanges are forgotten, oldest first, when they no longer fit."""

    speaker: ChatModel
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    question_count: int = 0

    def messages(self) -> list[Message]:
        """The system message, if any, and the turns."""
        return ([Message("system", self.system)] if self.system else []) + self.turns

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.turns.clear()
        self.question_count = 0

    def say(self, text: str) -> int:
        """Add a user turn and make room for the answer; returns how many older messages were forgotten.

        Raises:
            SpecError: when this message alone is longer than the context; it is not kept.
        """
        self.turns.append(Message("user", text))
        before = len(self.turns)
        while not self.speaker.fits(self.messages()):
            if len(self.turns) <= 2:
                self.turns.clear()
                raise SpecError(_too_long(self.speaker))
            # A user turn and its answer go together, so that the roles still alternate.
            del self.turns[:2]
        return before - len(self.turns)

    def answer(self) -> Generator[str, None, Completion]:
        """The model's next answer, piece by piece. Cut off or failed, the question is forgotten with it."""
        completion = None
        try:
            completion = yield from stream(
                self.speaker.client, self.speaker.request(self.messages(), self.question_count)
            )
        finally:
            if completion is None:
                self.turns.pop()
        self.question_count += 1
        self.turns.append(Message("assistant", completion.text))
        return completion


def chat(
    speaker: ChatModel,
    *,
    beside: ChatModel | None = None,
    system: str = "",
    console: Console | None = None,
    source: TextIO | None = None,
) -> None:
    """Talk until the input ends: a terminal is asked for lines, in a pipe every line is a message.

    ``beside`` answers the same messages in a conversation of its own (the base model, to compare).
    """
    console = console or make_console()
    talks = [ChatHistory(s, system) for s in (speaker, beside) if s is not None]
    if source is None and sys.stdin.isatty():
        console.print(Text(plain(f"Talking to {speaker.name}. {HELP}."), style="dim"))
        lines = _typed(console)
    else:
        lines = _piped(console, source or sys.stdin)
    for line in lines:
        if line.startswith("/"):
            if not _command(line, talks, console):
                return
            continue
        for talk in talks:
            if not _exchange(talk, line, console, label=len(talks) > 1):
                break


def ask(
    speaker: ChatModel,
    questions: Sequence[str],
    *,
    beside: ChatModel | None = None,
    system: str = "",
    console: Console | None = None,
) -> None:
    """Answer each question in a conversation of its own and print it; one question in a pipe prints the answer alone.

    Raises:
        SpecError: when a question is longer than the model's context.
    """
    console = console or make_console()
    bare = len(questions) == 1 and beside is None and not console.is_terminal
    for question in questions:
        if not bare:
            console.out(f"> {plain(question)}", highlight=False)
        for model in (speaker, beside):
            if model is not None:
                talk = ChatHistory(model, system)
                talk.say(question)
                _show(talk, console, label=beside is not None, remarks=not bare)
        if not bare:
            console.out()


def _show(talk: ChatHistory, console: Console, label: bool, remarks: bool = True) -> None:
    if label:
        console.print(Text(plain(f"{talk.speaker.name}:"), style="bold"))
    with closing(talk.answer()) as answer:
        while True:
            try:
                piece = next(answer)
            except StopIteration as end:
                completion: Completion = end.value
                break
            console.out(plain(piece), end="", highlight=False)
    console.out()
    if remarks and completion.finish is Finish.LENGTH:
        console.print(Text(f"(cut after {completion.tokens} tokens)", style="dim"))


def _exchange(talk: ChatHistory, line: str, console: Console, label: bool) -> bool:
    """One message and its answer; False when the person stopped it."""
    try:
        forgotten = talk.say(line)
        if forgotten:
            console.print(Text(f"(the oldest {forgotten} messages no longer fit and are forgotten)", style="dim"))
        _show(talk, console, label)
    except SpecError as error:
        console.print(Text(plain(str(error)), style="red"))
    except KeyboardInterrupt:
        console.out()
        console.print(Text("(stopped; this question and its answer are forgotten)", style="dim"))
        return False
    return True


def _command(line: str, talks: list[ChatHistory], console: Console) -> bool:
    """Carry out a line that starts with a slash; False when it ends the conversation."""
    word, _, rest = line.partition(" ")
    if word in ("/quit", "/exit", "/q"):
        return False
    if word == "/reset":
        for talk in talks:
            talk.reset()
        notice = "(forgotten)"
    elif word == "/system":
        for talk in talks:
            talk.system = rest.strip()
            talk.reset()
        notice = "(system message set, conversation starts anew)" if rest.strip() else "(no system message)"
    else:
        notice = HELP if word == "/help" else f"{plain(word)} is no command: {HELP}"
    console.print(Text(notice, style="dim"))
    return True


def _typed(console: Console) -> Iterator[str]:
    """Lines from a terminal, with editing and history where readline is; Ctrl-D ends, Ctrl-C twice too."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it is what gives input() a history
    warned = False
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            console.out()
            return
        except KeyboardInterrupt:
            console.out()
            if warned:
                return
            console.print(Text("(Ctrl-C again, Ctrl-D or /quit leaves)", style="dim"))
            warned = True
            continue
        warned = False
        if line:
            yield line


def _piped(console: Console, source: TextIO) -> Iterator[str]:
    for line in source:
        if line.strip():
            console.out(f"> {plain(line.strip())}", highlight=False)
            yield line.strip()


def _too_long(speaker: ChatModel) -> Problem:
    return Problem(
        "message",
        f"does not fit: {speaker.name} reads {speaker.context} tokens, {speaker.sampling.max_tokens} of them kept for "
        "the answer",
        "shorten the message or ask for fewer tokens",
    )
