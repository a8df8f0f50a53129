import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier

from covkeras import CertifiedTrainer, models, objectives
from covkeras.experiments import fitting, recipes
from covkeras.moments import Context, Gaussian, rectify
from covkeras.moments.rectifiers import Kernels
from covkeras.runtime import devices
from covkeras.training.batches import shared
from covkeras.training.trainer import COMPILED

OBJECTIVES = {
    "gaussian_augmentation": lambda: objectives.GaussianAugmentation(0.25),
    "covariance_radius": lambda: objectives.CovarianceRadius(0.25, lam=1.0, gamma=0.5),
    "noisy_mean": lambda: objectives.CovarianceRadius(0.25, lam=1.0, gamma=0.5, noisy_mean=True),
    "macer": lambda: objectives.Macer(sigma=0.25, lam=4.0, num_copies=4),
    "consistency": lambda: objectives.Consistency(sigma=0.25),
    # Calibrated gates are each replica's own.
    "adjoint_radius": lambda: objectives.AdjointRadius(0.25, gates="propagated", radius_every=2, consistency=2.0),
}
RADII = ("covariance_radius", "noisy_mean", "macer", "adjoint_radius")


def trained(objective, images, labels, strategy=None, batch=16, epochs=2):
    """Weights and last losses after a few steps, from the same start."""
    keras.utils.set_random_seed(1)
    with (strategy or tf.distribute.get_strategy()).scope():
        trainer = CertifiedTrainer(small_classifier(classes=10), objective, seed=3)
        trainer.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    stream = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch, drop_remainder=True)
    history = trainer.fit(stream, epochs=epochs, verbose=0, shuffle=False).history
    return [np.asarray(w) for w in trainer.classifier.get_weights()], history


