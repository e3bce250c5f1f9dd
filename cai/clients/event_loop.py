"""A thread of its own for what waits on the network, and the names of servers looked up without being waited for.

Both are daemons: however a server hangs, the program ends when it wants to.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from urllib.request import getproxies, proxy_bypass

from aiohttp.abc import AbstractResolver, ResolveResult

CLOSES_IN = 0.8
"""Seconds that closing may take."""


class LoopThread:
    """An event loop that runs in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def soon(self, do: Callable[..., object], *args: object) -> bool:
        """Do something in the loop; False when it is over."""
        try:
            self.loop.call_soon_threadsafe(do, *args)
        except RuntimeError:
            return False
        return True

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what is on its way, do the ``last`` thing and end; comes back soon, whatever hangs."""

        async def end() -> None:
            try:
                mine = asyncio.current_task()
                others = [task for task in asyncio.all_tasks() if task is not mine]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                await last()
            finally:
                self.loop.stop()

        if self.soon(lambda: setattr(self, "_last", self.loop.create_task(end()))):
            self._thread.join(CLOSES_IN)

    @property
    def runs(self) -> bool:
        """Is the thread alive?"""
        return self._thread.is_alive()


class DaemonResolver(AbstractResolver):
    """Looks names up in daemon threads; asyncio's own threads are waited for when the program ends."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host."""
        loop = asyncio.get_running_loop()
        resolved: asyncio.Future[list[Any]] = loop.create_future()

        def settle(addresses: list[Any], error: OSError | None) -> None:
            if resolved.done():
                return
            if error is None:
                resolved.set_result(addresses)
            else:
                resolved.set_exception(error)

        def look() -> None:
            addresses, error = [], None
            try:
                addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            except (OSError, UnicodeError) as failed:
                error = failed if isinstance(failed, OSError) else OSError(f"{host!r} is no name of a host")
            with suppress(RuntimeError):  # The loop has ended: nobody waits for the address.
                loop.call_soon_threadsafe(settle, addresses, error)

        threading.Thread(target=look, name="look up", daemon=True).start()
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host, host=address[0], port=address[1], family=kind, proto=protocol, flags=int(numeric)
            )
            for kind, _, protocol, _, address in await resolved
        ]

    async def close(self) -> None:
        """Nothing is held."""


def proxy_of(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for an address; looked up once, not for every call."""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return None if not proxy or proxy_bypass(host) else proxy


def trust() -> ssl.SSLContext:
    """The certificates of this machine; certifi's where it has none of its own."""
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE") and not context.cert_store_stats()["x509_ca"]:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
