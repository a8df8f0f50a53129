"""Interval bound propagation (Gowal et al., ICCV 2019), for the pictures that set boxes beside moments.

A sound box around every value a layer can take when the input lies in a box. Nothing is certified by it here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

from covkeras.moments.graph import walk


class Interval(NamedTuple):
    """low, high: (batch, ...), elementwise bounds."""

    low: object
    high: object


def interval_bounds(classifier, low, high, seen: Callable = lambda layer, interval: None) -> Interval:
    """Carries the box [low, high] through a classifier.

    Args:
        classifier: a Sequential or Functional model of the layers that have a moment rule.
        low, high: (batch, ...), of the classifier's input.
        seen: called with each layer and the Interval after it.

    Returns:
        Interval of the outputs.

    Raises:
        ValueError: low above high. NotImplementedError: a layer without an interval rule; the message names it.
    """
    if not np.all(np.asarray(low) <= np.asarray(high)):
        raise ValueError("low must not be above high.")

    def visit(layer, given, position, options):
        after = _through(layer, given)
        seen(layer, after)
        return after

    return walk(classifier, Interval(ops.convert_to_tensor(low), ops.convert_to_tensor(high)), visit)


@functools.singledispatch
def _through(layer, given):
    raise NotImplementedError(f"No interval rule for {type(layer).__name__} (layer {layer.name!r}).")


@_through.register(layers.Conv2D)
@_through.register(layers.DepthwiseConv2D)
@_through.register(layers.Dense)
def _linear(layer, given):
    """centre W c + b, radius |W| r; then the activation, monotone."""
    middle, radius = (given.low + given.high) / 2, (given.high - given.low) / 2
    if isinstance(layer, layers.Dense):
        apply = ops.matmul
    else:
        convolve = ops.depthwise_conv if isinstance(layer, layers.DepthwiseConv2D) else ops.conv
        apply = functools.partial(
            convolve,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format="channels_last",
        )
    kernel = ops.cast(layer.kernel, middle.dtype)
    centre = apply(middle, kernel)
    centre = centre + ops.cast(layer.bias, centre.dtype) if layer.use_bias else centre
    spread = apply(radius, ops.abs(kernel))
    _check_monotone(layer)
    return Interval(layer.activation(centre - spread), layer.activation(centre + spread))


@_through.register(layers.AveragePooling2D)
@_through.register(layers.GlobalAveragePooling2D)
@_through.register(layers.Flatten)
@_through.register(layers.Reshape)
@_through.register(layers.ZeroPadding2D)
@_through.register(layers.Identity)
@_through.register(layers.InputLayer)
@_through.register(layers.Dropout)
@_through.register(layers.Activation)
@_through.register(layers.ReLU)
@_through.register(layers.LeakyReLU)
def _monotone(layer, given):
    """Layers that never fall: the ends stay the ends."""
    _check_monotone(layer)
    return Interval(layer(given.low), layer(given.high))


_MONOTONE = ("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "softplus", "sigmoid", "tanh", "hard_sigmoid")


def _check_monotone(layer) -> None:
    activation = getattr(layer, "activation", keras.activations.linear)
    if not any(activation is getattr(keras.activations, name) for name in _MONOTONE):
        name = getattr(activation, "__name__", repr(activation))
        raise NotImplementedError(f"No interval rule for activation {name!r} (layer {layer.name!r}): it may fall.")


@_through.register(layers.Rescaling)
@_through.register(layers.Normalization)
@_through.register(layers.BatchNormalization)
def _scaling(layer, given):
    """One number per channel, which may be negative."""
    a, b = layer(given.low), layer(given.high)
    return Interval(ops.minimum(a, b), ops.maximum(a, b))


@_through.register(layers.Add)
@_through.register(layers.Concatenate)
def _merge(layer, given):
    return Interval(layer([g.low for g in given]), layer([g.high for g in given]))


@_through.register(keras.Model)
def _nested(model, given):
    return walk(model, given, lambda layer, value, *_: _through(layer, value))
