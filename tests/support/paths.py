"""Where things lie that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The project."""
GOLDEN = ROOT / "tests" / "golden"
"""What was once agreed on, and is compared with."""
