"""Where and how a job runs."""

import dataclasses
from collections.abc import Callable

import numpy as np

from covkeras import datasets
from covkeras.experiments.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where and how a job runs: what changes none of its results.

    data_dir: the folder of prepared TFDS data sets. devices: "auto", "cpu" or a number. minutes: between checkpoints
    within an epoch. stop: () -> bool, asked after every step and image.
    """

    data_dir: str | None = None
    devices: str = "auto"
    minutes: float = 10.0
    stop: Callable[[], bool] = lambda: False

    def load(self, recipe: Recipe, split: str):
        """Loads a split of the recipe's data."""
        return datasets.load(recipe.data, split, self.data_dir, recipe.image_size)

    def load_certified(self, recipe: Recipe, split: str | None = None):
        """Loads what the recipe certifies, as ImageData up to the last of them, and their numbers in it.

        split: by default the recipe's.
        """
        data = self.load(recipe, split or recipe.certify_split)
        data = data.head((recipe.certify_images - 1) * recipe.certify_every + 1)
        return data, np.arange(0, len(data), recipe.certify_every)
