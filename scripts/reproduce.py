"""Rerun the paper's experiments with statistics: `bptt reproduce`, which this is a door to.

    python scripts/reproduce.py --results results --report docs/results --document docs/results.md

docs/results.md says what came of it.
"""

from __future__ import annotations

import sys

from bptt_trainers.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
