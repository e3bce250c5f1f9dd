"""``download``: a model or a data file from the hub, at a commit. What the plans of clusters run for a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cai.commands.common import options
from cai.errors import PrerequisiteError, Problem, SpecError
from cai.models.config_file import check_model

_MODEL = re.compile(r"hf:(?P<name>[^/@:\s]+/[^/@:\s]+)@(?P<revision>[0-9a-f]{40})")
WEIGHTS = ("*.json", "*.safetensors", "*.model", "*.txt", "README.md", "LICENSE*")
"""Files of a model: weights as safetensors only, which cannot hold code, configuration and tokenizer."""


def download_verb(args: Sequence[str]) -> int:
    """Fetch ``hf:NAME@COMMIT`` (a model) or ``hf:NAME@COMMIT:FILE`` (of a data set)."""
    parser = options("download", "Fetch a model or a data file from the Hugging Face hub, or a data file from GitHub.")
    parser.add_argument(
        "source",
        help="hf:NAME@COMMIT for a model, hf:NAME@COMMIT:FILE or gh:OWNER/NAME@COMMIT:FILE for a file of a data set",
    )
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where a model goes; data files go to the hub's cache"
    )
    parsed = parser.parse_args(list(args))
    if match := _MODEL.fullmatch(parsed.source):
        if parsed.to is None:
            raise SpecError(Problem("--to", "a model needs a folder", "give --to FOLDER"))
        print(_model(match["name"], match["revision"], parsed.to))
        return 0
    from cai.data.locate import hub_file
    from cai.data.mirror import fetched

    print(fetched(hub_file(parsed.source)))
    return 0


def _model(name: str, revision: str, folder: Path) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise PrerequisiteError(f"hf:{name}: needs the package 'huggingface_hub'; install it") from error
    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=list(WEIGHTS))
    except Exception as error:  # the hub's errors share no base but Exception; all mean the same to the user
        raise PrerequisiteError(
            f"hf:{name}@{revision}: cannot be had from the hub ({type(error).__name__}: {error}); check the name, the "
            "revision, the licence (some models ask for HF_TOKEN) and the network, or download it elsewhere and give "
            "the folder as hf:/path/to/folder"
        ) from error
    check_model(folder)
    return folder
