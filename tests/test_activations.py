"""The moments of every activation of Keras: closed forms and quadrature against numerical integration, slopes against
the functions themselves, every form of them (fused, a layer, an operation)."""

import keras
import numpy as np
import pytest
import scipy.stats
from keras import layers, ops
from test_rules import ERRORS, draw, random_gaussian

from covkeras.moments import Context, Gaussian, propagate
from covkeras.moments.activations import _CLOSED, SMOOTH, activation_for, activation_of, relu_pieces, steepest
from covkeras.moments.rectifiers import Rectifier

NOT_ELEMENTWISE = {"glu", "softmax", "log_softmax", "sparsemax"}
# Error of the mean at any |m| <= 5: closed forms to float32's last digits; quadrature of 16 points as measured, at
# s = .5, 1 and 2. The kink of softsign, and the step of tanh at s = 2, are what 16 points can't see.
QUADRATURE = {
    "sigmoid": (1e-6, 1e-6, 3e-5),
    "tanh": (1e-6, 2e-5, 6e-3),
    "silu": (2e-6, 2e-6, 1e-4),
    "softplus": (2e-6, 2e-6, 2e-5),
    "mish": (2e-6, 2e-6, 6e-4),
    "softsign": (1e-3, 4e-3, 2e-2),
    "log_sigmoid": (2e-6, 2e-6, 2e-5),
    "squareplus": (2e-6, 2e-6, 6e-5),
    "tanh_shrink": (2e-6, 2e-5, 6e-3),
}
Z = np.linspace(-9, 9, 40_001)
WEIGHTS = scipy.stats.norm.pdf(Z) * (Z[1] - Z[0])


def integral(function, mean, sd):
    """E f(m + s z) by the trapezoidal rule, to 1e-8 for smooth f and to s / 4000 of a jump."""
    values = np.asarray(ops.convert_to_numpy(function(ops.convert_to_tensor(mean + sd * Z))), np.float64)
    return float((WEIGHTS * values).sum())


def test_every_activation_of_keras_is_known():
    names = {n for n in dir(keras.activations) if not n.startswith("_")} - {"deserialize", "serialize", "get"}
    known = {"linear", "relu", "leaky_relu", *_CLOSED, *SMOOTH} | {"swish", "hard_swish", "threshold"}
    assert names - NOT_ELEMENTWISE == known
    assert keras.activations.swish is keras.activations.silu
    assert keras.activations.hard_swish is keras.activations.hard_silu


@pytest.mark.parametrize("name", [*_CLOSED, *SMOOTH])
def test_mean_against_integration(name):
    function = getattr(keras.activations, name)
    activation = activation_of(function)
    for i, sd in enumerate((0.5, 1.0, 2.0)):
        allowed = QUADRATURE[name][i] if name in QUADRATURE else 1e-5
        allowed = 5e-4 if name == "hard_shrink" else allowed  # the integral's own error at a jump
        for mean in np.linspace(-5, 5, 21):
            exact = integral(function, mean, sd)
            found = float(activation.gated(ops.convert_to_tensor(np.float32(mean)), np.float32(sd)))
            assert abs(found - exact) <= allowed * max(1.0, abs(exact)), (mean, sd)


@pytest.mark.parametrize("name", [*_CLOSED, *SMOOTH])
def test_the_slope_bounds_the_function_and_is_reached(name):
    function = getattr(keras.activations, name)
    slope = activation_of(function).slope
    at = np.linspace(-20, 20, 400_001)
    values = np.asarray(ops.convert_to_numpy(function(ops.convert_to_tensor(at))), np.float64)
    steep = np.abs(np.diff(values) / np.diff(at)).max()
    if slope is None:
        assert name in ("exponential", "hard_shrink") and steep > 100
    else:
        assert steep <= slope * (1 + 1e-6) and steep > 0.98 * slope


def test_slopes_without_a_bound_are_found():
    assert steepest(keras.activations.exponential) is None and steepest(ops.square) is None
    assert steepest(lambda u: ops.where(u > 0.3, 1.0, 0.0)) is None
    assert steepest(lambda u: 3.0 * u) == pytest.approx(3.0, rel=0.01)


