"""The rules beyond the paper's layers, against samples: maxima, norms, products, attention, operations, transposes.

Errors and false alarms as in test_rules.py (7 standard errors: below 1e-8 a test); where a rule is approximate, its
tolerance says what it costs.
"""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from keras import layers, ops
from test_rules import ONE_PIXEL, check, draw, random_gaussian, sampled_moments

from covkeras import MomentNetwork
from covkeras.moments import Context, Gaussian, propagate
from covkeras.moments.merging import larger_of_two

SPATIAL = {
    "conv 1d": (lambda: layers.Conv1D(4, 3), (3,), 3, (0, slice(None))),
    "conv 1d causal": (lambda: layers.Conv1D(3, 2, padding="causal"), (3,), 2, (1, slice(None))),
    "depthwise 1d": (lambda: layers.DepthwiseConv1D(2, depth_multiplier=2), (2,), 3, (0, slice(None))),
    "separable": (lambda: layers.SeparableConv2D(4, 2, depth_multiplier=2), (2, 2), 3, ONE_PIXEL),
    "separable 1d": (lambda: layers.SeparableConv1D(4, 2), (2,), 3, (0, slice(None))),
    "average pooling 1d": (lambda: layers.AveragePooling1D(2), (4,), 3, (1, slice(None))),
    "global average 1d": (lambda: layers.GlobalAveragePooling1D(), (5,), 3, (slice(None),)),
    "adaptive average": (lambda: layers.AdaptiveAveragePooling2D((2, 1)), (4, 3), 3, ONE_PIXEL),
    "adaptive average 1d": (lambda: layers.AdaptiveAveragePooling1D(2), (4,), 3, (1, slice(None))),
    "upsampling": (lambda: layers.UpSampling2D(2), (1, 2), 3, (1, 2, slice(None))),
    "cropping": (lambda: layers.Cropping2D(1), (3, 3), 3, ONE_PIXEL),
    "padding 1d": (lambda: layers.ZeroPadding1D(1), (2,), 3, (1, slice(None))),
    "permute": (lambda: layers.Permute((2, 1, 3)), (1, 3), 2, (2, 0, slice(None))),
    "dense on three axes": (lambda: layers.Dense(4), (1, 2), 3, (0, 1, slice(None))),
    "spatial dropout at rest": (lambda: layers.SpatialDropout2D(0.5), (1, 2), 3, ONE_PIXEL),
}


@pytest.mark.parametrize("case", SPATIAL)
def test_rule_against_sampling(case, rng):
    make, pixels, channels, pick = SPATIAL[case]
    check(rng, make(), random_gaussian(rng, (*pixels, channels), channels), pick)


@pytest.mark.parametrize("case", ["subtract", "average", "multiply", "multiply by one channel"])
def test_joins_against_sampling(case, rng):
    kinds = {"subtract": layers.Subtract, "average": layers.Average}
    second = 1 if case == "multiply by one channel" else 3
    pair = [random_gaussian(rng, (1, 1, 3), 3), random_gaussian(rng, (1, 1, second), second)]
    check(rng, kinds.get(case, layers.Multiply)(), pair, ONE_PIXEL)


@pytest.mark.parametrize("kind", [layers.Maximum, layers.Minimum])
def test_the_larger_of_two_against_sampling(kind, rng):
    """Mean and variance are exact; the correlations between channels are approximate: within .15, measured."""
    pair = [random_gaussian(rng, (1, 1, 3), 3) for _ in range(2)]
    result = propagate(kind(), pair)
    mean, cov, mean_error, cov_error = sampled_moments(rng, kind(), pair, ONE_PIXEL)
    assert (np.abs(np.asarray(result.mean)[0, 0, 0] - mean) < 7 * mean_error + 1e-5).all()
    assert (np.abs(np.diag(result.cov) - np.diag(cov)) < 7 * np.diag(cov_error) + 1e-5).all()
    scale = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    assert np.abs((np.asarray(result.cov) - cov) / scale).max() < 0.16


