"""Certifies a classifier as it is, without training it: trains a denoiser in front of it.

The command `covkeras denoise`, from a checkout: see covkeras/commands/denoise.py.
"""

import sys

from covkeras.commands.denoise import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
