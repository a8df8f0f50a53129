"""What people hand over in the place of images of their own, and how to make a data set of it."""

import json
from pathlib import Path

from covkeras.datasets.own_folders import FILES, OTHERS, is_image

_ARRAYS = "save its arrays, np.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...)"
_SORTED = "put the image files into train/CLASS/ and test/CLASS/, and name the folder that holds these"
_INFO = "dataset_info.json"
_KINDS = {
    "a list": ((".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx"), _SORTED),
    "an archive": ((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "unpack it, and name what was in it"),
    "one image": ((*FILES, *OTHERS), _SORTED),
}


def check_readable(path: Path) -> None:
    """Refuses a file that is no .npz, and a folder without image files in folders. Raises ValueError."""
    if path.is_file() and path.suffix.lower() == ".npz":
        return
    if path.is_dir() and any(map(is_image, path.glob("*/**/*"))):
        return
    what, remedy = _of_file(path) if path.is_file() else _of_folder(path)
    raise ValueError(f"data set must be an .npz file or a folder of image files, got {path}, {what}: {remedy}.")


def _of_file(path: Path) -> tuple[str, str]:
    suffix = path.suffix.lower()
    for what, (suffixes, remedy) in _KINDS.items():
        if suffix in suffixes:
            return what, remedy
    return f"a {suffix} file" if suffix else "a file of another kind", _ARRAYS


def _of_folder(path: Path) -> tuple[str, str]:
    if info := next((file for depth in ("", "*/", "*/*/") for file in sorted(path.glob(depth + _INFO))), None):
        name, above = _prepared(info)
        return "which TFDS prepared", f"take --data {name} --data-dir {above}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if any(map(is_image, files)):
        return "whose images lie in no folder of their class", _SORTED
    if not files:
        return "which is empty", _SORTED
    found = sorted({file.suffix or file.name for file in files})
    return f"which has no images ({', '.join(found[:5])})", f"{_SORTED}; or {_ARRAYS}"


def _prepared(info: Path) -> tuple[str, Path]:
    """The data set's name, and the data_dir that it lies in."""
    try:
        name = json.loads(info.read_text(encoding="utf-8"))["name"]
    except (ValueError, KeyError, TypeError):
        name = info.parents[1].name
    above = next((folder.parent for folder in info.resolve().parents if folder.name == name), info.parents[2])
    return name, above
