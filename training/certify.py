"""Certifies any Keras classifier file on any data set, image by image, and resumes by itself.

The command `covkeras certify`, from a checkout: see covkeras/commands/certify.py.
"""

import sys

from covkeras.commands.certify import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
