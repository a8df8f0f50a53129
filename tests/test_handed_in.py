"""What is handed to the public functions by habit: it works, or one sentence says what to hand in."""

import errno
import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import covkeras as ck
from covkeras import certification, diagnostics
from covkeras.certification import records
from covkeras.certification.certificates import Certificates
from covkeras.certification.statements import certified_accuracy_lower
from covkeras.commands import cli
from covkeras.commands import client as client_command
from covkeras.commands import report as report_command


@pytest.fixture
def classifier():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])


@pytest.fixture
def images(rng):
    return (rng.integers(0, 256, (3, 8, 8, 1)) / 255).astype("float32")


def trainer_of(classifier):
    trainer = ck.CertifiedTrainer(classifier, ck.objectives.GaussianAugmentation(0.25))
    trainer.compile()
    return trainer


def test_a_trainer_stands_for_its_classifier(classifier, images):
    trainer = trainer_of(classifier)
    ours, its = (ck.SmoothedClassifier(one, 0.25).certify(images, n=100, alpha=0.05) for one in (trainer, classifier))
    np.testing.assert_array_equal(ours.radius, its.radius)
    means = [ck.MomentNetwork(one, 0.25)(images).mean for one in (trainer, classifier)]
    np.testing.assert_array_equal(*means)
    assert ck.CertifiedTrainer(trainer, ck.objectives.CrossEntropy(0.25)).classifier is classifier


def test_a_model_with_a_part_called_classifier_is_taken_whole(images):
    """Not for a trainer: a backbone and a head under that name is what many write."""

    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone, self.classifier = keras.layers.Flatten(), keras.layers.Dense(3)

        def call(self, x):
            return -self.classifier(self.backbone(x))

    mine = Mine()
    logits = np.asarray(mine(images))
    smoothed = ck.SmoothedClassifier(mine, 0.25)
    np.testing.assert_allclose(smoothed.classifier(images), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda x: tf.data.Dataset.from_tensor_slices(x),
            r"^images must be an array .* got .*Dataset\. .*np\.concat",
        ),
        (
            lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x), int))).batch(2),
            r"\. Of batches \(images, labels\): np\.concatenate\(\[x for x, _ in batches\]\)\.$",
        ),
        (lambda x: iter([(x, np.zeros(len(x), int))]), r"got list_iterator\. Of batches \(images, labels\): np\.conc"),
        (lambda x: Path("a.png"), r"got PosixPath\. Of files: np\.stack\(\[np\.asarray\(PIL\.Image\.open\(path\)\)"),
        (lambda x: ["a.png", "b.png"], r"got list\. Of files: np\.stack"),
        (lambda x: {"image": x}, r"got dict\. Of a dictionary: images\['image'\]\.$"),
        (lambda x: [None, None], r"^images must be an array \(batch, 8, 8, 1\) of numbers in \[0, 1\], got list"),
        (lambda x: (255 * x).astype("uint8"), r"^images must be floating-point numbers in \[0, 1\], got uint8"),
        (lambda x: x > 0.5, r"^images must be floating-point numbers in \[0, 1\], got bool"),
    ],
)
def test_images_that_are_none(given, message, classifier, images):
    with pytest.raises(TypeError, match=message):
        ck.SmoothedClassifier(classifier, 0.25).certify(given(images), n=100, alpha=0.05)


def test_images_of_several_sizes_are_told_theirs(classifier, images):
    for given, shapes in (([images[0], images[0][1:]], r"\(7, 8, 1\), \(8, 8, 1\)"), ([[1.0], [1.0, 2.0]], "lists of")):
        with pytest.raises(ValueError, match=rf"^images must be of one size, got {shapes}.*\. Resize them"):
            ck.SmoothedClassifier(classifier, 0.25).certify(given, n=100, alpha=0.05)


@pytest.mark.parametrize("use", ["moments", "adjoint", "gates"])
@pytest.mark.parametrize("tensor", [np.asarray, tf.constant])
def test_8_bit_images_have_no_moments(use, tensor, classifier, images):
    """Silently they were images 255 times as bright."""
    network, numbers = ck.MomentNetwork(classifier, 0.25), tensor((255 * images).astype("uint8"))
    call = {
        "moments": network,
        "adjoint": lambda x: ck.adjoint_margin(network, x),
        "gates": lambda x: ck.calibrate_gates(network, x),
    }[use]
    with pytest.raises(TypeError, match=r"^images must be floating-point numbers in \[0, 1\], got uint8\. Divide"):
        call(numbers)


