"""Ctrl-C and SIGTERM ask for a stop at the next safe point; a second Ctrl-C stops at once."""

import os
import signal


class Interrupts:
    """Context manager. While it is open, the first SIGINT or SIGTERM only sets `signal_number`.

    Calling it tells whether a stop was asked for: `with Interrupts() as stop: ... if stop(): ...`
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._before = {}

    def __call__(self) -> bool:
        return self.signal_number is not None

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        # Not print: its lock may be held by what was interrupted.
        os.write(2, b"\nstopping at the next safe point (Ctrl-C again: at once)\n")


class Interrupted(Exception):
    """A stop was asked for, and everything done so far is saved."""
