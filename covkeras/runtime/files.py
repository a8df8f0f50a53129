"""Files that are whole whenever they are there, and that one process writes at a time."""

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing keeps two processes apart
    fcntl = None


class InUse(OSError):
    """Another process holds the file or folder."""


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


def write_text_aside(path: Path, text: str) -> None:
    """As `write_aside`, a text in UTF-8."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def is_keras_file(path) -> bool:
    """Whether a path is one of a whole Keras model's, by its ending."""
    return str(path).endswith((".keras", ".h5", ".hdf5"))


def user_path(text: str) -> str:
    """A path as a user types it: `~` stands for the home folder wherever a shell leaves it, as in --out=~/x. Nothing,
    as of a variable that is not set, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("a path must not be empty: leave the option out, or set the variable in it")
    return os.path.expanduser(text)


def quoted(path) -> str:
    """A path as a shell takes it, for printed commands."""
    return shlex.quote(str(path))


def lock(file, name) -> None:
    """Takes an open file for this process alone, until it is closed; the kernel frees it of a killed one.

    Raises:
        InUse: another process holds it; the message names it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"{name} is in use by another process. Wait until it has ended, or choose another.") from None
    except OSError:
        pass  # a file system without locks


# Folders this process holds: path -> [the lock's file, how often].
_HELD: dict[str, list] = {}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made, for this process alone; within it, it may be held again.

    Raises:
        InUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(folder)
    if key not in _HELD:
        file = (folder / ".lock").open("a", encoding="utf-8")
        try:
            lock(file, folder)
        except InUse:
            file.close()
            raise
        _HELD[key] = [file, 0]
    _HELD[key][1] += 1
    try:
        yield
    finally:
        _HELD[key][1] -= 1
        if not _HELD[key][1]:
            _HELD.pop(key)[0].close()
