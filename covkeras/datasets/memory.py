"""ImageData: a split held in memory; the embedded digits."""

import dataclasses

import numpy as np

from covkeras.datasets.augmentation import all_sized, augment
from covkeras.datasets.base import Split
from covkeras.runtime.validation import check_count, check_labels


@dataclasses.dataclass(frozen=True)
class ImageData(Split):
    """One split of a data set, in memory.

    images: (count, height, width, channels) uint8. labels: (count,) int64. class_names: one per label. name, split:
    where it comes from. digest: of a file's content, which its name doesn't tell.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        what = f"{len(self)} images {self.image_shape}, {len(self.class_names)} classes"
        return f"ImageData({self.name!r}, {self.split!r}: {what})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def floats(self, indices=slice(None)) -> np.ndarray:
        """Returns images in [0, 1], float32, of the given indices."""
        return self.images[indices].astype(np.float32) / np.float32(255)

    def head(self, count: int) -> "ImageData":
        """Returns the first `count` images."""
        check_count("count", count, 0)
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])

    def with_channels(self, channels: int | None) -> "ImageData":
        """Returns grey images in three equal channels for a classifier of colour, as Keras reads them; others as they
        are."""
        grey = self.image_shape[-1] == 1 and channels == 3
        return dataclasses.replace(self, images=np.repeat(self.images, 3, -1)) if grey and self.digest else self

    def limited(self, count: int) -> "ImageData":
        """Returns the first `count` images, all of them for 0."""
        return self.head(count) if count else self

    def with_labels(self, labels: np.ndarray) -> "ImageData":
        """Returns the same images with other labels, such as noisy ones."""
        labels = check_labels(labels, len(self.class_names), len(self))
        return dataclasses.replace(self, labels=labels)

    def batches(self, batch_size, seed=0, epoch=0, step=0, epochs=None, augmentation="none", part=(0, 1), weights=None):
        """See `Split.batches`; the order is a permutation of all images drawn from (seed, epoch); with weights, of as
        many, each as often as its weight says, to one more or less."""
        import tensorflow as tf

        if augmentation not in ("none", "crop", "crop_flip"):
            raise ValueError(
                f"augmentation must be none, crop or crop_flip for {self.name}, which is held in memory, got "
                f"{augmentation!r}."
            )
        weights = None if weights is None else _checked_weights(weights, len(self))
        steps, share = self.steps_per_epoch(batch_size), batch_size // part[1]
        own = slice(part[0] * share, (part[0] + 1) * share)
        images, labels = tf.constant(self.images), tf.constant(self.labels)

        def indices(e):
            key = tf.stack([tf.cast(seed, tf.int64), e])
            uniform = tf.random.stateless_uniform([len(self)], key, dtype=tf.float64, alg="philox")
            order = tf.argsort(uniform)
            if weights is not None:
                order = tf.gather(_systematic(weights, uniform[0]), order)
            keys = tf.stack([tf.fill([steps], e), tf.range(steps, dtype=tf.int64)], 1)
            return tf.data.Dataset.from_tensor_slices(
                (tf.reshape(order[: steps * batch_size], [steps, batch_size])[:, own], keys)
            )

        def gather(chosen, key):
            batch = tf.cast(tf.gather(images, chosen), tf.float32) / 255.0
            seeds = tf.stack([tf.cast(seed, tf.int64) + 2**32, key[0] * 2**32 + key[1]])
            return augment(batch, augmentation, seeds, batch_size, own.start), tf.gather(labels, chosen)

        last = 2**31 if epochs is None else epochs
        stream = tf.data.Dataset.range(epoch, last).flat_map(indices).skip(step)
        return stream.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _checked_weights(weights, count: int) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"weights must be {count} numbers >= 0, one for each image, not all of them 0, got shape {weights.shape}"
            f"{f' from {weights.min():g} to {weights.max():g}' if weights.size else ''}."
        )
    return weights


def _systematic(weights, start):
    """As many indices as there are weights, each in proportion to its own, rounded up or down; start: uniform in
    [0, 1)."""
    import tensorflow as tf

    total = np.cumsum(weights)
    places = (np.arange(len(total)) + start) * (total[-1] / len(total))
    # Rounding must not lead beyond the last image that has a weight.
    return tf.minimum(tf.searchsorted(total, places, side="right"), int(np.flatnonzero(weights)[-1]))


def load_digits(split: str, image_size: int = 0) -> ImageData:
    """Loads scikit-learn's 1,797 handwritten digits: 1,197 to train, 240 to validate, 360 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # RandomState's stream is frozen for ever: the split is the same in every version of NumPy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = dict(zip(("train", "validation", "test"), np.split(order, [1197, 1437]), strict=True))
    chosen = np.concatenate([parts[name] for name in split.split("+")])
    # Stored from 0 to 16: on the 8-bit grid, like all other data, where certification's noise is exact.
    images = np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
    images = all_sized(images, image_size) if image_size not in (0, 8) else images
    return ImageData("digits", split, images, bunch.target[chosen].astype(np.int64), tuple("0123456789"))
