"""Where and how a job runs."""

import dataclasses
import os
import weakref
from collections.abc import Callable

import numpy as np

from covkeras import datasets
from covkeras.datasets.own import signature
from covkeras.experiments.recipes import MODELS, Recipe
from covkeras.runtime.later import Later

loading = Later("covkeras.runtime.loading")


def training_split(recipe: Recipe) -> str:
    """Returns the split that the recipe trains on."""
    return datasets.JOINED if recipe.train_on_validation else "train"


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
    # What is in use anyway: a job loads each split a few times.
    _loaded: weakref.WeakValueDictionary = dataclasses.field(
        default_factory=weakref.WeakValueDictionary, init=False, repr=False, compare=False
    )

    def load(self, recipe: Recipe, split: str):
        """Loads a split of the recipe's data; one's own images are read once, and have the channels that the training
        images, or the recipe's model file, have.

        Raises:
            ValueError, OSError: as `covkeras.datasets.load`; one's own images of another shape than those trained on.
        """
        if not datasets.is_own(recipe.data):
            return datasets.load(recipe.data, split, self.data_dir, recipe.image_size)
        key = (recipe.data, split, recipe.image_size, recipe.model, signature(recipe.data))
        if known := self._loaded.get(key):
            return known
        data = datasets.load(recipe.data, split, self.data_dir, recipe.image_size)
        if recipe.model not in MODELS:
            if not os.path.isfile(recipe.model):
                return data
            inputs = loading.load_keras(recipe.model, "model").inputs
            data = data.with_channels(inputs[0].shape[-1] if inputs else None)
        data = self._like_training(recipe, data)
        self._loaded[key] = data
        return data

    def _like_training(self, recipe: Recipe, data):
        if data.split not in ("validation", "test"):
            return data
        trained = self.load(recipe, training_split(recipe))
        data = data.with_channels(trained.image_shape[-1])
        if data.image_shape != trained.image_shape:
            raise ValueError(
                f"the {data.split} images of {data.name} have shape {data.image_shape}, the training images "
                f"{trained.image_shape}. Resize both by image_size, and store them with the same channels."
            )
        return data

    def load_certified(self, recipe: Recipe, split: str | None = None):
        """Loads what the recipe certifies, as ImageData up to the last of them, and their numbers in it.

        split: by default the recipe's.
        """
        data = self.load(recipe, split or recipe.certify_split)
        data = data.head((recipe.certify_images - 1) * recipe.certify_every + 1)
        return data, np.arange(0, len(data), recipe.certify_every)