@pytest.mark.parametrize("radii", [0.25, [-0.25], [0.0, float("nan")], [[0.0, 0.25]]])
def test_radii_are_a_list_of_numbers(radii):
    known = Certificates.single(1, 0.3, p_lower=0.9, samples=100, seconds=0.0)
    for function in (ck.certified_accuracy, functools.partial(certified_accuracy_lower, alpha=0.001)):
        with pytest.raises(ValueError, match=r"^radii must be a list of numbers >= 0, such as \[0\.0, 0\.25, 0\.5\]"):
            function(known, [1], radii)
    assert ck.certified_accuracy(known, [1], (0, 0.3, 0.31)).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: (list(x), y), r"^images must be one array, got a list of 3: np\.stack\(images\)\.$"),
        (lambda x, y: (x, [0, 1, 2]), r"^labels must be one array, got a list of 3: np\.array\(labels\)\.$"),
        (lambda x, y: ((x, y),), r"^images must be one array, got a tuple of 2: fit\(images, labels\)\.$"),
    ],
)
def test_lists_of_arrays_are_no_data(given, message, classifier, images):
    trainer = trainer_of(classifier)
    for use in (trainer.fit, trainer.evaluate, trainer.train_on_batch):
        with pytest.raises(TypeError, match=message):
            use(*given(images, np.arange(3)))
    trainer.fit([images], [np.arange(3)], verbose=0)


def test_class_names_are_no_text(classifier, tmp_path):
    with pytest.raises(ValueError, match=r"^class_names must be a list, one name for each class, got the text 'abc'"):
        ck.export(ck.SmoothedClassifier(classifier, 0.25), tmp_path / "1", "abc")


@pytest.mark.parametrize("size", [1, 5, 7])
def test_images_too_small_for_a_model(size):
    with pytest.raises(ValueError, match=rf"^input_shape \({size}, {size}, 1\) leaves nothing of the image after 3"):
        ck.models.lenet((size, size, 1))
    assert ck.models.lenet((size, size, 1), filters=(4,)) if size > 1 else True


def test_a_refused_number_is_said_once():
    with pytest.raises(ValueError, match=r"got -1.0\. It is the paper's lambda, weight of the hinge\.$"):
        ck.objectives.CovarianceRadius(0.25, lam=-1.0)


def test_the_systems_errors_name_the_file_first_and_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report_command.main(["none.tsv"]) == 2
    assert capsys.readouterr().err == "error: none.tsv: No such file or directory. Name one that is there.\n"
    assert client_command.main(["none.png", "--model", "m"]) == 1
    assert capsys.readouterr().err == "error: none.png: No such file or directory\n"
    assert cli.said(OSError(errno.ENOSPC, "No space left on device", "a")).endswith("the same command goes on.")
    assert cli.said(OSError("words of our own")) == "words of our own"


def test_a_folder_is_no_certificates_file(tmp_path):
    for use in (lambda: records.open_records(tmp_path, {}), lambda: records.merge([], tmp_path)):
        with pytest.raises(
            ValueError, match=r"is a folder: name the certificates' file, such as .*certificates\.tsv\.$"
        ):
            use()


def _network(classifier):
    return ck.MomentNetwork(classifier, 0.25)


@functools.cache
def _digits():
    return ck.datasets.load("digits", "test")


