"""NVIDIA's guide beside the plan: ``docs/nemo_parity.yaml`` as data, what is wrong with it, and as tables of Markdown.

The data say what the guide has and why the plan differs; what the plan has is read from the plan
(``tests.support.nemo_parity_plan``). So a plan that changes changes the tables, and a difference without a reason is a
problem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import yaml

from cai.engines.nemo_aligner.upstream import UNKNOWN, Configs, Effective, _raw
from cai.plan import Plan
from tests.support.nemo_parity_plan import NOTHING, PLACE, Lost, Reading
from tests.support.paths import ROOT

DATA = ROOT / "docs" / "nemo_parity.yaml"
DOC = ROOT / "docs" / "nemo.md"
BEGIN = "<!-- parity: CAI_WRITE_GOLDEN=1 pytest tests/engines/nemo_aligner/test_parity.py writes from here ... -->"
END = "<!-- ... to here -->"
ABSENT = "not in upstream's YAML"
DEFAULT = "default"
MODEL = "gpt_model_file"
ROW_KEYS = frozenset({"sentences", "random_seed"})
"""Of a body, what belongs to its rows."""
_REFERENCE = re.compile(r"\$\{(\.?)([a-z_.]+)\}")


class Verdict(str, Enum):
    """How the plan stands to the guide."""

    SAME = "same"
    MENDED = "mended"
    DEPARTED = "departed"


@dataclass(frozen=True)
class Row:
    """A flag, or what no flag says, in the guide and in the plan; the fields are those of the YAML."""

    verdict: Verdict
    flag: str = ""
    what: str = ""
    guide: Any = None
    default: Any = None
    absent: bool = False
    planned: str = ""
    plan: str = ""
    means: Any = None
    reason: str = ""
    given: frozenset[str] = frozenset()
    """The fields that the YAML names: ``guide: null`` is a value."""

    @property
    def key(self) -> str:
        """The flag without what marks it."""
        return self.flag.lstrip("+")


@dataclass(frozen=True)
class GuideCommand:
    """A command of the guide; ``planned`` is the place of most of its values, ``config`` the YAML that it overrides."""

    name: str
    flags: tuple[str, ...]
    rows: tuple[Row, ...]
    planned: str = ""
    also: tuple[str, ...] = ()
    config: str = ""
    as_upstream: Mapping[str, Any] | None = None

    @property
    def command(self) -> str:
        """The planned command whose overrides this is about; empty where it is none."""
        return self.planned.removeprefix("override ") if self.planned.startswith("override ") else ""

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the guide's command comes to: what it says, else upstream's default."""
        written = {row.key: row.guide for row in self.rows if row.flag and "guide" in row.given}
        values = {**self.defaults, **written}
        return {key: _resolved(value, key, values) for key, value in values.items()}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Upstream's own values, of those that the table names."""
        left = {row.key: row.default for row in self.rows if "default" in row.given}
        return {**(self.as_upstream or {}), **left}


def _resolved(value: Any, key: str, values: Mapping[str, Any]) -> Any:
    """A value, or what it refers to: ``${a.b}``, or ``${.c}`` beside itself."""
    while isinstance(value, str) and (reference := _REFERENCE.fullmatch(value)):
        key = f"{key.rpartition('.')[0]}.{reference[2]}" if reference[1] else reference[2]
        if key not in values:
            return value
        value = values[key]
    return value


def load(text: str | None = None) -> tuple[GuideCommand, ...]:
    """The table.

    Raises:
        TypeError: for a field that there is not.
    """
    raw = yaml.safe_load(DATA.read_text(encoding="utf-8") if text is None else text)
    return tuple(
        GuideCommand(**{**command, "flags": tuple(command["flags"]), "rows": tuple(_rows(command["rows"]))})
        for command in raw["commands"]
    )


def _rows(raw: list[dict[str, Any]]) -> Iterator[Row]:
    for fields in raw:
        for flag in fields.get("each", [fields.get("flag", "")]):
            named = {key: value for key, value in fields.items() if key != "each"}
            named |= {"flag": flag, "verdict": Verdict(fields["verdict"]), "given": frozenset(fields)}
            yield Row(**named)


def equal(left: Any, right: Any) -> bool:
    """Whether two values are the same to Hydra: 1e-06 and 1.0e-6, True and true, a quoted and a bare word."""
    return bool(_normal(left) == _normal(right))


