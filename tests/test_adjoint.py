import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier
from keras import layers

from covkeras import MomentNetwork, adjoint_margin, calibrate_gates, models
from covkeras.moments.gaussian import propagated_radius


def branching():
    images = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", activation="leaky_relu")(images)
    y = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x))
    x = layers.BatchNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([x, images]))
    return keras.Model(images, layers.Dense(4)(x))


@pytest.mark.parametrize("make", [small_classifier, branching])
@pytest.mark.parametrize("calibrated", [False, True])
def test_variance_is_j_s_jt_of_the_explicit_jacobian(make, calibrated, rng):
    """To 1e-4: the margin's row of J S J^T, J the Jacobian of the propagated means, S = sigma^2 I."""
    classifier = make()
    network = MomentNetwork(classifier, sigma=0.4)
    images = tf.constant(rng.random((3, *classifier.input_shape[1:])), tf.float32)
    gates = calibrate_gates(network, images) if calibrated else None
    estimate = adjoint_margin(network, images, gates, kappa=False)
    means = explicit_means(network, gates)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = means(images)
    jacobian = tf.reshape(tape.batch_jacobian(logits, images), (3, logits.shape[-1], -1)).numpy()
    for i in range(3):
        direction = np.zeros(logits.shape[-1])
        direction[int(estimate.label[i])], direction[int(estimate.runner_up[i])] = 1, -1
        row = direction @ jacobian[i].astype("float64")
        assert float(estimate.sd[i]) ** 2 == pytest.approx(0.4**2 * row @ row, rel=1e-4)
        assert float(estimate.mean[i]) == pytest.approx(direction @ logits[i].numpy(), rel=1e-4, abs=1e-6)
        assert float(estimate.radius[i]) == pytest.approx(0.4 * float(estimate.mean[i] / estimate.sd[i]), rel=1e-5)


def explicit_means(network, gates):
    """The propagated means with TensorFlow's own derivatives: no custom gradient, no code of the adjoint."""
    from covkeras.moments import Context, Gaussian, blocks, standard_deviation

    def means(images):
        position = iter(range(100))

        def rectify(gaussian, activation):
            sd = standard_deviation(gaussian.cov, blocks(gaussian)) if gates is None else gates[next(position)]
            z = gaussian.mean / sd
            cdf = 0.5 * (1 + tf.math.erf(z / 2**0.5))
            rectified = gaussian.mean * cdf + sd * tf.exp(-0.5 * z * z) / (2 * np.pi) ** 0.5
            slope = activation.slope
            return Gaussian(slope * gaussian.mean + (1 - slope) * rectified, gaussian.cov)

        return network(images, context=Context(rectify=rectify)).mean

    return means


def test_kappa_is_the_excess_of_each_unit(rng):
    """One hidden layer: Var m = sigma^2 |grad|^2 + sum of w^2 s^2 kappa, and it closes the gap to sampling."""
    images_in = keras.Input((4, 4, 1))
    x = layers.Conv2D(6, 4, activation="relu")(images_in)
    classifier = keras.Model(images_in, layers.Dense(2)(layers.Flatten()(x)))
    network = MomentNetwork(classifier, sigma=0.5, r_max=0.0)
    image = rng.random((1, 4, 4, 1)).astype("float32")
    noisy = image + 0.5 * rng.standard_normal((400_000, 4, 4, 1), dtype=np.float32)
    logits = classifier.predict(noisy, batch_size=50_000, verbose=0).astype("float64")
    estimate, linear = adjoint_margin(network, image), adjoint_margin(network, image, kappa=False)
    top, other = int(estimate.label[0]), int(estimate.runner_up[0])
    sampled = (logits[:, top] - logits[:, other]).std()
    assert float(linear.sd[0]) < float(estimate.sd[0])
    assert abs(float(estimate.sd[0]) - sampled) < abs(float(linear.sd[0]) - sampled)
    assert float(estimate.sd[0]) == pytest.approx(sampled, rel=0.1)


def test_a_linear_network_is_exact(rng):
    """Both estimates equal the closed form sigma (margin) / |w_c - w_c~| on a linear classifier."""
    classifier = keras.Sequential([keras.Input((3, 3, 2)), layers.Flatten(), layers.Dense(3)])
    network = MomentNetwork(classifier, sigma=0.7, r_max=0.0)
    images = rng.random((20, 3, 3, 2)).astype("float32")
    weights, logits = np.asarray(classifier.layers[-1].kernel, "float64"), np.asarray(classifier(images), "float64")
    order = np.argsort(-logits, axis=1)
    rows = np.arange(20)
    gap = logits[rows, order[:, 0]] - logits[rows, order[:, 1]]
    exact = gap / np.linalg.norm(weights[:, order[:, 0]] - weights[:, order[:, 1]], axis=0)
    np.testing.assert_allclose(adjoint_margin(network, images).radius, exact, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(propagated_radius(network(images), 0.7), exact, rtol=1e-4, atol=1e-6)


def test_calibration_measures_the_first_layer(rng):
    """Before the first rectifier the propagated standard deviation is exact: calibration must agree with it."""
    classifier = small_classifier()
    network = MomentNetwork(classifier, sigma=0.5, r_max=0.0)
    images = rng.random((32, 8, 8, 1)).astype("float32")
    gates = calibrate_gates(network, images, copies=64)
    kernel = np.asarray(classifier.layers[0].kernel, "float64")
    exact = 0.5 * np.sqrt((kernel**2).sum((0, 1, 2)))
    # "same" padding: a border pixel sees 6 of 9 weights, so the average lies below the inside's.
    assert (np.asarray(gates[0]) < 1.01 * exact).all() and (np.asarray(gates[0]) > 0.75 * exact).all()
    assert [len(g) for g in gates] == [shape[-1] for shape in network.gate_shapes]


def test_works_compiled_and_on_the_models(rng):
    for classifier in (models.lenet((8, 8, 1)), models.preact_resnet18((8, 8, 3), width=8)):
        network = MomentNetwork(classifier, 0.5)
        images = rng.random((2, *classifier.input_shape[1:])).astype("float32")
        compiled = tf.function(lambda x, network=network: adjoint_margin(network, x))(images)
        np.testing.assert_allclose(compiled.radius, adjoint_margin(network, images).radius, rtol=1e-3, atol=1e-5)


def test_wrong_gates_are_refused(rng):
    network = MomentNetwork(small_classifier(), 0.5)
    with pytest.raises(ValueError, match="each of the network's 2 rectifiers, got 1"):
        adjoint_margin(network, rng.random((1, 8, 8, 1)).astype("float32"), gates=[np.ones(4)])
