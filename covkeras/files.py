"""Files that are whole whenever they are there."""

import os
from pathlib import Path


def is_taken(folder: Path) -> bool:
    """Whether a folder holds files; those that another process is just writing aside don't count."""
    return folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())


def write_aside(path: Path, write) -> None:
    """Calls write(aside) and renames: under its name the file is always whole. The suffix stays (Keras reads it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
