"""Images of one's own: an .npz of arrays under the names of Keras' or MedMNIST's, or a folder of image files, a
sub-folder a class."""

import hashlib
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np

from covkeras.datasets.memory import ImageData
from covkeras.datasets.prepared import PREPARED

# (images, labels) in the .npz, in small letters or large; the folder's names.
_PATTERNS = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_images", "{}_labels"))
_SHORT = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_ARRAYS = {
    part: tuple(tuple(name.format(short) for name in pair) for short in shorts for pair in _PATTERNS)
    for part, shorts in _SHORT.items()
}
_ALONE = (("images", "labels"), ("x", "y"))
_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
_FILES, _OTHERS = (".png", ".jpg", ".jpeg"), (".bmp", ".gif", ".tif", ".tiff", ".webp")
_HELD_OUT = 5_000


def is_own(name: str) -> bool:
    """Whether a data set's name is a path: of an .npz, of a folder with image files, or clearly of none there is. A
    data set that has the name is meant by it, whatever lies in the folder that one works in."""
    if name == "digits" or name in PREPARED:
        return False
    if name.endswith(".npz") or name.startswith(("./", "../", "/", "~")):
        return True
    below = (file for depth in ("*/*", "*/*/*") for file in Path(name).glob(depth))
    return any(file.suffix.lower() in _FILES for file in below)


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
    parts = _Arrays(path) if path.is_file() else _Folder(path)
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
    images = _of_one_size(name, images, image_size)
    return ImageData(name, split, images, labels, names, _digest(images, labels))


def _warn_of_order(what: str, labels) -> None:
    if len(labels) > 20 and len(np.unique(labels)) > 1 and (np.diff(labels) >= 0).all():
        warnings.warn(
            f"the {what} are in the order of their classes, so that the first of them are all of one: "
            "shuffle the arrays, or certify every so manieth.",
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


class _Arrays:
    """The arrays of an .npz file."""

    remedy = "Name the arrays x_train, y_train, x_test and y_test, as Keras does; images and labels are a test split."

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                self.names = {name.lower(): name for name in np.load(file, allow_pickle=False).files}
        except (zipfile.BadZipFile, ValueError, OSError, AttributeError) as error:
            raise OSError(
                f"data set {path} is no .npz file, or a damaged one ({error}). Write it with np.savez."
            ) from None

    def known(self) -> list[str]:
        return [part for part in _ARRAYS if self._pair(part)]

    def holds(self) -> str:
        return f"the arrays {', '.join(self.names.values())}" if self.names else "no arrays"

    def _pair(self, part: str):
        pairs = (*_ARRAYS[part], *(_ALONE if part == "test" else ()))
        return next(((self.names[x], self.names[y]) for x, y in pairs if {x, y} <= self.names.keys()), None)

    def read(self, part: str):
        images, labels = self._pair(part)
        found = self._array(images), self._array(labels)
        return _checked_images(f"{images} of {self.path}", found[0]), self._labels(labels, found[1], len(found[0]))

    def _array(self, name: str) -> np.ndarray:
        try:
            with open(self.path, "rb") as file:
                return np.load(file, allow_pickle=False)[name]
        except (ValueError, zipfile.BadZipFile, OSError) as error:
            raise OSError(
                f"array {name!r} of {self.path} can't be read ({error}). Write one array of numbers with np.savez."
            ) from None

    def _labels(self, name: str, labels, count: int) -> np.ndarray:
        where = f"{name} of {self.path} must be class numbers, whole and at least 0, one for each of {count} images"
        flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if flat.shape != (count,):
            raise ValueError(f"{where}, got shape {labels.shape}. One-hot rows: labels.argmax(-1).")
        if flat.dtype.kind not in "iuf" or not np.array_equal(flat, np.round(flat)) or (count and flat.min() < 0):
            raise ValueError(f"{where}, got {labels.dtype} such as {flat[:1].tolist()}. Number the classes from 0.")
        return flat.astype(np.int64)

    def class_names(self) -> tuple[str, ...]:
        if "class_names" in self.names:
            return tuple(str(name) for name in self._array(self.names["class_names"]))
        kept = {name: self._array(name) for _, name in (self._pair(part) for part in self.known())}
        most = max(int(self._labels(name, labels, len(labels)).max(initial=0)) for name, labels in kept.items())
        return tuple(map(str, range(most + 1)))


class _Folder:
    """Image files, FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CLASS/*.png."""

    remedy = (
        "Put the files into train/CLASS/ and test/CLASS/; classes' folders without train and test are a test split."
    )

    def __init__(self, path: Path):
        self.path = path
        below = {name.lower(): path / name for name in _folders(path)}
        found = {part: next((below[n] for n in names if n in below), None) for part, names in _FOLDERS.items()}
        self.parts = {part: folder for part, folder in found.items() if folder}
        if not self.parts and _folders(path):
            self.parts = {"test": path}

    def known(self) -> list[str]:
        return list(self.parts)

    def holds(self) -> str:
        return "none"

    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for folder in self.parts.values() for name in _folders(folder)}))

    def read(self, part: str):
        files, numbers = _files_of(self.parts[part]), {name: i for i, name in enumerate(self.class_names())}
        images = list(_decoded([file for _, file in files]))
        if all((image == image[..., :1]).all() for image in images):
            images = [image[..., :1] for image in images]
        return images, np.array([numbers[name] for name, _ in files], np.int64)


