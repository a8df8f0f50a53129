"""Rules of the pooling layers."""

import itertools
import math

import keras
from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian, wide
from covkeras.moments.merging import larger_of_two, with_variance
from covkeras.moments.rules import check_channels_last, check_one_block

_kinds = keras.layers


@propagate.register(_kinds.AveragePooling1D, _kinds.AveragePooling2D)
def average_pooling(layer, gaussian, context):
    """Mean averaged; cov S / (k k) for a k x k window of independent pixels (approximate: neighbours correlate)."""
    check_channels_last(layer)
    return Gaussian(layer(gaussian.mean), gaussian.cov / math.prod(_pair(layer.pool_size)))


@propagate.register(_kinds.GlobalAveragePooling1D, _kinds.GlobalAveragePooling2D)
def global_average_pooling(layer, gaussian, context):
    """Mean averaged over the M pixels; cov S / M (approximate: pixels correlate)."""
    check_channels_last(layer)
    return Gaussian(layer(gaussian.mean), gaussian.cov / math.prod(gaussian.mean.shape[1:-1]))


@propagate.register(_kinds.AdaptiveAveragePooling1D, _kinds.AdaptiveAveragePooling2D)
def adaptive_average_pooling(layer, gaussian, context):
    """Mean averaged over each part's pixels, which may be more in one part than in another; cov S E[1 / pixels], in the
    mean over the parts (approximate: neighbours correlate)."""
    check_channels_last(layer)
    shares = [sum(1.0 / len(part) for part in parts) / len(parts) for parts in _parts(layer, gaussian.mean.shape[1:-1])]
    return Gaussian(layer(gaussian.mean), gaussian.cov * math.prod(shares))


@propagate.register(_kinds.AdaptiveMaxPooling1D, _kinds.AdaptiveMaxPooling2D)
def adaptive_max_pooling(layer, gaussian, context):
    """`max_pooling`, over parts of the image."""
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    inside = wide(gaussian.mean)
    # One beyond the border, which never wins, fills the parts that are smaller than others.
    inside = ops.pad(inside, ((0, 0), *((0, 1) for _ in inside.shape[1:-1]), (0, 0)), constant_values=-1e6)
    windows, places = [], []
    for parts in _parts(layer, gaussian.mean.shape[1:-1]):
        size, beyond = max(map(len, parts)), parts[-1].stop
        places.append([[part[i] if i < len(part) else beyond for part in parts] for i in range(size)])
    for chosen in itertools.product(*places):
        window = inside
        for axis, place in enumerate(chosen):
            window = ops.take(window, place, axis=axis + 1)
        windows.append(window)
    return _maximum(layer, ops.stack(windows), gaussian, context)


def _parts(layer, lengths) -> list[list[range]]:
    """The pixels of each of an adaptive layer's parts, axis by axis; they may overlap."""
    sizes = _pair(layer.output_size)
    return [
        [range(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]
        for n, length in zip(sizes, lengths, strict=True)
    ]


@propagate.register(_kinds.MaxPooling1D, _kinds.MaxPooling2D)
def max_pooling(layer, gaussian, context):
    """Mean of the window's maximum by Clark's formulas as a tournament (exact for two pixels, approximate for more),
    r_max the correlation of the pixels that meet; cov D S D, the maximum's variance in the mean over batch and
    positions (approximate; the batch's images share it).

    mean (batch, h, w, channels) -> (batch, h', w', channels); cov kept in size.
    """
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    return _maximum(layer, _windows(layer, wide(gaussian.mean)), gaussian, context)


@propagate.register(_kinds.GlobalMaxPooling1D, _kinds.GlobalMaxPooling2D)
def global_max_pooling(layer, gaussian, context):
    """The same over all pixels: `max_pooling`."""
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    mean = wide(gaussian.mean)
    pixels, channels = math.prod(mean.shape[1:-1]), mean.shape[-1]
    kept = (1,) * (len(mean.shape) - 2) if layer.keepdims else ()
    values = ops.reshape(mean, (-1, pixels, *kept, channels))
    return _maximum(layer, ops.moveaxis(values, 1, 0), gaussian, context)


def _maximum(layer, entrants, gaussian: Gaussian, context) -> Gaussian:
    """The largest of the first axis: entrants (window, batch, ..., channels)."""
    channels = entrants.shape[-1]
    variance = ops.broadcast_to(ops.diagonal(gaussian.cov), ops.shape(entrants))
    mean = entrants
    while mean.shape[0] > 1:
        half = mean.shape[0] // 2
        (a, va), (b, vb) = ((x[:half], v[:half]) for x, v in ((mean, variance), (mean[half:], variance[half:])))
        won, spread, _ = larger_of_two(a, va, b, vb, context.r_max)
        # An odd one out goes on.
        mean, variance = (ops.concatenate([x, y[2 * half :]]) for x, y in ((won, mean), (spread, variance)))
    cov = with_variance(gaussian.cov, ops.mean(ops.reshape(variance, (-1, channels)), 0))
    value = layer(gaussian.mean) if context.plain else ops.cast(mean[0], gaussian.mean.dtype)
    return Gaussian(value, cov)


def _windows(layer, mean):
    """The pixels of every window, (window, batch, h', w', channels); those beyond the border never win."""
    sizes, strides = _pair(layer.pool_size), _pair(layer.strides or layer.pool_size)
    starts, lengths = [], []
    pads = [(0, 0)]
    for length, size, stride in zip(mean.shape[1:-1], sizes, strides, strict=True):
        count = -(-length // stride) if layer.padding == "same" else (length - size) // stride + 1
        total = max(0, (count - 1) * stride + size - length) if layer.padding == "same" else 0
        pads.append((total // 2, total - total // 2))
        starts.append(range(size))
        lengths.append((count, stride))
    inside = ops.pad(mean, (*pads, (0, 0)), constant_values=-1e6)
    windows = []
    for offsets in itertools.product(*starts):
        cut = [slice(o, o + (n - 1) * s + 1, s) for o, (n, s) in zip(offsets, lengths, strict=True)]
        windows.append(inside[(slice(None), *cut)])
    return ops.stack(windows)


def _pair(size) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)
