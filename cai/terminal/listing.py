"""Tables that the looking verbs print: the ledger, the store, what gc removed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.table import Table

from cai.files.durable import size_text
from cai.run.ledger import LedgerLine
from cai.store.upkeep import Removed, StoreEntry
from cai.terminal.output import make_console
from cai.text import count, duration, plain


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def print_ledger(lines: Sequence[LedgerLine], why: bool) -> None:
    """Rows in, out and dropped for each step; with ``why`` the reasons, each on a line of its own."""
    console = make_console()
    table = _table("step", "in", "out", "dropped", "parts", right=("in", "out", "dropped"))
    for line in lines:
        if not line.finished:
            table.add_row(line.step, "-", "-", "-", "not made yet")
            continue
        parts = ", ".join(f"{name} {count(n)}" for name, n in line.parts.items())
        table.add_row(line.step, count(line.rows_in), count(line.rows_out), count(sum(line.dropped.values())), parts)
        if why:
            for reason, n in sorted(line.dropped.items(), key=lambda item: -item[1]):
                table.add_row(f"  {plain(reason)}", "", "", count(n), "")
    console.print(table)


def print_store(entries: Sequence[StoreEntry]) -> None:
    """What the store holds, the most recently used first."""
    console = make_console()
    table = _table("artifact", "state", "size", "used", "experiments", right=("size", "used"))
    now = time.time()
    for entry in entries:
        age = f"{duration(max(now - entry.used, 0))} ago"
        table.add_row(entry.name, entry.state.value, size_text(entry.size), age, ", ".join(entry.experiments) or "none")
    console.print(table)
    console.print(f"{len(entries)} artifacts, {size_text(sum(e.size for e in entries))}")


def print_removed(removed: Sequence[Removed], dry_run: bool) -> None:
    """What gc removed, or would."""
    console = make_console()
    for item in removed:
        console.print(f"{item.name}  {size_text(item.size)}")
    total = size_text(sum(item.size for item in removed))
    console.print(f"{len(removed)} artifacts, {total} {'would be ' if dry_run else ''}removed")
