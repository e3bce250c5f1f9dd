"""One client for all who ask the same servers at the same time: what a server is asked at once is counted together.

Two steps that run side by side would each keep a server full by themselves. Opened here they are pools of one client,
which deals its places out among them, and what one leaves free the other uses.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from cai.clients.base import Completion, OptionScores, OptionsRequest, Pool, Request, Score, ScoreRequest
from cai.clients.openai_api import OpenAiClient, open_endpoint
from cai.clients.served_models import ServedModel
from cai.clients.settings import ApiLimits
from cai.clients.spending import Account

_open: dict[Hashable, tuple[OpenAiClient, set[SharedClient]]] = {}
_lock = threading.Lock()


class SharedClient:
    """A part in a client that is closed when the last who has one closes it; its pools are paid from one's account."""

    def __init__(self, client: OpenAiClient, key: Hashable, account: Account | None = None) -> None:
        self._client = client
        self._account = account
        self._key = key
        self._pools: list[Pool] = []

    @property
    def name(self) -> str:
        """The client's."""
        return self._client.name

    @property
    def served(self) -> Mapping[str, ServedModel]:
        """The client's, whoever asked."""
        return self._client.served

    def open_pool(self) -> Pool:
        """A pool of one's own, closed at the latest with this."""
        pool = self._client.open_pool(self._account)
        self._pools.append(pool)
        return pool

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """As the client's."""
        return self._client.generate(requests)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """As the client's."""
        return self._client.score(requests)

    def options(self, requests: Sequence[OptionsRequest]) -> Iterator[OptionScores]:
        """As the client's."""
        return self._client.options(requests)

    def close(self) -> None:
        """Give up one's own calls; the last to do so closes the client."""
        for pool in self._pools:
            pool.close()
        self._pools.clear()
        with _lock:
            client, parts = _open.get(self._key, (self._client, set()))
            if self not in parts:
                return
            parts.discard(self)
            if not parts:
                del _open[self._key]
        if not parts:
            client.close()


def share_endpoint(
    path: Path,
    api_key_env: str | None = None,
    limits: ApiLimits | None = None,
    replicas: Sequence[str] = (),
    *,
    place: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> SharedClient:
    """A part in the client that is open for an ``endpoint.json``, asked alike; in a new one where none is.

    Raises:
        PrerequisiteError: as ``open_endpoint``.
    """
    said = (limits or ApiLimits()).model_dump_json(exclude_unset=True)
    where = tuple(sorted((place or {}).items()))
    key = (path.read_text(encoding="utf-8"), api_key_env, said, tuple(replicas), where)
    with _lock:
        client, parts = _open.get(key) or (open_endpoint(path, api_key_env, limits, replicas, place=place), set())
        shared = SharedClient(client, key, account)
        parts.add(shared)
        _open[key] = (client, parts)
        return shared
