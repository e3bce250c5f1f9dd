"""What limit a server was found to have, kept between runs: one small file for each address and model.

The file lies under ``$CAI_HOME`` and decides how a run begins, never what it makes. Whoever writes last wins; a file
that cannot be read, is older than two weeks or speaks of something else is as good as none. ``CAI_LIMIT_MEMORY=off``
does without.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from yarl import URL

from cai.clients.concurrency import Limit, LimitReason
from cai.clients.settings import ApiLimits
from cai.errors import CaiError
from cai.files.durable import write_durably
from cai.files.home import cai_home
from cai.identity import parse_json

FRESH = 14 * 24 * 3600.0
"""Seconds for which a limit is believed: later the server may be another machine."""

MOST = 1 << 20
"""No server has more places: a larger number was not written by this program."""

EVERY = 60.0
"""Seconds between two times that a limit is written while calls are on their way."""

_writing = threading.Lock()


def memory_folder() -> Path | None:
    """Where limits are kept; None where the user says to do without, or there is no home folder."""
    if os.environ.get("CAI_LIMIT_MEMORY", "").strip().lower() in ("off", "0", "no", "false"):
        return None
    try:
        return cai_home() / "limits"
    except CaiError:
        return None


def remembered_limit(url: str, model: str) -> int | None:
    """The limit that a server was found to have for a model, None where none is known."""
    folder = memory_folder()
    if folder is None:
        return None
    try:
        data = parse_json(_file(folder, url, model).read_text(encoding="utf-8"))
        limit, written = data["limit"], data["written"]
        known = data["model"] == model and isinstance(limit, int) and 1 <= limit <= MOST
        return limit if known and -FRESH < time.time() - written < FRESH else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_limit(url: str, model: str, limit: int) -> None:
    """Keep what was found. Where it cannot be written the next run begins as this one did."""
    folder = memory_folder()
    if folder is None:
        return
    record = {"host": _host(url), "model": model, "limit": limit, "written": round(time.time(), 3)}
    with suppress(OSError, CaiError), _writing:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(_file(folder, url, model), json.dumps(record, ensure_ascii=False) + "\n")


def opening_limit(url: str, model: str, limits: ApiLimits) -> Limit:
    """The limit that a server begins with: what the user states, what is remembered of it, or a guess."""
    if limits.stated:
        return Limit(limits.concurrency, limits.concurrency, LimitReason.STATED)
    known = remembered_limit(url, model)
    return Limit(limits.concurrency) if known is None else Limit(limits.concurrency, known, LimitReason.REMEMBERED)


def _file(folder: Path, url: str, model: str) -> Path:
    # By hash: an address may hold what no file name may, and what nobody should read.
    return folder / f"{sha256(json.dumps([url, model]).encode()).hexdigest()[:32]}.json"


def _host(url: str) -> str:
    try:
        address = URL(url)
        return f"{address.host}:{address.port}"
    except ValueError:
        return ""
