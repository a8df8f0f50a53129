"""The moments of a Gaussian through (leaky) ReLU, and their derivatives. Phi, phi: the standard normal's."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import keras
from keras import ops

from covkeras.moments.functions import excess
from covkeras.moments.gaussian import Gaussian, blocks, standard_deviation, wide
from covkeras.moments.gradients import custom_gradient


def gaussian_cdf(z):
    """Phi(z). By erf: erfc is slow on the CPU, and no tail is needed here."""
    return 0.5 + 0.5 * ops.erf(z * math.sqrt(0.5))


def gaussian_pdf(z):
    """phi(z)."""
    return math.sqrt(0.5 / math.pi) * ops.exp(-0.5 * z * z)


def relu_value(mean, sd):
    """E max(u, 0) = m Phi(z) + s phi(z), z = m / s, for u ~ N(m, s^2)."""
    m, sd = wide(mean), wide(sd)
    z = m * (1.0 / sd)
    return ops.cast(m * gaussian_cdf(z) + sd * gaussian_pdf(z), mean.dtype)


def relu_products(mean, sd, upstream):
    """The derivatives of `relu_value`, Phi(z) by m and phi(z) by s, each times `upstream`."""
    z, upstream = wide(mean) * (1.0 / wide(sd)), wide(upstream)
    return ops.cast(upstream * gaussian_cdf(z), mean.dtype), ops.cast(upstream * gaussian_pdf(z), mean.dtype)


def relu_gate(mean, sd, upstream):
    """The gate's product, Phi(z) times `upstream`: the derivative of `relu_value` by m where s is a constant."""
    return ops.cast(wide(upstream) * gaussian_cdf(wide(mean) * (1.0 / wide(sd))), mean.dtype)


def relu_gate_products(mean, sd, upstream, second):
    """The derivatives of `relu_gate`, upstream phi(z) / s by m and Phi(z) by upstream, each times `second`."""
    inverse = 1.0 / wide(sd)
    z, second = wide(mean) * inverse, wide(second)
    by_mean = second * wide(upstream) * gaussian_pdf(z) * inverse
    return ops.cast(by_mean, mean.dtype), ops.cast(second * gaussian_cdf(z), mean.dtype)


class Kernels(NamedTuple):
    """The element-wise loops of the ReLU's moment; a trainer puts compiled copies here.

    value, products: of the forward moments. smooth, gate, gate_products: of a pass that is differentiated twice.
    """

    value: Callable = relu_value
    products: Callable = relu_products
    smooth: Callable = relu_value
    gate: Callable = relu_gate
    gate_products: Callable = relu_gate_products


PLAIN = Kernels()


def relu_mean(mean, sd, kernels: Kernels = PLAIN):
    """E max(u, 0) = m Phi(z) + s phi(z), z = m / s, for u ~ N(m, s^2) (exact; Table 1 misprints the last factor).

    The gradient computes Phi and phi again from the mean: on the CPU that is faster than to store and reload them.

    Args:
        mean: (batch, ..., channels). sd: (channels,), positive, in units of `mean`.
        kernels: the element-wise loops, or compiled copies of them.

    Returns:
        (batch, ..., channels), in the dtype of `mean`.
    """

    @custom_gradient
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


def gated_mean(mean, sd, slope: float = 0.0, kernels: Kernels = PLAIN):
    """`leaky_mean` with s a constant, twice differentiable by the mean: what a pass through the gradient needs.

    Shapes as in `relu_mean`. First derivative slope + (1 - slope) Phi(z), second (1 - slope) phi(z) / s.
    """

    @custom_gradient
    def gate(mean, sd, upstream):
        first = upstream

        def gradient(*args, upstream=None):
            second = args[0] if upstream is None else upstream
            by_mean, by_upstream = kernels.gate_products(mean, sd, first, second)
            return by_mean, ops.zeros_like(sd), by_upstream

        return kernels.gate(mean, sd, first), gradient

    @custom_gradient
    def value(mean, sd):
        def gradient(*args, upstream=None):
            return gate(mean, sd, args[0] if upstream is None else upstream), ops.zeros_like(sd)

        return kernels.smooth(mean, sd), gradient

    rectified = value(mean, ops.stop_gradient(ops.cast(sd, mean.dtype)))
    return rectified if slope == 0 else slope * mean + (1.0 - slope) * rectified


