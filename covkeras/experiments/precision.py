"""Which arithmetic a job trains in: bfloat16 is 2 to 4 times faster with units for it (1.1
to 1.6 with those of AVX-512 alone), and 7 times slower without."""

import dataclasses
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from covkeras.experiments.recipes import Recipe
from covkeras.runtime import devices


def settled(
    recipe: Recipe,
    recorded: Recipe | None = None,
    report: Callable[[str], None] | None = None,
    on: str = "auto",
) -> Recipe:
    """Returns the recipe with a precision in the place of "auto": what an earlier start of the same job recorded, else
    what suits this machine's devices.

    Args:
        recipe: the one asked for. recorded: what the job's folder holds, if it was begun.
        report: told of the choice; it is printed to stderr by default. on: the devices, as --devices names them.
    """
    if recipe.precision != "auto":
        return recipe
    chosen, why = (recorded.precision, "as the folder records") if recorded else devices.best_precision(on)
    (report or _say)(f"precision: {chosen} ({why})")
    return dataclasses.replace(recipe, precision=chosen)


def warn_if_slow(recipe: Recipe, step_of: Callable[[Recipe], Callable], report: Callable[[str], None] | None = None):
    """Times two steps in the recipe's precision and in float32 where this device has no units for it, and says so if
    they are slower.

    Args:
        step_of: recipe -> a function that makes one training step.

    Returns:
        How many times slower, or None where nothing was measured.
    """
    if recipe.precision in ("auto", "float32", devices.best_precision()[0]):
        return None
    factor = slowdown(step_of(recipe), step_of(dataclasses.replace(recipe, precision="float32")))
    if factor > 1.1:
        (report or _say)(
            f"warning: {recipe.precision} is {factor:.1f} times slower than float32 on this device, which has no units "
            "for it (two steps measured). --precision auto chooses by the device."
        )
    return factor


def slowdown(one: Callable, other: Callable, rounds: int = 2) -> float:
    """Returns how many times longer `one` takes than `other`: medians of so many calls in turns, after one each."""
    one(), other()
    seconds = {one: [], other: []}
    for _ in range(rounds):
        for call, taken in seconds.items():
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return float(np.median(seconds[one]) / np.median(seconds[other]))


def pass_of(classifier, batch_size: int) -> Callable:
    """Returns a function that evaluates the classifier on a black batch."""
    images = tf.zeros((batch_size, *classifier.inputs[0].shape[1:]))
    forward = tf.function(lambda: classifier(images, training=False)).get_concrete_function()
    return lambda: forward().numpy()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
