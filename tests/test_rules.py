"""Every rule against 10^6 samples, where the rule's independence assumption holds; against closed forms elsewhere."""

import keras
import numpy as np
import pytest
from keras import layers

from covkeras import MomentNetwork, SmoothedClassifier
from covkeras.moments import Context, Gaussian, propagate

DRAWS, CHUNK = 1_000_000, 50_000
# A sampled mean or covariance is asymptotically normal. 7 standard errors: 2.6e-12 an entry, below 1e-8 a test.
ERRORS = 7.0


def random_gaussian(rng, shape, channels):
    """Means of one image, and a covariance with correlations between the channels."""
    factor = rng.normal(size=(channels, channels)) / np.sqrt(channels)
    cov = factor @ factor.T + 0.2 * np.eye(channels)
    return Gaussian(rng.normal(size=(1, *shape)).astype("float32"), cov.astype("float32"))


def draw(rng, gaussian, count):
    """Samples with independent pixels (and blocks), each of the pair's covariance."""
    channels = gaussian.cov.shape[-1]
    factor = np.linalg.cholesky(gaussian.cov.astype("float64"))
    shape = (count, *gaussian.mean.shape[1:-1], gaussian.mean.shape[-1] // channels, channels)
    noise = rng.standard_normal(shape, dtype=np.float32) @ factor.T.astype("float32")
    return gaussian.mean + noise.reshape(count, *gaussian.mean.shape[1:])


def sampled_moments(rng, function, gaussians, pick):
    """Mean (units,), covariance (units, units) and their standard errors at one output unit group."""
    total, products, squares, offset = 0.0, 0.0, 0.0, None
    for _ in range(DRAWS // CHUNK):
        values = np.asarray(function([draw(rng, g, CHUNK) for g in gaussians]), np.float64)
        values = values[(slice(None), *pick)]
        # Centred near the mean, so that the sums lose no digits.
        offset = values.mean(0) if offset is None else offset
        values = values - offset
        total = total + values.sum(0)
        products = products + values.T @ values
        squares = squares + (values**2).T @ (values**2)
    shift = total / DRAWS
    cov = products / DRAWS - np.outer(shift, shift)
    fourth = squares / DRAWS
    mean_error = np.sqrt(np.diag(cov) / DRAWS)
    cov_error = np.sqrt(np.maximum(fourth - cov**2, 1e-12) / DRAWS)
    return offset + shift, cov, mean_error, cov_error


def check(rng, layer, gaussians, pick, mean_only=False):
    """Propagates, samples, and compares at the output units `pick`."""
    several = isinstance(gaussians, list)
    gaussians = gaussians if several else [gaussians]
    function = (lambda x: layer(x)) if several else (lambda x: layer(x[0]))
    function([g.mean for g in gaussians])  # builds
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5 + (1.0 if "variance" in weight.name else 0.0))
        if "variance" in weight.name:
            weight.assign(np.abs(weight))
    result = propagate(layer, gaussians if several else gaussians[0])
    mean, cov, mean_error, cov_error = sampled_moments(rng, function, gaussians, pick)
    assert (np.abs(np.asarray(result.mean)[(0, *pick)] - mean) < ERRORS * mean_error + 1e-5).all()
    if not mean_only:
        assert (np.abs(np.asarray(result.cov) - cov) < ERRORS * cov_error + 1e-5).all()


ONE_PIXEL = (0, 0, slice(None))
SPATIAL = {
    "conv valid": (lambda: layers.Conv2D(4, 3), (3, 3), 3, ONE_PIXEL),
    "conv same": (lambda: layers.Conv2D(4, 3, padding="same"), (3, 3), 2, (1, 1, slice(None))),
    "conv strided": (lambda: layers.Conv2D(4, 2, strides=2), (4, 4), 2, (1, 1, slice(None))),
    "conv dilated": (lambda: layers.Conv2D(2, 2, dilation_rate=2), (3, 3), 3, ONE_PIXEL),
    "conv grouped": (lambda: layers.Conv2D(6, 2, groups=2), (2, 2), 4, ONE_PIXEL),
    "conv in as many groups as channels": (lambda: layers.Conv2D(6, 2, groups=3), (2, 2), 3, ONE_PIXEL),
    "conv in groups, strided": (lambda: layers.Conv2D(4, 2, groups=4, strides=2), (4, 4), 4, (1, 1, slice(None))),
    "conv without bias": (lambda: layers.Conv2D(2, (1, 3), use_bias=False), (1, 3), 2, ONE_PIXEL),
    "depthwise": (lambda: layers.DepthwiseConv2D(2, depth_multiplier=2), (2, 2), 3, ONE_PIXEL),
    "depthwise strided": (lambda: layers.DepthwiseConv2D(2, strides=2), (4, 4), 2, (1, 1, slice(None))),
    "average pooling": (lambda: layers.AveragePooling2D(2), (4, 4), 3, (1, 0, slice(None))),
    "global average pooling": (lambda: layers.GlobalAveragePooling2D(), (3, 4), 3, (slice(None),)),
    "global average, axes kept": (lambda: layers.GlobalAveragePooling2D(keepdims=True), (2, 2), 3, ONE_PIXEL),
    "dense on pixels": (lambda: layers.Dense(4), (1, 2), 3, (0, 1, slice(None))),
    "einsum on pixels": (
        lambda: layers.EinsumDense("abcd,de->abce", output_shape=(None, None, 4), bias_axes="e"),
        *((1, 2), 3, (0, 1, slice(None))),
    ),
    "einsum of dots": (lambda: layers.EinsumDense("...x,xy->...y", 4), (1, 2), 3, (0, 1, slice(None))),
    "batch normalization": (lambda: layers.BatchNormalization(), (1, 2), 3, (0, 1, slice(None))),
    "batch normalization bare": (
        lambda: layers.BatchNormalization(center=False, scale=False),
        (1, 1),
        2,
        ONE_PIXEL,
    ),
    "normalization": (
        lambda: layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 2.0, 3.0]),
        (1, 2),
        3,
        ONE_PIXEL,
    ),
    "normalization inverted": (lambda: layers.Normalization(mean=0.4, variance=2.5, invert=True), (1, 2), 3, ONE_PIXEL),
    "rescaling": (lambda: layers.Rescaling(2.5, offset=-1.0), (1, 2), 3, ONE_PIXEL),
    "rescaling by channel": (lambda: layers.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 1.0, 2.0]), (1, 2), 3, ONE_PIXEL),
    "zero padding": (lambda: layers.ZeroPadding2D(1), (1, 2), 3, (1, 1, slice(None))),
    "dropout": (lambda: layers.Dropout(0.5), (1, 2), 3, ONE_PIXEL),
    "identity": (lambda: layers.Identity(), (1, 2), 3, ONE_PIXEL),
}


