"""Mirrors: a folder that holds hub files where there is no network, named by the environment variable ``CAI_DATA``.

What a step reads is decided by the commit in its plan and not by where the bytes lie: a plan made on a laptop keeps its
keys on a cluster without a network, and moving from the hub to a mirror reruns nothing. The price is that a mirror must
hold the very files of that commit. Nobody can tell that from the bytes alone, so whatever says more is believed and
checked: what ``hf download --local-dir`` notes beside the files (commit and digest), and ``SHA256SUMS`` in the folder.
The digest of each hub file that was read is also kept in the step's record, where two runs can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cai.data.github import github_file
from cai.data.locate import GITHUB, HubFile, download
from cai.data.public import SETS, published_digest
from cai.errors import PrerequisiteError
from cai.files.paths import user_path
from cai.identity import file_digest, is_commit

MIRROR = "CAI_DATA"
SUMS = "SHA256SUMS"
_NOTES = Path(".cache/huggingface/download")  # of ``hf download --local-dir``: commit, etag, time, a line each
_DIGEST = 64


def hub_path(remote: HubFile) -> Path:
    """A hub file on this machine: the mirror's where it has one, else the hub's, fetched where that is needed.

    Raises:
        PrerequisiteError: when it is nowhere, or the mirror's is not what is wanted.
    """
    if (path := mirrored(remote)) is not None:
        return path
    try:
        return fetched(remote)
    except PrerequisiteError as error:
        root = os.environ.get(MIRROR)
        hint = f"{root} ({MIRROR}) has no {remote.name}/{remote.file}" if root else f"or set {MIRROR} to a mirror"
        raise PrerequisiteError(f"{error}; {hint}") from error


def mirrored(remote: HubFile) -> Path | None:
    """The mirror's file, checked against what is known of it; None where there is no mirror, or not in it.

    Raises:
        PrerequisiteError: when ``CAI_DATA`` is no folder, or the file is of another commit or has other bytes.
    """
    if not (root := os.environ.get(MIRROR)):
        return None
    folder = user_path(root)
    if not folder.is_dir():
        raise PrerequisiteError(f"{MIRROR}={root}: no such folder; it must hold data sets as the hub has them")
    for base in _bases(folder, remote):
        if (base / remote.file).is_file():
            _check(base, remote)
            return _checked(base / remote.file, remote)
    return None


def _bases(folder: Path, remote: HubFile) -> Iterator[Path]:
    name = remote.name
    yield folder / name
    yield folder / name.rpartition("/")[2]
    # The files of the sets in the table cannot be mistaken for one another's, those of any other set could; and so
    # could what lies in a folder `data`, which many sets have.
    if any(name == public.hub for public in SETS.values()) and not remote.file.startswith("data/"):
        yield folder


def fetched(remote: HubFile) -> Path:
    """The file from where it is published, checked against the table of public data.

    Raises:
        PrerequisiteError: when it cannot be had, or has other bytes.
    """
    return _checked(github_file(remote) if remote.host == GITHUB else download(remote), remote)


def _checked(path: Path, remote: HubFile) -> Path:
    """The file, when its bytes are those that the table of public data has for it.

    Raises:
        PrerequisiteError: when they are others.
    """
    published = published_digest(remote)
    if published is not None and file_digest(path) != published:
        raise PrerequisiteError(f"{path}: its bytes are not those that were published ({published}); fetch it again")
    return path


def _check(base: Path, remote: HubFile) -> None:
    path = base / remote.file
    digests: dict[str, str] = {}
    for line in _lines(base / SUMS):
        digest, _, name = line.partition(" ")
        # As sha256sum writes it: two spaces, or a space and a star.
        digests[name[1:].removeprefix("./")] = digest.lower()
    expected: dict[str, str | None] = {SUMS: digests.get(remote.file)}
    notes = _lines(base / _NOTES / f"{remote.file}.metadata")
    if len(notes) > 1:
        commit, etag = notes[0].strip(), notes[1].strip()
        if is_commit(remote.revision) and is_commit(commit) and commit != remote.revision:
            raise PrerequisiteError(
                f"{path}: was downloaded at commit {commit}, but {remote.revision} is wanted; "
                f"run `hf download {remote.name} --repo-type dataset --revision {remote.revision} --local-dir {base}`"
            )
        expected["its download"] = etag if len(etag) == _DIGEST else None
    for said_by, expected_digest in expected.items():
        if expected_digest is not None and file_digest(path) != expected_digest:
            raise PrerequisiteError(
                f"{path}: its bytes are not those of {said_by} ({expected_digest}); fetch the file again"
            )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
