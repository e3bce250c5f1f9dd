"""Model archives as NeMo writes them: tars of the members that a test names, and the config in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def nemo_archive(path: Path, files: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def config_member(**tokenizer: Any) -> tuple[str, bytes]:
    """The archive's ``model_config.yaml``, with this under ``tokenizer``."""
    import yaml

    config = {"encoder_seq_length": 4096, "max_position_embeddings": 32768, "tokenizer": tokenizer}
    return "./model_config.yaml", yaml.safe_dump(config).encode()
