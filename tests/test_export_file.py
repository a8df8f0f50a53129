"""`covkeras export FILE`: a classifier that no run of ours made, to a server."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from covkeras import SmoothedClassifier
from covkeras.commands import export as command


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    classifier.save("mine.keras")
    return classifier


def test_a_file_answers_served_as_certified_here(file, tmp_path, rng):
    """The served signature and the library give one certificate, at the sigma, noise and precision that were named."""
    assert command.main(["mine.keras", "--sigma", "0.3", "--out", "out/m/1", "--class-names", *"abcdefghij"]) == 0
    served = tf.saved_model.load("out/m/1").signatures["certify"]
    images = (rng.integers(0, 256, (2, 8, 8, 1)) / 255).astype("float32")
    asked = {"n0": [100, 100], "n": [2_000, 2_000], "seed": [5, 5], "alpha": [0.001, 0.001], "index": [0, 1]}
    kinds = served.structured_input_signature[1]
    given = {name: tf.constant(value, kinds[name].dtype) for name, value in asked.items() if name in kinds}
    answers = served(images=tf.constant(images), **given)
    here = SmoothedClassifier(file, 0.3).certify(images, n0=100, n=2_000, alpha=0.001, seed=5)
    np.testing.assert_allclose(answers["radius"], here.radius, rtol=1e-6)
    metadata = json.loads((tmp_path / "out/m/1/assets.extra/metadata.json").read_text())
    assert metadata["class_names"] == [*"abcdefghij"] and metadata["file"] == "mine.keras"
    assert metadata["sigma"] == 0.3
    # What was exported is certified like any SavedModel: by its logits.
    again = SmoothedClassifier("out/m/1", 0.3).certify(images, n0=100, n=2_000, alpha=0.001, seed=5)
    np.testing.assert_array_equal(again.radius, here.radius)


def test_a_data_set_names_the_classes_and_several_sigmas_are_served(file, tmp_path):
    assert command.main(["mine.keras", "--sigma", "0.25", "--sigmas", "0.5", "--data", "digits", "--out", "out/1"]) == 0
    metadata = json.loads((tmp_path / "out/1/assets.extra/metadata.json").read_text())
    assert metadata["class_names"] == [*"0123456789"] and metadata["sigmas"] == [0.25, 0.5]


def test_a_runs_folder_is_told_its_flag(file, capsys):
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/recipe.json").write_text("{}")
    assert command.main(["runs/x", "--sigma", "0.25", "--out", "out/1"]) == 2
    assert "runs/x is a run's folder: give it by --run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give a classifier's file and its --sigma, or --run"),
        (["mine.keras", "--run", "runs/x", "--sigma", "0.25"], "give a classifier's file and its --sigma, or --run"),
        (["mine.keras"], "give --sigma, the noise level"),
        (["--run", "runs/x", "--precision", "bfloat16"], "--precision is for a classifier's file"),
        (["--run", "runs/x", "--ends-in", "softmax"], "--input-range is for a classifier's file"),
        (["mine.keras", "--sigma", "0.25", "--class-names", "a"], "class_names must be 10, one for each class, got 1"),
        (["mine.keras", "--sigma", "0.25", "--class-names", "a", "--data", "digits"], "give --class-names or --data"),
        (["none.keras", "--sigma", "0.25"], "classifier none.keras does not exist"),
    ],
)
def test_what_says_nothing_or_two_things_is_refused(flags, message, file, capsys):
    assert command.main([*flags, "--out", "out/1"]) == 2
    assert message in capsys.readouterr().err
