"""ImageStream: a split too large for memory, read from its prepared record files."""

import dataclasses
import functools

import numpy as np

from covkeras.datasets.augmentation import centre_crop, resized_crop
from covkeras.datasets.base import Split
from covkeras.datasets.memory import ImageData
from covkeras.runtime.validation import check_count

_SHUFFLE_BUFFER = 16_384


@dataclasses.dataclass(frozen=True)
class ImageStream(Split):
    """One split of a large data set, on the disk, resized to (image_size, image_size, 3).

    builder: of TFDS. records: the TFDS split, such as "train[:99%]". count: its images.
    """

    name: str
    split: str
    builder: object
    records: str
    count: int
    image_size: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    def head(self, count: int) -> ImageData:
        """Reads the first `count` images, centre crops, into memory; at 224 x 224 each takes 150 kB."""
        import tensorflow as tf

        check_count("count", count, 0)
        images, labels = [], []
        for image, label in self._decoded(self._records()).take(count):
            square = centre_crop(image, self.image_size)
            images.append(tf.cast(tf.clip_by_value(tf.round(square), 0, 255), tf.uint8).numpy())
            labels.append(int(label))
        return ImageData(self.name, self.split, np.stack(images), np.array(labels, np.int64), self.class_names)

    def limited(self, count: int) -> "ImageStream":
        """Returns the first `count` images of the split, all of them for 0."""
        count = min(check_count("count", count, 0), self.count)
        return dataclasses.replace(self, count=count, records=f"{self._source}[:{count}]") if count else self

    @property
    def _source(self) -> str:
        """The TFDS split the records are cut from; its own beginning, so that a part of it can be named."""
        source, _, rest = self.records.partition("[")
        if rest and not rest.startswith(":"):
            raise ValueError(f"train_images can't limit {self.records!r}, which is not the beginning of a split.")
        return source

    def batches(self, batch_size, seed=0, epoch=0, step=0, epochs=None, augmentation="none", part=(0, 1), weights=None):
        """See `Split.batches`. Files and a window of records are shuffled from (seed, epoch); to continue in the middle
        of an epoch its records are read over, without being decoded."""
        import tensorflow as tf

        if weights is not None:
            raise ValueError(f"weights need a data set held in memory, got {self.name}, which is streamed.")
        one = functools.partial(self._epoch, batch_size, self.steps_per_epoch(batch_size), seed, augmentation, part)
        if epochs is None:
            return self._endless(one, epoch, step, batch_size // part[1])
        stream = one(epoch, step)
        for later in range(epoch + 1, epochs):
            stream = stream.concatenate(one(later, 0))
        return stream.prefetch(tf.data.AUTOTUNE)

    def _endless(self, one, epoch, step, share):
        import itertools

        import tensorflow as tf

        def rows():
            for e in itertools.count(epoch):
                yield from one(e, step if e == epoch else 0)

        images = tf.TensorSpec((share, *self.image_shape), tf.float32)
        return tf.data.Dataset.from_generator(rows, output_signature=(images, tf.TensorSpec((share,), tf.int64)))

    def _epoch(self, batch_size, steps, seed, augmentation, part, epoch, step):
        import tensorflow as tf

        mixed = np.random.SeedSequence([seed, epoch]).generate_state(1)[0] % 2**31
        records = self._records(int(mixed)).shuffle(min(_SHUFFLE_BUFFER, len(self)), seed=int(mixed))
        records = records.take(steps * batch_size).enumerate().skip(step * batch_size)
        share = batch_size // part[1]
        if part[1] > 1:
            records = records.filter(lambda position, _: position % batch_size // share == part[0])

        def read(position, record):
            image, label = self._decode(record)
            if augmentation == "resized_crop_flip":
                image = resized_crop(image, self.image_size, tf.stack([tf.cast(mixed, tf.int64), position * 2]))
            else:
                image = centre_crop(image, self.image_size)
            # Resizing may overshoot by a rounding error.
            return tf.clip_by_value(tf.ensure_shape(image, self.image_shape) / 255.0, 0.0, 1.0), label

        stream = records.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return stream.batch(share, drop_remainder=True)

    def _records(self, seed: int | None = None):
        import tensorflow as tf
        import tensorflow_datasets as tfds

        options = tf.data.Options()
        options.deterministic = True
        config = tfds.ReadConfig(shuffle_seed=seed, options=options, try_autocache=False)
        skip = {"image": tfds.decode.SkipDecoding()}
        return self.builder.as_dataset(
            split=self.records, shuffle_files=seed is not None, read_config=config, decoders=skip
        )

    def _decode(self, record):
        import tensorflow as tf

        image = record["image"]
        if image.dtype == tf.string:
            # It reads PNG, too. The accurate transform is serving's: the same file has the same pixels.
            image = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.ensure_shape(image, (None, None, 3)), tf.float32), record["label"]

    def _decoded(self, records):
        return records.map(self._decode)
