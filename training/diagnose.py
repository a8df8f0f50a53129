"""Shows a classifier's inside: propagated against sampled moments layer by layer, and the paper's diagnostic figures.

The command `covkeras diagnose`, from a checkout: see covkeras/commands/diagnose.py.
"""

import sys

from covkeras.commands.diagnose import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
