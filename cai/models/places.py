"""Where a model that an experiment names lies on this disk already: its own folder or file, or what was fetched."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cai.files.home import cai_home
from cai.files.library import Library
from cai.identity import is_commit


def place_of_model(source: str, revision: str = "", sha256: str = "", library: Library | None = None) -> Path | None:
    """The folder or GGUF file of a source (``hf:``, ``gguf:``, ``pypi:``); None where it is nowhere here.

    Nothing is fetched. Of a name on the hub it is the snapshot in the hub's own cache, of a file in a wheel the file
    that was taken out of it before.
    """
    scheme, _, rest = source.partition(":")
    if scheme == "pypi":
        cached = cai_home() / "models" / sha256
        return cached if sha256 and cached.is_file() else None
    local = (library or Library.here()).local(rest)
    if scheme == "gguf":
        return local if local.is_file() else None
    if scheme != "hf":
        return None
    if local.is_dir() and (not revision or rest.startswith(("/", "./", "../", "~"))):
        return local
    return hub_snapshot(rest, revision)


def hub_snapshot(name: str, revision: str) -> Path | None:
    """The folder of a hub model's revision in the hub's cache on this disk; None where it is not there."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    if not revision or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or not re.fullmatch(r"[\w.-]+", revision):
        return None
    model = cache / f"models--{name.replace('/', '--')}"
    named = model / "refs" / revision
    if not is_commit(revision) and named.is_file():
        revision = named.read_text(encoding="utf-8", errors="replace").strip()
    folder = model / "snapshots" / revision
    return folder if is_commit(revision) and folder.is_dir() else None
