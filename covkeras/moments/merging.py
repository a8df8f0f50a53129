"""Rules of the layers that join branches. The forward pass takes branches as independent: what they have in common by
an ancestor is not counted (Add([x, x]) has covariance 4 S, and gets 2 S)."""

import functools

import keras
from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian, blocks, rescaled, standard_deviation, wide
from covkeras.moments.rectifiers import gaussian_cdf, gaussian_pdf
from covkeras.moments.rules import check_one_block


def check_alike(name: str, gaussians) -> None:
    """Refuses branches whose covariances are of different length."""
    if len({g.cov.shape[-1] for g in gaussians}) != 1:
        raise NotImplementedError(
            f"{name} needs branches with equally long covariances, got {[g.cov.shape[-1] for g in gaussians]}. Flatten "
            "after joining, not before."
        )


def summed(name: str, gaussians, share: float = 1.0):
    """cov share^2 (S_a + S_b + ...): the branches taken as independent."""
    check_alike(name, gaussians)
    return share * share * sum(g.cov for g in gaussians)


def block_diagonal(name: str, gaussians, axis: int):
    """The branches' covariances along the diagonal, zero between them."""
    if axis not in (-1, len(gaussians[0].mean.shape) - 1):
        raise NotImplementedError(f"{name} has a moment rule along the channels (axis -1) only, got axis {axis}.")
    sizes = [g.cov.shape[-1] for g in gaussians]
    rows = []
    for i, gaussian in enumerate(gaussians):
        row = [
            gaussian.cov if i == j else ops.zeros((sizes[i], size), gaussian.cov.dtype) for j, size in enumerate(sizes)
        ]
        rows.append(ops.concatenate(row, axis=1))
    return ops.concatenate(rows, axis=0)


def _named(layer) -> str:
    return f"{type(layer).__name__} (layer {layer.name!r})"


@propagate.register(keras.layers.Add, keras.layers.Subtract)
def add(layer, gaussians, context):
    """Mean summed, or subtracted; cov S_a + S_b: the branches taken as independent (Table 1, residual; approximate)."""
    return Gaussian(layer([g.mean for g in gaussians]), summed(_named(layer), gaussians))


@propagate.register(keras.layers.Average)
def average(layer, gaussians, context):
    """Mean averaged; cov (S_a + S_b) / 4 of two branches, taken as independent (approximate)."""
    return Gaussian(layer([g.mean for g in gaussians]), summed(_named(layer), gaussians, 1.0 / len(gaussians)))


@propagate.register(keras.layers.Concatenate)
def concatenate(layer, gaussians, context):
    """Mean joined along the channels; cov block-diagonal: the branches taken as independent (approximate)."""
    for gaussian in gaussians:
        check_one_block(layer, gaussian)
    return Gaussian(layer([g.mean for g in gaussians]), block_diagonal(_named(layer), gaussians, layer.axis))


@propagate.register(keras.layers.Multiply)
def multiply(layer, gaussians, context):
    """Mean m_a m_b; cov S_a o S_b + M_a o S_b + S_a o M_b, o entry by entry, M the mean of m m^T over batch and pixels.

    Exact for independent branches at one position of one image; the mean over positions is shared by the batch. A
    branch of one channel, or one pixel, stands for all: squeeze-and-excite, a mask.
    """
    for gaussian in gaussians:
        check_one_block(layer, gaussian)
    return Gaussian(layer([g.mean for g in gaussians]), product_of(gaussians).cov)


def product_of(gaussians) -> Gaussian:
    """`multiply`'s moments, two branches by two."""
    return functools.reduce(_product, gaussians)


def _product(a: Gaussian, b: Gaussian) -> Gaussian:
    cov = a.cov * b.cov + _second_moments(a.mean) * b.cov + a.cov * _second_moments(b.mean)
    return Gaussian(a.mean * b.mean, cov)


def _second_moments(mean):
    """E m m^T over batch and pixels, (channels, channels)."""
    rows = wide(ops.reshape(mean, (-1, mean.shape[-1])))
    return ops.matmul(ops.transpose(rows), rows) / ops.cast(ops.shape(rows)[0], rows.dtype)


def larger_of_two(mean_a, variance_a, mean_b, variance_b, correlation: float = 0.0):
    """Mean and variance of max(a, b) of two correlated Gaussians, and P(a > b) (exact; Clark 1961).

    With t^2 = v_a + v_b - 2 cov and z = (m_a - m_b) / t: E max = m_a Phi(z) + m_b Phi(-z) + t phi(z), E max^2 =
    (m_a^2 + v_a) Phi(z) + (m_b^2 + v_b) Phi(-z) + (m_a + m_b) t phi(z). All of one shape, or broadcast.
    """
    shared = correlation * ops.sqrt(variance_a * variance_b)
    spread = ops.sqrt(ops.maximum(variance_a + variance_b - 2.0 * shared, 1e-12))
    z = (mean_a - mean_b) / spread
    first, density = gaussian_cdf(z), gaussian_pdf(z)
    # Relative to the larger mean: -10^6, a border's, loses no digit of the other.
    high = ops.maximum(mean_a, mean_b)
    a, b = mean_a - high, mean_b - high
    excess = a * first + b * gaussian_cdf(-z) + spread * density
    second = (a * a + variance_a) * first + (b * b + variance_b) * gaussian_cdf(-z) + (a + b) * spread * density
    return high + excess, ops.maximum(second - excess * excess, 0.0), first


@propagate.register(keras.layers.Maximum, keras.layers.Minimum)
def maximum(layer, gaussians, context):
    """Mean of the larger of two Gaussians (exact for independent branches; Clark 1961), of several two by two; cov
    W S_a W + (I - W) S_b (I - W), W the mean over batch and pixels of P(a > b), scaled to the variance's mean
    (approximate)."""
    check_alike(_named(layer), gaussians)
    result = larger_of(gaussians, -1.0 if isinstance(layer, keras.layers.Minimum) else 1.0)
    return Gaussian(layer([g.mean for g in gaussians]), result.cov) if context.plain else result


def larger_of(gaussians, sign: float) -> Gaussian:
    """`maximum`'s moments; of the smaller with sign -1."""
    return functools.reduce(lambda a, b: _larger(a, b, sign), gaussians)


def _larger(a: Gaussian, b: Gaussian, sign: float) -> Gaussian:
    variance_a, variance_b = (ops.square(standard_deviation(g.cov, blocks(g))) for g in (a, b))
    mean, variance, share = larger_of_two(sign * wide(a.mean), variance_a, sign * wide(b.mean), variance_b)
    channels = a.cov.shape[-1]
    weight, variance = (ops.mean(ops.reshape(x, (-1, channels)), 0) for x in (share, variance))
    cov = rescaled(a.cov, weight) + rescaled(b.cov, 1.0 - weight)
    return Gaussian(ops.cast(sign * mean, a.mean.dtype), with_variance(cov, variance))


def with_variance(cov, variance):
    """Scales a covariance, D S D, to the variances (channels,)."""
    return rescaled(cov, ops.sqrt(variance / ops.maximum(ops.diagonal(cov), 1e-12)))
