"""The actor's side of the critic's wire. A critic that is away is waited for: ``STANDIN_CONNECT_SECONDS``, 60."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, tensor


class Critic:
    """Speaks to the server at ``cfg.critic.ip:port`` under the names in ``cfg.critic.name``."""

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._url = f"http://{cfg.critic.ip}:{cfg.critic.port}/"
        self._patience = float(os.environ.get("STANDIN_CONNECT_SECONDS", "60"))
        # No proxy of the environment between the two.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def infer(self, tokens: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """(rewards, values): (B,) and (B, T)."""
        longest = int(ends.max())
        limit = self._cfg.pad_to_length
        assert limit is None or longest <= limit, f"{longest} tokens are more than pad_to_length={limit}"
        found = self._call("infer", {"tokens": tokens.tolist(), "sequence_lengths": ends.tolist()})
        return tensor(found["rewards"]), tensor(found["values"])

    def train(self, tokens: Tensor, returns: Tensor, values: Tensor, mask: Tensor) -> None:
        data = {"tokens": tokens, "returns": returns, "prev_values": values, "mask": mask}
        self._call("train", {key: value.tolist() for key, value in data.items()})

    def save(self) -> None:
        self._call("save", {})

    def _call(self, what: str, data: dict[str, Any]) -> dict[str, Any]:
        body, headers = json.dumps(data).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + self._cfg.critic.name[what], body, headers)
        give_up = time.monotonic() + self._patience
        while True:
            try:
                with self._open(request) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                raise RuntimeError(f"{request.full_url}: {error}") from error
            except OSError as error:
                if time.monotonic() > give_up:
                    raise ConnectionError(f"no critic at {self._url}: {error}") from error
                time.sleep(0.2)
