"""Serves exported models, for development and tests.

The command `covkeras serve`, from a checkout: see covkeras/commands/serve.py.
"""

import sys

from covkeras.commands.serve import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