NONE = Certificates.concatenate([])
# What would be taken for something else, or end in an error of another library's: the call, and what it says.
ODD = {
    "shared_noise must be True or False, got 'no'": lambda c, x: ck.SmoothedClassifier(c, 0.25, shared_noise="no"),
    "deterministic must be True or False": lambda c, x: ck.SmoothedClassifier(c, 0.25, deterministic="no"),
    "strategy must be a tf.distribute.Strategy": lambda c, x: ck.SmoothedClassifier(c, 0.25, strategy="gpu:0"),
    "runner_up must be": lambda c, x: ck.SmoothedClassifier(c, 0.25).certify(x, n=100, runner_up="no"),
    "runner_up must be True": lambda c, x: ck.SmoothedClassifier(c, 0.25).certify_to(x, 0.1, runner_up="no"),
    "indices must be 3 whole numbers": lambda c, x: ck.SmoothedClassifier(c, 0.25).certify(x, indices=[0, 1, 2**61]),
    "index must be a whole number from": lambda c, x: ck.SmoothedClassifier(c, 0.25).certify(x, index=2**61),
    "channels_first must be True": lambda c, x: ck.adapt(c, channels_first="no"),
    r"image_size must be \(height, width\), got 64": lambda c, x: ck.adapt(c, image_size=64),
    "each of image_size must be a whole number >= 1, got 0": lambda c, x: ck.adapt(c, image_size=(0, 8)),
    r"input_shape must be \(height, width, channels\), got 8": lambda c, x: ck.adapt(c, input_shape=8),
    "signature is for a SavedModel": lambda c, x: ck.adapt(c, signature="serving_default"),
    "mean must be 1 finite numbers": lambda c, x: ck.adapt(c, mean="grey"),
    "conditioned must be True": lambda c, x: ck.models.unet((8, 8, 1), conditioned="no"),
    r"must be \(height, width, channels\), got 28": lambda c, x: ck.models.lenet(28),
    "the class 'Sequential': make one": lambda c, x: ck.SmoothedClassifier(keras.Sequential, 0.25),
    "network must be a MomentNetwork": lambda c, x: ck.adjoint_margin(c, x),
    "must be a MomentNetwork, such as": lambda c, x: ck.calibrate_gates(c, x),
    "kappa must be True": lambda c, x: ck.adjoint_margin(_network(c), x, kappa="no"),
    "gates must hold one array": lambda c, x: ck.adjoint_margin(_network(c), x, gates=3),
    r"labels must lie in \[0, 3\)": lambda c, x: ck.adjoint_margin(_network(c), x, labels=[0, 1, 3]),
    r"labels must have shape \(3,\)": lambda c, x: ck.propagated_radius(_network(c)(x), 0.25, labels=[0, 1]),
    "divide 8-bit images by 255": lambda c, x: _network(c)(255 * x),
    "whole numbers to 25": lambda c, x: ck.adjoint_margin(_network(c), 255 * x),
    "images must be finite": lambda c, x: ck.calibrate_gates(_network(c), np.nan * x),
    "images must be a few dozen": lambda c, x: ck.calibrate_gates(_network(c), x[:0]),
    "images must be an array": lambda c, x: _network(c)(None),
    "name must be that of a data set": lambda c, x: ck.datasets.load(None),
    "count must be a whole number >= 0": lambda c, x: ck.datasets.load("digits").head(-1),
    "count must be a whole number >= 0, got -2": lambda c, x: ck.datasets.load("digits").limited(-2),
    "batch_size must be a whole number": lambda c, x: ck.datasets.load("digits").batches(0),
    "weights must be 360 numbers": lambda c, x: ck.datasets.load("digits", "test").batches(8, weights=-np.ones(360)),
    "certificates must be Certificates": lambda c, x: ck.average_certified_radius([1, 2], [1, 2]),
    "radii must be a list of numbers, such as": lambda c, x: ck.SmoothedClassifier(c, 0.25).certify_grid(x, 0.25),
    r"p_lower must lie in \[0, 1\], got 1.1": lambda c, x: certification.certified_radius(1.1, 0.25),
    "sigma must be a number in": lambda c, x: certification.certified_radius(0.9, -1),
    "successes must be whole numbers, got 5.5": lambda c, x: certification.clopper_pearson_lower(5.5, 10, 0.001),
    "successes must be whole numbers, got nan": lambda c, x: certification.clopper_pearson_lower(np.nan, 10, 0.001),
    "trials must be whole": lambda c, x: certification.clopper_pearson_lower(5, "10", 0.001),
    "alpha must lie in": lambda c, x: certification.clopper_pearson_lower(5, 10, "a"),
    "radius must be a number": lambda c, x: certification.compare_certified(NONE, NONE, [], float("nan")),
    "second must be Certificates": lambda c, x: certification.compare_certified(NONE, None, [], 0.1),
    "weight must be a number": lambda c, x: certification.informed_bet(0.5, 0.25, -1),
    "sigma must be a number": lambda c, x: ck.models.at_sigma(c, "a"),
    "widths must be the channels": lambda c, x: ck.models.unet((8, 8, 1), widths=8),
    "layer must be a Keras layer": lambda c, x: ck.Moments(keras.layers.Dense),
    r"pair must be \(mean, covariance\)": lambda c, x: ck.Moments(c.layers[0])(x),
    "images must be the 0 that were certified": lambda c, x: diagnostics.fidelity(_network(c), x, NONE, x),
    "got None. It is a classifier trained with noise": lambda c, x: ck.objectives.CatRs(0.25, teacher=None),
    "x must be arrays or a tf.data.Dataset, got ImageData": lambda c, x: trainer_of(c).fit(_digits()),
    "Its arrays: data.floats": lambda c, x: trainer_of(c).evaluate(_digits()),
    "validation_data must be arrays": lambda c, x: trainer_of(c).fit(x, [0, 1, 2], validation_data=_digits()),
    r"labels must have shape \(360,\), got \(2,\)": lambda c, x: _digits().with_labels([1, 2]),
    r"data must be text, got ImageData\('digits', 'test': 360 images": lambda c, x: ck.Recipe(data=_digits()),
    "radii must be a list": lambda c, x: ck.certified_accuracy(NONE, [], ["a"]),
}


