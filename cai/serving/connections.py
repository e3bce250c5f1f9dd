"""Limits of a server's connections: how many there are, how long each may say nothing, and whom it may come from.

uvicorn closes a connection that idles after an answer; one that never sends a request, sends it a byte at a time, or
does not read its answer would stay for ever. A page in a browser can reach what listens on this machine, by a name of
its own that leads here too: so on loopback only requests to this machine's names, from its own pages, are answered.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from cai.clients.key_hosts import is_loopback
from cai.serving.bodies import ApiError

MOST = 256
"""Connections at a time; further ones are closed at once."""

HEADERS_SECONDS = 10.0
"""How long a connection may take to send the head of a request."""

UNREAD_SECONDS = 60.0
"""How long an answer may wait for a caller that does not read it."""

QUIET_SECONDS = 10.0
"""The same line is logged once in so many seconds."""


def most_connections() -> int:
    """``MOST``, or half of the files that this process may open where those are few: the model needs some too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST, max(soft // 2, 8)) if soft != resource.RLIM_INFINITY else MOST


class LimitedConnection(H11Protocol):
    """A connection of uvicorn's that ends when it is one too many or too slow."""

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or close it where there are enough."""
        if len(self.connections) >= most_connections():
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; one that was never taken has nothing to forget."""
        self._stop_waiting()
        if self in self.connections:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a connection that was closed at once may still have sent something."""
        if self in self.connections:
            super().data_received(data)

    def on_response_complete(self) -> None:
        """The next request has to come in time, too."""
        super().on_response_complete()
        self._await_request()

    def pause_writing(self) -> None:
        """The caller does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller reads again."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _await_request(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(HEADERS_SECONDS, self._close_if_waiting, self.cycle)

    def _close_if_waiting(self, cycle: Any) -> None:
        if self.cycle is not cycle:
            return
        # Closing waits for what is not sent yet, and so for a caller who reads nothing.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()


class KnownCallers:
    """Refuses with 403 what is addressed to another machine, or comes from another site's page.

    ``local``: the server listens on loopback, so that its own names are known. Elsewhere only pages are checked.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http" and (reason := self._refused(scope)):
            await ApiError(403, reason, kind="permission_error", code="unknown_caller").response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> str:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        hosts = [_host(value.decode("latin-1")) for value in headers.get(b"host", [])]
        if self._local and not (len(hosts) == 1 and is_loopback(hosts[0])):
            return "this server answers only requests to 127.0.0.1, localhost or [::1]"
        for value in headers.get(b"origin", []):
            origin = _host(value.decode("latin-1").partition("://")[2])
            if not (is_loopback(origin) if self._local else origin in hosts and origin):
                return "this server does not answer pages of other sites"
        return ""


def _host(authority: str) -> str:
    """The host of ``HOST:PORT``; empty for what is none."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Rarely(logging.Filter):
    """Lets the same line through once in ``QUIET_SECONDS``: a flood of broken requests must not fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown."""
        now, text = time.monotonic(), str(record.msg)[:200]
        if now - self._last.get(text, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[text] = now
        return True
