"""Hydra as the front: groups from the project's folders, native overrides and multirun.

A ``ConfigSource`` with the scheme ``cai`` maps group ``experiment`` to ``experiments/`` and so on; a search path
plugin puts the user's folder first. Hydra reads the defaults lists itself. What comes out is plain data, and a map
that tells from which file and line each value came.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cai.errors import Problem, SpecError, did_you_mean
from cai.experiment import hydra_private
from cai.experiment.strangers import check_expansion, check_file, texts_with_references
from cai.files.library import FIELDS, GROUPS, Library
from cai.files.yaml_lines import load as load_yaml

ROOT_CONFIG = "cai"
CELL_CONFIG = "cell"
DEFAULT_EXPERIMENT = "quickstart"
SCHEME = "cai"

_BARE = [f"~hydra/{part}" for part in ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "env")]
"""Hydra's own settings, which composing alone does not need."""

_library: list[Library] = []
_loaded: list[tuple[str, str, dict[str, int]]] = []


def _current() -> Library:
    return _library[-1] if _library else Library.here()


class GroupSource(ConfigSource):
    """Serves one root of the library to Hydra."""

    @staticmethod
    def scheme() -> str:
        """The scheme of these search paths."""
        return SCHEME

    def _file(self, config_path: str) -> tuple[str, Path] | None:
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        folder = GROUPS.get(group)
        if folder is None or not name:
            return None
        library = Library((Path(self.path),))
        for suffix in (".jinja",) if group == "template" else (".yaml",):
            path = Path(self.path) / folder / f"{name}{suffix}"
            if path.is_file() and path.resolve().is_relative_to((library.roots[0] / folder).resolve()):
                return group, path
        return None

    def _is_root(self, config_path: str) -> bool:
        return config_path.removesuffix(".yaml") in (ROOT_CONFIG, CELL_CONFIG)

    def load_config(self, config_path: str) -> ConfigResult:
        """A file of a group as a config, in the package of its group."""
        if config_path.removesuffix(".yaml") == CELL_CONFIG:
            return self._result({}, "_global_")
        if self._is_root(config_path):
            # Hydra's own run folder is not used: runs have their folder, and a plan must write nothing.
            data: dict[str, Any] = {
                "defaults": ["_self_", {"experiment": DEFAULT_EXPERIMENT}],
                # Here so that the command line can set what an experiment leaves out.
                "description": "",
                "seed": 0,
                "engine": {"kind": "embedded"},
                "tracking": {},
            }
            return self._result(data, "_global_")
        located = self._file(config_path)
        if located is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        group, path = located
        name = config_path.removesuffix(".yaml").partition("/")[2]
        if group == "template":
            return self._result({"name": name}, "template")
        data, lines = load_yaml(path)
        if not isinstance(data, dict):
            raise SpecError(Problem(_current().display_path(path), "must be a mapping of fields", "see README.md"))
        check_file(data, lines, _current().display_path(path))
        prefix = "" if group == "experiment" else f"{group}."
        _loaded.append((_current().display_path(path), prefix, {str(k): v for k, v in lines.items()}))
        data = {("name" if k == "name" else k): v for k, v in data.items()}
        if group in ("constitution", "experiment"):
            data.setdefault("name", name)
        return self._result(data, "_global_" if group == "experiment" else group)

    def _result(self, data: dict[str, Any], package: str) -> ConfigResult:
        config = OmegaConf.create(data)
        for key, value in data.items() if package == "_global_" else ():
            if isinstance(value, dict):
                # Fields that the file leaves at their defaults can be overridden too; the typed schema finds typos.
                OmegaConf.set_struct(config[key], False)
        if package != "_global_":
            OmegaConf.set_struct(config, False)
        return ConfigResult(
            config=config,
            path=f"{SCHEME}://{self.path}",
            provider=self.provider,
            header={"package": package},
        )

    def available(self) -> bool:
        """Whether the root is there."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether a path names a group (or the root)."""
        group, _, rest = config_path.partition("/")
        if not group:
            return True
        folder = GROUPS.get(group)
        return folder is not None and (Path(self.path) / folder / rest).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether a path names a config."""
        return self._is_root(config_path) or self._file(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What is under a path, for globs and completion."""
        if not config_path:
            groups = [g for g, f in GROUPS.items() if (Path(self.path) / f).is_dir()]
            return sorted(groups) if results_filter != ObjectType.CONFIG else [ROOT_CONFIG]
        group = config_path.partition("/")[0]
        base = Path(self.path) / GROUPS.get(group, "-")
        if not base.is_dir() or results_filter == ObjectType.GROUP:
            return []
        return sorted(p.stem for p in base.glob("*.jinja" if group == "template" else "*.yaml"))


class LibraryPath(SearchPathPlugin):
    """Puts the library's roots on Hydra's search path, the user's first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the roots in their order."""
        for number, root in enumerate(_current().roots):
            search_path.append(provider=f"cai-{number}", path=f"{SCHEME}://{root}")


def _register() -> None:
    plugins = Plugins.instance()
    if not plugins.is_in_toplevel_plugins_module(GroupSource.__module__) and GroupSource not in plugins.discover(
        ConfigSource
    ):
        plugins.register(GroupSource)
        plugins.register(LibraryPath)


@contextmanager
def serving(library: Library) -> Iterator[None]:
    """Inside the block Hydra finds the groups in this library."""
    from hydra.core.global_hydra import GlobalHydra

    _library.append(library)
    _register()
    try:
        yield
    finally:
        _library.pop()
        GlobalHydra.instance().clear()


