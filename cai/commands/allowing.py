"""``allow``: which servers the user lets a key go to."""

from __future__ import annotations

from collections.abc import Sequence

from cai.commands.common import options


def allow_verb(args: Sequence[str]) -> int:
    """Add a host to those that a key may be sent to."""
    parser = options("allow", "Let the key in an environment variable be sent to a server that an experiment names.")
    parser.add_argument("variable", help="the variable's name, as in api_key_env")
    parser.add_argument("host", help="HOST, HOST:PORT, *.DOMAIN, or http://HOST:PORT where there is no https")
    parsed = parser.parse_args(list(args))
    from cai.clients.key_hosts import allow

    path = allow(parsed.variable, parsed.host)
    print(f"{parsed.variable} may be sent to {parsed.host} ({path})")
    return 0