@pytest.mark.parametrize("message", ODD)
def test_what_is_none_of_what_was_expected(message, classifier, images):
    with pytest.raises((TypeError, ValueError), match=message):
        ODD[message](classifier, images)


EXPORTED = {
    "smoothed must be a SmoothedClassifier": {"smoothed": 3},
    "defaults must be a Defaults": {"defaults": {"n": 1_000}},
    "class_names must be a list": {"class_names": 3},
    "key must be two whole numbers": {"key": ("a", "b")},
    "metadata must be a dictionary": {"metadata": 3},
    "whole number such as": {"folder": str(2**63)},
    "images must be": {"calibration_images": 3},
    "resize must be True": {"defaults": lambda: ck.exporting.Defaults(resize="no")},
}


@pytest.mark.parametrize("message", EXPORTED)
def test_an_export_of_what_is_none_writes_nothing(message, classifier, tmp_path):
    given = {"smoothed": ck.SmoothedClassifier(classifier, 0.25), "folder": "1", **EXPORTED[message]}
    with pytest.raises((TypeError, ValueError), match=message):
        made = given.pop("defaults", ck.exporting.Defaults)
        defaults = made() if callable(made) else made
        ck.export(given.pop("smoothed"), tmp_path / given.pop("folder"), defaults=defaults, **given)
    assert not list(tmp_path.iterdir())


def test_paths_lists_and_numpys_numbers_are_taken(classifier, images, tmp_path):
    np.savez(tmp_path / "mine.npz", images=np.uint8(255 * images), labels=np.arange(3))
    assert len(ck.datasets.load(tmp_path / "mine.npz", "test")) == 3
    np.testing.assert_array_equal(_network(classifier)(images.tolist()).mean, _network(classifier)(images).mean)
    figures = {"acr": np.float32(0.5), "radii": np.arange(2)}
    folder = ck.export(ck.SmoothedClassifier(classifier, 0.25), tmp_path / "1", metadata=figures)
    kept = json.loads((folder / "assets.extra" / "metadata.json").read_text(encoding="utf-8"))
    assert kept["acr"] == 0.5 and kept["radii"] == [0, 1]


def test_a_data_set_of_ours_stands_for_its_images(classifier):
    few = _digits().head(3)
    smoothed, network = ck.SmoothedClassifier(classifier, 0.25), _network(classifier)
    ours, its = (smoothed.certify(one, n=100, alpha=0.05) for one in (few, few.floats()))
    np.testing.assert_array_equal(ours.radius, its.radius)
    np.testing.assert_array_equal(*(network(one).mean for one in (few, few.floats())))
    np.testing.assert_array_equal(*(ck.adjoint_margin(network, one).radius for one in (few, few.floats())))
