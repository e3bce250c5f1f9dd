"""Work that an older program kept under another key is taken over: nothing that was paid for is made again.

A step's key changes when less counts for it than before (a model's address). Its plan then names the former key, and
whoever begins to run the plan takes over what lies there: a finished artifact gets a second name, unfinished work
moves. So everything after that knows one key only. Nothing is taken of what another process is making.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from cai.files.durable import sync_folder
from cai.files.locks import locked_if_free
from cai.plan import Step
from cai.store.artifacts import Build, Store, artifact_name


def take_over_former(store: Store, steps: Iterable[Step]) -> list[str]:
    """Take over what the store has of these steps under their former keys; names of the steps of which it had some.

    Raises:
        PrerequisiteError, Incomplete: when the store cannot be written.
    """
    return [step.name for step in steps if step.former and _take_over(store, step)]


def _take_over(store: Store, step: Step) -> bool:
    own, old = artifact_name(step.kind, step.key), artifact_name(step.kind, step.former)
    if not (store.root / f"{old}.json").exists() and not (store.root / f"{old}.partial").exists():
        return False
    with locked_if_free(store.lock_of(own)) as free, locked_if_free(store.lock_of(old)) as old_free:
        look = store.look(step.kind, step.key)
        if not (free and old_free) or look.stored is not None or look.damage:
            return False
        former = Build(store, step.kind, step.former)
        if former.partial.exists():
            former.join()  # it may have died between its last two renames
        stored = store.find(step.kind, step.former)
        build = Build(store, step.kind, step.key)
        if stored is not None:
            build.begin()
            if build.stored is None:
                build.take_over(stored, step.ingredients.to_json())
            return True
        if store.begun(step.kind, step.key) or not store.begun(step.kind, step.former):
            return False
        _move(former, build)
        return True


def _move(former: Build, build: Build) -> None:
    """The unfinished work: rows by their number, and calls that are known by either key."""
    shutil.rmtree(build.partial, ignore_errors=True)
    # A folder without a label takes the key of whoever comes next; one with another key than its name's is refused.
    (former.partial / "key").unlink(missing_ok=True)
    os.rename(former.partial, build.partial)
    sync_folder(build.partial.parent)
