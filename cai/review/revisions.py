"""A git revision's files, taken with ``git archive`` into a folder of their own and compiled there.

Git is asked, never told: the working tree, the index and the refs stay as they are. What the revision does not have
is not looked for in the working tree. Where the program's own files belong to the repository (a checkout of this
project), the shipped folders and the shipped data are taken from the revision too.
"""

from __future__ import annotations

import os
import posixpath
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from cai.errors import Problem, SpecError, did_you_mean
from cai.files.library import GROUPS, SHIPPED, Library, shipped_root

_GLOB = frozenset("*?[")
_PACKAGE = Path(__file__).resolve().parent.parent
INDEX = ""
"""In place of a commit: what is staged (``:experiment``)."""


def git(args: Sequence[str], cwd: Path, where: str = "git", stdin: bytes = b"") -> bytes:
    """What git prints.

    Raises:
        SpecError: when there is no git, or it fails; with its last words.
    """
    # Paths are paths, not patterns; and looking must not write an index that only looks stale.
    env = {**os.environ, "GIT_LITERAL_PATHSPECS": "1", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        completed = subprocess.run(["git", *args], cwd=cwd, env=env, input=stdin, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise SpecError(
            Problem(where, "there is no git here", "install git, or compare plan files and runs")
        ) from error
    if completed.returncode:
        stderr_lines = completed.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit code {completed.returncode}"
        ]
        raise SpecError(Problem(where, f"git says: {stderr_lines[-1].removeprefix('fatal: ')}", "see `git status`"))
    return completed.stdout


@dataclass(frozen=True)
class Repository:
    """The repository in which the user stands; ``prefix`` is the way from its ``top`` to there, empty at the top."""

    top: Path
    prefix: str

    @classmethod
    def around(cls, folder: Path, where: str) -> Repository:
        """The repository of a folder.

        Raises:
            SpecError: when the folder is in none.
        """
        try:
            top_and_prefix = git(["rev-parse", "--show-toplevel", "--show-prefix"], folder, where).decode().split("\n")
        except SpecError as error:
            if "not a git repository" not in str(error):
                raise
            hint = "compare experiments, plan files or runs, or go to the repository"
            raise SpecError(Problem(where, f"{folder} is in no git repository", hint)) from None
        return cls(Path(top_and_prefix[0]), top_and_prefix[1].strip("/"))

    def commit(self, revision: str) -> str:
        """The 40 digits of a revision's commit.

        Raises:
            SpecError: when there is no such revision, with the nearest branch or tag.
        """
        if revision == INDEX:
            return INDEX
        # A word that git would take for an option names no revision.
        if revision.startswith("-") or any(c in revision for c in "\0\n"):
            raise SpecError(Problem(revision, "is no git revision", "give a branch, a tag or a commit"))
        try:
            command = ["rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
            return git(command, self.top, revision).decode().strip()
        except SpecError:
            refs = git(["for-each-ref", "--format=%(refname:short)", "--count=500"], self.top, revision)
            near = did_you_mean(revision.partition("~")[0].partition("^")[0], ["HEAD", *refs.decode().split()])
            shallow = git(["rev-parse", "--is-shallow-repository"], self.top, revision).strip() == b"true"
            hint = f"this clone is shallow: `git fetch --unshallow`; {near}" if shallow else near
            raise SpecError(Problem(revision, "no such git revision", hint)) from None


@dataclass
class Checkout:
    """A revision's files under ``folder``; they come as they are asked for. ``name`` is what the user wrote."""

    repository: Repository
    name: str
    commit: str
    folder: Path
    _taken_paths: set[str] = field(default_factory=set)

    @property
    def home(self) -> Path:
        """The folder where the user stands, as it was."""
        return self.folder / self.repository.prefix

    def library(self) -> Library:
        """Where the revision's experiments are found: its own folders, then the shipped ones."""
        folders = [*GROUPS.values(), "sweeps"]
        own, shipped = self.home, shipped_root()
        own.mkdir(parents=True, exist_ok=True)
        self.take([posixpath.join(self.repository.prefix, f) for f in folders])
        shipped_prefix = self._shipped_here()
        if shipped_prefix is None:
            return Library((own, shipped), own)
        self.take([posixpath.join(shipped_prefix, f) for f in folders])
        roots = tuple(dict.fromkeys((own, self.folder / shipped_prefix if shipped_prefix else self.folder)))
        return Library(roots, own, self.folder / self._package() / "data")

    def take_data(self, data: Mapping[str, Any]) -> None:
        """Fetch the files that an experiment names: relative paths of data and of models, and shipped data."""
        prefix, wanted_paths = self.repository.prefix, list[str]()
        for source in (data.get("data") or {}).values():
            paths = source.get("path", ()) if isinstance(source, Mapping) else ()
            for path in [paths] if isinstance(paths, str) else paths:
                if isinstance(path, str) and path.startswith(SHIPPED):
                    if self._shipped_here() is not None:
                        wanted_paths.append(posixpath.join(self._package(), "data", path.removeprefix(SHIPPED)))
                elif isinstance(path, str) and not path.startswith(("hf:", "public:", "/", "~")):
                    wanted_paths += self._files_of(posixpath.join(prefix, path))
        for model in (data.get("models") or {}).values():
            source = model.get("source", "") if isinstance(model, Mapping) else model
            scheme, _, rest = str(source).partition(":")
            if scheme in ("hf", "gguf", "nemo") and rest and not rest.startswith(("/", "~")):
                wanted_paths.append(posixpath.join(prefix, rest))
        self.take(wanted_paths)

    def take(self, paths: Sequence[str]) -> None:
        """Fetch files and folders, named from the repository's top; what the revision does not have is left out."""
        clean = dict.fromkeys(posixpath.normpath(path) for path in paths)
        new_paths = [p for p in clean if p not in self._taken_paths and p != "." and not p.startswith(("..", "/"))]
        self._taken_paths |= set(new_paths)
        top = self.repository.top
        if not new_paths:
            return
        if self.commit == INDEX:
            listed = git(["ls-files", "-z", "--", *new_paths], top, f":{self.name}")
            into = ["checkout-index", "-q", "-z", "--stdin", f"--prefix={self.folder}/"]
            git(into, top, f":{self.name}", stdin=listed)
            return
        there = (
            git(["ls-tree", "-z", "--name-only", self.commit, "--", *new_paths], top, self.name).decode().split("\0")
        )
        if existing_paths := [path for path in there if path]:
            packed = self.folder / ".git-archive.tar"
            git(["archive", "--format=tar", f"--output={packed}", self.commit, "--", *existing_paths], top, self.name)
            with tarfile.open(packed) as archive:
                archive.extractall(self.folder, filter=_harmless)
            packed.unlink()

    def _files_of(self, path: str) -> list[str]:
        """What to fetch for a path that may be a glob: the folder before its first pattern, or what fits at the top."""
        parts = PurePosixPath(path).parts
        fixed = parts[: next((i for i, p in enumerate(parts) if _GLOB & set(p)), len(parts))]
        if fixed or not parts:
            return ["/".join(fixed)]
        if self.commit == INDEX:
            names = {p.partition("/")[0] for p in git(["ls-files", "-z"], self.repository.top).decode().split("\0")}
        else:
            names = set(git(["ls-tree", "-z", "--name-only", self.commit], self.repository.top).decode().split("\0"))
        return [name for name in sorted(names) if name and fnmatch(name, parts[0])]

    def _package(self) -> str:
        return _PACKAGE.relative_to(self.repository.top.resolve()).as_posix()

    def _shipped_here(self) -> str | None:
        """The way from the top to the shipped folders, where the program's own files are the repository's."""
        top, shipped = self.repository.top.resolve(), shipped_root()
        if not (shipped.is_relative_to(top) and _PACKAGE.is_relative_to(top)):
            return None
        # A virtual environment in the repository's folder holds a program that is none of its files.
        if not git(["ls-files", "-z", "--", f"{self._package()}/files/library.py"], self.repository.top):
            return None
        prefix = shipped.relative_to(top).as_posix()
        return "" if prefix == "." else prefix


def _harmless(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """Plain files, folders, and links that stay inside; a link that leads out is as good as not there."""
    try:
        return tarfile.data_filter(member, path)
    except tarfile.FilterError:
        return None
