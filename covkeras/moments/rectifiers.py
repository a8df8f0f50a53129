"""The moments of a Gaussian through (leaky) ReLU, and their derivatives. Phi, phi: the standard normal's."""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from covkeras.moments.gaussian import Gaussian, blocks, standard_deviation


def gaussian_cdf(z):
    """Phi(z). By erf: erfc is slow on the CPU, and no tail is needed here."""
    return 0.5 + 0.5 * ops.erf(z * math.sqrt(0.5))


def gaussian_pdf(z):
    """phi(z)."""
    return math.sqrt(0.5 / math.pi) * ops.exp(-0.5 * z * z)


def _wide(x):
    """float32 inside a loop, whatever is stored: bfloat16's own erf and exp are slower, and worse."""
    return ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16") else x


def relu_value(mean, sd):
    """E max(u, 0) = m Phi(z) + s phi(z), z = m / s, for u ~ N(m, s^2)."""
    wide, sd = _wide(mean), _wide(sd)
    z = wide * (1.0 / sd)
    return ops.cast(wide * gaussian_cdf(z) + sd * gaussian_pdf(z), mean.dtype)


def relu_products(mean, sd, upstream):
    """The derivatives of `relu_value`, Phi(z) by m and phi(z) by s, each times `upstream`."""
    z, wide = _wide(mean) * (1.0 / _wide(sd)), _wide(upstream)
    return ops.cast(wide * gaussian_cdf(z), mean.dtype), ops.cast(wide * gaussian_pdf(z), mean.dtype)


class Kernels(NamedTuple):
    """The two element-wise loops of the ReLU's moment; a trainer puts compiled copies here."""

    value: Callable = relu_value
    products: Callable = relu_products


def relu_mean(mean, sd, kernels: Kernels = Kernels()):
    """E max(u, 0) = m Phi(z) + s phi(z), z = m / s, for u ~ N(m, s^2) (exact; Table 1 misprints the last factor).

    The gradient computes Phi and phi again from the mean: on the CPU that is faster than to store and reload them.

    Args:
        mean: (batch, ..., channels). sd: (channels,), positive, in units of `mean`.
        kernels: the element-wise loops, or compiled copies of them.

    Returns:
        (batch, ..., channels), in the dtype of `mean`.
    """

    @ops.custom_gradient
    def value_and_gradient(mean, sd):
        scale = ops.cast(sd, mean.dtype)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            by_mean, rows = kernels.products(mean, scale, upstream)
            # The sum over batch and pixels as a product with ones: threefold faster on the CPU than einsum or sum.
            rows = ops.reshape(rows, (-1, rows.shape[-1]))
            by_sd = ops.matmul(ops.ones((1, ops.shape(rows)[0]), rows.dtype), rows)
            return by_mean, ops.cast(by_sd[0], sd.dtype)

        return kernels.value(mean, scale), gradient

    return value_and_gradient(mean, sd)


def relu_excess(mean, sd):
    """kappa(z) = Var(max(u, 0)) / s^2 - Phi(z)^2: the variance a ReLU adds beyond its linear part (exact, >= 0).

    Shapes as in `relu_mean`. E u+^2 = (m^2 + s^2) Phi + m s phi.
    """
    z = mean / sd
    gate, density = gaussian_cdf(z), gaussian_pdf(z)
    value = z * gate + density
    return ops.maximum((z * z + 1.0) * gate + z * density - value * value - gate * gate, 0.0)


def leaky_mean(mean, sd, slope: float, kernels: Kernels = Kernels()):
    """E max(u, slope u) = slope m + (1 - slope) E max(u, 0)."""
    rectified = relu_mean(mean, sd, kernels)
    return rectified if slope == 0 else slope * mean + (1.0 - slope) * rectified


def rectify(gaussian: Gaussian, slope: float = 0.0, kernels: Kernels = Kernels()) -> Gaussian:
    """ReLU (slope 0) or leaky ReLU: mean as `leaky_mean` (exact), cov unchanged (the paper's bound, too large by a
    factor of 2.93 at m = 0).

    mean (batch, ..., P * channels), cov (channels, channels), both kept.
    """
    sd = standard_deviation(gaussian.cov, blocks(gaussian))
    return Gaussian(leaky_mean(gaussian.mean, sd, slope, kernels), gaussian.cov)


def activation_slope(layer) -> float | None:
    """Returns the slope below zero of a layer's rectifier, 0 for ReLU; None where its activation is linear.

    Raises:
        NotImplementedError: an activation that has no rule.
    """
    if isinstance(layer, keras.layers.LeakyReLU):
        return float(layer.negative_slope)
    if isinstance(layer, keras.layers.ReLU):
        if layer.max_value is not None or layer.threshold:
            raise NotImplementedError(
                f"No moment rule for ReLU (layer {layer.name!r}) with max_value or threshold. Use keras.layers.ReLU()."
            )
        return float(layer.negative_slope)
    known = {"linear": None, "relu": 0.0, "leaky_relu": 0.2}
    name = getattr(layer.activation, "__name__", repr(layer.activation))
    if name not in known or layer.activation is not keras.activations.get(name):
        raise NotImplementedError(
            f"No moment rule for activation {name!r} (layer {layer.name!r}). Use relu, leaky_relu or linear, or "
            "make it a layer of its own with a rule by @propagate.register."
        )
    return known[name]
