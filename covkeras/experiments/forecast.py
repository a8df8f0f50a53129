"""What a run would take: ten training steps and a few certification passes of it, timed here (`--dry-run`)."""

import dataclasses
import resource
import sys
import time

import numpy as np
import tensorflow as tf

from covkeras.datasets.memory import ImageData
from covkeras.datasets.prepared import PREPARED
from covkeras.experiments import fitting, jobs
from covkeras.experiments.recipes import Recipe

STEPS = 10


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A method's training and certification, as ten steps and a few passes foretell them on this machine.

    steps: of the whole training. images_per_second: of training. hours: of training; certify_hours: of certification,
    n samples for every image. gigabytes: the most so far, of the process or the GPU. parameters: the classifier's.
    """

    method: str
    parameters: int
    steps: int
    images_per_second: float
    hours: float
    certify_hours: float
    gigabytes: float


class _Random(ImageData):
    """A few random images in the place of a data set that isn't prepared here; as many steps as that one has."""

    count = 0

    def __len__(self) -> int:
        return self.count or len(self.labels)


def stand_in(recipe: Recipe) -> ImageData:
    """Returns random images of the size, the classes and the number that the recipe's data set has.

    Raises:
        ValueError: a data set that covkeras doesn't know the size of.
    """
    known = PREPARED.get(recipe.data)
    if known is None:
        raise ValueError(f"data set {recipe.data!r} isn't prepared, and its size not known: prepare it first.")
    size, rng = recipe.image_size or known.shape[0], np.random.default_rng(0)
    pixels = rng.integers(0, 256, (recipe.batch_size, size, size, known.shape[2]), np.uint8)
    labels = rng.integers(0, known.classes, recipe.batch_size)
    data = _Random(recipe.data, "train", pixels, labels, tuple(map(str, range(known.classes))))
    held_out = 0 if recipe.train_on_validation else min(known.held_out, known.train_images // 10)
    count = min(recipe.train_images or known.train_images, known.train_images - held_out)
    object.__setattr__(data, "count", count)
    return data


def forecast(recipe: Recipe, data) -> Forecast:
    """Times a recipe's training on this machine, in its precision, on one device.

    Args:
        recipe: with its precision settled. data: its training split, or `stand_in`'s.
    """
    trainer = fitting.build_trainer(recipe, data)
    trainer.begin_epoch(recipe.epochs)
    # Before the steps: at the full rate and lam, without their warm-up, ten of them can leave no classifier.
    vote = _seconds_of_a_vote(recipe, trainer.classifier, data)
    if isinstance(data, _Random):
        one = (tf.constant(data.floats()), tf.constant(data.labels))
        batches = iter(lambda: one, None)
    else:
        batches = iter(data.batches(recipe.batch_size, seed=recipe.seed, augmentation=recipe.augmentation))
    step = tf.function(trainer.train_step, autograph=False).get_concrete_function(next(batches))
    step(next(batches))["loss"].numpy()
    start = time.perf_counter()
    for _ in range(STEPS):
        loss = step(next(batches))["loss"]
    loss.numpy()
    seconds = (time.perf_counter() - start) / STEPS
    steps = recipe.epochs * data.steps_per_epoch(recipe.batch_size)
    samples = recipe.certify_images * (recipe.certify_n0 + recipe.certify_n)
    return Forecast(
        recipe.method,
        parameters=trainer.classifier.count_params(),
        steps=steps,
        images_per_second=recipe.batch_size / seconds,
        hours=steps * seconds / 3600,
        certify_hours=samples * vote / 3600,
        gigabytes=_gigabytes(),
    )


def _seconds_of_a_vote(recipe: Recipe, classifier, data) -> float:
    smoothed = jobs.smoothed(recipe, classifier)
    image, samples = data.floats(slice(0, 1)), 4 * smoothed.batch_size
    smoothed.predict(image, n=samples)
    start = time.perf_counter()
    smoothed.predict(image, n=samples)
    return (time.perf_counter() - start) / samples


def _gigabytes() -> float:
    """The most memory that the process took so far, or of the first GPU where there is one."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def rows_of(forecasts: list[Forecast]) -> list[list[str]]:
    """Returns a header and a row for each method, for a table."""
    rows = [["method", "parameters", "steps", "images/s", "hours", "hours to certify", "memory, GB"]]
    for f in forecasts:
        figures = [f"{f.images_per_second:.0f}", f"{f.hours:.2f}", f"{f.certify_hours:.2f}", f"{f.gigabytes:.1f}"]
        rows.append([f.method, f"{f.parameters:,}", f"{f.steps:,}", *figures])
    return rows
