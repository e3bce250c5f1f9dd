"""Locating: from the paths of a data source to files: in the user's folders, in this package, or on the hub.

Of the hub's data sets the published files are fetched and read here, and not by ``datasets``: it makes a table of them
first, and stops at a row of another shape where our readers count it, by reason, and go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from cai.errors import PrerequisiteError, Problem, SpecError, did_you_mean
from cai.files.library import SHIPPED
from cai.files.paths import user_path
from cai.identity import is_commit

HUB, GITHUB = "hf:", "gh:"
MAX_PART = 255
"""Bytes of one part of a path."""

_HUB_PATH = re.compile(r"(?P<host>hf:|gh:)(?P<name>[^/@:\s]+(?:/[^/@:\s]+)?)(?:@(?P<revision>[^:\s]+))?:(?P<file>\S+)")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class HubFile:
    """One file of a data set on the Hugging Face hub, or of a repository on GitHub, at a commit."""

    name: str
    revision: str
    file: str
    host: str = HUB

    @property
    def path(self) -> str:
        """The file as an experiment has it."""
        return f"{self.host}{self.name}@{self.revision}:{self.file}"

    @property
    def repository(self) -> str:
        """The name that is told, and that counts: with its host, where that is not the hub."""
        return self.name if self.host == HUB else f"{self.host}{self.name}"


def is_remote(path: str) -> bool:
    """Whether a path names a file that is published, and not one of the user's."""
    return path.startswith((HUB, GITHUB))


def published_place(path: str) -> tuple[str, str, str] | None:
    """Host, name and file of a path to a published file, whatever its commit; None of another path."""
    match = _HUB_PATH.fullmatch(path)
    return (match["host"], match["name"], match["file"]) if match else None


def hub_file(path: str, revision: str | None = None, moving: bool = False) -> HubFile:
    """Read ``hf:NAME@REVISION:FILE`` or ``gh:OWNER/NAME@COMMIT:FILE``.

    The revision may also come from the source's ``revision`` field.

    Raises:
        SpecError: when it is no such path, or the revision is not the 40 digits of a commit; with ``moving`` a branch
            is taken too.
    """
    match = _HUB_PATH.fullmatch(path)
    if match is None:
        raise SpecError(Problem("path", f"'{path}' is no hub path", "write hf:NAME@COMMIT:FILE"))
    pinned = match["revision"] or revision
    # A file from GitHub is kept by its commit; of a branch nobody could tell that it has moved.
    if pinned is None or not ((moving and match["host"] == HUB) or is_commit(pinned)):
        message = f"'{path}' is not pinned: " + (f"'{pinned}' can move" if pinned else "it has no revision")
        raise SpecError(Problem("path", message, f"give the commit's 40 digits: {match['host']}NAME@COMMIT:FILE"))
    if match["host"] == GITHUB and not _on_github(match["name"], match["file"]):
        raise SpecError(Problem("path", f"'{path}' names no file on GitHub", "write gh:OWNER/NAME@COMMIT:FILE"))
    return HubFile(match["name"], pinned, match["file"], match["host"])


def _on_github(name: str, file: str) -> bool:
    """Whether a repository and a file in it can be meant: both become part of a path where it is kept."""
    place = PurePosixPath(name, file)
    return "/" in name and not file.startswith("/") and ".." not in place.parts and "\0" not in file


def download(remote: HubFile) -> Path:
    """The file in the hub's local cache, fetched where it is not there yet.

    Raises:
        PrerequisiteError: when it can be neither found nor fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(remote.name, remote.file, repo_type="dataset", revision=remote.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PrerequisiteError(
            f"{remote.path}: cannot be fetched ({reason}); download it where there is a network and give its path "
            "instead"
        ) from error


def local_files(path: str, roots: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files that a local path names: a file, a folder's files with a known suffix, or a glob; sorted by name.

    Raises:
        SpecError: naming the folders tried, with the nearest name among the siblings.
    """
    if path.startswith(SHIPPED):
        name = path.removeprefix(SHIPPED)
        roots, searched = (Path(str(resources.files("cai.data"))),), "the shipped data"
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SpecError(Problem("path", f"'{path}' leaves the shipped data", "name a file in it"))
    else:
        name, searched = str(user_path(path)), ", ".join(str(r) for r in roots)
    if any(len(part.encode(errors="replace")) > MAX_PART for part in PurePosixPath(name).parts) or "\0" in name:
        raise SpecError(Problem("path", f"'{path[:60]}...' is longer than any file's name", "check the path"))
    if Path(name).is_absolute():
        roots, searched = (Path("/"),), str(Path(name).parent)
    for root in roots:
        if files := _matches(root, name, suffixes):
            return files
    raise SpecError(Problem("path", f"'{path}' is not in {searched}", _nearest(roots, name, suffixes)))


def _matches(root: Path, name: str, suffixes: Sequence[str]) -> list[Path]:
    whole = root / name
    if whole.is_file():
        return [whole]
    if whole.is_dir():
        return sorted(p for p in whole.iterdir() if p.is_file() and p.name.endswith(tuple(suffixes)))
    if _GLOB.search(name):
        return sorted(p for p in root.glob(name.removeprefix("/")) if p.is_file())
    return []


def _nearest(roots: Sequence[Path], name: str, suffixes: Sequence[str]) -> str:
    folders = [(root / name) if (root / name).is_dir() else (root / name).parent for root in roots]
    if any(f == root / name for f, root in zip(folders, roots, strict=True)):
        return f"that folder has no {' or '.join(suffixes)} files"
    siblings = [p.name for f in folders if f.is_dir() for p in f.iterdir() if p.name.endswith(tuple(suffixes))]
    return did_you_mean(Path(name).name, siblings) or "check the path"