@dataclass(frozen=True)
class Composed:
    """An experiment as plain data, with the place each value came from."""

    data: dict[str, Any]
    overrides: tuple[str, ...]
    files: tuple[tuple[str, str, dict[str, int]], ...] = field(default=())

    def where(self, path: str) -> str:
        """``experiments/x.yaml:12: stages.sft.epochs`` for a field; the command line where it was overridden."""
        for override in self.overrides:
            name = override.lstrip("+~").partition("=")[0]
            # ``constitution=mine`` chooses a file: what is wrong in it is in the file.
            if (
                name
                and name not in GROUPS
                and (path == name or path.startswith((f"{name}.", f"{name}[")) or name.startswith(f"{path}."))
            ):
                return f"command line: {path}"
        tried = path
        while True:
            for display_path, prefix, lines in reversed(self.files):
                if tried.startswith(prefix) and (line := lines.get(tried[len(prefix) :])):
                    return f"{display_path}:{line}: {path}"
            cut = max(tried.rfind("."), tried.rfind("["))
            if cut <= 0:
                break
            tried = tried[:cut]
        for display_path, prefix, _ in reversed(self.files):
            if path.startswith(prefix):
                return f"{display_path}: {path}"
        return path


def compose(overrides: Sequence[str], library: Library | None = None) -> Composed:
    """Compose an experiment from overrides such as ``experiment=quickstart stages.sft.epochs=2``.

    Raises:
        SpecError: for an unknown group member, a bad override, or YAML that cannot be read.
    """
    (composed,) = compose_cells([overrides], library)
    if isinstance(composed, SpecError):
        raise composed
    return composed


def compose_cells(cells: Sequence[Sequence[str]], library: Library | None = None) -> list[Composed | SpecError]:
    """Compose one experiment for each list of overrides; a cell that cannot be composed gives its error.

    Files are read and merged once for each choice of files: what else a cell overrides is put on a copy, as Hydra
    itself would. So a hundred cells of one experiment take little more than one.
    """
    from hydra import compose as hydra_compose
    from hydra.core.global_hydra import GlobalHydra

    library = library or Library.here()
    outcomes: list[Composed | SpecError] = []
    # Kept as bytes: reading them back is many times faster than a deep copy.
    merged: dict[tuple[str, ...], tuple[bytes, tuple[tuple[str, str, dict[str, int]], ...]]] = {}
    GlobalHydra.instance().clear()
    with serving(library):
        hydra_private.begin()
        for overrides in cells:
            try:
                with hydra_errors(overrides, library):
                    parsed = hydra_private.parse_overrides(overrides)
                    files = tuple(o.input_line or "" for o in parsed if _chooses_file(o.key_or_group))
                    if files not in merged:
                        _loaded.clear()
                        composed = hydra_compose(ROOT_CONFIG, overrides=[*_BARE, *files])
                        merged[files] = pickle.dumps(composed) if len(cells) > 1 else b"", tuple(_loaded)
                    pickled, loaded_files = merged[files]
                    config = pickle.loads(pickled) if pickled else composed
                    values = [o for o in parsed if not _chooses_file(o.key_or_group)]
                    hydra_private.apply_overrides(values, config)
                    outcome: Composed | SpecError = Composed(to_plain(config), tuple(overrides), loaded_files)
            except SpecError as error:
                outcome = error
            outcomes.append(outcome)
    return outcomes


def _chooses_file(key: str) -> bool:
    """Whether an override names a file of a group (``constitution=mine``), not a value in it."""
    return key.partition("@")[0].partition(":")[0] in GROUPS or key.startswith("hydra/")


def to_plain(config: Any) -> dict[str, Any]:
    """A composed config as plain data, interpolations resolved, Hydra's own node left out."""
    data = _fields(OmegaConf.to_container(config, throw_on_missing=False))
    if next(texts_with_references(data), None) is None:
        return data
    check_expansion(data)
    return _fields(OmegaConf.to_container(config, resolve=True, throw_on_missing=False))


def _fields(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise SpecError(Problem("experiment", "is not a mapping"))
    return {str(k): v for k, v in data.items() if k != "hydra"}


class hydra_errors:  # noqa: N801 - reads as a phrase: ``with hydra_errors(...)``
    """Turns Hydra's and OmegaConf's errors into ours: where, what, next."""

    def __init__(self, overrides: Sequence[str], library: Library) -> None:
        self._overrides = overrides
        self._library = library

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from hydra.errors import HydraException, MissingConfigException

        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, SpecError):
                if cause is not error:
                    raise cause from None
                return
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, MissingConfigException):
            missing = str(error.missing_cfg_file or "")
            group, _, name = missing.partition("/")
            if group in GROUPS and name:
                options = [n for n, p in self._library.names(GROUPS[group]) if "/" not in n]
                message = f"no '{name}' in {GROUPS[group]}/"
                raise SpecError(Problem(f"{group}={name}", message, did_you_mean(name, options))) from error
            if missing.startswith("hydra/"):
                where, _, name = missing.rpartition("/")
                options = list(getattr(error, "options", None) or ())
                raise SpecError(Problem(f"{where}={name}", "Hydra has none", did_you_mean(name, options))) from error
            raise SpecError(Problem(missing, "no such config", f"groups: {', '.join(GROUPS)}")) from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            first, *rest = str(error).strip().splitlines() or [type(error).__name__]
            reason = next(
                (line.strip() for line in rest if line.strip() and not line.startswith(("    full_key", "See "))), ""
            )
            mentioned = (o for o in self._overrides if o.partition("=")[0] in first)
            where = str(getattr(error, "override", "") or next(mentioned, "command line"))
            if "Could not override" in first and not where.lstrip("+~").startswith("hydra"):
                field = where.lstrip("+~").partition("=")[0].partition(".")[0]
                first, reason = f"no field '{field}'", did_you_mean(field, FIELDS)
            raise SpecError(Problem(where, first.rstrip("."), reason)) from error
