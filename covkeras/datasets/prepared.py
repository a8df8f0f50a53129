"""Data sets prepared by tensorflow-datasets: read, never downloaded."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from covkeras.datasets.memory import ImageData
from covkeras.datasets.own_others import check_readable
from covkeras.datasets.stream import ImageStream
from covkeras.runtime.files import quoted


@dataclasses.dataclass(frozen=True)
class Prepared:
    """How a TFDS data set is read. test: its split with labels that serves as test split. streamed: too large for
    memory. image_size: to resize to, where the images vary. held_out: validation images, the last of the training
    split. train_images, shape, classes: what it holds, for a forecast where it isn't prepared."""

    tfds: str
    test: str = "test"
    streamed: bool = False
    image_size: int = 0
    held_out: int = 5_000
    train_images: int = 0
    shape: tuple[int, int, int] = (0, 0, 3)
    classes: int = 0


# Streamed from the disk. Their test splits have no labels: the field certifies validation images.
_LARGE = {"test": "validation", "streamed": True, "image_size": 224, "shape": (224, 224, 3)}
PREPARED = {
    "mnist": Prepared("mnist", train_images=60_000, shape=(28, 28, 1), classes=10),
    "svhn": Prepared("svhn_cropped", train_images=73_257, shape=(32, 32, 3), classes=10),
    "cifar10": Prepared("cifar10", train_images=50_000, shape=(32, 32, 3), classes=10),
    "imagenet": Prepared("imagenet2012", train_images=1_281_167, classes=1_000, **_LARGE),
    "places365": Prepared("places365_small", train_images=1_803_460, classes=365, **_LARGE),
}


def load_prepared(name: str, split: str, data_dir: str | None, image_size: int):
    """Loads a split by one of PREPARED's names or any TFDS name; see `covkeras.datasets.load`."""
    known = PREPARED.get(name, Prepared(name, image_size=image_size))
    builder = _builder(name, known.tfds, data_dir)
    names = _class_names(name, builder)
    _check_pixels(name, builder.info.features["image"])
    if known.streamed:
        size = image_size or known.image_size
        parts = {"train": "train[:99%]", "validation": "train[99%:]", "train+validation": "train", "test": known.test}
        records = parts[split]
        return ImageStream(
            name,
            split,
            builder=builder,
            records=records,
            count=_count(name, builder, records, data_dir),
            image_size=size,
            class_names=names,
        )
    source = known.test if split == "test" else "train"
    # Keyed by the reader itself, so that what a mocked reader made is not kept for a real one.
    images, labels = _read(name, builder, source, data_dir, image_size or known.image_size, type(builder).as_dataset)
    held_out = min(known.held_out, len(labels) // 10)
    part = {"train": slice(0, len(labels) - held_out), "validation": slice(len(labels) - held_out, None)}.get(split)
    part = slice(None) if part is None else part
    return ImageData(name, split, images[part], labels[part], names)


@functools.lru_cache(maxsize=8)
def _builder(name: str, tfds_name: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(tfds_name, data_dir=data_dir)
    except ValueError as error:
        # A name that TFDS doesn't know, or that is none to it.
        if not isinstance(error, tfds.core.registered.DatasetNotFoundError) and "builder name" not in str(error):
            raise
        if Path(name).is_dir():
            check_readable(Path(name))
        raise ValueError(
            f"data set must be one of digits, {', '.join(PREPARED)}, a TFDS name, an .npz or a folder of image files, "
            f"got {name!r}; TFDS knows none of that name{' in ' + data_dir if data_dir else ''}."
        ) from None


def _class_names(name: str, builder) -> tuple[str, ...]:
    features = dict(builder.info.features or {})
    label, image = features.get("label"), features.get("image")
    if image is None or label is None:
        raise ValueError(
            f"{name} is no image classification data set: its features are {sorted(features)}, an image and a class "
            "label are needed."
        )
    if not hasattr(label, "num_classes"):
        raise ValueError(
            f"the labels of {name} must be a tfds.features.ClassLabel, got {type(label).__name__}: how many classes "
            "there are, and their names, must be known. Prepare the data set with ClassLabel(num_classes=...)."
        )
    return tuple(label.names or map(str, range(label.num_classes)))


def _check_pixels(name: str, image) -> None:
    """Refuses images that are not 8 bit: cut to 256 levels in silence, they would be others."""
    dtype = np.dtype(image.np_dtype)
    if dtype != np.uint8 or len(image.shape) != 3:
        raise ValueError(
            f"the images of {name} must be 8-bit, uint8 (height, width, channels), got {dtype} of shape {image.shape}. "
            "Prepare the data set with images of 0 to 255, tfds.features.Image(shape=...)."
        )


def _dataset(name: str, builder, split: str, data_dir: str | None):
    """The records of a split; a data set that isn't prepared is refused with the command that prepares it."""
    try:
        # Files are decoded here: TFDS's JPEG transform is the fast one.
        is_file = isinstance(builder.info.features["image"], _file_features())
        decoders = {"image": _skip_decoding()} if is_file else None
        return builder.as_dataset(split=split, shuffle_files=False, decoders=decoders)
    except (AssertionError, FileNotFoundError):
        where = f" --data_dir={quoted(data_dir)}" if data_dir else ""
        raise FileNotFoundError(
            f"data set {name!r} isn't prepared in {builder.data_path.parent.parent}. Prepare it once (this downloads): "
            f"tfds build {builder.name}{where}"
        ) from None
    except ValueError as error:
        raise ValueError(f"data set {name!r} has no split {split!r}: {error}") from None


@functools.lru_cache(maxsize=4)
def _read(name, builder, split, data_dir, image_size, reader):
    """All images (uint8) and labels (int64) of a split."""
    import tensorflow as tf

    records = _dataset(name, builder, split, data_dir)
    shape = builder.info.features["image"].shape

    def pixels(record):
        image = record["image"]
        if image.dtype == tf.string:
            image = tf.io.decode_jpeg(image, channels=shape[-1] or 3, dct_method="INTEGER_ACCURATE")
        return {**record, "image": tf.ensure_shape(image, (*shape[:2], shape[-1] or 3))}

    records = records.map(pixels, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    if None in shape[:2] and not image_size:
        raise ValueError(f"the images of {name!r} vary in size: give --image-size, the height and width to resize to.")
    if image_size:
        from covkeras.datasets.augmentation import sized

        def resized(record):
            return {**record, "image": sized(record["image"], image_size)}

        records = records.map(resized, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
        parts = [(r["image"], r["label"]) for r in records.batch(1024).as_numpy_iterator()]
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise OSError(
            f"a record file of {name!r} in {builder.data_path} is damaged ({error.message.splitlines()[0]}). Delete "
            f"the folder and prepare the data set again: tfds build {builder.name}"
        ) from None
    images, labels = (np.concatenate(p) for p in zip(*parts, strict=True))
    return images, labels.astype(np.int64)


def _file_features():
    import tensorflow_datasets as tfds

    return tfds.features.Image


def _skip_decoding():
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()


def _count(name: str, builder, records: str, data_dir: str | None) -> int:
    dataset = _dataset(name, builder, records, data_dir)
    if builder.info.splits:
        return builder.info.splits[records].num_examples
    return sum(1 for _ in dataset)
