"""The arrays of an .npz file under the names of Keras', scikit-learn's or MedMNIST's."""

import zipfile
from pathlib import Path

import numpy as np

# (images, labels) in the .npz, in small letters or large.
_PATTERNS = (("x_{}", "y_{}"), ("{}_x", "{}_y"), ("{}_images", "{}_labels"))
_SHORT = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_ARRAYS = {
    part: tuple(tuple(name.format(short) for name in pair) for short in shorts for pair in _PATTERNS)
    for part, shorts in _SHORT.items()
}
_ALONE = (("images", "labels"), ("x", "y"))


class Arrays:
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
        return checked_images(f"{images} of {self.path}", found[0]), self._labels(labels, found[1], len(found[0]))

    def repeated(self) -> int:
        """How many test images are training images, too, byte for byte."""
        train, test = (self._array(self._pair(part)[0]) for part in ("train", "test"))
        known = {hash(image.tobytes()) for image in train}
        return sum(hash(image.tobytes()) in known for image in test)

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


def checked_images(what: str, images) -> np.ndarray:
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