def test_clarks_moments_of_correlated_gaussians_against_sampling(rng):
    n = 1_000_000
    for rho in (-0.5, 0.0, 0.8):
        a, b = rng.standard_normal((2, n))
        x, y = 0.3 + 1.2 * a, -0.2 + 0.7 * (rho * a + np.sqrt(1 - rho**2) * b)
        largest = np.maximum(x, y)
        mean, variance, share = (float(v) for v in larger_of_two(*map(np.float32, (0.3, 1.44, -0.2, 0.49)), rho))
        assert abs(mean - largest.mean()) < 7 * largest.std() / np.sqrt(n)
        fourth = ((largest - largest.mean()) ** 4).mean()
        assert abs(variance - largest.var()) < 7 * np.sqrt((fourth - largest.var() ** 2) / n)
        assert abs(share - (x > y).mean()) < 7 * 0.5 / np.sqrt(n)


POOLS = {
    "two pixels": (lambda: layers.MaxPooling1D(2), (2,), 0.0, 0.0),
    "four pixels": (lambda: layers.MaxPooling2D(2), (2, 2), 0.02, 0.08),
    "nine pixels, overlapping": (lambda: layers.MaxPooling2D(3, strides=2, padding="same"), (3, 3), 0.02, 0.12),
    "global": (lambda: layers.GlobalMaxPooling2D(), (3, 2), 0.02, 0.12),
    "global 1d": (lambda: layers.GlobalMaxPooling1D(), (5,), 0.02, 0.12),
    # Keras' own ends the process where a part is the whole axis: AdaptiveMaxPooling2D(1).
    "adaptive": (lambda: layers.AdaptiveMaxPooling1D(2), (4,), 0.02, 0.12),
    "adaptive, overlapping": (lambda: layers.AdaptiveMaxPooling2D((3, 2)), (5, 3), 0.02, 0.12),
}


@pytest.mark.parametrize("case", POOLS)
def test_max_pooling_against_sampling(case, rng):
    """Exact for two pixels; Clark's tournament of more is within the stated share of the standard deviation, and of the
    variance."""
    make, pixels, slack, variance_slack = POOLS[case]
    gaussian, layer = random_gaussian(rng, (*pixels, 3), 3), make()
    result = propagate(layer, gaussian)
    rank = len(result.mean.shape)
    pick = (slice(None),) if rank == 2 else (*[0] * (rank - 2), slice(None))
    mean, cov, mean_error, cov_error = sampled_moments(rng, lambda x: layer(x[0]), [gaussian], pick)
    sd = np.sqrt(np.diag(cov))
    assert (np.abs(np.asarray(result.mean)[(0, *pick)] - mean) < 7 * mean_error + slack * sd + 1e-5).all()
    if result.mean.shape[1:-1] in ((), (1,), (1, 1)):  # of one position alone its variance
        slack = variance_slack * np.diag(cov)
        assert (np.abs(np.diag(result.cov) - np.diag(cov)) < 7 * np.diag(cov_error) + slack + 1e-5).all()


def test_max_pooling_of_samples_is_the_layers(rng):
    """At samples, and for the adjoint estimate, the layer acts as itself; without noise the mean is its, too."""
    images = rng.random((2, 5, 6, 3)).astype("float32")
    for layer in (
        layers.MaxPooling2D(2),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.GlobalMaxPooling2D(),
        layers.AdaptiveMaxPooling2D((3, 4)),
        layers.AdaptiveMaxPooling2D((2, 3)),
    ):
        sample = Gaussian(images, np.zeros((3, 3), "float32"))
        after = propagate(layer, sample, Context(plain=True))
        np.testing.assert_array_equal(after.mean, layer(images))
        quiet = propagate(layer, Gaussian(images, 1e-10 * np.eye(3, dtype="float32")))
        np.testing.assert_allclose(quiet.mean, layer(images), atol=1e-4)


NORMS = {
    "layer": lambda: layers.LayerNormalization(),
    "layer bare": lambda: layers.LayerNormalization(center=False, scale=False),
    "rms": lambda: layers.RMSNormalization(),
    "unit": lambda: layers.UnitNormalization(),
    "group": lambda: layers.GroupNormalization(groups=4),
}


def noisy(rng, case):
    """64 channels, the noise half as large as the values: what a network's inner layers see."""
    gaussian = random_gaussian(rng, (4, 4, 64) if case == "group" else (1, 1, 64), 64)
    return Gaussian(gaussian.mean, 0.25 * np.asarray(gaussian.cov))


