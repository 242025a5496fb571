"""Time updates, environment steps and starts, beside peers: `bptt benchmark`, which this is a door to.

    python scripts/benchmark.py --out docs/benchmarks --document docs/benchmarks.md

docs/benchmarks.md says what came of it.
"""

from __future__ import annotations

import sys

from bptt_trainers.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