# The others: test_keras_habits.py, with incomplete batches.
@pytest.mark.parametrize("name", ["noisy_mean", "macer"])
def test_two_replicas_equal_one_device(name, digits):
    images, labels = digits.floats(slice(64)), digits.labels[:64]
    strategy = devices.strategy("2")
    assert strategy.num_replicas_in_sync == 2
    alone, history = trained(OBJECTIVES[name](), images, labels)
    together, mirrored = trained(OBJECTIVES[name](), images, labels, strategy)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert history.keys() == mirrored.keys()
    for key in history:
        np.testing.assert_allclose(history[key], mirrored[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_learns(name, policy, digits):
    keras.config.set_dtype_policy(policy)
    try:
        classifier = models.lenet((8, 8, 1))
    finally:
        keras.config.set_dtype_policy("float32")
    trainer = CertifiedTrainer(classifier, OBJECTIVES[name]())
    trainer.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    stream = digits.batches(64)
    history = trainer.fit(stream, epochs=12, steps_per_epoch=18, verbose=0, shuffle=False).history
    assert history["classification_loss"][-1] < 0.8 * history["classification_loss"][0]
    metrics = trainer.evaluate(digits.floats(), digits.labels, verbose=0, return_dict=True)
    assert metrics["accuracy"] > 0.5
    expected = {"loss", "accuracy", "classification_loss"}
    expected |= set() if "gauss" in name else {"robustness_loss"}
    assert set(metrics) == (expected | {"propagated_radius"} if name in RADII else expected)


def test_loss_scaling_under_mixed_float16(digits):
    """The scaled gradients are unscaled again, and the step number, which the noise depends on, advances."""
    recipe = recipes.find("digits").replace(precision="mixed_float16", learning_rate=0.02, switch_epoch=0, lam=0.5)
    trainer = fitting.build_trainer(recipe, digits)
    history = trainer.fit(digits.batches(64), epochs=3, steps_per_epoch=8, verbose=0, shuffle=False).history
    assert int(trainer.optimizer.iterations) == 24
    assert history["classification_loss"][-1] < history["classification_loss"][0]


def test_reported_losses_are_those_of_the_objective(digits):
    images, labels = digits.floats(slice(24)), digits.labels[:24]
    classifier = small_classifier(classes=10)
    objective = objectives.CovarianceRadius(0.25, lam=3.0)
    trainer = CertifiedTrainer(classifier, objective)
    trainer.compile()
    metrics = trainer.evaluate(images, labels, batch_size=10, verbose=0, return_dict=True)
    terms = trainer.objective(images, labels, None, Context())
    hinge, cross_entropy = float(np.mean(terms.robustness)), float(np.mean(terms.classification))
    assert metrics["robustness_loss"] == pytest.approx(hinge, rel=1e-5)
    assert metrics["loss"] == pytest.approx(cross_entropy + 3.0 * hinge, rel=1e-5)
    assert metrics["propagated_radius"] == pytest.approx(float(np.mean(terms.radius)), rel=1e-4)


def test_lam_is_switched_on_at_its_epoch(digits):
    trainer = CertifiedTrainer(small_classifier(classes=10), objectives.CovarianceRadius(0.25, lam=4.0, switch_epoch=2))
    trainer.compile()
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(self.model.lam))

    stream = digits.batches(64)
    trainer.fit(stream, epochs=4, steps_per_epoch=2, verbose=0, shuffle=False, callbacks=[Record()])
    assert seen == [0.0, 0.0, 4.0, 4.0]


def test_noise_is_a_function_of_seed_and_step(digits):
    batch = shared(tf.constant(digits.floats(slice(4))), tf.zeros(4, tf.int64), None, None)
    first, again, later, other = (batch.noise(1, *place).numpy() for place in ((5, 7), (5, 7), (5, 8), (6, 7)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later) and not np.array_equal(first, other)
    assert first.shape == (1, 4, 8, 8, 1) and batch.noise(0, 5, 7) is None


def test_compiled_loops_equal_plain_ones(rng):
    gaussian = Gaussian(tf.constant(rng.normal(size=(3, 4, 4, 6)), tf.float32), tf.linalg.diag(tf.range(1.0, 7.0)))
    results = []
    for kernels in (Kernels(), COMPILED):
        with tf.GradientTape() as tape:
            tape.watch(gaussian)
            value = tf.reduce_sum(rectify(gaussian, 0.1, kernels).mean ** 2)
        results.append([value, *tape.gradient(value, gaussian)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def batch(images=None, labels=None):
    images = np.full((4, 8, 8, 1), 0.5, np.float32) if images is None else images
    return images, np.array([0, 1, 2, 0]) if labels is None else labels


REFUSED = {
    "Divide by 255": (batch(np.zeros((4, 8, 8, 1), np.uint8)), TypeError),
    "got rank 3": (batch(np.zeros((4, 8, 8), np.float32)), ValueError),
    r"must have shape \(batch, 8, 8, 1\)|must have shape": (batch(np.zeros((4, 8, 8, 3), np.float32)), ValueError),
    "images must be finite and lie in": (batch(np.full((4, 8, 8, 1), 1.5, np.float32)), tf.errors.InvalidArgumentError),
    "finite and lie": (batch(np.full((4, 8, 8, 1), np.nan, np.float32)), tf.errors.InvalidArgumentError),
    r"labels must lie in \[0, 3\)": (batch(labels=np.array([0, 1, 2, 3])), tf.errors.InvalidArgumentError),
    "labels must be integers": (batch(labels=np.array([0.0, 1.0, 2.0, 0.0])), TypeError),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_batches_are_refused_and_change_nothing(message):
    data, kind = REFUSED[message]
    trainer = CertifiedTrainer(small_classifier(), objectives.GaussianAugmentation(0.25))
    trainer.compile()
    before = trainer.classifier.get_weights()
    with pytest.raises(kind, match=message):
        trainer.fit(tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False)
    assert all(np.array_equal(a, b) for a, b in zip(before, trainer.classifier.get_weights(), strict=True))


def test_a_loss_is_refused():
    trainer = CertifiedTrainer(small_classifier(), objectives.GaussianAugmentation(0.25))
    with pytest.raises(ValueError, match="the objective is the loss"):
        trainer.compile(loss="mse")


def test_stock_file_loads_without_covkeras(tmp_path, rng):
    import subprocess
    import sys

    classifier = models.lenet((8, 8, 1))
    trainer = CertifiedTrainer(classifier, objectives.CovarianceRadius(0.25))
    trainer.compile()
    classifier.save(tmp_path / "classifier.keras")
    images = rng.random((5, 8, 8, 1)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, numpy as np, keras\n"
        "model = keras.models.load_model(sys.argv[1] + '/classifier.keras')\n"
        "np.save(sys.argv[1] + '/logits.npy', model(np.load(sys.argv[1] + '/images.npy')))\n"
        "assert not any(name.startswith('covkeras') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), classifier(images), rtol=1e-5, atol=1e-6)
