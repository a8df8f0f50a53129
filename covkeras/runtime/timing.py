"""Fair timing: every side in turn, in one process, so that a machine whose speed drifts is fair to all."""

import time
from collections.abc import Callable

import numpy as np


def interleave(sides: dict[str, Callable], rounds: int, progress: Callable = lambda: None) -> dict[str, list[float]]:
    """Calls every side once per round, after two rounds of warm-up; returns the seconds of each call.

    Args:
        sides: name -> what to time. rounds: timed calls of each. progress: called after every round.
    """
    for _ in range(2):
        for run in sides.values():
            run()
        progress()
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        progress()
    return seconds


def ratio_rows(title: str, seconds: dict[str, list[float]]) -> list[list[str]]:
    """One row per side: the median of its round-by-round ratio to the first side, and the middle half's spread."""
    base = np.array(next(iter(seconds.values())))
    rows = []
    for name, values in seconds.items():
        ratios = np.array(values) / base
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append([title, name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", str(len(values))])
    return rows
