"""The texts of an experiment: its constitution, its chat template, those of its models, and a stage's own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cai.chat import ChatTemplate, PromptTemplate
from cai.chat import read_text as read_file
from cai.constitution import Constitution, resolve_constitution
from cai.errors import Problem, SpecError
from cai.files.library import Library
from cai.files.yaml_lines import load_mapping

Where = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class NamedText:
    """A text file by the name that the experiment gives it."""

    name: str
    text: str


@dataclass(frozen=True)
class Texts:
    """The constitution and the chat template of an experiment, and what is wrong with them."""

    constitution: Constitution | None
    template: NamedText | None
    problems: tuple[Problem, ...]


def load_texts(constitution: Mapping[str, Any] | None, template: str, library: Library, where: Where = str) -> Texts:
    """Resolve the constitution and read the chat template; problems are gathered, not raised."""
    resolved: Constitution | None = None
    chat_template: NamedText | None = None
    problems: list[Problem] = []

    def find(name: str) -> Mapping[str, Any]:
        path = library.find("constitutions", name, f"{where('constitution')}.extends")
        return load_mapping(path, library.display_path(path))

    if constitution is not None:
        try:
            resolved = resolve_constitution(
                constitution, find, "constitution", lambda f: where(f"constitution.{f}" if f else "constitution")
            )
        except SpecError as error:
            problems += error.problems
    if template:
        try:
            chat_template = read_template(template, library, where("template"))
        except SpecError as error:
            problems += error.problems
    return Texts(resolved, chat_template, tuple(problems))


def read_template(name: str, library: Library, where: str) -> NamedText:
    """A chat template by its name.

    Raises:
        SpecError: when there is none of that name, or it cannot be used.
    """
    path = library.find("prompt_templates", name, where)
    text = read_file(path)
    ChatTemplate.from_text(name, text, library.display_path(path))
    return NamedText(name, text)


def read_text(folder: str, file: str, library: Library, where: str) -> str:
    """A text file that a stage names; a prompt template is checked.

    Raises:
        SpecError: as ``read_template``.
    """
    path = library.find(folder, file, where)
    text = read_file(path)
    if path.suffix == ".jinja":
        PromptTemplate.from_text(file, text, library.display_path(path))
    return text
