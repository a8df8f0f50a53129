"""Searches a recipe's fields, by default lam and r_max, for the largest certified radius on validation images.

The command `covkeras search`, from a checkout: see covkeras/commands/search.py.
"""

import sys

from covkeras.commands.search import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
