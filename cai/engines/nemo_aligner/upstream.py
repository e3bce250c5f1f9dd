"""Upstream's own configs: where they are, and what each of our overrides would meet there.

Hydra composes them in struct mode, so an unknown key stops a job after it has queued for hours, and a wrong type is
not noticed at all until something divides by it. Both are found here, against the very files that will be read. They
are only read, from the installed NeMo-Aligner or a folder that the user names; none of them is part of this program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cai.engines.nemo_aligner.overrides import Env, Override, literal
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.upstream_types import expected
from cai.errors import did_you_mean
from cai.files.paths import is_dir, is_file, user_path

VARIABLE = "CAI_UPSTREAM"
DEPTH, FOLDERS = 8, 20000
"""How far the search for config files goes: levels below the folder, and folders in all."""
LONGEST = 16
"""References that lead to references, at most; a circle is longer."""
LIKELY = ("examples/nlp/gpt/conf", "examples/nlp/language_modeling/conf", "conf")
_REFERENCE = re.compile(r"\$\{(\.?)([A-Za-z_][A-Za-z0-9_.]*)\}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
UNKNOWN = object()
"""A value that only the checkpoint knows."""


@dataclass(frozen=True)
class Configs:
    """Upstream's configs by file name; ``missing`` are wanted ones that were not found."""

    files: Mapping[str, DictConfig] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    problems: tuple[tuple[str, str, str], ...] = ()
    """(field, message, next) of a folder that was named and is not right."""


def find(settings: NemoAlignerSettings, config_names: Iterable[str]) -> Configs:
    """The wanted configs: of ``settings.upstream``, else ``$CAI_UPSTREAM``, else what is installed here."""
    names = sorted(set(config_names))
    folder = settings.upstream or os.environ.get(VARIABLE, "").strip()
    setting = "engine.upstream" if settings.upstream else VARIABLE
    roots = [Path(folder)] if folder else [Path(settings.aligner), Path(settings.nemo)]
    roots = [user_path(root) for root in roots]
    if folder and not is_dir(roots[0]):
        problem = (setting, f"no folder {folder}", "name one with upstream's configs")
        return Configs(missing=tuple(names), problems=(problem,))
    paths = config_files(roots, set(names)) if names else {}
    files, problems = {}, []
    for name, path in paths.items():
        try:
            files[name] = _load(path)
        except (OSError, ValueError, OmegaConfBaseException) as error:
            problems.append((setting, f"{path} cannot be read: {error}".splitlines()[0], "give upstream's own file"))
        except Exception as error:  # PyYAML's errors have no common base that is public
            if type(error).__module__.partition(".")[0] != "yaml":
                raise
            problems.append((setting, f"{path} is no YAML: {error}".splitlines()[0], "give upstream's own file"))
    missing = tuple(name for name in names if name not in paths)
    if folder:
        problems += [
            (setting, f"{folder} holds no {name}", "take NeMo-Aligner v0.7.0 and NeMo v2.1.0") for name in missing
        ]
    return Configs(files, missing, tuple(problems))


def config_files(roots: Sequence[Path], names: set[str]) -> dict[str, Path]:
    """The best file for every name: in a folder where upstream keeps it, and else the nearest."""
    paths_by_name: dict[str, list[Path]] = {}
    for root in roots:
        for name in names - set(paths_by_name):
            places = [root / likely / name for likely in LIKELY]
            if there := [path for path in places if is_file(path)]:
                paths_by_name[name] = there
        missing = names - set(paths_by_name)
        for visited, (folder, below, files) in enumerate(os.walk(root) if missing else ()):
            deep = len(Path(folder).relative_to(root).parts) >= DEPTH or visited > FOLDERS
            below[:] = [] if deep else sorted(b for b in below if not b.startswith((".", "__")) and b != "node_modules")
            for name in missing.intersection(files):
                paths_by_name.setdefault(name, []).append(Path(folder) / name)

    def rank(path: Path) -> tuple[int, int, str]:
        place = next((i for i, likely in enumerate(LIKELY) if path.parent.as_posix().endswith(likely)), len(LIKELY))
        return place, len(path.parts), str(path)

    return {name: min(paths, key=rank) for name, paths in sorted(paths_by_name.items())}


