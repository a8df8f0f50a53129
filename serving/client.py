"""Asks a TF-Serving (or `covkeras serve`) for certified predictions of image files.

The command `covkeras client`, from a checkout: see covkeras/commands/client.py.
"""

import sys

from covkeras.commands.client import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
