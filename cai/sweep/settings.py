"""What a sweep is told: how the constitution varies from cell to cell, and what an error stops.

Nothing here counts for the identity of a step: a cell is an experiment like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cai.constitution.model import slug
from cai.errors import Problem, SpecError
from cai.experiment.model import validate
from cai.files.library import Library
from cai.files.yaml_lines import load_mapping
from cai.settings import Settings

Preset = Literal["", "one_principle_at_a_time", "leave_one_out", "nested_subsets"]
OnError = Literal["continue", "stop"]


class SweepSpec(Settings):
    """How a sweep varies the principles, and what it does when a cell fails.

    ``sets`` are explicit sets of principles: name -> ids, ``tag:NAME`` or globs. ``whole`` adds the whole constitution
    as a cell, with which the others are compared. ``sizes``, ``order`` and ``draws`` are of nested subsets: a random
    order is drawn ``draws`` times. ``metric`` ranks the leaderboard (by default the first that all cells share).
    """

    description: str = ""
    preset: Preset = ""
    sets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    whole: bool = True
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 4, 8, 16)
    order: Literal["file", "random"] = "file"
    draws: Annotated[int, Field(ge=1, le=100)] = 1
    on_error: OnError = "continue"
    metric: str = ""

    @field_validator("sets")
    @classmethod
    def _sets_have_principles(cls, sets: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, members in sets.items():
            slug(name)
            if not members:
                raise ValueError(f"the set {name!r} has no principle")
        return sets

    @model_validator(mode="after")
    def _one_way(self) -> SweepSpec:
        if self.preset and self.sets:
            raise ValueError("a preset makes its own sets of principles: give `sets` or `preset`, not both")
        if self.draws > 1 and self.order == "file":
            raise ValueError("the order of the file is one order: set `order: random` for several draws")
        return self

    @property
    def varies(self) -> bool:
        """Whether the cells differ in their principles by this."""
        return bool(self.preset or self.sets)


def sweep_spec(preset_name: str, values: Sequence[tuple[str, Any]], library: Library, own: Any = None) -> SweepSpec:
    """The spec of ``+sweep=NAME`` (a file of sweeps/), with ``sweep.field=value`` from the command line on top.

    ``own`` is what the experiment itself says under ``sweep``.

    Raises:
        SpecError: for an unknown name and for every field that is wrong.
    """
    data: dict[str, Any] = dict(own) if isinstance(own, Mapping) else {}
    places: dict[str, str] = {}
    if preset_name:
        path = library.find("sweeps", preset_name, f"sweep={preset_name}")
        raw = load_mapping(path, library.display_path(path))
        data |= raw
        places = {str(field): raw.where(str(field)) for field in raw}
    for path_in, value in values:
        _put(data, path_in.split("."), value)
        places[path_in.partition(".")[0]] = f"command line: sweep.{path_in}"

    def where(path: str) -> str:
        return places.get(path.removeprefix("sweep.").partition(".")[0].partition("[")[0], path)

    problems: list[Problem] = []
    spec: SweepSpec | None = validate(SweepSpec, data, path="sweep", where=where, problems=problems)
    if spec is None or problems:
        raise SpecError(problems)
    return spec


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = data.get(name)
        data[name] = dict(inner) if isinstance(inner, Mapping) else {}
        data = data[name]
    data[path[-1]] = value
