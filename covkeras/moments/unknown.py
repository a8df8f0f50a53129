"""Layers and operations without a moment rule, where the network was asked to take them nevertheless.

Estimates, as all moments are: never called certified.
"""

import inspect

import numpy as np
from keras import ops

from covkeras.moments.gaussian import Gaussian, blocks, square_root, wide
from covkeras.moments.graph import Call

# Antithetic pairs of samples. The covariance's relative error is that of PAIRS times batch and pixels samples.
PAIRS = 8
# Above it a covariance is not carried: it would be larger than the network.
_LARGEST = 4096


def mean_alone(layer, gaussian, context):
    """The mean through the layer itself; the covariance, which is not known, as zeros of the output's size."""
    means = _outputs(_apply(layer, [g.mean for g in _list(gaussian)], gaussian, context.training))
    return _one_or_list([Gaussian(mean, _zeros(mean)) for mean in means])


def linearised(layer, gaussian, context):
    """Mean and covariance of the layer alone, at `PAIRS` antithetic pairs m + v, m - v of samples of its input.

    The mean is that of f(m + v) and f(m - v); the covariance that of (f(m + v) - f(m - v)) / 2 about 0, the mean over
    pairs, batch and positions: J S J^T for a linear layer, and what a kinked one does over the noise's width. The noise
    is the same at every call (approximate; the batch's images share the covariance).
    """
    given = _list(gaussian)
    above, below = zip(*(_pairs(g, seed) for seed, g in enumerate(given)), strict=True)
    ends = [_outputs(_apply(layer, list(side), gaussian, context.training)) for side in (above, below)]
    return _one_or_list([_moments(layer, high, low) for high, low in zip(*ends, strict=True)])


def _pairs(gaussian: Gaussian, seed: int):
    """m + v and m - v, (PAIRS * batch, ...), v independent at every pixel and block."""
    channels = gaussian.cov.shape[-1]
    mean = wide(gaussian.mean)
    parts = (*mean.shape[1:-1], blocks(gaussian), channels)
    # Numbers, not a generator's state: the same noise at every call, and no draw within a step.
    drawn = np.random.default_rng(seed).standard_normal((PAIRS, *parts)).astype("float32")
    factor = square_root(gaussian.cov)
    noise = ops.cast(ops.matmul(ops.cast(drawn, factor.dtype), ops.transpose(factor)), mean.dtype)
    noise = ops.reshape(noise, (PAIRS, 1, *mean.shape[1:]))
    shape = (-1, *mean.shape[1:])
    return tuple(ops.cast(ops.reshape(mean[None] + side, shape), gaussian.mean.dtype) for side in (noise, -noise))


def _moments(layer, high, low) -> Gaussian:
    channels = high.shape[-1]
    if channels is None or channels > _LARGEST:
        raise NotImplementedError(
            f"{_kind(layer)} (layer {layer.name!r}) can't be linearised: a covariance of {channels} channels would be "
            "larger than the network. Put a pooling or a Dense before, or use unknown='adjoint'."
        )
    first = ops.reshape(0.5 * (wide(high) + wide(low)), (PAIRS, -1, *high.shape[1:]))
    odd = ops.reshape(0.5 * (wide(high) - wide(low)), (-1, channels))
    cov = ops.matmul(ops.transpose(odd), odd) / ops.cast(ops.shape(odd)[0], odd.dtype)
    return Gaussian(ops.cast(ops.mean(first, 0), high.dtype), cov)


def _apply(layer, means: list, given, training: bool):
    """The layer, or the call, at the means."""
    if isinstance(layer, Call):
        return layer(means if len(means) > 1 else means[0], training=training)
    several = isinstance(given, list)
    options = {"training": training} if "training" in inspect.signature(layer.call).parameters else {}
    return layer(means if several else means[0], **options)


def _outputs(result) -> list:
    """What came out, which must be one tensor for each of the node's outputs."""
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    if isinstance(result, dict) or not all(hasattr(one, "shape") for one in outputs):
        raise NotImplementedError(f"moments take layers whose outputs are tensors, got {type(result).__name__}.")
    return outputs


def _zeros(mean):
    channels = mean.shape[-1] if len(mean.shape) > 1 and mean.shape[-1] else 1
    size = channels if channels <= _LARGEST else 1
    return ops.zeros((size, size), "float32")


def _list(gaussian) -> list:
    return list(gaussian) if isinstance(gaussian, list) else [gaussian]


def _one_or_list(gaussians: list):
    return gaussians[0] if len(gaussians) == 1 else gaussians


def _kind(layer) -> str:
    return type(layer.operation if isinstance(layer, Call) else layer).__name__
