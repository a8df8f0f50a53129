"""Training on the adjoint estimate: its gradient, its losses, what each option changes."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import small_classifier
from keras import layers

from covkeras import MomentNetwork, adjoint_margin, calibrate_gates, objectives
from covkeras.moments import Context
from covkeras.moments.adjoint import measured_gates, noisy_pass
from covkeras.moments.rectifiers import Kernels
from covkeras.objectives.adjoint_radius import log_gaussian_cdf
from covkeras.training.trainer import COMPILED


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    "sampled_share, kernels",
    [(0.0, Kernels()), (0.0, COMPILED), (1.0, Kernels())],
    ids=["plain", "compiled", "own gates"],
)
@pytest.mark.parametrize("radius_loss", ["hinge", "probit"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gradient_against_finite_differences(sampled_share, kernels, radius_loss, activation, float64, rng):
    """In float64, the gates held fixed, along a random direction of each weight: to 1e-6."""
    classifier = small_classifier(activation=activation)
    objective = objectives.AdjointRadius(0.5, gamma=30.0, radius_loss=radius_loss, sampled_share=sampled_share)
    objective.attach(classifier)
    for variable in classifier.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))
    images, labels = tf.constant(rng.random((4, 8, 8, 1))), np.array([0, 1, 2, 0])
    gates = (lambda position, gaussian: None) if sampled_share else calibrate_gates(objective.network, images)
    context = Context(training=True, kernels=kernels)

    def loss():
        estimate = adjoint_margin(objective.network, images, gates, False, labels, context)
        # Every image counts, the hinge's misclassified ones too, so that no direction is flat.
        return tf.reduce_sum(objective._loss(estimate)) + tf.reduce_sum(estimate.mean / estimate.sd)

    with tf.GradientTape() as tape:
        value = loss()
    slopes = tape.gradient(value, classifier.trainable_variables)
    assert value.dtype == tf.float64
    for variable, slope in zip(classifier.trainable_variables, slopes, strict=True):
        direction, at, h = rng.normal(size=variable.shape), variable.numpy(), 1e-5
        variable.assign(at + h * direction)
        up = float(loss())
        variable.assign(at - h * direction)
        down = float(loss())
        variable.assign(at)
        assert (up - down) / (2 * h) == pytest.approx(float(tf.reduce_sum(slope * direction)), rel=1e-6, abs=1e-7)


def linear_classifier(rng):
    """Six pixels, three logits: the margin's sd is sigma |w_c - w_c~|, exactly."""
    classifier = keras.Sequential([keras.Input((2, 3, 1)), layers.Flatten(), layers.Dense(3)])
    classifier.set_weights([rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=3).astype("float32")])
    return classifier


