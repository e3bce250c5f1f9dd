"""``python -m cai``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script and of ``python -m cai``."""
    from cai.cli import main as run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
