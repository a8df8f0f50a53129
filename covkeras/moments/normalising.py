"""Rules of the layers that normalise each image, or each position, by its own statistics, or a layer's weights."""

import keras
from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian, rescaled, wide
from covkeras.moments.rules import check_one_block

# The statistics are taken with the noise in them, E of the squares, not at the mean: tests/test_more_rules.py
# measures both against sampling.


def _last_axis(layer, gaussian) -> None:
    check_one_block(layer, gaussian)
    axis, rank = layer.axis, len(gaussian.mean.shape)
    axes = [axis] if isinstance(axis, int) else list(axis)
    if [a % rank for a in axes] != [rank - 1]:
        raise NotImplementedError(
            f"{type(layer).__name__} (layer {layer.name!r}) has a moment rule along the channels (axis -1) only, got "
            f"axis {layer.axis}."
        )


def _normalised(layer, gaussian: Gaussian, context, mean, inverse, scale, cov=None) -> Gaussian:
    """What a norm makes of the pair: D S D, D^2 the mean of (scale / sd)^2 over batch and positions.

    mean: (batch, ..., channels), at least float32, normalised. inverse: 1 / sd at each position, (batch, ..., 1 or
    channels). scale: gamma, (channels,) or 1. cov: S, where it is not the input's.
    """
    cov = gaussian.cov if cov is None else cov
    squares = ops.broadcast_to(ops.square(inverse), ops.shape(mean))
    d = ops.sqrt(ops.mean(ops.reshape(squares, (-1, cov.shape[-1])), 0)) * scale
    mean = layer(gaussian.mean) if context.plain else ops.cast(mean, layer.compute_dtype)
    return Gaussian(mean, rescaled(cov, d))


def _scale_and_shift(layer, dtype) -> tuple:
    """gamma and beta; 1 and 0 of a layer without."""
    gamma = ops.cast(layer.gamma, dtype) if layer.scale else 1.0
    return gamma, ops.cast(layer.beta, dtype) if layer.center else 0.0


def _centred(cov):
    """P S P, P = I - 1 1^T / c: the covariance of what is left of a vector less its mean."""
    return cov - ops.mean(cov, 0, keepdims=True) - ops.mean(cov, 1, keepdims=True) + ops.mean(cov)


@propagate.register(keras.layers.LayerNormalization)
def layer_normalization(layer, gaussian, context):
    """(m - mean_c m) / sd gamma + beta, sd^2 = mean_c (m - mean_c m)^2 + tr(P S P) / c, the noise's share in it; cov
    D P S P D, P = I - 1 1^T / c, D^2 the mean of (gamma / sd)^2 over batch and positions (approximate: what of the
    noise lies along the mean, one of c directions, is kept).

    mean (batch, ..., c), cov (c, c), both kept in size.
    """
    _last_axis(layer, gaussian)
    if getattr(layer, "rms_scaling", False):
        raise NotImplementedError(f"LayerNormalization (layer {layer.name!r}) with rms_scaling: use RMSNormalization.")
    mean = wide(gaussian.mean)
    cov = _centred(gaussian.cov)
    centred = mean - ops.mean(mean, -1, keepdims=True)
    noise = ops.trace(cov) / cov.shape[-1]
    inverse = ops.rsqrt(ops.mean(ops.square(centred), -1, keepdims=True) + noise + layer.epsilon)
    gamma, shift = _scale_and_shift(layer, mean.dtype)
    return _normalised(layer, gaussian, context, centred * inverse * gamma + shift, inverse, gamma, cov)


@propagate.register(keras.layers.RMSNormalization)
def rms_normalization(layer, gaussian, context):
    """m / r gamma, r^2 = mean_c m^2 + tr S / c; cov D S D, D^2 the mean of (gamma / r)^2 over batch and positions
    (approximate, as LayerNormalization's)."""
    _last_axis(layer, gaussian)
    mean = wide(gaussian.mean)
    noise = ops.trace(gaussian.cov) / gaussian.cov.shape[-1]
    inverse = ops.rsqrt(ops.mean(ops.square(mean), -1, keepdims=True) + noise + layer.epsilon)
    gamma = ops.cast(layer.scale, mean.dtype)
    return _normalised(layer, gaussian, context, mean * inverse * gamma, inverse, gamma)


@propagate.register(keras.layers.UnitNormalization)
def unit_normalization(layer, gaussian, context):
    """m / r, r^2 = |m|^2 + tr S; cov D S D, D^2 the mean of 1 / r^2 (approximate, as LayerNormalization's)."""
    _last_axis(layer, gaussian)
    mean = wide(gaussian.mean)
    inverse = ops.rsqrt(ops.sum(ops.square(mean), -1, keepdims=True) + ops.trace(gaussian.cov) + 1e-12)
    return _normalised(layer, gaussian, context, mean * inverse, inverse, 1.0)


@propagate.register(keras.layers.GroupNormalization)
def group_normalization(layer, gaussian, context):
    """(m - mean) / sd gamma + beta, the statistics over a group's channels and all pixels, with the noise's share; cov
    D S D, D^2 the mean of (gamma / sd)^2 over the batch (approximate: the statistics hardly move with the noise).

    mean (batch, h, w, c), cov (c, c), both kept in size.
    """
    _last_axis(layer, gaussian)
    mean = wide(gaussian.mean)
    channels = mean.shape[-1]
    groups = channels if layer.groups == -1 else layer.groups
    parts = ops.reshape(mean, (-1, *mean.shape[1:-1], groups, channels // groups))
    axes = (*range(1, len(mean.shape) - 1), len(mean.shape))
    centred = parts - ops.mean(parts, axes, keepdims=True)
    noise = ops.mean(ops.reshape(ops.diagonal(gaussian.cov), (groups, channels // groups)), -1, keepdims=True)
    inverse = ops.rsqrt(ops.mean(ops.square(centred), axes, keepdims=True) + noise + layer.epsilon)
    ones = ops.ones_like(centred)
    shape = (-1, *mean.shape[1:])
    centred, inverse = ops.reshape(centred * inverse, shape), ops.reshape(inverse * ones, shape)
    gamma, shift = _scale_and_shift(layer, mean.dtype)
    return _normalised(layer, gaussian, context, centred * gamma + shift, inverse, gamma)


@propagate.register(keras.layers.SpectralNormalization)
def spectral_normalization(layer, gaussian, context):
    """The rule of the layer inside, over the kernel that the wrapper has left there; in training after the wrapper's
    own step, W / |W|_2 by power iteration (exact where that rule is)."""
    if context.training:
        kept = (layer.vector_u.value, layer.kernel.value)
        vector, kernel = ops.cond(ops.all(ops.equal(layer.kernel.value, 0)), lambda: kept, layer.normalized_weights)
        layer.vector_u.assign(vector)
        layer.kernel.assign(kernel)
    return propagate(layer.layer, gaussian, context)
