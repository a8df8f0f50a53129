"""Exports a finished run as a SavedModel for TF-Serving.

The command `covkeras export`, from a checkout: see covkeras/commands/export.py.
"""

import sys

from covkeras.commands.export import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