def _normal(value: Any) -> Any:
    match value:
        case bool() | None:
            return str(value).lower()
        case int() | float():
            return float(value)
        case str():
            word = value.strip("'\"") if len(value) > 1 else value
            try:
                return float(word)
            except ValueError:
                return {"True": "true", "False": "false", "None": "none", "null": "none"}.get(word, word)
        case list() | tuple():
            return [_normal(item) for item in value]
        case Mapping():
            return {key: _normal(item) for key, item in value.items()}
    return value


class Parity:
    """The table held against one plan."""

    def __init__(self, table: tuple[GuideCommand, ...], plan: Plan) -> None:
        self.table = table
        places = [command for command in table if command.planned]
        self.reading = Reading(plan, {c.planned: c.values for c in places}, {c.planned: c.defaults for c in places})

    def words(self, text: str) -> str:
        """Words with the values of their places."""
        return PLACE.sub(lambda place: shown_in_words(self.reading.read(place[0][1:-1])), text)

    def guide(self, command: GuideCommand, row: Row) -> Any:
        """What the guide says, or leaves."""
        if row.absent:
            return ABSENT
        value = command.values[row.key] if row.flag else row.guide
        return self.words(value) if isinstance(value, str) else value

    def planned(self, command: GuideCommand, row: Row) -> Any:
        """What the plan says.

        Raises:
            Lost: when the plan has no such place.
        """
        if row.plan:
            return self.words(row.plan)
        if row.planned == DEFAULT:
            overrides = self.reading.overrides(command.command)
            if row.key in overrides:
                raise Lost(f"the plan does not leave {row.key} at upstream's default: {overrides[row.key]}")
            return _resolved(row.default, row.key, {**command.values, **overrides})
        return self.reading.read(row.planned or f"{command.planned} {row.flag}")

    # ---- what is wrong -----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Whatever is not as the table says, or is said without a reason."""
        return [*self._flags(), *self._verdicts(), *self._overrides(), *self._requests()]

    def _flags(self) -> Iterator[str]:
        for command in self.table:
            flags = Counter(row.flag for row in command.rows if row.flag and "guide" in row.given)
            yield from (f"{command.name}: {flag} of the guide has no row" for flag in command.flags if not flags[flag])
            for flag in flags - Counter(command.flags):
                yield f"{command.name}: {flag} has a row with a value of the guide too many"

    def _verdicts(self) -> Iterator[str]:
        for command in self.table:
            for row in command.rows:
                where = f"{command.name}: {row.flag or row.what}"
                try:
                    planned, guide = self.planned(command, row), self.guide(command, row)
                    self.words(row.reason)
                except Lost as error:
                    yield f"{where}: {error}"
                    continue
                meant = row.means if "means" in row.given else guide
                alike = not row.absent and equal(meant, planned)
                if row.verdict is Verdict.SAME and not alike:
                    yield f"{where}: 'same', but the guide has {meant} and the plan {planned}"
                elif row.verdict is not Verdict.SAME and alike:
                    yield f"{where}: '{row.verdict.value}', but both have {planned}"
                if row.verdict is not Verdict.SAME and not row.reason:
                    yield f"{where}: '{row.verdict.value}' without a reason"

    def _overrides(self) -> Iterator[str]:
        covered: set[str] = set()
        for command in (command for command in self.table if command.command):
            covered |= {command.command, *command.also}
            for name in (command.command, *command.also):
                if name in self.reading.commands:
                    yield from self._override(command, name)
                else:
                    yield f"{command.name}: the plan has no command {name}"
        for name, compiled in self.reading.commands.items():
            if compiled.config and name not in covered:
                yield f"{name}: a command of the plan that is in no row"

    def _requests(self) -> Iterator[str]:
        for command in self.table:
            if not command.planned.startswith("request "):
                continue
            first = self.reading.bodies[command.planned.removeprefix("request ")]
            for name in command.also:
                body = self.reading.bodies[name]
                for key in sorted((first.keys() | body.keys()) - ROW_KEYS):
                    if body.get(key) != first.get(key):
                        yield f"{name}: {key} is {body.get(key)}, not {first.get(key)} as in {command.planned}"

    def _override(self, command: GuideCommand, name: str) -> Iterator[str]:
        overrides, defaults = self.reading.overrides(name), dict(command.as_upstream or {})
        rows = {row.key for row in command.rows if row.flag}
        yield from (f"{name}: {key} is said no more" for key in sorted(defaults.keys() - overrides.keys()))
        for key, value in overrides.items():
            if key in defaults and not equal(defaults[key], value):
                yield f"{name}: {key}={value}, upstream's default is {defaults[key]}, and no row says why"
            elif key not in defaults and key not in rows:
                yield f"{name}: {key}={value} is in no row"
        first = self.reading.overrides(command.command)
        if overrides != first | {MODEL: overrides.get(MODEL)} and name != command.command:
            yield f"{name}: not the overrides of {command.command}"

    def upstream_problems(self, configs: Configs) -> list[str]:
        """Where upstream's own configs have another default than the table says."""
        return [problem for command in self.table if command.config for problem in _defaults(command, configs)]

    # ---- as text -----------------------------------------------------------------------------------------------------

    def markdown(self) -> str:
        """A table for each command, and before them how many rows have which verdict."""
        counts = [Counter(row.verdict for row in command.rows) for command in self.table]
        lines = ["| command of the guide | flags | same | mended | departed |", "|---|---|---|---|---|"]
        for command, count in zip(self.table, counts, strict=True):
            numbers = [len(command.flags), *(count[verdict] for verdict in Verdict)]
            lines.append(f"| {command.name} | {' | '.join(map(str, numbers))} |")
        total = [sum(len(c.flags) for c in self.table), *(sum(c[verdict] for c in counts) for verdict in Verdict)]
        lines.append(f"| all | {' | '.join(map(str, total))} |")
        for command in self.table:
            lines += ["", *self._table(command)]
        return "\n".join(lines) + "\n"

    def _table(self, command: GuideCommand) -> Iterator[str]:
        place = f" -> `{command.command}`" if command.command else ""
        yield f"#### {command.name}{place}"
        yield ""
        yield "| flag | guide | plan | verdict | why |"
        yield "|---|---|---|---|---|"
        for rows in _joined(command.rows):
            first = rows[0]
            flags = ", ".join(f"`{row.flag}`" for row in rows) if first.flag else first.what
            guide = f"({ABSENT})" if first.absent else self._guide_cell(command, first)
            plan = ", ".join(self._plan_cell(command, row) for row in rows)
            cells = (flags, guide, plan, first.verdict.value, self.words(first.reason))
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        if command.as_upstream:
            keys = ", ".join(f"`{key}` {code(value)}" for key, value in command.as_upstream.items())
            yield ""
            yield f"Said besides, with the value of upstream's YAML: {keys}."

    def _guide_cell(self, command: GuideCommand, row: Row) -> str:
        value = self.guide(command, row)
        if row.what:
            return shown_in_words(value)
        return code(value) if "guide" in row.given else f"({DEFAULT}) {code(value)}"

    def _plan_cell(self, command: GuideCommand, row: Row) -> str:
        value = self.planned(command, row)
        if row.plan or (row.what and _is_number(value)):
            return shown_in_words(value)
        if value == NOTHING:
            return NOTHING
        shown = code(value)
        if row.planned == DEFAULT:
            return f"({DEFAULT}) {shown}"
        if row.planned.startswith("argument "):
            return f"`{row.planned.split()[2]}` {shown}"
        return shown


