"""Images of one's own: an .npz of arrays under the names of Keras' or MedMNIST's, or a folder of image files, a
sub-folder a class."""

import hashlib
import warnings
from pathlib import Path

import numpy as np

from covkeras.datasets.augmentation import all_sized
from covkeras.datasets.memory import ImageData
from covkeras.datasets.own_arrays import Arrays
from covkeras.datasets.own_folders import Folder, is_image
from covkeras.datasets.own_others import check_readable
from covkeras.datasets.prepared import PREPARED

_HELD_OUT = 5_000


def is_own(name: str) -> bool:
    """Whether a data set's name is a path: of a file, of a folder with image files, or clearly of none there is. A
    data set that has the name is meant by it, whatever lies in the folder that one works in."""
    if not name or name == "digits" or name in PREPARED:
        return False
    if name.endswith(".npz") or name.startswith(("./", "../", "/", "~")):
        return True
    if Path(name).is_file():
        return True
    below = (file for depth in ("*/*", "*/*/*") for file in Path(name).glob(depth))
    return any(map(is_image, below))


def signature(name: str) -> str:
    """Returns what changes when the files under a path do: their names, sizes and times; not what is in them."""
    path = Path(name).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    # A link to nothing is refused where it is an image.
    told = [(str(file), stat.st_size, stat.st_mtime_ns) for file in files if file.exists() and (stat := file.stat())]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def load_own(name: str, split: str, image_size: int) -> ImageData:
    """Loads a split of one's own images; see `covkeras.datasets.load`.

    Validation images are those given as such, or a tenth of the training images drawn once and for all, 5,000 at most.
    Images and labels without a split's name, or classes' folders directly in the folder, are the test split and nothing
    else. Training images come in a fixed random order, so that the first of them are of all classes however they are
    stored; test images in that of the .npz, files in one that tells nothing of their classes (`_files_of`).
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data set {name!r} does not exist: give an .npz file, or a folder of image files.")
    check_readable(path)
    parts = Arrays(path) if path.is_file() else Folder(path)
    known, own = parts.known(), split == "validation" and "validation" in parts.known()
    wanted = split if own or split == "test" else "train"
    if wanted not in known:
        raise ValueError(f"{name} has no {wanted} images, it has {', '.join(known) or parts.holds()}. {parts.remedy}")
    images, labels = parts.read(wanted)
    names = parts.class_names()
    if labels.max(initial=-1) >= len(names):
        raise ValueError(f"class_names of {name} must name every class, got {len(names)} for labels to {labels.max()}.")
    if split == "train+validation" and "validation" in known:
        more, of = parts.read("validation")
        images, labels = [*images, *more], np.concatenate([labels, of])
    if wanted == "train":
        if split != "validation":
            _warn_of_missing(name, names, labels)
        chosen = _drawn(len(labels), split, "validation" in known)
        images, labels = [images[i] for i in chosen], labels[chosen]
    else:
        _warn_of_order(f"{split} images of {name}", labels)
        if split == "test" and "train" in known:
            _warn_of_repeated(name, parts, len(labels))
    images = _of_one_size(name, images, image_size)
    return ImageData(name, split, images, labels, names, _digest(images, labels))


def _warn_of_order(what: str, labels) -> None:
    """Of runs of a class: one each, in whatever order, or far fewer than a random order makes."""
    _, counts = np.unique(labels, return_counts=True)
    changes, by_chance = np.count_nonzero(np.diff(labels)), len(labels) - (counts**2).sum() / max(len(labels), 1)
    if len(labels) > 20 and len(counts) > 1 and (changes < len(counts) or changes < by_chance / 4 > 5):
        warnings.warn(
            f"the {what} are in the order of their classes, so that the first of them are all of one, or few: "
            "shuffle the arrays, or certify every so manieth.",
            stacklevel=4,
        )


def _warn_of_repeated(name: str, parts, count: int) -> None:
    try:
        repeated = parts.repeated()
    except (ValueError, OSError):  # training images that can't be read are refused where they are asked for
        return
    # One in some hundreds, a blank one perhaps, changes nothing. (MNIST and CIFAR-10 have none.)
    if repeated > count / 200:
        warnings.warn(
            f"{repeated} of the {count} test images of {name} are training images, too: what is certified of them says "
            "nothing of others. Take them out of the one or the other.",
            stacklevel=4,
        )


def _warn_of_missing(name: str, class_names, labels) -> None:
    missing = [class_names[i] for i in sorted(set(range(len(class_names))) - set(labels.tolist()))]
    if missing and len(labels):
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"{name} has no training images of {len(missing)} of its {len(class_names)} classes ({listed}), which "
            "can't be learned: look whether a folder, or a number, is misspelt.",
            stacklevel=4,
        )


def _drawn(count: int, split: str, has_validation: bool) -> np.ndarray:
    """Returns which of the training images, or of both kinds, a split has; RandomState's stream is frozen for ever."""
    order = np.random.RandomState(0).permutation(count)
    if has_validation or split == "train+validation":
        return order
    held_out = min(_HELD_OUT, max(1, count // 10), max(0, count - 1))
    return order[:held_out] if split == "validation" else order[held_out:]


def _of_one_size(name: str, images, image_size: int) -> np.ndarray:
    if image_size:
        return all_sized(images, image_size)
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the images of {name!r} vary in size: give --image-size, the height and width to resize to.")
    return np.stack(images) if len(images) else np.zeros((0, 1, 1, 1), np.uint8)


def _digest(images, labels) -> str:
    content = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    content.update(repr(images.shape).encode() + labels.tobytes())
    return content.hexdigest()[:16]