@pytest.mark.parametrize("case", SPATIAL)
def test_rule_against_sampling(case, rng):
    make, pixels, channels, pick = SPATIAL[case]
    check(rng, make(), random_gaussian(rng, (*pixels, channels), channels), pick)


@pytest.mark.parametrize("case", ["flatten and dense", "dense on a vector", "add", "concatenate", "reshape"])
def test_rule_of_joins_against_sampling(case, rng):
    if case == "flatten and dense":
        flattened = propagate(layers.Flatten(), random_gaussian(rng, (2, 2, 3), 3))
        check(rng, layers.Dense(4), Gaussian(np.asarray(flattened.mean), flattened.cov), (slice(None),))
    elif case == "dense on a vector":
        check(rng, layers.Dense(3), random_gaussian(rng, (4,), 4), (slice(None),))
    elif case == "reshape":
        check(rng, layers.Reshape((1, 4, 3)), random_gaussian(rng, (2, 2, 3), 3), (0, 3, slice(None)))
    else:
        layer = layers.Add() if case == "add" else layers.Concatenate()
        check(rng, layer, [random_gaussian(rng, (1, 2, 3), 3) for _ in range(2)], ONE_PIXEL)


RECTIFIERS = {
    "relu": lambda: layers.ReLU(),
    "leaky relu": lambda: layers.LeakyReLU(negative_slope=0.3),
    "relu with slope": lambda: layers.ReLU(negative_slope=0.1),
    "activation relu": lambda: layers.Activation("relu"),
    "activation leaky relu": lambda: layers.Activation("leaky_relu"),
}


