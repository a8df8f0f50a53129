import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier
from keras import layers

from covkeras import MomentNetwork, objectives
from covkeras.moments import Context, propagated_radius


def test_gaussian_augmentation_is_cross_entropy_at_the_noisy_copy(rng):
    classifier = small_classifier()
    objective = objectives.GaussianAugmentation(sigma=0.5)
    objective.attach(classifier)
    images, noise = rng.random((4, 8, 8, 1)).astype("float32"), rng.normal(size=(1, 4, 8, 8, 1)).astype("float32")
    labels = np.array([0, 1, 2, 0])
    terms = objective(images, labels, noise, Context(training=True))
    logits = np.asarray(classifier(images + 0.5 * noise[0]), "float64")
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(terms.classification, expected, rtol=1e-5)
    assert terms.robustness is None and objective.copies == 1


def test_covariance_radius_against_a_hand_worked_case():
    """Identity classifier of two pixels: means x, covariance sigma^2 I, radius (x_y - x_other) / sqrt 2."""
    classifier = keras.Sequential(
        [keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2, kernel_initializer="identity")]
    )
    objective = objectives.CovarianceRadius(sigma=0.5, gamma=1.0, r_max=0.0)
    objective.attach(classifier)
    images = np.array([[0.9, 0.1], [0.2, 0.6]], np.float32).reshape(2, 1, 2, 1)
    terms = objective(images, np.array([0, 0]), None, Context())
    np.testing.assert_allclose(terms.radius, [0.8 / 2**0.5, -0.4 / 2**0.5], rtol=1e-5)
    # The second image is misclassified: no hinge.
    np.testing.assert_allclose(terms.robustness, [1 - 0.8 / 2**0.5, 0.0], rtol=1e-5)
    np.testing.assert_allclose(terms.classification, np.log1p(np.exp([-0.8, 0.4])), rtol=1e-5)


def test_noisy_mean_moves_the_mean_alone(rng):
    classifier = small_classifier()
    objective = objectives.CovarianceRadius(sigma=0.5, noisy_mean=True)
    objective.attach(classifier)
    images, noise = rng.random((4, 8, 8, 1)).astype("float32"), rng.normal(size=(1, 4, 8, 8, 1)).astype("float32")
    terms = objective(images, np.zeros(4, int), noise, Context())
    network = MomentNetwork(classifier, 0.5, 0.1)
    np.testing.assert_allclose(terms.radius, propagated_radius(network(images + 0.5 * noise[0]), 0.5, np.zeros(4, int)))
    assert objective.copies == 1 and objectives.CovarianceRadius().copies == 0


def gradients(objective, classifier, images, labels):
    objective.attach(classifier)
    with tf.GradientTape() as tape:
        terms = objective(images, labels, None, Context(training=True))
        loss = tf.reduce_mean(terms.classification) + 4.0 * tf.reduce_mean(terms.robustness)
    return loss, tape.gradient(loss, classifier.trainable_variables)


def test_gradient_through_the_covariance_against_finite_differences(rng):
    classifier = small_classifier()
    images, labels = tf.constant(rng.random((16, 8, 8, 1)), tf.float32), np.arange(16) % 3
    objective = objectives.CovarianceRadius(sigma=0.5)
    _, slopes = gradients(objective, classifier, images, labels)
    for variable, slope in zip(classifier.trainable_variables, slopes, strict=True):
        direction = np.sign(np.asarray(slope)).astype("float32")
        value, h = np.asarray(variable), 2e-3
        variable.assign(value + h * direction)
        up, _ = gradients(objective, classifier, images, labels)
        variable.assign(value - h * direction)
        down, _ = gradients(objective, classifier, images, labels)
        variable.assign(value)
        assert float(up - down) / (2 * h) == pytest.approx(float(np.abs(slope).sum()), rel=0.03)


def test_stopped_covariance_gradient_keeps_the_loss_and_changes_the_gradient(rng):
    classifier = small_classifier()
    images, labels = tf.constant(rng.random((16, 8, 8, 1)), tf.float32), np.arange(16) % 3
    loss, full = gradients(objectives.CovarianceRadius(0.5), classifier, images, labels)
    stopped_objective = objectives.CovarianceRadius(0.5, stop_covariance_gradient=True)
    stopped_loss, stopped = gradients(stopped_objective, classifier, images, labels)
    assert float(loss) == pytest.approx(float(stopped_loss), rel=1e-6)
    assert not np.allclose(full[0], stopped[0])
    # The head's bias reaches the loss by the mean alone.
    np.testing.assert_allclose(full[-1], stopped[-1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("field, value", [("sigma", 0), ("lam", -1), ("gamma", 0), ("r_max", 1), ("switch_epoch", -1)])
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a"):
        objectives.CovarianceRadius(**{field: value})
