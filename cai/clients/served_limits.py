"""The servers of one client and their limits over time: where each begins, what is told of it, what is remembered."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cai.clients.endpoints import Endpoint
from cai.clients.http_pool import HttpPool
from cai.clients.limit_memory import opening_limit, remember_limit
from cai.clients.pool_notes import LimitMoves
from cai.clients.settings import ApiLimits
from cai.clients.speaker import Speaker


class ServedLimits:
    """``endpoints`` are the servers at ``urls``, each with the limit that was stated, found before, or guessed."""

    def __init__(self, speaker: Speaker, urls: Sequence[str], limits: ApiLimits, model: str) -> None:
        self.endpoints = [Endpoint(url, opening_limit(url, model, limits)) for url in urls]
        self._stated = limits.stated
        self._model = model
        self._moves = [LimitMoves(endpoint, speaker.hide(endpoint.url)) for endpoint in self.endpoints]
        self._kept_at = time.monotonic()

    def open(self, pool: HttpPool) -> None:
        """Tell a pool where the limits are."""
        for moves in self._moves:
            pool.note(moves.opening())

    def tell(self, pools: Sequence[HttpPool], now: float, at_rest: bool) -> None:
        """Tell every pool where the limits have gone; ``at_rest``: nothing is on its way."""
        for moves in self._moves:
            note = moves.due(now, at_rest)
            if note is not None:
                for pool in pools:
                    pool.note(note)

    def keep(self, every: float) -> None:
        """Remember the limits for later runs, if that was not done in the last ``every`` seconds."""
        now = time.monotonic()
        if self._stated or now < self._kept_at + every:
            return
        self._kept_at = now
        for endpoint in self.endpoints:
            if endpoint.limit.was_full:
                remember_limit(endpoint.url, self._model, endpoint.limit.lasting)
