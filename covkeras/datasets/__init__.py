"""Images in [0, 1] with integer labels, by name and split. Batches are a function of (seed, epoch, step) alone.

base           what every split is asked for; memory and stream, the two kinds
prepared       data sets of tensorflow-datasets, read and never downloaded
own            an .npz, or a folder of image files
augmentation   crops and flips, each a function of its seed
decoding       image files to pixels, the same as Pillow's
labels         noisy ones
"""

import os

from covkeras.datasets.memory import ImageData, load_digits
from covkeras.datasets.own import is_own, load_own
from covkeras.datasets.prepared import PREPARED, load_prepared
from covkeras.datasets.stream import ImageStream
from covkeras.runtime.validation import check_count

SPLITS = ("train", "validation", "test")
JOINED = "train+validation"
NAMES = ("digits", *PREPARED)

__all__ = ["NAMES", "SPLITS", "ImageData", "ImageStream", "load"]


def load(
    name: str | os.PathLike, split: str = "train", data_dir: str | os.PathLike | None = None, image_size: int = 0
) -> ImageData | ImageStream:
    """Loads one fixed split of a data set. Nothing is ever downloaded.

    Args:
        name: digits (embedded, 8 x 8), mnist, svhn, cifar10, imagenet, places365, the name of any image classification
            data set of TFDS; or the path of one's own: an .npz of x_train, y_train, x_test, y_test, or a folder of PNG
            and JPEG files, train/CLASS/ and test/CLASS/.
        split: train, validation (the fixed tail of the training images), both together, or test.
        data_dir: the folder of prepared TFDS data sets; by default TFDS's own.
        image_size: height and width to resize to; 0 keeps what is stored.

    Returns:
        ImageData, in memory, or for data sets too large for it ImageStream; both have `batches` and `head`.

    Raises:
        ValueError: an unknown name or split, with those that are known; no image classification data set; image_size.
        FileNotFoundError: the data set isn't prepared; the message holds the command that prepares it.
        OSError: a record file, or the .npz, is damaged.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be that of a data set, or a path, got {name!r}.")
    # A Path is one, whatever data set has that name.
    name = name if isinstance(name, str) else os.path.join(os.curdir, name)
    if split not in (*SPLITS, JOINED):
        raise ValueError(f"split must be one of {', '.join((*SPLITS, JOINED))}, got {split!r}.")
    check_count("image_size", image_size, 0, 4096)
    if name == "digits":
        return load_digits(split, image_size)
    if is_own(name):
        return load_own(name, split, image_size)
    return load_prepared(name, split, None if data_dir is None else os.path.expanduser(data_dir), image_size)
