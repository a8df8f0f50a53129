"""Image files, a folder for a class."""

import hashlib
import re
from pathlib import Path

import numpy as np

# Of a split: its folder's names.
_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
FILES, OTHERS = (".png", ".jpg", ".jpeg"), (".bmp", ".gif", ".tif", ".tiff", ".webp")


class Folder:
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

    def repeated(self) -> int:
        """How many test files are training files, too, byte for byte."""
        train, test = ([file for _, file in _files_of(self.parts[part])] for part in ("train", "test"))
        sizes = {file.stat().st_size for file in test}
        # Few files are as long as another: only those are read.
        known = {hash(file.read_bytes()) for file in train if file.stat().st_size in sizes}
        sizes = {file.stat().st_size for file in train}
        return sum(hash(file.read_bytes()) in known for file in test if file.stat().st_size in sizes)

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


def is_image(file: Path) -> bool:
    """Whether a file is one of an image, by its ending; of those but PNG and JPEG each is refused."""
    return file.suffix.lower() in (*FILES, *OTHERS)


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
    files = [(name, file) for name, file in within if is_image(file) and not file.is_dir()]
    for _, file in files:
        _check_file(file)
    if not files:
        raise ValueError(f"{folder} has no folder of PNG or JPEG files for a class. {Folder.remedy}")
    return sorted(files, key=lambda pair: hashlib.sha256(pair[1].relative_to(folder).as_posix().encode()).digest())


def _check_file(file: Path) -> None:
    if file.suffix.lower() in OTHERS:
        raise ValueError(f"{file} is neither PNG nor JPEG: save it as PNG, or take it out of the folder.")
    if not file.is_file():
        raise ValueError(f"{file} is a link to nothing, or no file: put the image there, or take it out of the folder.")
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{str(file)!a} must have a name in UTF-8: rename it.") from None


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
    except tf.errors.OpError as error:
        raise OSError(f"{files[done]} can't be read: {error.message.splitlines()[0].rpartition('; ')[2]}.") from None


def _reason(message: str) -> str:
    """What `decoded` says, without what TensorFlow puts around it."""
    found = re.search(r"image must [^'\n\]]*", message)
    return found.group().strip() if found else "image is damaged: save it anew, or take it out of the folder"
