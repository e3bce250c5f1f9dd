"""The two sides of a review: from what a person wrote to a plan, whatever it names.

An experiment (``quickstart``), one with overrides (``"quickstart seed=1"``), a git revision of either
(``main:quickstart``), a plan file, a run's folder, or a lock.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from cai.errors import PlanError, Problem, SpecError, did_you_mean
from cai.experiment.compose import Composed, compose
from cai.files.library import Library
from cai.plan import Plan, plan_from_json
from cai.planning.compilation import Looked
from cai.review.lock import SUFFIX, plan_of_lock, read_lock
from cai.review.revisions import Checkout, Repository
from cai.run.finished import Finished, read_finished
from cai.store.artifacts import Store

Compile = Callable[[Composed, Library, Looked], Plan]
"""Composed data -> plan."""

EXPERIMENT = "experiment="


@dataclass(frozen=True, slots=True)
class Side:
    """One side. ``kind`` is experiment, revision, plan, run or lock; ``label`` is what the user wrote."""

    label: str
    kind: str
    plan: Plan
    finished: Finished | None = None


@dataclass
class Opener:
    """Opens sides; keeps what they share: digests of data, and the revisions' files while it is open."""

    compile: Compile
    store: Store
    scratch: Path
    _looked: Looked = field(default_factory=dict)
    _checkouts: dict[str, tuple[Checkout, Library]] = field(default_factory=dict)

    def open(self, text: str, overrides: Sequence[str] = ()) -> Side:
        """The side that a text names; ``overrides`` are put on it where it is an experiment.

        Raises:
            SpecError: when it names nothing, or what it names cannot be compiled.
        """
        path = Path(text)
        if text.endswith((SUFFIX, ".lock.yml")) and path.is_file():
            return Side(text, "lock", plan_of_lock(read_lock(path), text))
        if text.endswith(".json") and path.is_file():
            return Side(text, "plan", plan_from_json(_read_text(path), text))
        for folder in (path, path / "latest"):
            if (folder / "plan.json").is_file():
                finished = read_finished(folder.resolve(), self.store)
                return Side(text, "run", finished.plan, finished)
        words = _words(text)
        revision, colon, name = _split(words[0])
        more = (*words[1:], *overrides)
        if not colon:
            return Side(text, "experiment", self.working(name, more))
        return Side(text, "revision", self.at_revision(revision, name, more))

    def working(self, name: str, overrides: Sequence[str] = ()) -> Plan:
        """The plan of an experiment as the working tree has it."""
        library = Library.here()
        experiments = [n for n, _ in library.names("experiments")]
        if name not in experiments:
            hint = did_you_mean(name, experiments) or "give an experiment"
            message = "is no experiment, plan file, run folder, lock or REVISION:EXPERIMENT"
            raise SpecError(Problem(name, message, hint))
        return self.compile(compose([f"{EXPERIMENT}{name}", *overrides], library), library, self._looked)

    def at_revision(self, revision: str, name: str, overrides: Sequence[str] = ()) -> Plan:
        """The plan of an experiment as a git revision has it.

        Raises:
            SpecError: when there is no such revision or experiment, or it cannot be compiled; places are told with the
                revision before them.
        """
        checkout, library = self.revision(revision)
        revision_name = revision or "the index"
        experiments = [n for n, _ in library.names("experiments")]
        if name not in experiments:
            message = f"has no '{name}' in experiments/" if name else "names no experiment"
            raise SpecError(
                Problem(f"{revision}:{name}", message, did_you_mean(name, experiments) if name else "REV:EXPERIMENT")
            )
        try:
            composed = compose([f"{EXPERIMENT}{name}", *overrides], library)
            checkout.take_data(composed.data)
            return self.compile(composed, library, self._looked)
        except SpecError as error:
            problems = (
                Problem(f"{revision_name}: {p.where}", _without(p.message, checkout), p.next) for p in error.problems
            )
            raise PlanError(problems) from None

    def revision(self, revision: str) -> tuple[Checkout, Library]:
        """The files of a revision, taken once."""
        if revision not in self._checkouts:
            repository = Repository.around(Path.cwd(), f"{revision}:")
            commit = repository.commit(revision)
            folder = self.scratch / f"{len(self._checkouts)}"
            folder.mkdir()
            checkout = Checkout(repository, revision, commit, folder.resolve())
            self._checkouts[revision] = (checkout, checkout.library())
        return self._checkouts[revision]


@contextmanager
def opener(compile_data: Compile, store: Store) -> Iterator[Opener]:
    """An ``Opener`` whose files of revisions are gone at the end."""
    with TemporaryDirectory(prefix="cai-review-") as scratch:
        yield Opener(compile_data, store, Path(scratch))


def against(text: str) -> str:
    """What a lone side is held against: the same experiment, with the same overrides, at HEAD.

    Raises:
        SpecError: when it names no experiment of the working tree.
    """
    words = _words(text)
    _, colon, name = _split(words[0])
    if colon or Path(text).exists():
        raise SpecError(Problem(text, "has nothing to be compared with", "give two sides: diff A B"))
    return shlex.join([f"HEAD:{name}", *words[1:]])


def is_side(word: str) -> bool:
    """Whether an argument names a side, and is no override for both."""
    first = (word.split() or [""])[0]
    return first.startswith(EXPERIMENT) or not ("=" in first or first.startswith(("+", "~")))


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SpecError(Problem(text, f"cannot be read ({error})", "close the quotes")) from None
    if not words or not words[0]:
        raise SpecError(Problem("diff", "an empty text names nothing", "give an experiment, e.g. quickstart"))
    return words


def _split(word: str) -> tuple[str, str, str]:
    """(revision, ``:`` or nothing, experiment); ``experiments/x.yaml`` is x."""
    word = word.removeprefix(EXPERIMENT)
    revision, colon, name = word.rpartition(":")
    short = name.rpartition("experiments/")[2] if name.endswith(".yaml") else name
    return revision, colon, short.removesuffix(".yaml")


def _without(text: str, checkout: Checkout) -> str:
    """An error's text without the name of our folder, which a person has never seen."""
    return text.replace(f"{checkout.folder}/", f"{checkout.name or 'the index'}:").replace(
        str(checkout.folder), checkout.name or "the index"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(Problem(str(path), f"cannot be read ({error})", "make one with `plan --out FILE`")) from error
