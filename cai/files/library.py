"""Where named things are found: the user's own folders first, then the shipped ones.

``constitutions/``, ``prompt_templates/`` and ``experiments/`` in the folder where the user stands win over those of
the project, so that an installed wheel works in any project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cai.errors import Problem, SpecError, did_you_mean
from cai.files.paths import user_path

GROUPS = {
    "experiment": "experiments",
    "constitution": "constitutions",
    "template": "prompt_templates",
    "sweep": "sweeps",
}
"""Hydra group -> folder."""

MAX_NAME = 200
"""Characters of a name; file systems have 255 bytes."""

SHIPPED = "shipped:"
"""How the path of a data file that comes with the program begins."""

FIELDS = (
    "name",
    "description",
    "seed",
    "engine",
    "engines",
    "constitution",
    "template",
    "models",
    "data",
    "stages",
    "tracking",
)
"""What an experiment has, at its top."""

SUFFIXES = {
    "experiments": (".yaml",),
    "constitutions": (".yaml",),
    "prompt_templates": (".jinja", ".yaml"),
    "sweeps": (".yaml",),
}


def shipped_root() -> Path:
    """The folder that holds the shipped folders: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped"
    return inside if inside.is_dir() else package.parent


@dataclass(frozen=True)
class Library:
    """An ordered search path of roots, the user's first.

    ``home`` is where relative paths of data and models begin, by default the folder where the user stands; ``data`` is
    what ``shipped:`` stands for, by default this package's own. Both serve those who compile a revision of the files.
    """

    roots: tuple[Path, ...]
    home: Path | None = None
    data: Path | None = None

    @classmethod
    def here(cls, cwd: Path | None = None) -> Library:
        """The folder where the user stands, then the shipped one."""
        own, shipped = (cwd or Path.cwd()).resolve(), shipped_root()
        return cls((own, shipped) if own != shipped else (own,))

    def data_roots(self) -> tuple[Path, ...]:
        """The folders in which a relative path of a data source is looked up, in order."""
        return tuple(dict.fromkeys((self.home or Path.cwd(), *self.roots)))

    def local(self, path: str) -> Path:
        """A path of a model's file or folder; a relative one begins at ``home``."""
        model_path = user_path(path)
        return model_path if self.home is None else self.home / model_path

    def placed(self, path: str) -> str:
        """The path of a data source with ``shipped:`` replaced, where that is not this package's own data."""
        name = path.removeprefix(SHIPPED)
        if self.data is None or name == path or ".." in PurePosixPath(name).parts:
            return path
        return str(self.data / name)

    def _candidates(self, folder: str, name: str) -> Iterator[Path]:
        if len(name) > MAX_NAME or "\0" in name:
            return  # no file system has such a name, and asking would be an error
        for root in self.roots:
            base = (root / folder).resolve()
            for suffix in ("", *SUFFIXES[folder]):
                path = (base / f"{name}{suffix}").resolve()
                # A name never leads out of its folder, whatever dots or links it has.
                if path.is_relative_to(base) and path.is_file():
                    yield path

    def find(self, folder: str, name: str, where: str = "") -> Path:
        """The file called ``name`` (with or without its suffix) in ``folder``.

        Raises:
            SpecError: when there is none, with the nearest known name.
        """
        for path in self._candidates(folder, name):
            return path
        known_names = [n for n, _ in self.names(folder)]
        raise SpecError(Problem(where or folder, f"no '{name}' in {folder}/", did_you_mean(name, known_names)))

    def names(self, folder: str) -> list[tuple[str, Path]]:
        """All (name, file) of a folder, the user's first, each name once; sub-folders as ``folder/name``."""
        files_by_name: dict[str, Path] = {}
        for root in self.roots:
            base = root / folder
            for suffix in SUFFIXES[folder]:
                for path in sorted(base.rglob(f"*{suffix}")) if base.is_dir() else ():
                    if not (path.is_file() and path.resolve().is_relative_to(base.resolve())):
                        continue  # ``find`` would not take it either
                    files_by_name.setdefault(path.relative_to(base).with_suffix("").as_posix(), path)
        return sorted(files_by_name.items())

    def display_path(self, path: Path) -> str:
        """A path as a person would write it: relative to the root that holds it."""
        for root in self.roots:
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return str(path)
