from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import DATA_DIR, call_program, grid_images
from test_smoothing import linear_classifier

from covkeras import SmoothedClassifier, datasets, models
from covkeras.diagnostics import attack, attack_certificates


def middling(rng, count):
    """Images with room to 0 and to 1, on the grid."""
    return (grid_images(rng, count, 4) * 255 // 2 + 64).astype("float32") / np.float32(255)


def test_the_attack_on_a_linear_classifier_finds_the_boundary(rng):
    """The true radius is known: nothing changes within it, nearly all do 15 % outside, of which the grid takes 5."""
    model, exact = linear_classifier(rng)
    images = middling(rng, 400)
    radius, label = exact(images)
    there = (radius > 0.12) & (radius < 0.3)
    images, radius, label = images[there], radius[there], label[there]
    assert len(images) > 30
    smoothed = SmoothedClassifier(model, 0.25)
    inside = attack(smoothed, images, label, 0.99 * radius)
    assert (exact(inside)[1] == label).all()
    outside = attack(smoothed, images, label, 1.15 * radius)
    assert (exact(outside)[1] != label).mean() > 0.95
    for found, factor in ((inside, 0.99), (outside, 1.15)):
        distance = np.linalg.norm((found.astype(np.float64) - images).reshape(len(images), -1), axis=1)
        assert (distance <= factor * radius + 1e-6).all()
        smoothed.noise.check(found)


def test_certificates_hold_and_fail_outside(rng):
    model, _ = linear_classifier(rng)
    images = middling(rng, 200)
    smoothed = SmoothedClassifier(model, 0.25)
    certificates = smoothed.certify(images, n=5_000, alpha=0.001)
    inside, outside = attack_certificates(smoothed, images, certificates, (1.0, 2.0))
    far = certificates.radius[certificates.radius > 0] > 0.08
    assert inside.tried == len(far) and far.sum() > 50
    assert not inside.changed.any() and outside.changed[far].mean() > 0.9


def test_the_program_attacks_what_was_certified_and_nothing_else(tmp_path):
    """From the certificates' own settings: the rebuilt precision, the noise, the data."""
    training = Path(__file__).parent.parent / "training"
    for name in ("mine", "other"):
        models.lenet((8, 8, 1)).save(tmp_path / f"{name}.keras")
    common = [tmp_path / "mine.keras", "--sigma", "0.25", "--n", "500", "--max", "6", "--precision", "bfloat16"]
    assert call_program(training / "certify.py", *common, "--out", tmp_path / "mine.tsv").returncode == 0
    flags = ["--certificates", tmp_path / "mine.tsv", "--factors", "1", "2", "--steps", "2", "--n", "100"]
    done = call_program(training / "attack.py", tmp_path / "mine.keras", *flags)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][:3] == ["factor", "images", "changed"] and len(rows) == 3 and rows[1][2] == "0"
    other = call_program(training / "attack.py", tmp_path / "other.keras", *flags)
    assert other.returncode == 2 and "was made with another classifier" in other.stderr


@pytest.mark.slow
@pytest.mark.real_data
def test_certificates_of_mnist_hold_under_attack():
    """A small classifier, trained for seconds; 200 images: none changes inside its certified radius (each would with
    probability alpha = .001 at most: three or more of them below 1e-3, so that the limit of 6 is 1e-10 away)."""
    from covkeras import CertifiedTrainer, objectives

    train, test = (datasets.load("mnist", split, DATA_DIR) for split in ("train", "test"))
    classifier = models.lenet((28, 28, 1), filters=(8, 16, 32), units=64)
    trainer = CertifiedTrainer(classifier, objectives.GaussianAugmentation(sigma=0.25))
    trainer.compile(optimizer="adam")
    trainer.fit(train.batches(128), steps_per_epoch=200, verbose=0, shuffle=False)
    smoothed = SmoothedClassifier(classifier, 0.25, precision="bfloat16", shared_noise=True)
    images = test.floats(slice(0, 220))
    certificates = smoothed.certify(images, n=1_000, alpha=0.001)
    inside, outside = attack_certificates(smoothed, images, certificates, (1.0, 4.0), n=300, steps=6, copies=8)
    assert inside.tried >= 200 and inside.changed.sum() <= 6
    assert outside.changed.mean() > 0.3


@pytest.mark.parametrize("shape", [(16,), (8, 2)])
def test_signals_are_attacked_as_images_are(shape, rng):
    """The distance was taken over three axes."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(3)])
    signals = (rng.integers(0, 256, (6, *shape)) / 255).astype("float32")
    smoothed = SmoothedClassifier(model, 0.25)
    certificates = smoothed.certify(signals, n=500)
    (outcome,) = attack_certificates(smoothed, signals, certificates, (1.0,), n=100)
    radii = certificates.radius[certificates.radius > 0]
    assert outcome.tried == len(radii) > 0 and (outcome.distance <= radii + 1e-6).all()
    (none,) = attack_certificates(smoothed, signals, certificates.take(np.zeros(0, int)), (1.0,), n=100)
    assert none.tried == 0 and none.distance.shape == (0,)
