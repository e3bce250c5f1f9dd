"""Plan latency: the whole process `python -m cai plan` against `python -c "import hydra, pydantic, rich"`.

    python -m benchmarks.plan_latency [--experiment quickstart] [--runs 7]

The two run in turn, so that a machine that slows down slows both; the ratio is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Wall time of one process, in seconds; its output is thrown away."""
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')}")
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="quickstart")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    ours = [sys.executable, "-m", "cai", "plan", f"experiment={args.experiment}"]
    floor = [sys.executable, "-c", "import hydra, pydantic, rich"]
    seconds(ours), seconds(floor)
    pairs = [(seconds(ours), seconds(floor)) for _ in range(args.runs)]
    ratios = [a / b for a, b in pairs]
    for a, b in pairs:
        print(f"plan {a:.3f} s   imports {b:.3f} s   ratio {a / b:.2f}")
    result = {
        "benchmark": "plan_latency",
        "ratio": round(statistics.median(ratios), 3),
        "at_most": 2.5,
        "plan_s": round(statistics.median(a for a, _ in pairs), 3),
        "imports_s": round(statistics.median(b for _, b in pairs), 3),
        "runs": args.runs,
    }
    print(json.dumps(result))
    sys.exit(int(result["ratio"] > result["at_most"]))


if __name__ == "__main__":
    main()
