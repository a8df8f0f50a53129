"""How often each training image is drawn, where a method says so from the votes of its own classifier."""

import numpy as np
import tensorflow as tf

from covkeras.experiments.recipes import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.files import write_aside

# Far from the seeds of training noise and augmentation.
_SEED = 2**40


def weighed(recipe: Recipe) -> bool:
    """Whether the recipe's method weighs its training images in any epoch."""
    objective = recipe.objective()
    return any(_asked(objective, epoch) for epoch in range(recipe.epochs))


def _asked(objective, epoch: int) -> int:
    # An objective from elsewhere may know nothing of it.
    return getattr(objective, "copies_to_count", lambda _: 0)(epoch)


class Weighing:
    """The images' weights, epoch by epoch; those of an epoch are in the run's folder before its first step, so that a
    resumed run draws the same images.

    Args:
        trainer: whose objective asks for votes, and whose classifier casts them.
        data: in memory. folder: of the run. batch_size: images whose copies are evaluated together.
    """

    def __init__(self, recipe: Recipe, trainer, data, folder: RunFolder, batch_size: int = 256):
        self.recipe, self.trainer, self.data, self.folder = recipe, trainer, data, folder
        self.batch_size, self._counted = batch_size, None

    def asked(self, epoch: int) -> int:
        """The copies of each image to be counted before the epoch; 0 for none."""
        return _asked(self.trainer.objective, epoch)

    def until(self, epoch: int) -> int:
        """The epoch before which images are weighed next, or the training's end."""
        return next((e for e in range(epoch + 1, self.recipe.epochs) if self.asked(e)), self.recipe.epochs)

    def weights(self, epoch: int) -> np.ndarray | None:
        """The images' weights in an epoch, (images,), or None for all alike; counts where the epoch asks for it."""
        known = [e for e in range(epoch, -1, -1) if self.asked(e)]
        if not known:
            return None
        path = self._path(known[0])
        if path.exists():
            return np.load(path)
        before = np.ones(len(self.data)) if len(known) == 1 else np.load(self._path(known[1]))
        weights = self.trainer.objective.image_weights(known[0], self._shares(known[0]), before)
        if not (weights > 0).any():
            raise ValueError(
                f"no training image is left: at epoch {known[0]} {self.recipe.method} gives each the weight 0. Let it "
                "leave out fewer (sphere_attack: --discard-below), or train longer before."
            )
        write_aside(path, lambda aside: _save(aside, weights))
        return weights

    def _path(self, epoch: int):
        return self.folder.path / "weights" / f"epoch_{epoch:05d}.npy"

    def _shares(self, epoch: int) -> np.ndarray:
        """The share of noisy copies of each image that the classifier, as it is, gives its label."""
        copies, sigma = self.asked(epoch), self.trainer.objective.sigma
        if self._counted is None:
            shape, classifier = (self.batch_size, *self.data.image_shape), self.trainer.classifier

            @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape), tf.TensorSpec([2], tf.int64)])
            def answers(images, seed):
                noise = tf.random.stateless_normal(shape, seed, alg="philox")
                return tf.argmax(classifier(images + sigma * noise, training=False), -1)

            self._counted = answers
        hits = np.zeros(len(self.data))
        for first in range(0, len(self.data), self.batch_size):
            chosen = np.arange(first, min(first + self.batch_size, len(self.data)))
            images = np.zeros((self.batch_size, *self.data.image_shape), np.float32)
            images[: len(chosen)] = self.data.floats(chosen)
            for copy in range(copies):
                number = (epoch * copies + copy) * len(self.data) + first
                answers = self._counted(images, np.array([_SEED + self.recipe.seed, number], np.int64)).numpy()
                hits[chosen] += answers[: len(chosen)] == self.data.labels[chosen]
        return hits / copies


def _save(path, weights) -> None:
    with open(path, "wb") as file:
        np.save(file, weights)
