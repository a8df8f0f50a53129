"""Trains on labels of which a share is flipped to the next class, by several methods, and judges each on clean labels.

The command `covkeras noisy-labels`, from a checkout: see covkeras/commands/noisy_labels.py.
"""

import sys

from covkeras.commands.noisy_labels import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
