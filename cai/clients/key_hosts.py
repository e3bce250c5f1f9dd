"""Which servers a key may be sent to. Experiments come from strangers, and a key's variable is a name in them.

A known service's key goes to that service. Every other pair of variable and host is the user's own to allow: with
``python -m cai allow VARIABLE HOST``, which keeps it in ``$XDG_CONFIG_HOME/cai/key_hosts.yaml`` (``~/.config/cai`` by
default), or in ``CAI_KEY_HOSTS`` (``VARIABLE=HOST,VARIABLE=HOST``). An experiment cannot.

A host is ``HOST``, ``HOST:PORT`` or ``*.DOMAIN``, and is asked over https. ``http://HOST`` allows what others on the
way can read; the same machine (loopback) needs no https.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from yarl import URL

from cai.errors import PrerequisiteError, Problem, SpecError
from cai.files.durable import write_durably
from cai.files.locks import locked
from cai.files.yaml_lines import dumps, load

SETTING = "CAI_KEY_HOSTS"

KNOWN: Mapping[str, tuple[str, ...]] = {
    "ANTHROPIC_API_KEY": ("api.anthropic.com",),
    "CEREBRAS_API_KEY": ("api.cerebras.ai",),
    "COHERE_API_KEY": ("api.cohere.com", "api.cohere.ai"),
    "DEEPINFRA_API_KEY": ("api.deepinfra.com",),
    "DEEPSEEK_API_KEY": ("api.deepseek.com",),
    "FIREWORKS_API_KEY": ("api.fireworks.ai",),
    "GEMINI_API_KEY": ("generativelanguage.googleapis.com",),
    "GROQ_API_KEY": ("api.groq.com",),
    "HF_TOKEN": ("router.huggingface.co",),
    "MISTRAL_API_KEY": ("api.mistral.ai",),
    "NGC_API_KEY": ("integrate.api.nvidia.com",),
    "NVIDIA_API_KEY": ("integrate.api.nvidia.com",),
    "OPENAI_API_KEY": ("api.openai.com",),
    "OPENROUTER_API_KEY": ("openrouter.ai",),
    "TOGETHER_API_KEY": ("api.together.xyz", "api.together.ai"),
    "XAI_API_KEY": ("api.x.ai",),
}
"""Variables by the name that the service's own documents give them, and the hosts of its API."""

_HOST = re.compile(r"(?P<http>http://)?(?P<host>(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def settings_file() -> Path:
    """Where the user's own list is kept; it may not exist."""
    configured = os.environ.get("XDG_CONFIG_HOME", "").strip()
    return (Path(configured) if configured else Path("~/.config")).expanduser() / "cai" / "key_hosts.yaml"


def check_key_hosts(variable: str, urls: Iterable[str]) -> None:
    """The user has allowed that the key in ``variable`` goes to every one of these addresses.

    Raises:
        PrerequisiteError: with the command that would allow it. No value of a variable is in it.
        SpecError: when the user's own settings cannot be read.
    """
    entries = (*KNOWN.get(variable, ()), *_from_environment(variable), *_from_file(variable))
    refused = dict.fromkeys(_origin(url) for url in urls if not any(_allows(entry, url) for entry in entries))
    if refused:
        commands = "; ".join(f"python -m cai allow {variable} {origin}" for origin in refused)
        raise PrerequisiteError(
            f"{variable} would be sent to {', '.join(refused)}, which is not allowed for it; if you trust that server "
            f"with this key: {commands}"
        )


def allow(variable: str, host: str) -> Path:
    """Let the key in ``variable`` go to ``host`` from now on; returns the file that says so.

    Raises:
        SpecError: for what is no variable's name or no host.
        PrerequisiteError: when the file cannot be written.
    """
    if not _VARIABLE.fullmatch(variable):
        raise SpecError(Problem(variable, "is no name of an environment variable", "capitals, digits and _"))
    entry = _entry(host, "host")
    path = settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            hosts_by_variable = _read(path)
            hosts = hosts_by_variable.setdefault(variable, [])
            if entry not in hosts:
                hosts.append(entry)
            write_durably(
                path,
                "# Which hosts a key may be sent to. `python -m cai allow` adds to it.\n" + dumps(hosts_by_variable),
            )
    except OSError as error:
        hint = f"or export {SETTING}={variable}={entry}"
        raise PrerequisiteError(f"{path}: cannot be written ({error.strerror or error}); {hint}") from error
    return path


def _entry(text: str, where: str) -> str:
    """A host as the list has it; an address is cut down to its host."""
    entry = text.strip().lower().removeprefix("https://").rstrip("/")
    entry = entry.partition("/v1")[0]
    if not _HOST.fullmatch(entry):
        raise SpecError(Problem(where, f"{text!r} is no host", "write HOST, HOST:PORT, *.DOMAIN or http://HOST:PORT"))
    return entry


def _from_environment(variable: str) -> list[str]:
    hosts = []
    for pair in os.environ.get(SETTING, "").split(","):
        name, _, host = pair.strip().partition("=")
        if name == variable:
            hosts.append(_entry(host, SETTING))
    return hosts


def _from_file(variable: str) -> list[str]:
    return _read(settings_file()).get(variable, [])


def _read(path: Path) -> dict[str, list[str]]:
    if not path.exists():
        return {}
    data, lines = load(path)
    if data is None:
        return {}
    hosts_by_variable: dict[str, list[str]] = {}
    for variable, hosts in data.items() if isinstance(data, Mapping) else [("", None)]:
        where = f"{path}:{lines.get(str(variable), 1)}"
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise SpecError(Problem(where, "is no list of hosts by variable", "write JUDGE_KEY: [judge.example.com]"))
        hosts_by_variable[str(variable)] = [_entry(host, where) for host in hosts]
    return hosts_by_variable


def _allows(entry: str, url: str) -> bool:
    match = _HOST.fullmatch(entry)
    address = _address(url)
    host = (address.raw_host or "").rstrip(".").lower()
    if match is None or (address.scheme != "https" and not match["http"] and not is_loopback(host)):
        return False
    named = match["host"].strip("[]")
    same = host.endswith(named[1:]) if named.startswith("*.") else host == named
    return same and match["port"] in (None, f":{address.port}")


def _origin(url: str) -> str:
    """A server as the user would allow it."""
    address = _address(url)
    host = address.raw_host or ""
    port = "" if address.is_default_port() else f":{address.port}"
    plain = address.scheme != "https" and not is_loopback(host)
    return f"{'http://' if plain else ''}{f'[{host}]' if ':' in host else host}{port}"


def _address(url: str) -> URL:
    """An address as the client that asks it reads it."""
    try:
        return URL(url)
    except ValueError as error:
        raise PrerequisiteError(f"{url!r} is no address ({error}); write https://HOST/v1") from error


def is_loopback(host: str) -> bool:
    """Whether a name or an address is always this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
