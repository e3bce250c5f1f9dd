"""A step keeps what its servers say they serve, and says it where that is another model than it was."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from cai.clients.served_models import CHANGED, SERVED, ServedModel, add_to_work, first_served
from cai.stages.base import Context

SERVED_FILE = "served.json"
"""In a step's work: by role, which models have answered."""

_log = logging.getLogger(__name__)
_warning = threading.Lock()
_warned = set[tuple[Path, str]]()
"""Files of models and names that this process has warned of already."""


def note_served(ctx: Context, role: str, label: str, served: ServedModel) -> None:
    """An answer has come from a model that had not answered this flow: keep its name, and compare it with the first."""
    place = f"{role}.{label}" if label else role
    ctx.progress.note(SERVED, role=place, model=served.model, system_fingerprint=served.system_fingerprint)
    add_to_work(ctx.work / SERVED_FILE, place, served)
    if ctx.served is None:
        return
    path = ctx.served / f"{ctx.model(role, label).key[:32]}.json"
    recorded = first_served(path, served)
    with _warning:
        if recorded.model == served.model or (path, served.model) in _warned:
            return
        _warned.add((path, served.model))
    ctx.progress.note(CHANGED, role=place, recorded=recorded.model, model=served.model)
    _log.warning(
        "%s (%s): the server now says it serves '%s'; the first answers of this model came from '%s'. If it is another "
        "model, give it an `identity` of its own, and its steps are made anew; if it is the same, remove %s",
        ctx.name,
        place,
        served.model,
        recorded.model,
        path,
    )
