"""One moment rule per stock Keras layer type (paper, Table 1).

A rule takes the layer, which owns the weights, and the Gaussian before it, and returns the Gaussian after it. Add one
with `@propagate.register(MyLayer)`; a layer without a rule is an error that names the remedy, never a guess.
The rectifiers' mathematics is in `rectifiers.py`; models that contain layers have their rule in `network.py`.
"""

import math

import keras
from keras import ops

from covkeras.moments.activations import activation_for
from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian, blocks, rescaled, wide
from covkeras.moments.gradients import custom_gradient

# The linear layers.


def quadratic_form(kernel, cov):
    """Returns sum_k W_k^T S W_k, the covariance after independent copies of S meet the matrices W_k (exact).

    Args:
        kernel: (k, inputs, outputs). cov: (inputs, inputs), symmetric.

    Returns:
        (outputs, outputs), in the dtype of cov.
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

    return form(ops.cast(kernel, cov.dtype), cov)


def _biased(layer, mean):
    # ops.add, not +: it becomes a BiasAdd, which TensorFlow fuses with the product and sums quickly in the gradient.
    return ops.add(mean, ops.cast(layer.bias, mean.dtype)) if layer.use_bias else mean


def _activated(layer, gaussian, context):
    activation = activation_for(layer)
    return gaussian if activation is None else context.activated(gaussian, activation)


def check_channels_last(layer):
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise NotImplementedError(
            f"layer {layer.name!r} is {layer.data_format}; moments need the channels last. Rebuild it with "
            "data_format='channels_last'."
        )


def check_one_block(layer, gaussian):
    if blocks(gaussian) != 1:
        raise NotImplementedError(
            f"{type(layer).__name__} (layer {layer.name!r}) needs one covariance per channel axis, but its input was "
            f"flattened: {blocks(gaussian)} blocks of {gaussian.cov.shape[-1]}. Move it before Flatten, or put a Dense "
            "between."
        )


@propagate.register(keras.layers.Conv2D, keras.layers.Conv1D)
def convolution(layer, gaussian, context):
    """Mean W * m + b; cov (1 + r_max) sum_k W_k^T S W_k over the kernel's positions k (Table 1; the sum approximate).

    mean (batch, h, w, in) -> (batch, h', w', out); cov (in, in) -> (out, out). With "same" padding the border's
    covariance is that of the inside: too large.
    """
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    kernel = layer.kernel
    if layer.groups > 1 and kernel.shape[-2] == 1:
        cov = _depthwise_cov(layer, kernel, gaussian, context, kernel.shape[-1] // layer.groups)
    else:
        matrices = ops.reshape(kernel, (math.prod(layer.kernel_size), kernel.shape[-2], kernel.shape[-1]))
        if layer.groups > 1:
            matrices = _ungrouped(matrices, layer.groups)
        cov = (1.0 + context.r_max) * quadratic_form(matrices, gaussian.cov)
    mean, padding = gaussian.mean, layer.padding
    if padding == "causal":
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        mean, padding = ops.pad(mean, ((0, 0), (before, 0), (0, 0))), "valid"
    mean = ops.conv(
        ops.cast(mean, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


def _ungrouped(kernel, groups: int):
    """(k, in / groups, out) of a grouped convolution -> (k, in, out), zero between groups."""
    size, inputs, outputs = kernel.shape
    # By a product, not from pieces: of those there are as many as groups, squared.
    own = ops.reshape(ops.eye(groups, dtype=kernel.dtype), (1, groups, 1, groups, 1))
    parts = ops.reshape(kernel, (size, 1, inputs, groups, outputs // groups))
    return ops.reshape(own * parts, (size, groups * inputs, outputs))


@propagate.register(keras.layers.DepthwiseConv2D, keras.layers.DepthwiseConv1D)
def depthwise_convolution(layer, gaussian, context):
    """Mean w * m + b; cov (1 + r_max) S_cd sum_k w_kc w_kd: Conv2D's rule with diagonal W_k (approximate).

    mean (batch, h, w, in) -> (batch, h', w', in * multiplier); cov (in, in) -> (in * multiplier, in * multiplier).
    """
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    kernel = layer.kernel
    cov = _depthwise_cov(layer, kernel, gaussian, context, layer.depth_multiplier)
    mean = ops.depthwise_conv(
        ops.cast(gaussian.mean, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


def _depthwise_cov(layer, kernel, gaussian, context, multiplier: int):
    """(1 + r_max) S_cd sum_k w_kc w_kd; multiplier: outputs of each input channel."""
    flat = ops.cast(ops.reshape(kernel, (math.prod(layer.kernel_size), -1)), gaussian.cov.dtype)
    repeated = ops.repeat(ops.repeat(gaussian.cov, multiplier, axis=0), multiplier, axis=1)
    return (1.0 + context.r_max) * ops.matmul(ops.transpose(flat), flat) * repeated


@propagate.register(keras.layers.SeparableConv2D, keras.layers.SeparableConv1D)
def separable_convolution(layer, gaussian, context):
    """A depthwise convolution, then one of 1 x 1: the covariance by both rules, one after the other (approximate).

    mean (batch, h, w, in) -> (batch, h', w', out); cov (in, in) -> (out, out).
    """
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    kernel = layer.pointwise_kernel
    cov = _depthwise_cov(layer, layer.depthwise_kernel, gaussian, context, layer.depth_multiplier)
    cov = quadratic_form(ops.reshape(kernel, (1, *kernel.shape[-2:])), cov)
    # What the layer is, its bias and activation left to ours.
    mean = ops.separable_conv(
        ops.cast(gaussian.mean, layer.compute_dtype),
        ops.cast(layer.depthwise_kernel, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


@propagate.register(keras.layers.Conv2DTranspose, keras.layers.Conv1DTranspose)
def transposed_convolution(layer, gaussian, context):
    """Mean by the layer; cov (1 + r_max) sum_k W_k^T S W_k / prod(strides): the mean over the output's positions, each
    of which meets every stride-th k (approximate; exact in the mean for independent pixels).

    mean (batch, h, w, in) -> (batch, h', w', out); cov (in, in) -> (out, out).
    """
    check_channels_last(layer)
    check_one_block(layer, gaussian)
    kernel = layer.kernel
    matrices = ops.reshape(kernel, (math.prod(layer.kernel_size), *kernel.shape[-2:]))
    cov = (
        (1.0 + context.r_max)
        / math.prod(layer.strides)
        * quadratic_form(ops.transpose(matrices, (0, 2, 1)), gaussian.cov)
    )
    mean = ops.conv_transpose(
        ops.cast(gaussian.mean, layer.compute_dtype),
        ops.cast(kernel, layer.compute_dtype),
        strides=list(layer.strides),
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation_rate=layer.dilation_rate,
        data_format="channels_last",
    )
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


@propagate.register(keras.layers.Dense)
def dense(layer, gaussian, context):
    """Mean W^T m + b; cov sum_p W_p^T S W_p over the P blocks of the input (exact for independent blocks).

    mean (batch, ..., P * in) -> (batch, ..., out); cov (in, in) -> (out, out).
    """
    mean, cov = _times_kernel(layer, gaussian)
    return _activated(layer, Gaussian(_biased(layer, mean), cov), context)


@propagate.register(keras.layers.EinsumDense)
def einsum_dense(layer, gaussian, context):
    """As Dense, where the last axis alone is summed over, as by "abc,cd->abd" or "...x,xy->...y"; others are refused.

    mean (batch, ..., P * in) -> (batch, ..., out); cov (in, in) -> (out, out).
    """
    given, after = layer.equation.split("->")
    inputs, weights = given.split(",")
    if len(weights) != 2 or inputs[-1:] != weights[0] or after != inputs[:-1] + weights[1]:
        raise NotImplementedError(
            f"EinsumDense (layer {layer.name!r}) has a moment rule where the last axis alone is summed over, as by "
            f"'...x,xy->...y', got {layer.equation!r}. Use Dense between Reshape or Permute."
        )
    mean, cov = _times_kernel(layer, gaussian)
    mean = mean if layer.bias is None else ops.add(mean, ops.cast(layer.bias, mean.dtype))
    return _activated(layer, Gaussian(mean, cov), context)


def _times_kernel(layer, gaussian) -> Gaussian:
    """W^T m and sum_p W_p^T S W_p, of a layer whose kernel is the matrix W."""
    kernel = layer.kernel
    matrices = ops.reshape(kernel, (-1, gaussian.cov.shape[-1], kernel.shape[-1]))
    mean = ops.matmul(ops.cast(gaussian.mean, layer.compute_dtype), ops.cast(kernel, layer.compute_dtype))
    return Gaussian(mean, quadratic_form(matrices, gaussian.cov))


# Affine maps of each channel: cov D S D.


def scaled(gaussian, mean, scale):
    """cov D S D with D the diagonal of `scale`, a number or (channels,)."""
    scale = ops.cast(scale, gaussian.cov.dtype)
    if len(scale.shape) == 0:
        return Gaussian(mean, scale * scale * gaussian.cov)
    return Gaussian(mean, rescaled(gaussian.cov, scale))


@propagate.register(keras.layers.BatchNormalization)
def batch_normalization(layer, gaussian, context):
    """Affine, by the moving statistics or the context's (exact); in training by the noisy batch's: mean m, variance
    Var(m) + diag S.

    The batch is each replica's own, as in Keras, unless the layer is `synchronized`.
    """
    check_one_block(layer, gaussian)
    if layer.axis not in (-1, len(gaussian.mean.shape) - 1):
        raise NotImplementedError(f"BatchNormalization (layer {layer.name!r}) must normalise the last axis.")
    mean = wide(gaussian.mean)
    taken = next(context.statistics.get(layer, iter(())), (layer.moving_mean, layer.moving_variance))
    center, variance = (ops.cast(one, mean.dtype) for one in taken)
    if context.training and layer.trainable:
        axes = list(range(len(mean.shape) - 1))
        center, variance = ops.moments(mean, axes=axes, synchronized=layer.synchronized)
        variance = variance + ops.cast(ops.diagonal(gaussian.cov), mean.dtype)
        for moving, batch in ((layer.moving_mean, center), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + ops.cast(batch, moving.dtype) * (1.0 - layer.momentum))
    scale = ops.rsqrt(variance + layer.epsilon)
    scale = scale * ops.cast(layer.gamma, mean.dtype) if layer.scale else scale
    shift = -center * scale + (ops.cast(layer.beta, mean.dtype) if layer.center else 0.0)
    return scaled(gaussian, ops.cast(mean * scale + shift, layer.compute_dtype), scale)


@propagate.register(keras.layers.Normalization)
def normalization(layer, gaussian, context):
    """Affine: (m - mean) / sd, cov D S D with D = 1 / sd, or sd where `invert` (exact)."""
    variance = ops.convert_to_tensor(layer.variance)
    if math.prod(variance.shape) not in (1, gaussian.cov.shape[-1]):
        raise NotImplementedError(
            f"Normalization (layer {layer.name!r}) has a moment rule for one variance per channel, got shape "
            f"{tuple(variance.shape)}. Build it with axis=-1 or axis=None."
        )
    variance = ops.reshape(ops.cast(variance, gaussian.cov.dtype), () if math.prod(variance.shape) == 1 else (-1,))
    sd = ops.maximum(ops.sqrt(variance), keras.config.epsilon())
    return scaled(gaussian, layer(gaussian.mean), sd if layer.invert else 1.0 / sd)


@propagate.register(keras.layers.Rescaling)
def rescaling(layer, gaussian, context):
    """Affine: scale m + offset, cov D S D with D = scale (exact)."""
    return scaled(gaussian, layer(gaussian.mean), layer.scale)


# Activations as layers of their own.


@propagate.register(*(getattr(keras.layers, name) for name in ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU")))
def activation(layer, gaussian, context):
    """The activation's rule: ReLU's is `rectify`, mean m Phi(m/s) + s phi(m/s), cov unchanged; see `activations`."""
    return _activated(layer, gaussian, context)
