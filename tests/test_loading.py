"""Classifiers from files: every whole Keras file loads, any other is refused in one sentence with the remedy."""

import keras
import numpy as np
import pytest
from conftest import small_classifier
from keras import layers

from covkeras.commands.main import main
from covkeras.runtime.adapting import adapt
from covkeras.runtime.loading import load_keras


class Mine(layers.Layer):
    """Known to nobody but this program."""

    def call(self, inputs):
        return 2.0 * inputs


def around(layer) -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 1)), layer, layers.Flatten(), layers.Dense(10)])


# Keras warns that .h5 is of old.
@pytest.mark.parametrize("ending", [".keras", ".h5", ".hdf5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whole_files_load(ending, tmp_path, rng):
    images, model = rng.random((2, 8, 8, 1)).astype("float32"), small_classifier()
    model.save(tmp_path / f"a.b{ending}")
    np.testing.assert_array_equal(load_keras(tmp_path / f"a.b{ending}")(images), model(images))


def make(kind, folder):
    file = folder / f"{kind}.{'weights.h5' if kind == 'weights' else 'h5' if kind.startswith('old') else 'keras'}"
    if kind == "weights":
        small_classifier().save_weights(file)
    elif kind in ("code", "own"):
        around(layers.Lambda(lambda x: 2 * x) if kind == "code" else Mine()).save(file)
    elif kind == "old own":
        around(Mine()).save(file)
    elif kind != "missing":
        small_classifier().save(folder / "whole.keras")
        text = (folder / "whole.keras").read_bytes()
        file.write_bytes({"text": b"hello", "cut": text[: len(text) // 2], "old text": b"hello"}[kind])
    return file


REFUSED = {
    "weights": "holds weights alone: build the model, load_weights, and save it as .keras",
    "code": "holds Python code .a Lambda layer., which a file is not trusted with",
    "own": "needs 'Mine', which only the program that made it defines",
    "old own": "needs 'Mine', which only the program that made it defines",
    "missing": "does not exist. Name a .keras file",
    "text": "is no .keras file, or a damaged one: copy or save it again",
    "cut": "is no .keras file, or a damaged one: copy or save it again",
    "old text": "can't be loaded",
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_others_are_refused_in_one_line(kind, tmp_path, capsys):
    file = make(kind, tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=REFUSED[kind].replace(".keras", r"\.keras")) as caught:
        load_keras(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert main(["certify", str(file), "--sigma", "0.25", "--out", str(tmp_path / "c.tsv")]) != 0
    assert f"error: {caught.value}" in capsys.readouterr().err and not (tmp_path / "c.tsv").exists()


@pytest.mark.parametrize("kind", ["code", "own"])
def test_the_remedy_works(kind, tmp_path):
    """An exported folder needs none of its program's classes."""
    around(layers.Lambda(lambda x: 2 * x) if kind == "code" else Mine()).export(tmp_path / "out", verbose=False)
    small = [
        "--sigma",
        "0.25",
        "--n0",
        "5",
        "--n",
        "20",
        "--alpha",
        "0.1",
        "--max",
        "1",
        "--out",
        str(tmp_path / "c.tsv"),
    ]
    assert main(["certify", str(tmp_path / "out"), *small]) == 0


def test_a_data_sets_name_that_is_none(tmp_path, capsys):
    small_classifier().save(tmp_path / "a.keras")
    for name in ("my data", "no-such", "a:b:c"):
        assert main(["certify", str(tmp_path / "a.keras"), "--data", name, "--sigma", "0.25", "--out", "c.tsv"]) != 0
        assert "data set must be one of digits" in (text := capsys.readouterr().err) and text.count("\n") == 1


def test_a_folder_in_a_files_place_is_told_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"^classifier \S+ is a folder: name the file, such as classifier\.keras\.$"):
        load_keras(tmp_path)
    (tmp_path / "classifier.keras").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a folder: name the file, \S+classifier\.keras\.$"):
        load_keras(tmp_path)
    with pytest.raises(ValueError, match=r"saved_model\.pb\. Name the run's own, \S+classifier\.keras\.$"):
        adapt(str(tmp_path))