def _defaults(command: GuideCommand, configs: Configs) -> Iterator[str]:
    config = configs.files[command.config]
    effective = Effective((), config)
    for key, value in (command.as_upstream or {}).items():
        if not equal(effective(key), value):
            yield f"{command.config}: {key} is {effective(key)}, not {value}"
    for row in command.rows:
        default = _plain(_raw(config, row.key)) if row.flag else UNKNOWN
        if row.absent and default is not UNKNOWN:
            yield f"{command.config}: {row.key} is there: {default}"
        if row.flag and "default" in row.given and not equal(default, row.default):
            yield f"{command.config}: {row.key} is {default}, not {row.default}"


def _plain(value: Any) -> Any:
    """A node of a config as plain data."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _joined(rows: tuple[Row, ...]) -> Iterator[list[Row]]:
    """Rows one by one, but keys that upstream's YAML lacks together where they have one reason."""
    group: list[Row] = []
    for row in rows:
        if group and not (row.absent and replace(row, flag=group[0].flag) == group[0]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(_normal(value), float)


def shown_in_words(value: Any) -> str:
    """A value within a sentence: large whole numbers with commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown_in_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def code(value: Any) -> str:
    """A value as code: as YAML has it, line ends written out."""
    match value:
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case float():
            text = f"{value:.1f}" if value.is_integer() else f"{value:g}"
        case str():
            text = value.replace("\n", "\\n") or "''"
        case list() | tuple():
            text = f"[{', '.join(code(item).strip('`') for item in value)}]"
        case Mapping():
            text = f"{{{', '.join(f'{key}: ' + code(item).strip('`') for key, item in value.items())}}}"
        case _:
            text = str(value)
    return f"`{text}`"


def document(text: str, tables: str) -> str:
    """The page with these tables between its two marks.

    Raises:
        ValueError: when a mark is missing.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}{END}{after}"