@pytest.mark.parametrize("case", RECTIFIERS)
def test_rectifier_mean_against_sampling(case, rng):
    gaussian = random_gaussian(rng, (1, 2, 5), 5)
    check(rng, RECTIFIERS[case](), gaussian, ONE_PIXEL, mean_only=True)
    assert np.array_equal(propagate(RECTIFIERS[case](), gaussian).cov, gaussian.cov)


@pytest.mark.parametrize("make", [lambda a: layers.Conv2D(3, 2, activation=a), lambda a: layers.Dense(3, activation=a)])
def test_fused_activation_is_the_layer_and_its_activation(make, rng):
    gaussian = random_gaussian(rng, (2, 2, 3), 3)
    fused = make("relu")
    fused(gaussian.mean)
    plain = make(None)
    plain(gaussian.mean)
    plain.set_weights(fused.get_weights())
    expected = propagate(layers.ReLU(), propagate(plain, gaussian))
    np.testing.assert_allclose(propagate(fused, gaussian).mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(propagate(fused, gaussian).cov, expected.cov, rtol=1e-6)


def test_r_max_inflates_convolutions_only(rng):
    gaussian = random_gaussian(rng, (3, 3, 2), 2)
    for layer, factor in ((layers.Conv2D(2, 3), 1.1), (layers.DepthwiseConv2D(3), 1.1), (layers.Dense(2), 1.0)):
        layer(gaussian.mean)
        plain, inflated = propagate(layer, gaussian), propagate(layer, gaussian, Context(r_max=0.1))
        np.testing.assert_allclose(inflated.cov, factor * np.asarray(plain.cov), rtol=1e-6)


def test_linear_network_against_the_closed_form(rng):
    """Any stack of dense layers: covariance W^T S W exactly, to 1e-5 relative."""
    gaussian = random_gaussian(rng, (6,), 6)
    stack = [layers.Dense(5), layers.Rescaling(1.5, 0.2), layers.Dense(4), layers.Dense(3)]
    matrix, result = np.eye(6), gaussian
    for layer in stack:
        layer(result.mean)
        result = propagate(layer, result)
        matrix = matrix @ np.asarray(layer.kernel, np.float64) if hasattr(layer, "kernel") else 1.5 * matrix
    np.testing.assert_allclose(result.cov, matrix.T @ gaussian.cov @ matrix, rtol=1e-5, atol=1e-6)


def test_dropout_in_training_against_sampling(rng):
    gaussian = random_gaussian(rng, (4,), 4)
    rate, n = 0.4, 400_000
    result = propagate(layers.Dropout(rate), gaussian, Context(training=True))
    masks = (rng.random((n, 4)) > rate) / (1 - rate)
    values = masks * (draw(rng, gaussian, n) - gaussian.mean)
    errors = np.sqrt(np.maximum((values**2).T @ (values**2) / n, 1e-12) / n)
    assert (np.abs(values.T @ values / n - np.asarray(result.cov)) < ERRORS * errors).all()


def test_batch_normalization_in_training_uses_and_updates_the_noisy_batch(rng):
    layer = layers.BatchNormalization(momentum=0.5)
    gaussian = Gaussian(
        rng.normal(2.0, 3.0, size=(64, 4, 4, 2)).astype("float32"), np.diag([1.0, 4.0]).astype("float32")
    )
    layer.build(gaussian.mean.shape)
    result = propagate(layer, gaussian, Context(training=True))
    total = gaussian.mean.var((0, 1, 2)) + np.array([1.0, 4.0])
    np.testing.assert_allclose(np.asarray(result.mean).mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.diag(result.cov), np.array([1.0, 4.0]) / (total + layer.epsilon), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.5 + 0.5 * total, rtol=1e-5)


REFUSED = {
    "the channels stay last": lambda: layers.Permute((3, 1, 2)),
    "channels last": lambda: layers.Conv2D(2, 2, data_format="channels_first"),
    "No moment rule for activation 'softmax'": lambda: layers.Conv2D(2, 2, activation="softmax"),
    "No moment rule for activation 'glu'": lambda: layers.Activation("glu"),
    "No moment rule for MelSpectrogram": lambda: layers.MelSpectrogram(),
    r"LayerNormalization .* along the channels \(axis -1\) only": lambda: layers.LayerNormalization(axis=1),
    "No moment rule for Softmax": lambda: layers.Softmax(),
    "must normalise the last axis": lambda: layers.BatchNormalization(axis=1),
    "one variance per channel": lambda: layers.Normalization(
        axis=(1, 3), mean=np.zeros((2, 3)), variance=np.ones((2, 3))
    ),
    "tears the channels apart": lambda: layers.Reshape((3, 4)),
    "last axis alone is summed over": lambda: layers.EinsumDense("abcd,cde->abe", output_shape=(None, 4)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_unsupported_layers_are_refused_by_name(message, rng):
    layer = REFUSED[message]()
    layer.build((1, 2, 2, 3))
    with pytest.raises(NotImplementedError, match=message) as error:
        propagate(layer, random_gaussian(rng, (2, 2, 3), 3))
    assert repr(layer.name) in str(error.value)


def test_registry_refuses_duplicates_and_changed_calls():
    class Doubled(layers.Dense):
        def call(self, inputs):
            return 2.0 * super().call(inputs)

    class Renamed(layers.Dense):
        pass

    with pytest.raises(ValueError, match="has a moment rule already"):
        propagate.register(layers.Dense)(lambda layer, gaussian, context: gaussian)
    with pytest.raises(NotImplementedError, match="changes the call of Dense"):
        propagate.rule_for(Doubled(2))
    assert propagate.rule_for(Renamed(2)) is propagate.rule_for(layers.Dense(2))


def test_a_users_rule_is_found():
    class Negate(layers.Layer):
        def call(self, inputs):
            return -inputs

    with pytest.raises(NotImplementedError, match=r"Register one with @propagate.register\(Negate\)"):
        propagate(Negate(), Gaussian(np.ones((1, 2), "float32"), np.eye(2)))

    @propagate.register(Negate)
    def negate(layer, gaussian, context):
        return Gaussian(-gaussian.mean, gaussian.cov)

    assert propagate(Negate(), Gaussian(np.ones((1, 2), "float32"), np.eye(2))).mean[0, 0] == -1


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("inside", [False, True])
def test_quantized_layers_are_refused_with_remedies_that_work(mode, inside, rng):
    """Their kernels are whole numbers, a hundred times the weights they stand for."""
    images = (rng.integers(0, 256, (4, 6, 8)) / 255).astype("float32")
    start = keras.Input((6, 8))
    layer = keras.layers.MultiHeadAttention(2, 4) if inside else keras.layers.Dense(3)
    model = keras.Model(start, keras.layers.Flatten()(layer(start, start) if inside else layer(start)))
    for part in layer._flatten_layers():
        if hasattr(part, "kernel"):
            part.quantize(mode)
    with pytest.raises(NotImplementedError, match=f"is quantized .{mode}., and moment rules"):
        MomentNetwork(model, sigma=0.1)
    network = MomentNetwork(model, sigma=1e-4, unknown="linearise")
    np.testing.assert_allclose(network(images).mean, model(images), atol=5e-3)
    assert len(SmoothedClassifier(model, 0.1).certify(images, 10, 100, 0.01)) == 4


@pytest.mark.parametrize("groups", [64, 32])
def test_a_convolutions_groups_are_no_pieces_of_a_graph(groups):
    """As many channels as groups (ConvNeXt), and two each (ResNeXt): a handful of operations."""
    import tensorflow as tf

    layer = layers.Conv2D(64, 3, groups=groups)
    layer.build((None, 5, 5, 64))
    specs = tf.TensorSpec((1, 5, 5, 64)), tf.TensorSpec((64, 64))
    graph = tf.function(lambda m, c: propagate(layer, Gaussian(m, c)).cov).get_concrete_function(*specs).graph
    assert len(graph.get_operations()) < 100