LAYERS = {
    "relu6": lambda: layers.ReLU(max_value=6.0),
    "relu bounded, leaking": lambda: layers.ReLU(max_value=1.5, negative_slope=0.2),
    "relu with a threshold": lambda: layers.ReLU(threshold=0.5, negative_slope=0.1),
    "leaky": lambda: layers.LeakyReLU(negative_slope=0.2),
    "prelu": lambda: layers.PReLU(alpha_initializer="random_uniform"),
    "prelu shared": lambda: layers.PReLU(alpha_initializer="random_uniform", shared_axes=[1, 2]),
    "elu": lambda: layers.ELU(alpha=0.7),
    "gelu": lambda: layers.Activation("gelu"),
    "gelu by tanh": lambda: layers.Activation(lambda u: keras.activations.gelu(u, approximate=True)),
    "swish": lambda: layers.Activation("swish"),
    "hard swish": lambda: layers.Activation("hard_swish"),
    "a layer within": lambda: layers.Activation(layers.LeakyReLU(negative_slope=0.4)),
    "one of the user's": lambda: layers.Activation(lambda u: ops.sin(u) + 0.5 * u),
    "exponential": lambda: layers.Activation("exponential"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers_against_sampling(case, rng):
    """Means to 7 standard errors, and the quadrature's error of 1e-3 at s about 1; no propagated variance is below a
    sampled one where a slope bounds it."""
    layer = LAYERS[case]()
    gaussian = random_gaussian(rng, (1, 2, 5), 5)
    layer(gaussian.mean)
    activation = activation_for(layer)
    result = propagate(layer, gaussian)
    values = np.asarray(layer(draw(rng, gaussian, 200_000)), np.float64)
    error = ERRORS * values.std(0) / np.sqrt(len(values)) + 1e-3
    assert (np.abs(np.asarray(result.mean)[0] - values.mean(0)) < error).all()
    if getattr(activation, "slope", None) is not None:
        assert (np.diag(result.cov) > 0.98 * values.var(0).max((0, 1))).all()


@pytest.mark.parametrize("name", ["gelu", "tanh", "selu", "hard_sigmoid"])
def test_the_excess_is_the_variance_beyond_first_order(name):
    """(Var f) / s^2 - (d E f / d m)^2, by integration; the derivative by differences."""
    function = getattr(keras.activations, name)
    activation = activation_of(function)
    for mean in (-1.5, 0.0, 0.7):
        sd = 0.8
        first, second = integral(function, mean, sd), integral(lambda u: function(u) ** 2, mean, sd)
        gate = (integral(function, mean + 1e-3, sd) - integral(function, mean - 1e-3, sd)) / 2e-3
        exact = (second - first**2) / sd**2 - gate**2
        found = float(activation.excess(ops.convert_to_tensor(np.float32(mean)), np.float32(sd)))
        assert found == pytest.approx(exact, abs=3e-3)


def test_fused_is_the_layer_and_its_activation(rng):
    gaussian = random_gaussian(rng, (2, 2, 3), 3)
    for name in ("gelu", "hard_swish", "softplus"):
        fused, plain = layers.Conv2D(4, 2, activation=name), layers.Conv2D(4, 2)
        for layer in (fused, plain):
            layer(gaussian.mean)
        plain.set_weights(fused.get_weights())
        one, two = propagate(fused, gaussian), propagate(layers.Activation(name), propagate(plain, gaussian))
        np.testing.assert_allclose(one.mean, two.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.cov, two.cov, rtol=1e-5)


def test_relus_in_pieces_are_the_rectifier(rng):
    gaussian = random_gaussian(rng, (1, 3, 4), 4)
    for slope in (0.0, 0.3):
        sd = np.sqrt(np.diag(gaussian.cov)).astype("float32")
        np.testing.assert_allclose(
            relu_pieces(slope)(gaussian.mean, sd), Rectifier(slope).propagated(gaussian).mean, rtol=1e-5, atol=1e-6
        )


def test_in_bfloat16_and_in_a_graph(rng):
    """The mean keeps its dtype, and an activation that is met first within a trace is found out all the same."""
    import tensorflow as tf

    gaussian = random_gaussian(rng, (1, 2, 5), 5)
    layer = layers.Activation(lambda u: ops.tanh(u) + 0.1 * u)
    traced = tf.function(lambda m: tuple(propagate(layer, Gaussian(m, gaussian.cov))))(tf.constant(gaussian.mean))
    np.testing.assert_allclose(traced[0], propagate(layer, gaussian).mean, rtol=1e-5, atol=1e-6)
    low = propagate(layer, Gaussian(ops.cast(gaussian.mean, "bfloat16"), gaussian.cov))
    assert keras.backend.standardize_dtype(low.mean.dtype) == "bfloat16"
    np.testing.assert_allclose(ops.cast(low.mean, "float32"), traced[0], atol=0.03)


def test_the_hook_sees_every_activation(rng):
    seen = []

    def rectify(gaussian, activation):
        seen.append(activation)
        return Gaussian(activation.apply(gaussian.mean), activation.spread(gaussian))

    gaussian = random_gaussian(rng, (2, 2, 3), 3)
    layer = layers.Conv2D(4, 2, activation="gelu")
    layer(gaussian.mean)
    result = propagate(layer, gaussian, Context(rectify=rectify))
    assert seen[0].name == "gelu"
    np.testing.assert_allclose(result.mean, layer(gaussian.mean), rtol=1e-5, atol=1e-6)
