"""One moment rule per stock Keras layer type (paper, Table 1).

A rule takes the layer, which owns the weights, and the Gaussian before it, and returns the Gaussian after it. Add one
with `@propagate.register(MyLayer)`; a layer without a rule is an error that names the remedy, never a guess.
The rectifiers' mathematics is in `rectifiers.py`; models that contain layers have their rule in `network.py`.
"""

import math

import keras
from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian, blocks
from covkeras.moments.gradients import custom_gradient
from covkeras.moments.rectifiers import Rectifier, activation_slope

# The linear layers.


def quadratic_form(kernel, cov):
    """Returns sum_k W_k^T S W_k, the covariance after independent copies of S meet the matrices W_k (exact).

    Args:
        kernel: (k, inputs, outputs). cov: (inputs, inputs), symmetric.

    Returns:
        (outputs, outputs), float32.
    """

    @custom_gradient
    def form(kernel, cov):
        # S W_k serves the value and the gradient: d/dW = 2 S W G for symmetric G, one product less than automatically.
        weighted = ops.matmul(cov, kernel)
        outputs = kernel.shape[-1]
        value = ops.matmul(ops.transpose(ops.reshape(weighted, (-1, outputs))), ops.reshape(kernel, (-1, outputs)))

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            symmetric = upstream + ops.transpose(upstream)
            by_kernel = ops.matmul(weighted, symmetric)
            half = ops.matmul(kernel, 0.5 * symmetric)
            inputs = kernel.shape[-2]
            rows = ops.reshape(ops.transpose(kernel, (1, 0, 2)), (inputs, -1))
            by_cov = ops.matmul(rows, ops.transpose(ops.reshape(ops.transpose(half, (1, 0, 2)), (inputs, -1))))
            return by_kernel, by_cov

        return value, gradient

    return form(ops.cast(kernel, "float32"), ops.cast(cov, "float32"))


def _biased(layer, mean):
    # ops.add, not +: it becomes a BiasAdd, which TensorFlow fuses with the product and sums quickly in the gradient.
    return ops.add(mean, ops.cast(layer.bias, mean.dtype)) if layer.use_bias else mean


def _activated(layer, gaussian, context):
    slope = activation_slope(layer)
    return gaussian if slope is None else context.activated(gaussian, Rectifier(slope))


def _channels_last(layer):
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise NotImplementedError(
            f"layer {layer.name!r} is {layer.data_format}; moments need the channels last. Rebuild it with "
            "data_format='channels_last'."
        )


def _one_block(layer, gaussian):
    if blocks(gaussian) != 1:
        raise NotImplementedError(
            f"{type(layer).__name__} (layer {layer.name!r}) needs one covariance per channel axis, but its input was "
            f"flattened: {blocks(gaussian)} blocks of {gaussian.cov.shape[-1]}. Move it before Flatten, or put a Dense "
            "between."
        )


