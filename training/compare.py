"""Compares methods: trains each on one recipe with one budget, certifies all on the same images with the same noise.

The command `covkeras compare`, from a checkout: see covkeras/commands/compare.py.
"""

import sys

from covkeras.commands.compare import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
