"""Classifiers from files of Keras'; what can't be loaded is refused in one sentence, with the remedy."""

import importlib
import os
import re
import shlex
import sys
import zipfile
from pathlib import Path

import keras

from covkeras.runtime.files import is_keras_file

_UNKNOWN = re.compile(r"[Cc]ould not locate (?:class|function) '([^']*)'|Unknown (?:layer|object|function): '?([\w>]+)")

_CONVERT = "Convert it to a TensorFlow SavedModel (onnx2tf makes one of an ONNX file), and name that folder."
_WEIGHTS = "It holds no layers or no weights: build the model, load them, and save it as .keras."
_REMEDIES = {
    (".pt", ".pth", ".safetensors", ".onnx", ".torchscript"): _CONVERT,
    (".tflite",): "Name the Keras file or SavedModel that it was made of.",
    (".ckpt", ".index", ".npz", ".npy", ".json", ".yaml", ".yml", ".data-00000-of-00001"): _WEIGHTS,
    (".pkl", ".pickle", ".joblib"): "Save it from its program: classifier.save('mine.keras').",
}


def load_keras(path: str | os.PathLike, what: str = "classifier") -> keras.Model:
    """Loads a .keras or an .h5 file, without what it was compiled with.

    Args:
        path: the file. what: what it is called in errors.

    Raises:
        FileNotFoundError: there is none. ValueError: it holds weights alone, is damaged, or has layers of its own that
            nobody registered.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise ValueError(f"{what} {path} is a folder: name the file, {in_a_run(path) or 'such as classifier.keras'}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what} {path} does not exist. Name a .keras file.")
    if path.endswith(".weights.h5"):
        raise ValueError(f"{what} {path} holds weights alone: build the model, load_weights, and save it as .keras.")
    if path.endswith(".keras") and not zipfile.is_zipfile(path):
        raise ValueError(f"{what} {path} is no .keras file, or a damaged one: copy or save it again.")
    try:
        return _loaded(path)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{what} {path} can't be loaded: {_reason(str(error))}") from None


def _loaded(path: str) -> keras.Model:
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError) as error:
        # A class of ours is known to Keras when its module is imported.
        own = re.search(r"'module': '(covkeras\.[\w.]+)'", str(error))
        if not own or own[1] in sys.modules:
            raise
        try:
            importlib.import_module(own[1])
        except ImportError:  # of another version of covkeras
            raise error from None
        return _loaded(path)


def in_a_run(folder: str) -> str:
    """A run's classifier, where the folder is a run's that is done; else nothing."""
    inside = os.path.join(folder, "classifier.keras")
    return inside if os.path.isfile(inside) else ""


def remedy_for(path: str) -> str:
    """What to name in the place of a path that is no classifier's."""
    if inside := in_a_run(path):
        return f"Name the run's own, {inside}."
    if os.path.basename(path) == "saved_model.pb":
        return f"Name the folder that it lies in, {os.path.dirname(path) or '.'}."
    if os.path.isdir(path):
        if _parts_of_keras(os.listdir(path)):
            return f"It is an unpacked .keras file: pack it again, (cd {shlex.quote(path)} && zip -r ../mine.keras .)."
        below = (file for depth in ("*", "*/*", "*/*/*") for file in sorted(Path(path).glob(depth)))
        whole = (f for f in below if not f.name.endswith(".weights.h5"))
        found = next((f for f in whole if f.name == "saved_model.pb" or is_keras_file(f)), None)
        return f"Name what is in it, such as {found if is_keras_file(found) else found.parent}." if found else ""
    if ending := _own_ending(path):
        article = "an" if ending == ".h5" else "a"
        return f"It is {article} {ending} file by another name: give it one that ends in {ending}."
    return next((remedy for endings, remedy in _REMEDIES.items() if path.lower().endswith(endings)), "")


def _own_ending(path: str) -> str:
    """The ending of a Keras file whose name has another; else nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            return ".keras" if _parts_of_keras(packed.namelist()) else ""
    with open(path, "rb") as file:
        return ".h5" if file.read(8) == b"\x89HDF\r\n\x1a\n" else ""


def _parts_of_keras(names) -> bool:
    return {"config.json", "metadata.json", "model.weights.h5"} <= set(names)


def _reason(message: str) -> str:
    elsewhere = (
        "Load it there and export it, classifier.export('folder'), which is certified like a file; or call covkeras "
        "from that program."
    )
    if found := _UNKNOWN.search(message):
        return f"it needs {found[1] or found[2]!r}, which only the program that made it defines. {elsewhere}"
    if "safe_mode" in message or "unsafe_deserialization" in message:
        return f"it holds Python code (a Lambda layer), which a file is not trusted with. {elsewhere}"
    return message.split("\n")[0][:300]
