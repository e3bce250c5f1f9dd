"""What a sweep's folder says: which cells it has (``sweep.json``), and how each ended (``cell.json``)."""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from cai.figures.documents import load_document, typed
from cai.run.finished import read_json
from cai.sweep.settings import OnError

SWEEP = "sweep.json"
CELL = "cell.json"


class CellState(str, Enum):
    """How a cell ended."""

    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"  # a step that it needs failed in another cell
    INCOMPLETE = "incomplete"
    NOT_RUN = "not run"
    SUBMITTED = "submitted"


class SweepCell(TypedDict):
    """A cell, as the folder of its sweep has it."""

    number: Annotated[int, Field(ge=0)]
    label: str
    values: dict[str, Any]
    principles: list[str]
    what: str
    principle: str


class SweepWay(TypedDict):
    """How the sweep varies, and what becomes of it when a cell fails."""

    preset: str
    metric: str
    on_error: NotRequired[OnError]


class SweepFile(TypedDict):
    """``sweep.json``; more may stand there."""

    experiment: str
    sweep: SweepWay
    cells: list[SweepCell]
    detach: NotRequired[bool]


class CellFile(TypedDict):
    """``cell.json``; more may stand there."""

    state: CellState
    error: NotRequired[str]
    made: NotRequired[list[str]]
    seconds: NotRequired[Annotated[float, Field(ge=0, allow_inf_nan=False)]]


def read_sweep(folder: Path) -> SweepFile:
    """The sweep of a folder.

    Raises:
        SpecError: when it holds none that can be read.
    """
    path = folder / SWEEP
    return typed(_sweep_file(), read_json(path), str(path))


def read_cell(folder: Path, number: int) -> CellFile:
    """How a cell ended; as one that was not run, where that is not written.

    Raises:
        SpecError: when it cannot be read.
    """
    path = folder / str(number) / CELL
    if not path.is_file():
        return {"state": CellState.NOT_RUN}
    return typed(_cell_file(), load_document(path), str(path))


@cache
def _sweep_file() -> TypeAdapter[SweepFile]:
    return TypeAdapter(SweepFile)


@cache
def _cell_file() -> TypeAdapter[CellFile]:
    return TypeAdapter(CellFile)
