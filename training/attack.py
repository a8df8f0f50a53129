"""Attacks certified images: predictions must not change within the certified radius; shows how far outside they do.

The command `covkeras attack`, from a checkout: see covkeras/commands/attack.py.
"""

import sys

from covkeras.commands.attack import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