def relu_excess(mean, sd):
    """kappa(z) = Var(max(u, 0)) / s^2 - Phi(z)^2: the variance a ReLU adds beyond its linear part (exact, >= 0).

    Shapes as in `relu_mean`. E u+^2 = (m^2 + s^2) Phi + m s phi.
    """
    z = mean / sd
    gate, density = gaussian_cdf(z), gaussian_pdf(z)
    value = z * gate + density
    return ops.maximum((z * z + 1.0) * gate + z * density - value * value - gate * gate, 0.0)


def leaky_mean(mean, sd, slope: float, kernels: Kernels = PLAIN):
    """E max(u, slope u) = slope m + (1 - slope) E max(u, 0)."""
    rectified = relu_mean(mean, sd, kernels)
    return rectified if slope == 0 else slope * mean + (1.0 - slope) * rectified


def rectify(gaussian: Gaussian, slope: float = 0.0, kernels: Kernels = PLAIN) -> Gaussian:
    """ReLU (slope 0) or leaky ReLU: mean as `leaky_mean` (exact), cov unchanged (the paper's bound, too large by a
    factor of 2.93 at m = 0).

    mean (batch, ..., P * channels), cov (channels, channels), both kept.
    """
    sd = standard_deviation(gaussian.cov, blocks(gaussian))
    return Gaussian(leaky_mean(gaussian.mean, sd, slope, kernels), gaussian.cov)


class Activation(Protocol):
    """What every estimate asks of an element-wise function f.

    mean: (batch, ..., P * channels). sd: (P * channels,) or (channels,), in units of `mean`.
    """

    def apply(self, u):
        """f(u), at a sample."""

    def propagated(self, gaussian: Gaussian, kernels: "Kernels") -> Gaussian:
        """Its moment rule."""

    def spread(self, gaussian: Gaussian):
        """The covariance of `propagated` alone, (channels, channels)."""

    def gated(self, mean, sd, kernels: "Kernels"):
        """E f(u), u ~ N(mean, sd^2), sd a constant; twice differentiable by the mean."""

    def excess(self, mean, sd):
        """(Var f(u)) / sd^2 - (d E f / d mean)^2 >= 0, the variance beyond first order."""


class Rectifier(NamedTuple):
    """The (leaky) ReLU max(u, slope u) as an `Activation`."""

    slope: float = 0.0

    def apply(self, u):
        return keras.activations.relu(u, negative_slope=self.slope)

    def propagated(self, gaussian: Gaussian, kernels: Kernels = PLAIN) -> Gaussian:
        return rectify(gaussian, self.slope, kernels)

    def spread(self, gaussian: Gaussian):
        return gaussian.cov

    def gated(self, mean, sd, kernels: Kernels = PLAIN):
        return gated_mean(mean, sd, self.slope, kernels)

    def excess(self, mean, sd):
        return (1.0 - self.slope) ** 2 * relu_excess(mean, sd)


class Elementwise(NamedTuple):
    """A user's element-wise layer with its own moment rule, as an `Activation`.

    layer: the layer. rule: (layer, Gaussian, context) -> Gaussian. context: of the rules, without hooks.
    """

    layer: object
    rule: Callable
    context: object

    def apply(self, u):
        return self.layer(u)

    def propagated(self, gaussian: Gaussian, kernels: Kernels = PLAIN) -> Gaussian:
        return self.rule(self.layer, gaussian, self.context)

    def spread(self, gaussian: Gaussian):
        return self.propagated(gaussian).cov

    def gated(self, mean, sd, kernels: Kernels = PLAIN):
        sd = wide(ops.stop_gradient(sd))
        # One block: each unit has an sd of its own.
        return self.rule(self.layer, Gaussian(mean, ops.diag(ops.square(sd))), self.context).mean

    def excess(self, mean, sd):
        """By Gauss and Hermite's 20 points."""
        return excess(self.layer, mean, sd, 20)
