"""The command `bptt`, as `python -m bptt_trainers`: for torchrun, which starts modules."""

import sys

from bptt_trainers.cli import main

if __name__ == "__main__":
    sys.exit(main())
