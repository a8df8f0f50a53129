"""What is no data set of images, and no classifier: said by its kind, with the way to one."""

import json

import numpy as np
import pytest
from PIL import Image

import covkeras as ck
from covkeras import datasets
from covkeras.datasets.own import is_own


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


SORTED = r"put the image files into train/CLASS/ and test/CLASS/"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.csv", rf"labels\.csv, a list: {SORTED}"),
        ("images.ZIP", r"images\.ZIP, an archive: unpack it"),
        ("cifar-10-python.tar.gz", r"an archive: unpack it"),
        ("x.npy", r"a \.npy file: save its arrays, np\.savez\('data\.npz', x_train="),
        ("train.tfrecord", r"a \.tfrecord file: save its arrays"),
        ("data_batch_1", r"a file of another kind: save its arrays"),
        ("one.png", rf"one image: {SORTED}"),
    ],
)
def test_files_of_another_kind(name, message, tmp_path, monkeypatch):
    """By a path and by a name alone: it is not looked for among TFDS' names."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    for given in (name, f"./{name}", str(tmp_path / name)):
        assert is_own(given)
        with pytest.raises(
            ValueError, match=r"^data set must be an \.npz file or a folder of image files, got .*" + message
        ):
            datasets.load(given)


@pytest.mark.parametrize("given", ["{}", "./{}"])
def test_folders_of_another_kind(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "hub" / "train" / "data.arrow")
    write(tmp_path / "hub" / "state.json")
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "flat" / "a.png")
    for name, message in {
        "empty": rf"empty, which is empty: {SORTED}",
        "hub": rf"hub, which has no images \(\.arrow, \.json\): {SORTED}.*; or save its arrays",
        "flat": rf"flat, whose images lie in no folder of their class: {SORTED}",
    }.items():
        with pytest.raises(ValueError, match=message):
            datasets.load(given.format(name))


@pytest.mark.parametrize(
    "named", ["prepared", "prepared/shapes", "prepared/shapes/1.0.0", "prepared/shapes/small/1.0.0"]
)
def test_a_folder_that_tfds_prepared_is_told_its_flags(named, tmp_path):
    """Whichever of its folders is named, the one of all sets, the set's, a configuration's or the version's."""
    version = tmp_path / named if named.endswith("1.0.0") else tmp_path / "prepared/shapes/1.0.0"
    write(version / "dataset_info.json", json.dumps({"name": "shapes"}))
    with pytest.raises(ValueError, match=rf"which TFDS prepared: take --data shapes --data-dir {tmp_path}/prepared\.$"):
        datasets.load(str(tmp_path / named))
    # One that can't be read is told by its folders.
    write(version / "dataset_info.json", "{")
    with pytest.raises(ValueError, match=r"which TFDS prepared: take --data"):
        datasets.load(str(tmp_path / named))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("m.pt", r"Convert it to a TensorFlow SavedModel \(onnx2tf"),
        ("m.ONNX", r"Convert it to a TensorFlow SavedModel \(onnx2tf"),
        ("m.tflite", r"Name the Keras file or SavedModel that it was made of\."),
        ("m.json", r"It holds no layers or no weights: build the model"),
        ("m.ckpt.index", r"It holds no layers or no weights: build the model"),
        ("m.pkl", r"Save it from its program: classifier\.save\('mine\.keras'\)\."),
        ("saved_model.pb", r"Name the folder that it lies in, .*\."),
    ],
)
def test_classifiers_of_another_kind(name, remedy, tmp_path):
    write(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"is neither a \.keras or \.h5 file nor a folder with a saved_model\.pb\. " + remedy
    ):
        ck.adapt(str(tmp_path / name))


def test_a_folder_of_classifiers(tmp_path):
    write(tmp_path / "versions" / "3" / "saved_model.pb")
    write(tmp_path / "versions" / "some.weights.h5")
    write(tmp_path / "files" / "best.keras")
    for folder, found in {"versions": "versions/3", "files": "files/best.keras"}.items():
        with pytest.raises(ValueError, match=rf"Name what is in it, such as {tmp_path}/{found}\.$"):
            ck.adapt(str(tmp_path / folder))
    with pytest.raises(FileNotFoundError, match=r"none does not exist\. Name a \.keras file, or a SavedModel's folder"):
        ck.adapt(str(tmp_path / "none"))
