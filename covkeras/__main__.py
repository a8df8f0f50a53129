"""python -m covkeras: the command, where it is not on the path."""

import sys

from covkeras.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
