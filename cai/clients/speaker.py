"""What the traffic of calls wants of a protocol: someone who knows what to send and what a reply means.

A speaker touches no network, so that it can be tried without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cai.clients.base import Call, Finish, Result
from cai.clients.endpoints import Trouble
from cai.errors import CaiError


@dataclass(frozen=True, slots=True)
class Sent:
    """What is sent for a call: the path below the ``server``'s address, the bytes, and the fields left out."""

    path: str
    payload: bytes
    left_out: frozenset[str] = frozenset()
    server: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server says."""

    status: int
    reason: str
    headers: Mapping[str, str]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a call, with the tokens of its prompt and of its answer. Where the server does not say them they
    are not ``counted``, but words that were counted here."""

    result: Result
    prompt_tokens: int = 0
    tokens: int = 0
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not take this call. Where it takes others the call has its ``result``; where it takes none, the
    fault is the run's, and ``error`` says what to mend. ``may_pass``: it may be taken later (when there is credit)."""

    result: Result
    error: CaiError
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class Anew:
    """The call is to be sent again at once, in another form."""


class Speaker(Protocol):
    """Who knows what to say to the servers. Raises CaiError for what cannot pass."""

    @property
    def name(self) -> str:
        """The client's name, for errors."""
        ...

    def parts(self, call: Call) -> tuple[Call, ...]:
        """The calls that a server is asked for one call."""
        ...

    def joined(self, call: Call, results: Sequence[Result]) -> Result:
        """The result of a call from those of its parts."""
        ...

    def unread(self, call: Call, why: str, finish: Finish = Finish.REFUSED) -> Result:
        """The result of a call that has no answer, as the ledger counts it."""
        ...

    def request(self, call: Call, server: str) -> Sent:
        """What to send to the server with this address."""
        ...

    def headers(self) -> dict[str, str]:
        """With which headers."""
        ...

    def interpret(self, call: Call, request: Sent, reply: Reply) -> Answered | Refused | Anew | Trouble:
        """What a reply means."""
        ...

    def hide(self, text: str) -> str:
        """A text from outside, fit for an error: on one line, without secrets."""
        ...
