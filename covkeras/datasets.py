"""Images in [0, 1] with integer labels: the embedded digits. Batches are a function of (seed, epoch, step) alone."""

import dataclasses
from collections.abc import Callable

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ImageData:
    """One split of a data set, in memory.

    images: (count, height, width, channels), as stored. labels: (count,) int64. scale: the stored value of white;
    images / scale lies in [0, 1]. class_names: one per label. name, split: where it comes from.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    scale: float
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def floats(self, indices=slice(None)) -> np.ndarray:
        """Returns images in [0, 1], float32, of the given indices."""
        return self.images[indices].astype(np.float32) / np.float32(self.scale)

    def head(self, count: int) -> "ImageData":
        """Returns the first `count` images."""
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


def load(name: str, split: str = "train") -> ImageData:
    """Loads one fixed split of a data set.

    Args:
        name: "digits", scikit-learn's 1,797 handwritten digits, 8 x 8.
        split: train, validation or test.

    Raises:
        ValueError: an unknown name or split, with those that are known.
    """
    if name not in _LOADERS:
        raise ValueError(f"data set must be one of {', '.join(_LOADERS)}, got {name!r}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    return _LOADERS[name](split)


def _load_digits(split: str) -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's stream is frozen for ever: the split is the same in every version of NumPy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = dict(zip(SPLITS, np.split(order, [1197, 1437]), strict=True))
    chosen = parts[split]
    images = bunch.images[chosen].astype(np.uint8)[..., None]
    return ImageData("digits", split, images, bunch.target[chosen].astype(np.int64), 16.0, tuple("0123456789"))


_LOADERS: dict[str, Callable[[str], ImageData]] = {"digits": _load_digits}


def steps_per_epoch(data: ImageData, batch_size: int) -> int:
    """Returns the full batches of an epoch; the remainder is left out, other images in every epoch."""
    if len(data) < batch_size:
        raise ValueError(
            f"batch_size must be at most {len(data)}, the images of {data.name}'s {data.split} split, got {batch_size}."
        )
    return len(data) // batch_size


def batches(data: ImageData, batch_size: int, seed: int = 0, epoch: int = 0, step: int = 0):
    """Makes the endless stream of training batches from (epoch, step) on.

    Epoch e's order is a permutation drawn from (seed, e): a stream that starts in the middle continues exactly the
    one that was interrupted.

    Returns:
        tf.data.Dataset of (images (batch_size, height, width, channels) float32 in [0, 1], labels (batch_size,) int64).
    """
    import tensorflow as tf

    steps = steps_per_epoch(data, batch_size)
    images, labels = tf.constant(data.images), tf.constant(data.labels)

    def indices(e):
        keys = tf.random.stateless_uniform(
            [len(data)], tf.stack([tf.cast(seed, tf.int64), e]), dtype=tf.float64, alg="philox"
        )
        order = tf.argsort(keys)[: steps * batch_size]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, [steps, batch_size]))

    def gather(chosen):
        return tf.cast(tf.gather(images, chosen), tf.float32) / data.scale, tf.gather(labels, chosen)

    stream = tf.data.Dataset.range(epoch, 2**31).flat_map(indices).skip(step)
    return stream.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