def norm_errors(rng, case):
    """The rule's error of the mean, and of the variances, relative to the sampled standard deviations."""
    gaussian, layer = noisy(rng, case), NORMS[case]()
    layer.build(gaussian.mean.shape)
    for weight in layer.weights:
        weight.assign(1.0 + 0.3 * rng.normal(size=weight.shape))
    values = np.asarray(layer(draw(rng, gaussian, 20_000)), np.float64)[:, 0, 0]
    result = propagate(layer, gaussian)
    at_mean = np.asarray(layer(gaussian.mean))[0, 0, 0]
    sd = values.std(0)
    mean = np.asarray(result.mean)[0, 0, 0]
    errors = [np.sqrt((((m - values.mean(0)) / sd) ** 2).mean()) for m in (mean, at_mean)]
    return errors, np.diag(result.cov) / sd**2


@pytest.mark.parametrize("case", NORMS)
def test_norms_against_sampling(case, rng):
    """Approximate: the mean within .1 standard deviations and nearer than the statistics taken at the mean; the
    variances within 10 % in the mean over channels (the sampled ones scatter by 1 %)."""
    (with_noise, at_mean), ratios = norm_errors(rng, case)
    assert with_noise < 0.1 and with_noise < at_mean
    assert ratios.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("inside", [lambda: layers.Conv2D(5, 3, activation="relu"), lambda: layers.Dense(5)])
