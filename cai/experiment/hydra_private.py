"""What is used of Hydra's private modules, all in this file: they may change with any release.

Hydra 1.3 has no public way to begin without a config folder beside the caller, to split a command line before anything
runs, or to put overrides on a config that is composed already (a hundred cells would read their files a hundred times).
When a new Hydra comes, ``tests/experiment/test_hydra_private.py`` says what of this still holds and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import version


def begin() -> None:
    """What ``hydra.initialize()`` does, without its search through the call stack for a config folder."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    version.setbase("1.3")
    Hydra.create_main_hydra2("cai", create_config_search_path(None))


def config_loader() -> Any:
    """A loader that finds what the registered search-path plugins name."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    return ConfigLoaderImpl(config_search_path=create_config_search_path(None))


def parse_overrides(overrides: Sequence[str], loader: Any = None) -> list[Any]:
    """Overrides by Hydra's own grammar. With a ``loader`` sweeps over all members of a group (``glob``) are known."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return list(OverridesParser.create(loader).parse_overrides(list(overrides)))


def apply_overrides(overrides: Sequence[Any], config: Any) -> None:
    """Put parsed overrides of values on a composed config, as ``compose`` would have."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)


def check_launch_config(config_name: str, overrides: Sequence[str]) -> None:
    """Compose Hydra's own config for a multirun: an unknown launcher or setting is found before a job starts."""
    from hydra.types import RunMode

    config_loader().load_configuration(config_name, list(overrides), run_mode=RunMode.MULTIRUN)
