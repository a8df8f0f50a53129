"""Classifiers from elsewhere: what `adapt` makes of them answers as they do, and is certified and exported as it is."""

import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import call_program, grid_images, small_classifier

import covkeras as ck
from covkeras.certification.records import classifier_digest
from covkeras.exporting import Defaults
from covkeras.runtime.adapting import LogProbabilities

BUDGET = {"n0": 20, "n": 400, "alpha": 0.01, "seed": 3}


class Module(tf.Module):
    """A network with no Keras in it: images (batch, 8, 8, 1) to three logits."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = tf.Variable(kernel)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1), tf.float32, name="image")])
    def __call__(self, image):
        return tf.nn.relu(tf.reshape(image, (-1, 64)) - 0.3) @ self.kernel


@pytest.fixture
def module(rng):
    return Module(rng.normal(size=(64, 3)).astype(np.float32))


def saved(module, folder, **signatures):
    tf.saved_model.save(module, str(folder), signatures=signatures or {"serving_default": module.__call__})
    return folder


def same_certificates(one, other):
    for name in ("label", "radius", "p_lower"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_softmax_of_pixels_to_255_is_certified_as_the_network_behind_it(rng):
    """The same votes as the network of [0, 1] to logits that it is made of, whatever stands around it."""
    plain, images = small_classifier(), grid_images(rng, 3, 8)
    odd = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), plain, keras.layers.Activation("softmax")]
    )
    adapted = ck.adapt(odd, input_range=(0, 255), ends_in="softmax")
    np.testing.assert_allclose(
        keras.ops.softmax(adapted(images)), keras.ops.softmax(plain(images)), rtol=1e-4, atol=1e-6
    )
    expected = ck.SmoothedClassifier(plain, 0.25, 64).certify(images, **BUDGET)
    same_certificates(ck.SmoothedClassifier(adapted, 0.25, 64).certify(images, **BUDGET), expected)
    with pytest.raises(ValueError, match="must end in logits"):
        ck.SmoothedClassifier(odd, 0.25)


def test_every_way_that_pixels_are_prepared(rng):
    """Against the same done by hand: resized, stretched, standardised, channels first."""
    seen = {}

    def network(x):
        seen["images"] = x
        return tf.reduce_mean(x, (2, 3)) @ tf.constant([[1.0, -1.0], [0.0, 2.0], [1.0, 1.0]])

    options = {"input_range": (-1, 1), "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 2.0), "channels_first": True}
    adapted = ck.adapt(network, image_size=(4, 4), input_shape=(3, 8, 8), **options)
    assert adapted.input_shape == (None, 4, 4, 3) and adapted.output_shape == (None, 2)
    images = rng.random((2, 4, 4, 3)).astype(np.float32)
    adapted(images)
    by_hand = 2 * np.asarray(tf.image.resize(images, (8, 8))) - 1
    by_hand = ((by_hand - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 1, 2])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(seen["images"], by_hand, atol=1e-5)


def test_one_sigmoid_is_two_classes(rng):
    images = grid_images(rng, 5, 8)
    half = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")])
    logits = np.asarray(ck.adapt(half, ends_in="sigmoid")(images))
    p = np.asarray(half(images))[:, 0]
    np.testing.assert_allclose(np.exp(logits), np.stack([1 - p, p], 1), rtol=1e-5)


def test_a_probability_of_nothing_has_a_logit():
    logits = np.asarray(LogProbabilities()(np.float32([[0.0, 1.0, 0.0]])))
    assert np.isfinite(logits).all() and logits.argmax() == 1


@pytest.mark.parametrize("kind", ["module", "folder", "loaded", "keras export"])
def test_a_network_without_keras_code_is_certified_exported_and_estimated(kind, module, tmp_path, rng):
    images = grid_images(rng, 2, 8)
    reference = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Rescaling(1.0, offset=-0.3),
            keras.layers.ReLU(),
            keras.layers.Dense(3, use_bias=False),
        ]
    )
    reference.layers[-1].set_weights([module.kernel.numpy()])
    if kind == "keras export":
        reference.export(tmp_path / "saved", verbose=False)
    elif kind != "module":
        saved(module, tmp_path / "saved")
    given = {
        "module": lambda: ck.adapt(module, input_shape=(8, 8, 1)),
        "folder": lambda: tmp_path / "saved",
        "loaded": lambda: tf.saved_model.load(str(tmp_path / "saved")),
        "keras export": lambda: str(tmp_path / "saved"),
    }[kind]()
    smoothed = ck.SmoothedClassifier(given, 0.25, 64)
    expected = ck.SmoothedClassifier(reference, 0.25, 64).certify(images, **BUDGET)
    same_certificates(smoothed.certify(images, **BUDGET), expected)

    # Exported, with its variables; the graph has the votes of this process.
    defaults = Defaults(n0=20, n=100, n_predict=50, alpha=0.1, max_samples=1_000)
    path = ck.export(smoothed, tmp_path / "m" / "1", ["a", "b", "c"], defaults, key=(1, 2))
    served = tf.saved_model.load(str(path)).signatures["logits"](images=tf.constant(images))["logits"]
    np.testing.assert_allclose(served, reference(images), rtol=1e-5, atol=1e-5)

    # What can't be done is refused by name; the adjoint estimate needs no rule.
    with pytest.raises(ValueError, match="'foreign' is no Keras layer but a function from elsewhere"):
        ck.SmoothedClassifier(smoothed.classifier, 0.25, precision="bfloat16")
    with pytest.raises(NotImplementedError, match="Foreign"):
        ck.MomentNetwork(smoothed.classifier, 0.25)
    network = ck.MomentNetwork(smoothed.classifier, 0.25, unknown="adjoint")
    estimate = ck.adjoint_margin(network, images, ck.calibrate_gates(network, images))
    assert np.isfinite(estimate.radius).all() and (np.asarray(estimate.sd) > 0).all()


def test_two_functions_are_told_apart_in_a_files_record(module, rng):
    other = Module(module.kernel.numpy())
    digests = [classifier_digest(ck.adapt(m, input_shape=(8, 8, 1))) for m in (module, other)]
    assert digests[0] == digests[1]
    other.kernel.assign_add(1e-6 * rng.normal(size=(64, 3)))
    assert classifier_digest(ck.adapt(other, input_shape=(8, 8, 1))) != digests[0]
    scaled = classifier_digest(ck.adapt(lambda x: 2.0 * module(x), input_shape=(8, 8, 1)))
    assert scaled != digests[0]


def test_the_program_certifies_a_saved_model_of_other_pixels(tmp_path):
    """A softmax of pixels to 255, without its code: the certificates of the network behind it, image by image."""
    plain = small_classifier(classes=10)
    plain.save(tmp_path / "plain.keras")
    odd = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), plain, keras.layers.Activation("softmax")]
    )
    odd.export(tmp_path / "odd", verbose=False)
    program = Path(__file__).parent.parent / "training" / "certify.py"
    budget = ["--data", "digits", "--sigma", "0.25", "--n", "300", "--alpha", "0.01", "--max", "6"]
    rows = {}
    for name, given in (
        ("plain", [tmp_path / "plain.keras"]),
        ("odd", [tmp_path / "odd", "--input-range", "0", "255", "--ends-in", "softmax"]),
    ):
        done = call_program(program, *given, *budget, "--out", tmp_path / f"{name}.tsv")
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / f"{name}.tsv").read_text().splitlines()
        place = lines[0].split("\t").index("time")
        rows[name] = [[v for i, v in enumerate(line.split("\t")) if i != place] for line in lines]
    assert rows["plain"] == rows["odd"] and len(rows["odd"]) == 7
    refused = call_program(program, tmp_path / "odd", *budget, "--out", tmp_path / "no.tsv")
    assert refused.returncode == 2 and "covkeras.adapt(classifier, ends_in='softmax')" in refused.stderr
    nothing = call_program(program, tmp_path, *budget, "--out", tmp_path / "no.tsv")
    assert nothing.returncode == 2 and "neither a .keras or .h5 file nor a folder" in nothing.stderr


def test_a_keras_file_by_another_name_or_unpacked_is_told_apart(tmp_path):
    classifier = small_classifier()
    classifier.save(tmp_path / "mine.keras")
    (tmp_path / "mine.keras").rename(tmp_path / "mine.zip")
    shutil.copy(tmp_path / "mine.zip", tmp_path / "MINE.KERAS")
    with zipfile.ZipFile(tmp_path / "mine.zip") as packed:
        packed.extractall(tmp_path / "unpacked")
    with h5py.File(tmp_path / "mine.bak", "w") as file:
        file["x"] = 0
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as other:
        other.writestr("a.txt", "a")
    for name, remedy in (
        ("mine.zip", "It is a .keras file by another name: give it one that ends in .keras."),
        ("MINE.KERAS", "It is a .keras file by another name: give it one that ends in .keras."),
        ("mine.bak", "It is an .h5 file by another name: give it one that ends in .h5."),
        ("unpacked", r"It is an unpacked .keras file: pack it again, \(cd .*unpacked && zip -r ../mine.keras .\)."),
        ("photos.zip", "nor a folder with a saved_model.pb.$"),
    ):
        with pytest.raises(ValueError, match=remedy):
            ck.adapt(tmp_path / name)
    # The remedy for the folder works.
    packed = shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "unpacked")
    Path(packed).rename(tmp_path / "again.keras")
    assert ck.adapt(tmp_path / "again.keras").output_shape == classifier.output_shape


def test_channels_first_is_named_with_its_remedy(tmp_path):
    first = keras.Sequential([keras.Input((1, 8, 8)), keras.layers.Flatten(), keras.layers.Dense(10)])
    first.save(tmp_path / "first.keras")
    program = Path(__file__).parent.parent / "training" / "certify.py"
    budget = ["--data", "digits", "--sigma", "0.25", "--n", "300", "--alpha", "0.01", "--max", "2"]
    refused = call_program(program, tmp_path / "first.keras", *budget, "--out", tmp_path / "no.tsv")
    assert refused.returncode == 2 and "channels first, (1, 8, 8), digits has (8, 8, 1)" in refused.stderr
    done = call_program(program, tmp_path / "first.keras", "--channels-first", *budget, "--out", tmp_path / "c.tsv")
    assert done.returncode == 0, done.stderr


def test_what_is_not_known_or_does_not_fit_is_refused_with_the_remedy(module, tmp_path):
    keras_model = small_classifier()

    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1)), tf.TensorSpec((None,))])
        def both(self, image, weight):
            return {"y": tf.zeros((1, 3))}

        @tf.function(input_signature=[tf.TensorSpec((4, 8, 8, 1))])
        def four(self, image):
            return {"y": tf.zeros((4, 3))}

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1), tf.uint8)])
        def whole(self, image):
            return {"y": tf.zeros((1, 3))}

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
        def many(self, image):
            return {"y": tf.zeros((1, 3)), "z": tf.zeros((1, 3))}

    two = Two()
    names = ("both", "four", "whole", "many")
    several = saved(two, tmp_path / "several", **{name: getattr(two, name) for name in names})
    for given, options, message in (
        (module, {}, "input_shape must be given, since Module does not say what it takes"),
        (lambda x: x, {}, "input_shape must be given, since function"),
        (3, {}, "must be a Keras model, a SavedModel or a callable of images, got int"),
        (tmp_path, {}, "is neither a .keras or .h5 file nor a folder with a saved_model.pb"),
        (several, {}, "signature must be one of .*got 'serving_default'"),
        (several, {"signature": "both"}, "must take one image batch, it takes"),
        (several, {"signature": "four"}, "must take any number of images"),
        (several, {"signature": "whole"}, "must take floating-point images, it takes uint8"),
        (several, {"signature": "many"}, "must return one tensor, it returns"),
        (lambda x: x, {"input_shape": (8, 8, 1)}, r"must return \(batch, classes\)"),
        (keras_model, {"input_range": (1, 0)}, "input_range must have low below high"),
        (keras_model, {"input_range": 255}, r"input_range must be \(low, high\)"),
        (keras_model, {"ends_in": "probabilities"}, "ends_in must be one of"),
        (keras_model, {"ends_in": "sigmoid"}, "is for one output, got 3"),
        (keras_model, {"mean": (0.1, 0.2)}, "mean must be 1 finite numbers"),
        (keras_model, {"std": 0.0}, "std must be above 0"),
        (keras_model, {"input_shape": (9, 9, 1)}, r"must be the classifier's own, \(8, 8, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ck.adapt(given, **options)