@propagate.register(keras.layers.Conv2D)
def conv2d(layer, gaussian, context):
    """Mean W * m + b; cov (1 + r_max) sum_k W_k^T S W_k over the kernel's positions k (Table 1; the sum approximate).

    mean (batch, h, w, in) -> (batch, h', w', out); cov (in, in) -> (out, out). With "same" padding the border's
    covariance is that of the inside: too large.
    """
    _channels_last(layer)
    _one_block(layer, gaussian)
    kernel = layer.kernel
    size = math.prod(layer.kernel_size)
    matrices = ops.reshape(kernel, (size, kernel.shape[-2], kernel.shape[-1]))
    if layer.groups > 1:
        matrices = _ungrouped(matrices, layer.groups)
    cov = (1.0 + context.r_max) * quadratic_form(matrices, gaussian.cov)
    mean = ops.conv(
        ops.cast(gaussian.mean, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=list(layer.strides),
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


def _ungrouped(kernel, groups: int):
    """(k, in / groups, out) of a grouped convolution -> (k, in, out), zero between groups."""
    size, _, outputs = kernel.shape
    parts = ops.split(kernel, groups, axis=-1)
    zero = ops.zeros_like(parts[0])
    rows = [ops.concatenate([p if i == j else zero for j in range(groups)], axis=1) for i, p in enumerate(parts)]
    return ops.reshape(ops.concatenate(rows, axis=-1), (size, -1, outputs))


@propagate.register(keras.layers.DepthwiseConv2D)
def depthwise_conv2d(layer, gaussian, context):
    """Mean w * m + b; cov (1 + r_max) S_cd sum_k w_kc w_kd: Conv2D's rule with diagonal W_k (approximate).

    mean (batch, h, w, in) -> (batch, h', w', in * multiplier); cov (in, in) -> (in * multiplier, in * multiplier).
    """
    _channels_last(layer)
    _one_block(layer, gaussian)
    kernel = layer.kernel
    multiplier = layer.depth_multiplier
    flat = ops.cast(ops.reshape(kernel, (math.prod(layer.kernel_size), -1)), "float32")
    repeated = ops.repeat(ops.repeat(gaussian.cov, multiplier, axis=0), multiplier, axis=1)
    cov = (1.0 + context.r_max) * ops.matmul(ops.transpose(flat), flat) * repeated
    mean = ops.depthwise_conv(
        ops.cast(gaussian.mean, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


@propagate.register(keras.layers.Dense)
def dense(layer, gaussian, context):
    """Mean W^T m + b; cov sum_p W_p^T S W_p over the P blocks of the input (exact for independent blocks).

    mean (batch, ..., P * in) -> (batch, ..., out); cov (in, in) -> (out, out).
    """
    kernel = layer.kernel
    matrices = ops.reshape(kernel, (-1, gaussian.cov.shape[-1], kernel.shape[-1]))
    cov = quadratic_form(matrices, gaussian.cov)
    mean = ops.matmul(ops.cast(gaussian.mean, layer.compute_dtype), ops.cast(kernel, layer.compute_dtype))
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


# Pooling and merging.


@propagate.register(keras.layers.AveragePooling2D)
def average_pooling(layer, gaussian, context):
    """Mean averaged; cov S / (k k) for a k x k window of independent pixels (approximate: neighbours correlate)."""
    _channels_last(layer)
    return Gaussian(layer(gaussian.mean), gaussian.cov / math.prod(layer.pool_size))


@propagate.register(keras.layers.GlobalAveragePooling2D)
def global_average_pooling(layer, gaussian, context):
    """Mean averaged over the M pixels; cov S / M (approximate: pixels correlate)."""
    _channels_last(layer)
    pixels = gaussian.mean.shape[1] * gaussian.mean.shape[2]
    return Gaussian(layer(gaussian.mean), gaussian.cov / pixels)


@propagate.register(keras.layers.Add)
def add(layer, gaussians, context):
    """Mean summed; cov S_a + S_b: the branches taken as independent (Table 1, residual; approximate)."""
    if len({g.cov.shape[-1] for g in gaussians}) != 1:
        raise NotImplementedError(
            f"Add (layer {layer.name!r}) needs branches with equally long covariances, got "
            f"{[g.cov.shape[-1] for g in gaussians]}. Flatten after adding, not before."
        )
    return Gaussian(layer([g.mean for g in gaussians]), sum(g.cov for g in gaussians))


@propagate.register(keras.layers.Concatenate)
def concatenate(layer, gaussians, context):
    """Mean joined along the channels; cov block-diagonal: the branches taken as independent (approximate)."""
    rank = len(gaussians[0].mean.shape)
    if layer.axis not in (-1, rank - 1):
        raise NotImplementedError(
            f"Concatenate (layer {layer.name!r}) has a moment rule along the channels (axis -1) only, got axis "
            f"{layer.axis}."
        )
    for gaussian in gaussians:
        _one_block(layer, gaussian)
    sizes = [g.cov.shape[-1] for g in gaussians]
    rows = []
    for i, gaussian in enumerate(gaussians):
        row = [gaussian.cov if i == j else ops.zeros((sizes[i], size), "float32") for j, size in enumerate(sizes)]
        rows.append(ops.concatenate(row, axis=1))
    return Gaussian(layer([g.mean for g in gaussians]), ops.concatenate(rows, axis=0))


# Affine maps of each channel: cov D S D.


def _scaled(gaussian, mean, scale):
    """cov D S D with D the diagonal of `scale`, a number or (channels,)."""
    scale = ops.cast(scale, "float32")
    if len(scale.shape) == 0:
        return Gaussian(mean, scale * scale * gaussian.cov)
    return Gaussian(mean, ops.expand_dims(scale, 0) * ops.expand_dims(scale, 1) * gaussian.cov)


@propagate.register(keras.layers.BatchNormalization)
def batch_normalization(layer, gaussian, context):
    """Affine, by the moving statistics (exact); in training by the noisy batch's: mean m, variance Var(m) + diag S.

    The batch is each replica's own, as in Keras, unless the layer is `synchronized`.
    """
    _one_block(layer, gaussian)
    if layer.axis not in (-1, len(gaussian.mean.shape) - 1):
        raise NotImplementedError(f"BatchNormalization (layer {layer.name!r}) must normalise the last axis.")
    mean = ops.cast(gaussian.mean, "float32")
    center, variance = layer.moving_mean, layer.moving_variance
    if context.training and layer.trainable:
        axes = list(range(len(mean.shape) - 1))
        center, variance = ops.moments(mean, axes=axes, synchronized=layer.synchronized)
        variance = variance + ops.diagonal(gaussian.cov)
        for moving, batch in ((layer.moving_mean, center), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + ops.cast(batch, moving.dtype) * (1.0 - layer.momentum))
    scale = ops.rsqrt(ops.convert_to_tensor(variance) + layer.epsilon)
    scale = scale * layer.gamma if layer.scale else scale
    shift = -center * scale + (layer.beta if layer.center else 0.0)
    return _scaled(gaussian, ops.cast(mean * scale + shift, layer.compute_dtype), scale)


@propagate.register(keras.layers.Normalization)
def normalization(layer, gaussian, context):
    """Affine: (m - mean) / sd, cov D S D with D = 1 / sd, or sd where `invert` (exact)."""
    variance = ops.convert_to_tensor(layer.variance)
    if math.prod(variance.shape) not in (1, gaussian.cov.shape[-1]):
        raise NotImplementedError(
            f"Normalization (layer {layer.name!r}) has a moment rule for one variance per channel, got shape "
            f"{tuple(variance.shape)}. Build it with axis=-1 or axis=None."
        )
    variance = ops.reshape(ops.cast(variance, "float32"), () if math.prod(variance.shape) == 1 else (-1,))
    sd = ops.maximum(ops.sqrt(variance), keras.config.epsilon())
    return _scaled(gaussian, layer(gaussian.mean), sd if layer.invert else 1.0 / sd)


@propagate.register(keras.layers.Rescaling)
def rescaling(layer, gaussian, context):
    """Affine: scale m + offset, cov D S D with D = scale (exact)."""
    return _scaled(gaussian, layer(gaussian.mean), layer.scale)


# Layers that move or keep units.


@propagate.register(keras.layers.Flatten, keras.layers.Reshape)
def reshape(layer, gaussian, context):
    """Mean reshaped, cov unchanged: each run of units along the last axis stays together (exact for blocks)."""
    mean = layer(gaussian.mean)
    if mean.shape[-1] % gaussian.cov.shape[-1]:
        raise NotImplementedError(
            f"{type(layer).__name__} (layer {layer.name!r}) tears the channels apart: last axis {mean.shape[-1]}, "
            f"covariance of {gaussian.cov.shape[-1]} channels. Reshape to a vector, keras.layers.Flatten()."
        )
    return Gaussian(mean, gaussian.cov)


@propagate.register(keras.layers.ZeroPadding2D, keras.layers.Identity, keras.layers.InputLayer)
def unchanged(layer, gaussian, context):
    """Mean through the layer, cov unchanged (padded zeros have no noise: too large at the border)."""
    return Gaussian(layer(gaussian.mean), gaussian.cov)


@propagate.register(keras.layers.Dropout)
def dropout(layer, gaussian, context):
    """Outside training the identity (exact). In training the mean is dropped, and the covariance is its average over
    the masks b / (1 - rate): S + rate / (1 - rate) diag S."""
    if not context.training or layer.rate == 0:
        return gaussian
    extra = layer.rate / (1.0 - layer.rate)
    cov = gaussian.cov * (1.0 + extra * ops.eye(gaussian.cov.shape[-1], dtype="float32"))
    return Gaussian(layer(gaussian.mean, training=True), cov)


# Rectifiers as layers of their own.


@propagate.register(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
def rectifier(layer, gaussian, context):
    """The (leaky) ReLU's rule, `rectify`: mean m Phi(m/s) + s phi(m/s), cov unchanged."""
    return _activated(layer, gaussian, context)