def _load(path: Path) -> DictConfig:
    state = path.stat()
    return _loaded(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _loaded(path: Path, changed: int, size: int) -> DictConfig:
    """A file as it was at that time; nobody writes to what this returns."""
    loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise ValueError("it is no mapping")
    if "defaults" in loaded:
        del loaded["defaults"]  # Hydra's list of further files; those of these configs are optional
    return loaded


def _resolvers() -> None:
    """What upstream's scripts register before they read a config."""
    arithmetic = {"multiply": lambda x, y: x * y, "int_div": lambda x, y: x // y, "subtract": lambda x, y: x - y}
    for name, resolver in arithmetic.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _value(config: DictConfig, key: str) -> Any:
    """The resolved value of a key as plain data; UNKNOWN where it is missing, ``???``, or the checkpoint's."""
    _resolvers()
    try:
        value = OmegaConf.select(config, key, default=UNKNOWN, throw_on_missing=True)
    except OmegaConfBaseException:
        return UNKNOWN
    except (TypeError, ZeroDivisionError):  # a resolver met a value of the wrong type, which is reported by itself
        return UNKNOWN
    return value


def _raw(config: DictConfig, key: str) -> Any:
    """What a file says of a key, references unresolved; UNKNOWN where it says nothing or ``???``."""
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, DictConfig) or here._is_none() or here._is_interpolation() or part not in list(here):
            return UNKNOWN
        here = here._get_node(part)
    value = here if isinstance(here, DictConfig | ListConfig) else here._value()
    return UNKNOWN if isinstance(value, str) and value == "???" else value


def _overlap(key: str, other_key: str) -> bool:
    return key.startswith(f"{other_key}.") or other_key.startswith(f"{key}.")


# ---- one override --------------------------------------------------------------------------------------------------


def check_override(config: DictConfig, name: str, override: Override) -> tuple[str, str] | None:
    """What is wrong with one override against ``config`` of file ``name``: (message, next), or None."""
    key = override.key
    if key.startswith("hydra."):
        return None  # Hydra's own settings are in no config of upstream's
    if not _KEY.fullmatch(key):
        return f"'{key}' is no key", "write KEY, or '++KEY' to add one, with dots: model.optim.lr"
    here, parts = config, key.split(".")
    for i, part in enumerate(parts):
        path = ".".join(parts[:i])
        if i and (problem := _no_section(here, name, path, parts[i:])):
            return problem
        # `part in here` says no to ``???``, which is there and waits for a value.
        if not isinstance(here, DictConfig) or here._is_none() or part not in list(here):
            return _absent(here, name, override, path=path, part=part)
        if i + 1 < len(parts):
            node = here._get_node(part)
            here = node if isinstance(node, DictConfig | ListConfig) else _Leaf(node)  # type: ignore[assignment]
    if override.add:
        return f"upstream's {name} has {key}, so '++' is not needed", f"write '{key}'"
    return _mistyped(config, name, override)


@dataclass(frozen=True)
class _Leaf:
    """A node that is no section: a scalar, null, or a reference to something else."""

    node: Any


def _no_section(here: Any, name: str, path: str, rest: Sequence[str]) -> tuple[str, str] | None:
    if isinstance(here, DictConfig) and not here._is_interpolation():
        return None
    node = here.node if isinstance(here, _Leaf) else here
    if node is None or node._is_none():
        return None  # `++` makes a section of a null
    if node._is_interpolation():
        target = str(node._value()).strip("${}")
        return (
            f"{path} is a reference to {target} in upstream's {name}, and Hydra sets nothing inside a reference",
            f"write '{target}.{'.'.join(rest)}'" if not target.startswith(".") and ":" not in target else "",
        )
    return f"{path} is a value in upstream's {name}, not a section", f"write '{path}=...'"


def _absent(here: Any, name: str, override: Override, *, path: str, part: str) -> tuple[str, str] | None:
    key = override.key
    if override.add:
        value_type = expected(key, UNKNOWN)
        return _say(value_type.wrong(override.value), key, override.value) if value_type else None
    section_keys = map(str, here) if isinstance(here, DictConfig) and not here._is_none() else ()
    prefix = f"{path}." if path else ""
    near = did_you_mean(f"{prefix}{part}", [f"{prefix}{k}" for k in section_keys])
    guess = f"; {near}" if near.startswith("did you mean") else ""
    return f"upstream's {name} has no {key}", f"write '++{key}' to add it{guess}"


def _mistyped(config: DictConfig, name: str, override: Override) -> tuple[str, str] | None:
    there = _value(config, override.key)
    if isinstance(there, DictConfig):
        if not isinstance(override.value, Mapping):
            keys = ", ".join(map(str, list(there)[:8])) + (", ..." if len(there) > 8 else "")
            return f"{override.key} is a section in upstream's {name}", f"set a key of it: {keys}"
        for part, value in override.value.items():
            inner = Override(f"{override.key}.{part}", value)
            if problem := check_override(config, name, inner):
                return problem
        return None
    value_type = expected(override.key, OmegaConf.to_container(there) if isinstance(there, ListConfig) else there)
    if value_type is None:
        return None
    if isinstance(override.value, Mapping) and not value_type.section:
        return f"{override.key} is a value in upstream's {name}, not a section", f"give {value_type.words()}"
    return _say(value_type.wrong(override.value), override.key, override.value)


def _say(wrong: str, key: str, value: Any) -> tuple[str, str] | None:
    if not wrong or isinstance(value, Env):
        return None
    return f"{key} cannot be {literal(value)}", f"give {wrong}"


# ---- all overrides of a command --------------------------------------------------------------------------------------


class Effective:
    """The values that a command's config has with its overrides; without upstream's file, the overrides alone."""

    def __init__(self, overrides: Sequence[Override], config: DictConfig | None = None) -> None:
        self._override_values = {override.key: override.value for override in overrides}
        self._upstream = config
        self._composed: DictConfig | None = None

    def __call__(self, key: str) -> Any:
        """The value of a key, or UNKNOWN."""
        if self._upstream is None:
            return self._override_values.get(key, UNKNOWN)
        for _ in range(LONGEST):
            if key in self._override_values:
                return self._override_values[key]
            raw = _raw(self._upstream, key)
            if raw is UNKNOWN and not any(_overlap(key, override_key) for override_key in self._override_values):
                return UNKNOWN
            if isinstance(raw, bool | int | float) or (isinstance(raw, str) and "${" not in raw):
                return raw
            reference = _REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
            if reference is None:
                return _value(self._all(self._upstream), key)
            # Followed by hand: composing a whole config for each reference would make planning slow.
            parent = key.rpartition(".")[0]
            key = f"{parent}.{reference[2]}" if reference[1] and parent else reference[2]
        return UNKNOWN

    def _all(self, config: DictConfig) -> DictConfig:
        """The config with every override in it, made when first needed."""
        if self._composed is None:
            composed = OmegaConf.create(OmegaConf.to_container(config))
            assert isinstance(composed, DictConfig)
            for key, value in self._override_values.items():
                if isinstance(value, Env):
                    continue
                try:
                    OmegaConf.update(composed, key, value, merge=False, force_add=True)
                except (OmegaConfBaseException, TypeError, AttributeError):
                    continue  # an override that cannot be applied is reported by itself
            self._composed = composed
        return self._composed

    def whole(self, key: str, default: int = 0) -> int:
        """A whole number from 1, or ``default`` where there is none."""
        value = self(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default

    def number(self, key: str) -> float | None:
        """A number, or None."""
        value = self(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
