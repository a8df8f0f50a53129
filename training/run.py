"""Trains, certifies and reports: the paper's method beside a reference, in one run folder.

The command `covkeras train`, from a checkout: see covkeras/commands/train.py.
"""

import sys

from covkeras.commands.train import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
