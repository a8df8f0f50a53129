"""Prints ACR and certified accuracy of certification logs, ours or Cohen's, and writes curve, table and page.

The command `covkeras report`, from a checkout: see covkeras/commands/report.py.
"""

import sys

from covkeras.commands.report import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