@pytest.mark.parametrize("radius_loss", ["hinge", "probit"])
def test_losses_of_a_linear_network_are_those_of_its_closed_form(radius_loss, rng):
    classifier = linear_classifier(rng)
    objective = objectives.AdjointRadius(0.5, gamma=1.5, radius_loss=radius_loss)
    objective.attach(classifier)
    images, labels = rng.random((8, 2, 3, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(1, 8, 2, 3, 1)).astype("float32")
    terms = objective(images, labels, noise, Context(training=True))
    weights, bias = (w.astype("float64") for w in classifier.get_weights())
    logits = images.reshape(8, 6) @ weights + bias
    others = np.where(np.eye(3)[labels] > 0, -np.inf, logits).argmax(1)
    ratio = logits[np.arange(8), labels] - logits[np.arange(8), others]
    ratio = ratio / (0.5 * np.linalg.norm(weights[:, labels] - weights[:, others], axis=0))
    expected = np.where(ratio > 0, np.maximum(1.5 - ratio, 0), 0)
    expected = expected if radius_loss == "hinge" else -scipy.stats.norm.logcdf(ratio - 1.5)
    assert (ratio > 0).any() and (ratio < 0).any()
    np.testing.assert_allclose(terms.radius, 0.5 * ratio, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(terms.robustness, expected, rtol=1e-3, atol=1e-5)
    noisy = (images + 0.5 * noise[0]).reshape(8, 6) @ weights + bias
    cross_entropy = scipy.special.logsumexp(noisy, axis=1) - noisy[np.arange(8), labels]
    np.testing.assert_allclose(terms.classification, cross_entropy, rtol=1e-4, atol=1e-5)


def test_a_constant_network_has_a_finite_gradient(rng):
    """No image moves the logits: sd is 0, the term 0, and its gradient finite."""
    classifier = linear_classifier(rng)
    classifier.set_weights([np.zeros((6, 3), "float32"), np.array([1.0, 0.0, 0.0], "float32")])
    images, noise = rng.random((6, 2, 3, 1)).astype("float32"), rng.normal(size=(1, 6, 2, 3, 1)).astype("float32")
    for radius_loss in ("hinge", "probit"):
        objective = objectives.AdjointRadius(0.5, radius_loss=radius_loss)
        objective.attach(classifier)
        with tf.GradientTape() as tape:
            terms = objective(images, np.zeros(6, int), noise, Context(training=True))
            loss = tf.reduce_sum(terms.robustness)
        assert float(loss) == 0
        assert all(g is None or np.isfinite(g).all() for g in tape.gradient(loss, classifier.trainable_variables))


def test_log_gaussian_cdf():
    """Exact from -3 up; below, the tangent: never under log Phi, concave, its slope bounded."""
    z = np.linspace(-3, 6, 500)
    np.testing.assert_allclose(log_gaussian_cdf(tf.constant(z)), scipy.stats.norm.logcdf(z), rtol=1e-12, atol=1e-15)
    z = tf.constant(np.linspace(-30, -2.99, 1000), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = log_gaussian_cdf(z)
    slope, hazard = tape.gradient(value, z).numpy(), scipy.stats.norm.pdf(-3) / scipy.stats.norm.cdf(-3)
    truth = scipy.stats.norm.logcdf(z.numpy().astype("float64"))
    assert np.isfinite(value).all() and (value.numpy() >= truth * (1 + 1e-5)).all()
    np.testing.assert_allclose(slope[z.numpy() < -3], hazard, rtol=1e-5)
    assert (slope[z.numpy() > -3] < 1.00001 * hazard).all()


def test_gates_of_the_copy_are_the_root_mean_square_of_what_noise_moves(rng):
    classifier = small_classifier()
    network = MomentNetwork(classifier, 0.5)
    images = tf.constant(rng.random((6, 8, 8, 1)), tf.float32)
    noisy = images + 0.5 * tf.constant(rng.normal(size=(6, 8, 8, 1)), tf.float32)
    logits, units = noisy_pass(network, noisy)
    np.testing.assert_allclose(logits, classifier(noisy), rtol=1e-5, atol=1e-6)
    seen = []

    def gate(position, gaussian):
        seen.append((measured_gates(units)(position, gaussian), gaussian.mean))
        return seen[-1][0]

    adjoint_margin(network, images, gate)
    assert len(seen) == len(units) == 2
    for (measured, mean), unit in zip(seen, units, strict=True):
        residual = (unit.numpy() - mean.numpy()).reshape(-1, unit.shape[-1])
        np.testing.assert_allclose(measured, np.sqrt((residual.astype("float64") ** 2).mean(0)), rtol=1e-5)
    # The first convolution is linear in the image: its gate is the noise's own scale there, sigma |w| where nothing is
    # padded, within what 6 x 64 samples show.
    scale = 0.5 * np.sqrt((classifier.layers[0].kernel.numpy() ** 2).sum((0, 1, 2)))
    assert (seen[0][0].numpy() < 1.3 * scale).all() and (seen[0][0].numpy() > 0.6 * scale).all()


def terms_of(classifier, images, labels, noise, sigma=0.5, **options):
    objective = objectives.AdjointRadius(sigma, **options)
    objective.attach(classifier)
    return objective(images, labels, noise[: objective.copies], Context(training=True)), objective


def test_options(rng):
    classifier = small_classifier()
    images, labels = rng.random((8, 8, 8, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(2, 8, 8, 8, 1)).astype("float32")
    base, objective = terms_of(classifier, images, labels, noise)
    every, _ = terms_of(classifier, images, labels, noise, radius_every=4, gates="propagated")
    whole, _ = terms_of(classifier, images, labels, noise, gates="propagated")
    assert objective.copies == 1 and every.radius.shape == (2,) and whole.radius.shape == (8,)
    np.testing.assert_allclose(every.radius, whole.radius[::4], rtol=1e-5)
    np.testing.assert_allclose(every.classification, base.classification, rtol=1e-6)
    assert not np.allclose(base.radius, whole.radius, rtol=1e-3)

    mean, _ = terms_of(classifier, images, labels, noise, classify_on="mean", gates="propagated")
    logits = MomentNetwork(classifier, 0.5)(images).mean
    np.testing.assert_allclose(mean.logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean.radius, whole.radius, rtol=1e-5)

    shared, objective = terms_of(classifier, images, labels, noise, sampled_share=0.36, gates="propagated")
    moved, _ = terms_of(classifier, images + 0.5 * 0.6 * noise[1], labels, noise, 0.4, gates="propagated", gamma=2.5)
    assert objective.copies == 2
    # The radius is a distance; its loss counts in units of sigma, 0.5 or 0.4: gamma 2 and 2.5 ask for the same radius.
    np.testing.assert_allclose(shared.radius, moved.radius, rtol=1e-5)
    np.testing.assert_allclose(shared.robustness, 0.8 * moved.robustness, rtol=1e-4, atol=1e-6)
    assert float(tf.reduce_sum(shared.robustness)) > 0
    whole = 0.8 * noise[:1] + 0.6 * noise[1:]
    np.testing.assert_allclose(shared.logits, classifier(images + 0.5 * whole[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_all_noise_sampled_is_the_noisy_copys_own_margin_and_gradient(precision, rng):
    keras.config.set_dtype_policy(precision)
    classifier = small_classifier(activation="leaky_relu")
    keras.config.set_dtype_policy("float32")
    images, labels = rng.random((8, 8, 8, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(2, 8, 8, 8, 1)).astype("float32")
    terms, objective = terms_of(classifier, images, labels, noise, sampled_share=1.0)
    assert objective.copies == 1
    noisy = tf.constant(images + 0.5 * noise[0])
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        logits = tf.cast(classifier(noisy), tf.float32)
        others = tf.reduce_max(tf.where(tf.one_hot(labels, 3) > 0, -np.inf, logits), 1)
        margin = tf.gather(logits, labels, batch_dims=1) - others
    slope = tf.sqrt(tf.reduce_sum(tape.gradient(margin, noisy) ** 2, (1, 2, 3)))
    close = {"rtol": 1e-4, "atol": 1e-5} if precision == "float32" else {"rtol": 0.03, "atol": 0.02}
    np.testing.assert_allclose(terms.logits, logits, **close)
    np.testing.assert_allclose(terms.radius, margin / slope, **close)

    options = {"sampled_share": 1.0, "consistency": 3.0, "eta": 0.2}
    every, objective = terms_of(classifier, images, labels, noise, **options)
    second, _ = terms_of(classifier, images, labels, noise, radius_every=2, **options)
    assert objective.copies == 2
    pair = np.stack([noise[1], noise[0]])
    expected = divergence_of(pair, classifier, images, labels)
    np.testing.assert_allclose(every.classification, expected, **close)
    np.testing.assert_allclose(second.classification, expected, **close)
    np.testing.assert_allclose(second.radius, every.radius[::2], **close)


@pytest.mark.parametrize("linear", [True, False])
def test_poincare_bounds_the_margins_variance(linear, rng):
    """Var m <= E sd^2 with all noise sampled, equal where the network is linear; 5.5 standard errors of 8,000 samples'
    variance (normal margins: sqrt(2 / n)), a false alarm of 4e-8, with a fixed seed."""
    n, shape = 8_000, (2, 3, 1) if linear else (8, 8, 1)
    classifier = linear_classifier(rng) if linear else small_classifier()
    image, labels = rng.random(shape).astype("float32"), np.zeros(n, int)
    classifier.layers[-1].bias.assign([0.0, 0.0, -100.0])  # class 1 is the runner-up of them all: one function
    objective = objectives.AdjointRadius(0.5, sampled_share=1.0)
    objective.attach(classifier)
    noise = rng.normal(size=(n, *shape)).astype("float32")
    estimate = objective._margin(image + 0.5 * noise, labels, noise, Context(training=True))
    assert (np.asarray(estimate.runner_up) == 1).all()
    ratio = np.var(estimate.mean, ddof=1, dtype="float64") / np.mean(np.square(estimate.sd), dtype="float64")
    slack = 5.5 * np.sqrt(2 / n)
    assert ratio <= 1 + slack and (ratio >= 1 - slack if linear else ratio < 0.95), ratio


def divergence_of(copies, classifier, images, labels):
    """Consistency's loss, weight 3 and eta .2, of the given pair's noise (2, batch, ...)."""
    other = objectives.Consistency(0.5, eta=0.2)
    other.attach(classifier)
    terms = other(images, labels, copies, Context(training=True))
    return terms.classification + 3.0 * terms.robustness


@pytest.mark.parametrize("antithetic", [False, True])
def test_consistency_of_the_pair(antithetic, rng):
    classifier = small_classifier()
    images, labels = rng.random((8, 8, 8, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(2, 8, 8, 8, 1)).astype("float32")
    options = {"consistency": 3.0, "eta": 0.2, "antithetic": antithetic}
    terms, objective = terms_of(classifier, images, labels, noise, **options)
    assert objective.copies == (1 if antithetic else 2)
    pair = np.stack([noise[0], -noise[0] if antithetic else -noise[1]])
    np.testing.assert_allclose(terms.classification, divergence_of(pair, classifier, images, labels), rtol=1e-5)
    base, _ = terms_of(classifier, images, labels, noise)
    np.testing.assert_allclose(terms.radius, base.radius, rtol=1e-4)

    part, _ = terms_of(classifier, images, labels, noise, sampled_share=0.36, **options)
    whole = 0.8 * noise[0] + 0.6 * noise[1]
    pair = np.stack([whole, -whole if antithetic else 0.6 * noise[0] - 0.8 * noise[1]])
    assert antithetic or abs(np.corrcoef(pair.reshape(2, -1))[0, 1]) < 0.2
    np.testing.assert_allclose(part.classification, divergence_of(pair, classifier, images, labels), rtol=1e-5)
    alone, _ = terms_of(classifier, images, labels, noise, sampled_share=0.36)
    np.testing.assert_allclose(part.radius, alone.radius, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gamma": 0}, "gamma must be a"),
        ({"radius_loss": "log"}, "radius_loss must be one of"),
        ({"gates": "none"}, "gates must be one of"),
        ({"classify_on": "both"}, "classify_on must be one of"),
        ({"sampled_share": 1.1}, "sampled_share must be a"),
        ({"radius_every": 0}, "radius_every must be a whole number"),
        ({"consistency": 1.0, "classify_on": "mean"}, "consistency compares two noisy copies"),
        ({"classify_on": "mean", "radius_every": 2}, "radius_every must be 1"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.AdjointRadius(**options)
