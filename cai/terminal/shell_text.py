"""Commands as a person reads and pastes them: whole words, lines folded by a backslash, everything else a comment.

A block of these lines, pasted into bash, starts the processes whose argv the plan's JSON has. Nothing here is cut to a
width: a word that is longer than a line stands on a line of its own, and the terminal wraps it.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cai.text import plain

LEAST = 20
"""Columns that a folded line gets at least, however narrow the terminal is."""
_HERE = "127.0.0.1"
_DOUBLE = frozenset('"$`\\!')
"""What double quotes do not take away from a shell."""


def shell_word(word: str) -> str:
    """A word quoted for bash, on one line, with nothing in it that a terminal obeys.

    Double quotes where they take everything away from the shell, because an apostrophe reads badly in single ones;
    ``$'...'`` where there are control characters.
    """
    if plain(word) != word or set(word) & {"\n", "\t"}:
        return f"$'{''.join(map(_escaped, word))}'"
    quoted = shlex.quote(word)
    return f'"{word}"' if quoted != word and not set(word) & _DOUBLE else quoted


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if plain(letter) == letter and letter not in "\n\t":
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) > 0x7F else f"\\x{ord(letter):02x}"


def comment(text: str, width: int) -> list[str]:
    """Text as comments of a shell, on lines of at most ``width`` characters where its words allow that."""
    lines = textwrap.wrap(
        plain(text), max(width, LEAST) - 2, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )
    return [f"# {line}" for line in lines]


def command_lines(command: Mapping[str, Any], width: int, local: bool = True) -> list[str]:
    """A command (``Command.data()``) as a shell reads it, on lines of at most ``width`` characters.

    A word is never cut. What runs in the background ends with ``&``. ``local``: addresses of other commands are this
    machine's; elsewhere they are known only when the job runs.
    """
    hosts = dict.fromkeys(command["addresses"], _HERE) if local else {}
    words = [f"{name}={shell_word(value)}" for name, value in {**hosts, **command["env"]}.items()]
    words += map(shell_word, command["argv"])
    return folded(words, width, " &" if command["background"] else "")


def folded(words: Sequence[str], width: int, last: str = "") -> list[str]:
    """Quoted words on lines of at most ``width`` characters, joined by backslashes; ``last`` follows the last word."""
    lines, line = [], words[0]
    for i, word in enumerate(words[1:], 2):
        after = last if i == len(words) else " \\"
        if len(line) + 1 + len(word) + len(after) > max(width, LEAST):
            lines.append(f"{line} \\")
            line = f"  {word}"
        else:
            line = f"{line} {word}"
    return [*lines, line + last]


def block(commands: Sequence[Mapping[str, Any]], width: int, local: bool = True) -> list[str]:
    """The commands of one step as lines for a shell: what each is for as a comment, then the command.

    Servers that differ from the first in port and GPU alone are one comment; the plan's JSON has all of them.
    """
    if [command["role"] for command in commands] == ["work"]:
        return command_lines(commands[0], width, local)
    lines: list[str] = []
    for command in commands:
        if command["role"].startswith("server-"):
            if command["role"] == "server-1":
                lines += comment(_more_servers(command, commands), width)
            continue
        lines += comment(_head(command, local), width)
        lines += command_lines(command, width, local)
    return lines


def _more_servers(first: Mapping[str, Any], commands: Sequence[Mapping[str, Any]]) -> str:
    others = [c for c in commands if c["turn"] == first["turn"] and c["role"].startswith("server-")]
    ports = [c["ready"]["port"] for c in others]
    which = f"on port {ports[0]}" if len(ports) == 1 else f"on ports {ports[0]} to {ports[-1]}"
    return f"and {len(others)} more of it, {which}"


def _head(command: Mapping[str, Any], local: bool) -> str:
    """What a command is for."""
    role = command["role"]
    if role == "work":
        return "work: does the whole step, and starts what follows by itself"
    about = [role]
    if command["turn"]:
        about.append("when those before it are down")
    if command["background"]:
        about.append("in the background")
        if command["ready"]:
            about.append(f"up when port {command['ready']['port']} opens")
    if command["cwd"]:
        about.append(f"in the folder {command['cwd']}")
    if command["addresses"]:
        about.append(f"once the {' and the '.join(dict.fromkeys(command['addresses'].values()))} is up")
    needs = command["resources"]
    if needs["nodes"]:
        nodes, gpus = needs["nodes"], needs["gpus_per_node"]
        about.append(f"{nodes} node{'s' * (nodes > 1)} x {gpus} GPU{'s' * (gpus != 1)}")
    where = [f"{name} is the {of}'s node" for name, of in command["addresses"].items()] if not local else []
    return "; ".join([", ".join(about), *where])