def _folders(folder: Path) -> list[str]:
    """The classes, as Keras numbers them: every folder in it, in alphabetical order, but for those that programs leave
    behind."""
    return sorted(inside.name for inside in folder.iterdir() if inside.is_dir() and not _left_behind(inside.name))


def _left_behind(name: str) -> bool:
    """Whether a file or folder is a program's own: .ipynb_checkpoints, .DS_Store, ._photo.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _files_of(folder: Path) -> list[tuple[str, Path]]:
    """(class, file), ordered by a hash of their paths: the first files, or every so manieth, are of all classes, and a
    file more or less moves no other."""
    within = [
        (name, file)
        for name in _folders(folder)
        for file in (folder / name).rglob("*")
        if not any(map(_left_behind, file.relative_to(folder).parts))
    ]
    if other := next((file for _, file in within if file.suffix.lower() in _OTHERS), None):
        raise ValueError(f"{other} is neither PNG nor JPEG: save it as PNG, or take it out of the folder.")
    files = [(name, file) for name, file in within if file.suffix.lower() in _FILES]
    if not files:
        raise ValueError(f"{folder} has no folder of PNG or JPEG files for a class. {_Folder.remedy}")
    return sorted(files, key=lambda pair: hashlib.sha256(pair[1].relative_to(folder).as_posix().encode()).digest())


def _decoded(files: list[Path]):
    """The images, uint8 (height, width, 3), one after the other."""
    import tensorflow as tf
    from tqdm.auto import tqdm

    from covkeras.datasets.decoding import decoded

    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    images = names.map(lambda name: decoded(tf.io.read_file(name), 3), tf.data.AUTOTUNE, deterministic=True)
    done = 0
    try:
        for image in tqdm(
            images.as_numpy_iterator(), "read", len(files), unit="image", disable=None, delay=2, leave=False
        ):
            yield image
            done += 1
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{files[done]}: {_reason(error.message)}.") from None


def _reason(message: str) -> str:
    """What `decoded` says, without what TensorFlow puts around it."""
    found = re.search(r"image must [^'\n\]]*", message)
    return found.group().strip() if found else "image is damaged: save it anew, or take it out of the folder"


def _checked_images(what: str, images) -> np.ndarray:
    """uint8 (count, height, width, channels): 8-bit numbers in whatever dtype."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(
            f"{what} must have shape (count, height, width, channels), got {images.shape}. Flattened images: "
            "images.reshape(-1, height, width, channels)."
        )
    if images.shape[-1] > 4 and images.shape[1] in (1, 3):
        raise ValueError(f"{what} must have the channels last, got shape {images.shape}: np.moveaxis(images, 1, -1).")
    if images.dtype.kind not in "iuf":
        raise ValueError(f"{what} must be numbers, got {images.dtype}.")
    most = images.max(initial=0)
    if images.dtype.kind in "iu" and images.size and most <= 1:
        raise ValueError(f"{what} hold whole numbers and none above 1: store black and white as 0 and 255, times 255.")
    numbers = images if images.dtype == np.uint8 else images.astype(np.float64) * (255.0 if most <= 1 else 1.0)
    whole = np.round(numbers)
    # 255 (j / 255) is off by less than that, in the narrower float too.
    off = 0.1 if images.dtype == np.float16 else 1e-3
    if not (np.abs(numbers - whole) < off).all() or not ((whole >= 0) & (whole <= 255)).all():
        raise ValueError(
            f"{what} must be 8-bit images, uint8, or those over 255, got {images.dtype} from {images.min():g} to "
            f"{most:g}. Undo what was done to them: a standardisation goes into the classifier, as a Normalization; "
            "what was resized is rounded, np.round(255 * images).astype('uint8')."
        )
    return whole.astype(np.uint8)


def _of_one_size(name: str, images, image_size: int) -> np.ndarray:
    import tensorflow as tf

    from covkeras.datasets.augmentation import sized

    if image_size:
        return np.stack([sized(tf.constant(image), image_size).numpy() for image in images])
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"the images of {name!r} vary in size: give --image-size, the height and width to resize to.")
    return np.stack(images) if len(images) else np.zeros((0, 1, 1, 1), np.uint8)


def _digest(images, labels) -> str:
    content = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    content.update(repr(images.shape).encode() + labels.tobytes())
    return content.hexdigest()[:16]
