"""Rendered prompts below a plan: as text, as Markdown, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cai.run.examples import LEARNT, PromptExample, StepExamples
from cai.text import count, json_text, one_line, plain

HEAD = "Prompts as the models would read them; ⟨...⟩ stands for what is not there yet"


def examples_data(examples: Sequence[StepExamples]) -> dict[str, list[dict[str, Any]]]:
    """Examples by step, as plain data: ``{model, text, characters, messages}``."""
    return {
        each.step: [
            {"model": p.model, "text": p.text, "characters": p.characters, "messages": p.messages} for p in each.prompts
        ]
        for each in examples
    }


def examples_text(examples: Sequence[StepExamples]) -> str:
    """For a terminal: every line of a prompt behind a bar, so that its white space is seen."""
    lines = ["", f"{HEAD}; {LEARNT[0]}...{LEARNT[1]} is what is learnt."]
    for each in examples:
        for number, prompt in enumerate(each.prompts, 1):
            lines += ["", f"{_title(each)}, {number} of {len(each.prompts)}, {_read_by(prompt)}"]
            lines += [f"  | {plain(line)}" for line in _shown(prompt).split("\n")]
        if each.problem:
            lines += ["", f"{_title(each)}: no prompt can be rendered: {one_line(each.problem, 1000)}"]
    return "\n".join(lines) + "\n"


def examples_markdown(examples: Sequence[StepExamples]) -> str:
    """For a pull request: a folded block for every step."""
    lines = ["", f"{HEAD}.", ""]
    for each in examples:
        lines += [f"<details><summary>Prompts of {one_line(each.step)}</summary>", ""]
        lines += [line for prompt in each.prompts for line in (*_indented(prompt), "")]
        lines += [f"No prompt can be rendered: {json_text(each.problem)}", ""] if each.problem else []
        lines += ["</details>", ""]
    return "\n".join(lines)


def _indented(prompt: PromptExample) -> Iterator[str]:
    """A block of code by its indent: no fence, which a prompt could close."""
    yield f"- {_read_by(prompt)}:"
    yield ""
    yield from (f"      {plain(line)}" for line in _shown(prompt).split("\n"))


def _title(each: StepExamples) -> str:
    return one_line(each.step if each.step == each.kind else f"{each.step} ({each.kind})")


def _read_by(prompt: PromptExample) -> str:
    turns = " as turns, which its server renders" if prompt.messages else ""
    return f"read by {one_line(prompt.model)}{turns}"


def _shown(prompt: PromptExample) -> str:
    more = prompt.characters - len(prompt.text)
    return f"{prompt.text}\n... ({count(more)} more characters)" if more else prompt.text
