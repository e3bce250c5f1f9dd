"""``python -m cai``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the console script and of ``python -m cai``."""
    from cai.cli import main as run

    code = run(sys.argv[1:])
    if "torch" in sys.modules or "concurrent.futures" in sys.modules:
        sys.exit(code)
    # Nothing heavy was loaded and no thread waits: taking down a thousand classes one by one would only cost time.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
