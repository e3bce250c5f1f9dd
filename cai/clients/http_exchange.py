"""One attempt over HTTP: what is sent for a call, and what its reply means in the speaker's words.

aiohttp and not httpx carries these calls: with 64 in flight httpx 0.28 took 8.8 ms of CPU a call (its pool searches all
connections), aiohttp 0.5 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import aiohttp
from yarl import URL

from cai.clients.base import Call
from cai.clients.endpoints import Trouble, TroubleKind
from cai.clients.event_loop import DaemonResolver, proxy_of, trust
from cai.clients.speaker import Anew, Answered, Refused, Reply, Speaker

LARGEST = 64 << 20
"""Bytes of an answer that are read at most, decompressed."""


class HttpExchange:
    """The connections of one client. Used in its loop alone."""

    def __init__(self, speaker: Speaker, urls: Sequence[str], connect: float) -> None:
        self._speaker = speaker
        self._secure = any(url.startswith("https") for url in urls)
        self._connect = connect
        self._session: aiohttp.ClientSession | None = None
        self._to: dict[tuple[str, str], tuple[URL, str | None]] = {}

    async def ask(self, call: Call, server: str) -> tuple[Answered | Refused | Trouble, int]:
        """What a server says to a call, and how many requests it took, where it wanted another form of it. Whoever asks
        bounds the time by cancelling.

        Raises:
            CaiError: what cannot pass.
        """
        attempts = 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect)
        try:
            while True:
                attempts += 1
                meaning = await self._once(call, server, timeout)
                if not isinstance(meaning, Anew):
                    return meaning, attempts
        except aiohttp.ConnectionTimeoutError:
            trouble = Trouble(TroubleKind.UNREACHABLE, "the connection failed", "the connection failed (timed out)")
        except (aiohttp.ClientError, OSError) as error:
            kind = TroubleKind.UNREACHABLE if isinstance(error, aiohttp.ClientConnectorError) else TroubleKind.FAULT
            error_text = self._speaker.hide(str(error)) or type(error).__name__
            trouble = Trouble(kind, "the connection failed", f"the connection failed ({error_text})")
        return trouble, attempts

    async def _once(
        self, call: Call, server: str, timeout: aiohttp.ClientTimeout
    ) -> Answered | Refused | Anew | Trouble:
        session = self._session or self._open_session()
        form = self._speaker.request(call, server)
        to, proxy = self._to.get((server, form.path)) or self._address(server, form.path)
        headers = self._speaker.headers()
        # aiohttp warns of bytes that it would write at once, and reads a file in pieces.
        data = form.payload if len(form.payload) < 1 << 20 else BytesIO(form.payload)
        async with session.post(
            to, data=data, headers=headers, allow_redirects=False, proxy=proxy, timeout=timeout
        ) as response:
            payload = await _body(response)
            reply = Reply(response.status, response.reason or "", response.headers, payload)
        return self._speaker.interpret(call, form, reply)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        # Connections are bounded by the calls in flight; a bound of its own would only queue them a second time.
        connector = aiohttp.TCPConnector(
            limit=0, resolver=DaemonResolver(), ttl_dns_cache=60, ssl=trust() if self._secure else True
        )
        agent = {"User-Agent": "constitution-as-code", "Content-Type": "application/json"}
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers=agent, max_field_size=65536
        )
        return self._session

    def _address(self, url: str, path: str) -> tuple[URL, str | None]:
        to = URL(url + path)
        address = (to, proxy_of(to.scheme, f"{to.host}:{to.port}"))
        self._to[url, path] = address
        return address


async def _body(response: aiohttp.ClientResponse) -> bytes:
    # What is compressed may grow: the bound is on what comes out.
    plain = "Content-Encoding" not in response.headers
    if plain and response.content_length is not None and response.content_length <= LARGEST:
        return await response.read()
    whole = bytearray()
    while chunk := await response.content.readany():
        whole += chunk
        if len(whole) > LARGEST:
            raise aiohttp.ClientPayloadError(f"the answer has more than {LARGEST} bytes")
    return bytes(whole)
