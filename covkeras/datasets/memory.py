"""ImageData: a split held in memory; the embedded digits."""

import dataclasses

import numpy as np

from covkeras.datasets.augmentation import augment


@dataclasses.dataclass(frozen=True)
class ImageData:
    """One split of a data set, in memory.

    images: (count, height, width, channels) uint8. labels: (count,) int64. class_names: one per label. name, split:
    where it comes from.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def floats(self, indices=slice(None)) -> np.ndarray:
        """Returns images in [0, 1], float32, of the given indices."""
        return self.images[indices].astype(np.float32) / np.float32(255)

    def head(self, count: int) -> "ImageData":
        """Returns the first `count` images."""
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])

    def limited(self, count: int) -> "ImageData":
        """Returns the first `count` images, all of them for 0."""
        return self.head(count) if count else self

    def with_labels(self, labels: np.ndarray) -> "ImageData":
        """Returns the same images with other labels, such as noisy ones."""
        return dataclasses.replace(self, labels=labels)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the full batches of an epoch; the remainder is left out, other images in every epoch."""
        return full_batches(self, batch_size)

    def batches(
        self, batch_size: int, seed: int = 0, epoch: int = 0, step: int = 0, epochs: int = 2**31, augmentation="none"
    ):
        """Makes the stream of training batches from (epoch, step) on, up to epoch `epochs`.

        Epoch e's order is a permutation drawn from (seed, e), its augmentation is drawn from (seed, e, step): a stream
        that starts in the middle continues exactly the one that was interrupted.

        Returns:
            tf.data.Dataset of (images (batch_size, height, width, channels) float32 in [0, 1], labels (batch_size,)
            int64).
        """
        import tensorflow as tf

        if augmentation not in ("none", "crop", "crop_flip"):
            raise ValueError(
                f"augmentation must be none, crop or crop_flip for {self.name}, which is held in memory, got "
                f"{augmentation!r}."
            )
        steps = self.steps_per_epoch(batch_size)
        images, labels = tf.constant(self.images), tf.constant(self.labels)

        def indices(e):
            key = tf.stack([tf.cast(seed, tf.int64), e])
            order = tf.argsort(tf.random.stateless_uniform([len(self)], key, dtype=tf.float64, alg="philox"))
            keys = tf.stack([tf.fill([steps], e), tf.range(steps, dtype=tf.int64)], 1)
            return tf.data.Dataset.from_tensor_slices(
                (tf.reshape(order[: steps * batch_size], [steps, batch_size]), keys)
            )

        def gather(chosen, key):
            batch = tf.cast(tf.gather(images, chosen), tf.float32) / 255.0
            seeds = tf.stack([tf.cast(seed, tf.int64) + 2**32, key[0] * 2**32 + key[1]])
            return augment(batch, augmentation, seeds), tf.gather(labels, chosen)

        stream = tf.data.Dataset.range(epoch, epochs).flat_map(indices).skip(step)
        return stream.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def full_batches(data, batch_size: int) -> int:
    """Returns how many full batches an epoch has; refuses a batch larger than the data."""
    if len(data) < batch_size:
        raise ValueError(
            f"batch_size must be at most {len(data)}, the images of {data.name}'s {data.split} split, got {batch_size}."
        )
    return len(data) // batch_size


def load_digits(split: str) -> ImageData:
    """Loads scikit-learn's 1,797 handwritten digits: 1,197 to train, 240 to validate, 360 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's stream is frozen for ever: the split is the same in every version of NumPy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = dict(zip(("train", "validation", "test"), np.split(order, [1197, 1437]), strict=True))
    chosen = parts[split]
    # Stored from 0 to 16: on the 8-bit grid, like all other data, where certification's noise is exact.
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
    return ImageData("digits", split, images, bunch.target[chosen].astype(np.int64), tuple("0123456789"))