def test_spectral_normalization_is_the_layer_inside_over_its_kernel(inside, rng):
    """Outside training nothing moves; a training step leaves the kernel and the vector that the wrapper leaves."""
    gaussian = random_gaussian(rng, (6, 6, 3), 3)
    ours, keras_own = (layers.SpectralNormalization(inside(), power_iterations=3) for _ in range(2))
    for layer in (ours, keras_own):
        layer.build(gaussian.mean.shape)
    keras_own.set_weights(ours.get_weights())
    expected = propagate(ours.layer, gaussian)
    for got, wanted in zip(propagate(ours, gaussian), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    keras_own(gaussian.mean, training=True)
    trained = propagate(ours, gaussian, Context(training=True))
    for got, wanted in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert not np.allclose(trained.cov, expected.cov)
    propagate(ours, gaussian, Context(training=True))
    kernel = np.asarray(ours.kernel).reshape(-1, 5)
    assert np.linalg.norm(kernel, 2) == pytest.approx(1.0, abs=0.02)
    quiet = Gaussian(gaussian.mean, np.full((3, 3), 1e-12, "float32"))
    np.testing.assert_allclose(propagate(ours, quiet).mean, ours(gaussian.mean), atol=1e-4)


def functional(build, shape=(4, 4, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


OPERATIONS = {
    "x + y": (lambda x: x + layers.Conv2D(3, 1)(x), None),
    "x * 2": (lambda x: x * 2.0, lambda g: 4 * g.cov),
    "2 - x": (lambda x: 2.0 - x, lambda g: g.cov),
    "x / array": (lambda x: x / np.float32([1, 2, -4]), lambda g: g.cov / np.outer([1, 2, -4], [1, 2, -4])),
    "array * x": (
        lambda x: ops.multiply(np.float32([1, -2, 3]), x),
        lambda g: g.cov * np.outer([1, -2, 3], [1, -2, 3]),
    ),
    "reshape": (lambda x: ops.reshape(x, (-1, 16, 3)), lambda g: g.cov),
    "transpose": (lambda x: ops.transpose(x, (0, 2, 1, 3)), lambda g: g.cov),
    "mean": (lambda x: ops.mean(x, axis=(1, 2)), lambda g: g.cov / 16),
    "sum": (lambda x: ops.sum(x, axis=1), lambda g: 4 * g.cov),
    "relu": (lambda x: ops.relu(x), lambda g: g.cov),
    "leaky relu": (lambda x: ops.leaky_relu(x, 0.3), None),
    "gelu": (lambda x: ops.gelu(x, approximate=False), None),
    "tanh": (lambda x: ops.tanh(x), None),
    "maximum with a number": (lambda x: ops.maximum(x, 0.5), None),
    "matmul": (
        lambda x: ops.matmul(x, np.float32([[1, 2], [0, 1], [1, 1]])),
        lambda g: np.float32([[1, 0, 1], [2, 1, 1]]) @ g.cov @ np.float32([[1, 2], [0, 1], [1, 1]]),
    ),
    "concatenate": (lambda x: ops.concatenate([x, x], axis=-1), None),
    "multiply two": (lambda x: x * layers.Conv2D(3, 1, name="other")(x), None),
    "maximum of two": (lambda x: ops.maximum(x, layers.Conv2D(3, 1)(x)), None),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation_in_a_graph(case, rng):
    """Without noise the mean is the graph's own; the covariance is known where it is linear; element-wise operations'
    means against samples."""
    build, cov = OPERATIONS[case]
    model = functional(build)
    gaussian = random_gaussian(rng, (4, 4, 3), 3)
    quiet = propagate(model, Gaussian(gaussian.mean, 1e-10 * np.eye(3, dtype="float32")))
    np.testing.assert_allclose(quiet.mean, model(gaussian.mean), atol=2e-4)
    result = propagate(model, gaussian)
    if cov:
        np.testing.assert_allclose(result.cov, cov(gaussian), rtol=1e-4, atol=1e-5)
    if case == "tanh":
        values = np.asarray(model(draw(rng, gaussian, 200_000)), np.float64)
        # .02: the quadrature's error at s = 2.
        slack = 7 * values.std(0) / np.sqrt(200_000) + 0.02
        assert (np.abs(np.asarray(result.mean)[0] - values.mean(0)) < slack).all()


CLOSED = {
    "relu": ops.relu,
    "relu6": ops.relu6,
    "leaky_relu": lambda x: ops.leaky_relu(x, 0.3),
    "elu": lambda x: ops.elu(x, alpha=0.7),
    "celu": lambda x: ops.celu(x, alpha=0.7),
    "selu": ops.selu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "hard_sigmoid": ops.hard_sigmoid,
    "hard_silu": ops.hard_silu,
    "hard_tanh": ops.hard_tanh,
    "soft_shrink": lambda x: ops.soft_shrink(x, 0.8),
    "hard_shrink": lambda x: ops.hard_shrink(x, 0.8),
    "sparse_plus": ops.sparse_plus,
    "sparse_sigmoid": ops.sparse_sigmoid,
    "threshold": lambda x: ops.threshold(x, 0.3, -1.0),
    "clip": lambda x: ops.clip(x, -0.4, 1.1),
    "maximum": lambda x: ops.maximum(0.5, x),
    "minimum": lambda x: ops.minimum(x, 0.5),
    "abs": ops.abs,
    "square": ops.square,
    "negative": ops.negative,
    "erf": ops.erf,
    "exp": lambda x: ops.exp(0.3 * x),
}


@pytest.mark.parametrize("name", CLOSED)
def test_operations_with_a_closed_form_are_exact(name):
    """Against Legendre's quadrature between the kinks, at five means and three spreads, to float32's rounding."""
    model = functional(CLOSED[name], (5, 1, 1))
    means = np.float32([-2.5, -0.4, 0.0, 0.9, 3.0])
    kinks = [-3, -1, -0.8, -0.4, 0, 0.3, 0.5, 0.8, 1, 1.1, 3, 6]
    nodes, weights = np.polynomial.legendre.leggauss(80)
    for sd in (0.2, 1.0, 2.5):
        found = propagate(model, Gaussian(means.reshape(1, 5, 1, 1), np.float32([[sd * sd]]))).mean
        for mean, value in zip(means, np.asarray(found).ravel(), strict=True):
            ends = np.unique(np.clip([mean - 9 * sd, *kinks, mean + 9 * sd], mean - 9 * sd, mean + 9 * sd))
            halves = np.diff(ends)[:, None] / 2
            u = ends[:-1, None] + halves * (1 + nodes)
            f = np.asarray(CLOSED[name](ops.convert_to_tensor(u)))
            true = np.sum(halves * weights * f * scipy.stats.norm.pdf(u, mean, sd))
            assert value == pytest.approx(true, rel=2e-5, abs=2e-5), (mean, sd)


def test_operations_that_have_no_rule_are_refused_by_name():
    for build, message in (
        (lambda x: ops.sort(x, axis=1), "No moment rule for Sort .* an operation"),
        (lambda x: ops.mean(x, axis=-1, keepdims=True), "over the channels, or the batch"),
        (lambda x: ops.transpose(x, (0, 3, 1, 2)), "tears the channels apart"),
        (lambda x: x / layers.Conv2D(3, 1)(x), "of two tensors"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            propagate(functional(build), Gaussian(np.ones((1, 4, 4, 3), "float32"), np.eye(3, dtype="float32")))


def test_attention_against_sampling(rng):
    """Small noise: then what is neglected, the weights' own noise, is small. The mean over tokens within 5 %."""
    inputs = keras.Input((6, 8))
    layer = layers.MultiHeadAttention(2, 4)
    model = keras.Model(inputs, layer(inputs, inputs))
    gaussian = random_gaussian(rng, (6, 8), 8)
    gaussian = Gaussian(0.1 * gaussian.mean, 1e-4 * np.asarray(gaussian.cov))
    result = propagate(model, gaussian)
    values = np.asarray(model(draw(rng, gaussian, 40_000)), np.float64)
    centred = values - values.mean(0)
    cov = np.einsum("ntc,ntd->cd", centred, centred) / (40_000 * 6)
    assert np.abs(np.asarray(result.mean)[0] - values.mean(0)).max() < 1e-3
    assert np.abs(np.asarray(result.cov) - cov).max() < 0.05 * np.abs(cov).max()


def small(kind):
    x = inputs = keras.Input((8, 8, 3))
    if kind == "sorted":
        x = ops.sort(layers.Conv2D(4, 3)(x), axis=1)
    elif kind == "lambda":
        x = layers.Lambda(lambda t: tf.math.cumsum(t, 1))(layers.Conv2D(4, 3)(x))
    else:
        x = Doubling()(x)
    x = layers.ReLU()(layers.Conv2D(4, 3)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


class Doubling(keras.Model):
    """A subclassed model: Keras knows no graph of it."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, activation="tanh")

    def call(self, x, training=None):
        return ops.abs(self.conv(2.0 * x)) + 1.0


@pytest.mark.parametrize("kind", ["sorted", "lambda", "subclassed"])
def test_a_layer_without_a_rule_is_refused_linearised_or_left_to_the_adjoint_estimate(kind, rng):
    from covkeras.moments.adjoint import adjoint_margin, calibrate_gates

    model = small(kind)
    with pytest.raises(NotImplementedError, match=r"unknown='linearise'.*unknown='adjoint'"):
        MomentNetwork(model, 0.1)
    images = rng.random((3, 8, 8, 3)).astype("float32")
    logits = MomentNetwork(model, 0.1, unknown="linearise")(images)
    assert np.isfinite(logits.mean).all() and (np.linalg.eigvalsh(logits.cov) > -1e-6).all()

    network = MomentNetwork(model, 0.1, unknown="adjoint")
    with pytest.raises(NotImplementedError, match="carries no covariance"):
        network(images)
    assert len(network.gate_shapes) == 1
    margin = adjoint_margin(network, images, calibrate_gates(network, images, copies=8))
    # Without gates' width it is the plain network's own gradient.
    plain = adjoint_margin(network, images, lambda position, gaussian: None, kappa=False)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        out = model(x)
        gap = tf.gather(out, plain.label, batch_dims=1) - tf.gather(out, plain.runner_up, batch_dims=1)
    gradient = tape.gradient(gap, x).numpy()
    np.testing.assert_allclose(plain.sd, 0.1 * np.sqrt((gradient**2).sum((1, 2, 3))), rtol=1e-4)
    assert np.isfinite(margin.radius).all() and (np.asarray(margin.sd) > 0).all()


def test_linearising_a_linear_layer_gives_its_covariance(rng):
    """J S J^T: against the rule of a convolution, the mean over positions; 8 pairs times 36 positions times 16 images
    sample it: 7 standard errors of a variance are 7 sqrt(2 / 4608) = .15."""
    from covkeras.moments.unknown import linearised

    layer = layers.Conv2D(3, 3)
    gaussian = random_gaussian(rng, (8, 8, 2), 2)
    gaussian = Gaussian(np.repeat(gaussian.mean, 16, 0), gaussian.cov)
    layer.build(gaussian.mean.shape)
    expected, found = propagate(layer, gaussian), linearised(layer, gaussian, Context())
    # Positions whose windows overlap share samples: nine times fewer are independent, at worst.
    np.testing.assert_allclose(np.diag(found.cov), np.diag(expected.cov), rtol=0.45)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)


class Wrapped(keras.Model):
    """Layers that have rules, hidden in a call that Keras can't see into."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = layers.Conv2D(4, 3), layers.AveragePooling2D(2)

    def call(self, x):
        return self.pool(self.conv(x))


def test_a_linearised_model_gives_what_its_rules_would(rng):
    """Pooled neighbours share pixels, which the rules do not count and the samples do: the covariances agree within a
    factor, the means to the last digits."""
    inputs, hidden = keras.Input((12, 12, 2)), Wrapped()
    end = layers.Dense(3)
    model = keras.Model(inputs, end(layers.GlobalAveragePooling2D()(hidden(inputs))))
    open_ = keras.Model(inputs, end(layers.GlobalAveragePooling2D()(hidden.pool(hidden.conv(inputs)))))
    images = rng.random((16, 12, 12, 2)).astype("float32")
    found, expected = (
        MomentNetwork(model, 0.3, 0.0, unknown="linearise")(images),
        MomentNetwork(open_, 0.3, 0.0)(images),
    )
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-4)
    ratio = np.diag(found.cov) / np.diag(expected.cov)
    assert (ratio > 0.8).all() and (ratio < 4.0).all()


def test_gaussian_noise_is_propagated_in_training(rng):
    gaussian, layer = random_gaussian(rng, (1, 2, 3), 3), layers.GaussianNoise(0.5)
    assert propagate(layer, gaussian) is gaussian
    result = propagate(layer, gaussian, Context(training=True))
    values = layer(draw(rng, gaussian, 200_000), training=True).numpy()[:, 0, 0].astype(np.float64)
    cov = np.cov(values.T)
    # An entry's standard error is at most that of a variance, times 7.
    assert np.abs(np.asarray(result.cov) - cov).max() < 7 * np.sqrt(2 / 200_000) * np.diag(cov).max()
    np.testing.assert_array_equal(result.mean, gaussian.mean)


def test_alpha_dropout_in_training_against_sampling(rng):
    """What the layer makes of the noise, the same units dropped with it and without: two layers of one seed."""
    gaussian, n = random_gaussian(rng, (4,), 4), 400_000
    make = lambda: layers.AlphaDropout(0.4, seed=3)  # noqa: E731
    result = propagate(make(), gaussian, Context(training=True))
    assert propagate(make(), gaussian) is gaussian
    np.testing.assert_array_equal(result.mean, make()(gaussian.mean, training=True))
    noisy = draw(rng, gaussian, n)
    means = np.repeat(gaussian.mean, n, 0)
    values = np.asarray(make()(noisy, training=True), np.float64) - np.asarray(make()(means, training=True))
    errors = np.sqrt(np.maximum((values**2).T @ (values**2) / n, 1e-12) / n)
    assert (np.abs(values.T @ values / n - np.asarray(result.cov)) < 7 * errors).all()


def test_a_random_crop_takes_a_part_in_training_alone(rng):
    gaussian, layer = random_gaussian(rng, (6, 6, 3), 3), layers.RandomCrop(4, 4)
    whole = propagate(layer, gaussian)
    np.testing.assert_array_equal(whole.mean, layer(gaussian.mean, training=False))
    assert whole.cov is gaussian.cov
    part = np.asarray(propagate(layer, gaussian, Context(training=True)).mean)[0]
    found = [(i, j) for i in range(3) for j in range(3) if np.array_equal(part, gaussian.mean[0, i : i + 4, j : j + 4])]
    assert len(found) == 1


def test_augmentation_moves_the_mean_in_training_alone(rng):
    gaussian = random_gaussian(rng, (4, 4, 3), 3)
    unit = {"value_range": (0, 1)}
    for layer in (
        *(layers.RandomFlip("horizontal"), layers.RandomRotation(0.2), layers.RandomContrast(0.5)),
        *(layers.RandAugment(**unit), layers.AugMix(**unit), layers.Solarization(**unit)),
    ):
        assert propagate(layer, gaussian) is gaussian
        np.testing.assert_array_equal(layer(gaussian.mean, training=False), gaussian.mean)
    keras.utils.set_random_seed(1)
    batch = Gaussian(np.repeat(gaussian.mean, 32, 0), gaussian.cov)
    flipped = np.asarray(propagate(layers.RandomFlip("horizontal"), batch, Context(training=True)).mean)
    sides = [np.allclose(one, gaussian.mean[0]) or np.allclose(one, gaussian.mean[0, :, ::-1]) for one in flipped]
    # All 32 alike by chance: 2^-31.
    assert all(sides) and np.ptp(flipped, axis=0).max() > 0
