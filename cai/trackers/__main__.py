"""``python -m cai.trackers``: what ``cai.trackers.watching`` starts for each tracker. Not for people."""

from __future__ import annotations

import sys

from cai.trackers.follow import main

if __name__ == "__main__":
    sys.exit(main())
