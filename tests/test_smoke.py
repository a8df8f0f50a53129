"""The whole library once, in under a minute: `make quick`. What it finds the other tests find better, and later."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import call_program, small_classifier
from keras import layers
from kit import make_export

import covkeras as ck
from covkeras.moments import Gaussian, propagate

pytestmark = pytest.mark.quick

LAYERS = {
    "Conv2D": lambda: layers.Conv2D(3, 3, activation="relu"),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3),
    "Dense": lambda: layers.Dense(3),
    "AveragePooling2D": lambda: layers.AveragePooling2D(2),
    "GlobalAveragePooling2D": lambda: layers.GlobalAveragePooling2D(),
    "ReLU": lambda: layers.ReLU(),
    "LeakyReLU": lambda: layers.LeakyReLU(),
    "Activation": lambda: layers.Activation("relu"),
    "Flatten": lambda: layers.Flatten(),
    "Reshape": lambda: layers.Reshape((-1, 2)),
    "ZeroPadding2D": lambda: layers.ZeroPadding2D(),
    "BatchNormalization": lambda: layers.BatchNormalization(),
    "Normalization": lambda: layers.Normalization(mean=0.5, variance=0.25),
    "Rescaling": lambda: layers.Rescaling(2.0),
    "Dropout": lambda: layers.Dropout(0.5),
    "Identity": lambda: layers.Identity(),
}
MERGES = {"Add": layers.Add, "Concatenate": layers.Concatenate}


def pair():
    return Gaussian(tf.random.normal((2, 6, 6, 2), seed=0), 0.25 * tf.eye(2))


@pytest.mark.parametrize("name", [*LAYERS, *MERGES])
def test_each_rule(name):
    if name in MERGES:
        layer, given = MERGES[name](), [pair(), pair()]
        layer.build([(None, 6, 6, 2)] * 2)
    else:
        layer, given = LAYERS[name](), pair()
        layer.build((None, 6, 6, 2))
    mean, cov = propagate(layer, given)
    assert np.isfinite(mean).all() and np.isfinite(cov).all() and (np.linalg.eigvalsh(cov) > -1e-6).all()


@pytest.mark.parametrize("method", ck.objectives.METHODS)
def test_each_objective_makes_a_step(method, digits, tmp_path):
    # Truncated from the first epoch on, L_q leaves out what an untrained network is unsure of: all.
    options = {"drop_epoch": 1} if method == "truncated_lq" else {}
    if method in ("distillation", "cat_rs"):
        options["teacher"] = str(tmp_path / "teacher.keras")
        small_classifier(classes=10).save(options["teacher"])
        keras.utils.set_random_seed(1)
    classifier, kind = small_classifier(classes=10), ck.objectives.METHODS[method]
    if kind.denoises:
        classifier.trainable = False
        classifier = ck.models.joined(ck.models.dncnn((8, 8, 1), depth=3, width=4), classifier)
    trainer = ck.CertifiedTrainer(classifier, kind(sigma=0.25, **options))
    trainer.compile("sgd")
    before = trainer.classifier.get_weights()
    got = trainer.train_on_batch(digits.floats(slice(16)), digits.labels[:16], return_dict=True)
    assert np.isfinite(got["loss"])
    assert any(not np.array_equal(b, w) for b, w in zip(before, trainer.classifier.get_weights(), strict=True))


def test_one_certificate_of_each_kind(digits):
    smoothed = ck.SmoothedClassifier(ck.models.lenet((8, 8, 1)), sigma=0.25)
    images = digits.floats(slice(2))
    assert len(smoothed.certify(images, 32, 200, 0.01)) == len(smoothed.predict(images, 200).label) == 2
    assert len(smoothed.certify_at(images, 0.05, 0.01, 500)) == len(smoothed.certify_to(images, 0.2, 0.01, 500)) == 2


def test_one_estimate_of_each_kind(digits):
    network = ck.MomentNetwork(ck.models.lenet((8, 8, 1)), sigma=0.25)
    images = digits.floats(slice(2))
    logits = network(images)
    gates = ck.calibrate_gates(network, images)
    radii = [ck.propagated_radius(logits, 0.25), ck.adjoint_margin(network, images, gates).radius]
    assert all(np.isfinite(r).all() for r in radii)
    assert logits.distribution().sample(3).shape == (3, 2, 10)


def test_one_export(tmp_path):
    make_export(tmp_path / "digits" / "1")
    signatures = tf.saved_model.load(str(tmp_path / "digits" / "1")).signatures
    answer = signatures["serving_default"](images=tf.zeros((1, 8, 8, 1)))
    assert answer["samples"].numpy()[0] == 320 and len(signatures) == 7


def test_one_run(tmp_path):
    from test_records import PROGRAM

    keras.utils.set_random_seed(0)
    ck.models.lenet((8, 8, 1)).save(tmp_path / "c.keras")
    flags = [tmp_path / "c.keras", "--sigma", 0.25, "--n", 100, "--max", 2, "--out", tmp_path / "c.tsv"]
    done = call_program(PROGRAM, *flags)
    assert done.returncode == 0 and "ACR" in done.stdout, done.stderr


def test_the_benchmark_of_the_published_way_trains(digits, monkeypatch):
    """A covariance per image: beside the library, and so the first to miss what moves in it."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from per_image_covariance import PerImageCovariance

    trainer = ck.CertifiedTrainer(ck.models.lenet((8, 8, 1)), PerImageCovariance(0.25, 0.1))
    trainer.compile("sgd")
    assert np.isfinite(trainer.train_on_batch(digits.floats(slice(8)), digits.labels[:8], return_dict=True)["loss"])
