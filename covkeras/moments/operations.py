"""Rules of Keras' operations in a functional graph (x + y, x * 2, ops.relu(x), ops.mean(x, 1)), and of layers that are
called with several tensors.

One mechanism: an operation is applied to the means by itself; here stands what becomes of the covariance. Operations
that act on each unit alone are activations (`activations.activation_of`), whatever their name.
"""

import inspect
import math
import re

import numpy as np
from keras import ops

from covkeras.moments.activations import activation_of_operation
from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian
from covkeras.moments.graph import Call
from covkeras.moments.merging import block_diagonal, check_alike, larger_of, product_of, summed
from covkeras.moments.rules import quadratic_form, scaled

# What these operations do alone is an activation; their class' names in Keras.
_UNARY = (
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu", "Sigmoid", "LogSigmoid", "Tanh", "Softplus"),
    *("Softsign", "HardSigmoid", "HardSilu", "HardTanh", "HardShrink", "SoftShrink", "TanhShrink", "Squareplus"),
    *("SparsePlus", "SparseSigmoid", "Threshold", "Exp", "Expm1", "Abs", "Absolute", "Square", "Sqrt", "Rsqrt", "Erf"),
    *("Sin", "Cos", "Arctan", "Log1p", "Negative", "Reciprocal", "Clip", "Sinh", "Cosh", "Tan", "Log"),
)


@propagate.register_operation(*_UNARY)
def unary(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """An element-wise operation, as the activation it is."""
    return context.activated(gaussian, _activation(call))


def _activation(call: Call, given: dict | None = None):
    """given: values that stand in the graph, and not in the operation."""
    kind = type(call.operation)
    made_with = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "name")]
    values = {name: getattr(call.operation, name) for name in made_with if hasattr(call.operation, name)} | (
        given or {}
    )
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    return activation_of_operation({"exp": "exponential"}.get(name, name), call, values)


@propagate.register_operation("Add", "Subtract", "Maximum", "Minimum", "Multiply", "Divide", "TrueDivide")
def arithmetic(call: Call, gaussians, context) -> Gaussian:
    """Of two tensors as the layers Add, Subtract, Maximum, Minimum and Multiply; else `with_a_value`."""
    name = type(call.operation).__name__
    if call.tensors != 2:
        return with_a_value(call, gaussians, context)
    named, mean = f"{name} (operation {call.name!r})", call([g.mean for g in gaussians])
    if name in ("Add", "Subtract"):
        return Gaussian(mean, summed(named, gaussians))
    if name == "Multiply":
        return Gaussian(mean, product_of(gaussians).cov)
    if name in ("Maximum", "Minimum"):
        check_alike(named, gaussians)
        result = larger_of(gaussians, -1.0 if name == "Minimum" else 1.0)
        return Gaussian(mean, result.cov) if context.plain else result
    raise NotImplementedError(f"No moment rule for {named} of two tensors. Multiply by the reciprocal of a constant.")


def with_a_value(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """x + c: cov unchanged. x c and x / c: cov D S D, D^2 the mean over positions of c^2 or 1 / c^2 (exact where c is
    one number, or one for each channel). max(x, c), c / x: activations."""
    name, (value, first) = type(call.operation).__name__, call.constant()
    if name in ("Add", "Subtract"):
        return Gaussian(call(gaussian.mean), gaussian.cov)
    if name in ("Maximum", "Minimum") or (first and name != "Multiply"):
        bound = {"bound": value} if name in ("Maximum", "Minimum") else {}
        return context.activated(gaussian, _activation(call, bound))
    factor = np.asarray(ops.convert_to_numpy(value), np.float32)
    squares = np.square(factor if name == "Multiply" else 1.0 / factor)
    channels = gaussian.cov.shape[-1]
    by_channel = factor.ndim > 0 and factor.shape[-1] == channels
    scale = np.sqrt(squares.reshape(-1, channels).mean(0) if by_channel else squares.mean())
    if by_channel:
        # Of a channel's values the signs matter between channels.
        scale = scale * np.where(factor.reshape(-1, channels).mean(0) < 0, -1.0, 1.0)
    return scaled(gaussian, call(gaussian.mean), ops.convert_to_tensor(np.asarray(scale, np.float32)))


@propagate.register_operation("Concatenate")
def concatenation(call: Call, gaussians, context) -> Gaussian:
    """Of tensors alone, along the channels: as the layer."""
    gaussians = gaussians if isinstance(gaussians, list) else [gaussians]
    cov = block_diagonal(f"Concatenate (operation {call.name!r})", gaussians, call.operation.axis)
    return Gaussian(call([g.mean for g in gaussians]), cov)


_MOVES = ("Reshape", "Squeeze", "ExpandDims", "Cast", "Identity", "StopGradient", "Transpose", "Flip")


@propagate.register_operation(*_MOVES)
def moved(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """Mean moved, cov unchanged: each run of channels along the last axis stays together (exact for blocks)."""
    name, mean, channels = type(call.operation).__name__, call(gaussian.mean), gaussian.cov.shape[-1]
    torn = mean.shape[-1] is None or bool(mean.shape[-1] % channels)
    if name == "Transpose":
        axes = call.operation.axes
        torn = not axes or axes[-1] % len(axes) != len(axes) - 1
    if name == "Flip":
        torn = _touches_channels(call, mean)
    if torn:
        raise NotImplementedError(
            f"No moment rule for {name} (operation {call.name!r}) that tears the channels apart: last axis "
            f"{mean.shape[-1]}, covariance of {channels} channels."
        )
    return Gaussian(mean, gaussian.cov)


@propagate.register_operation("GetItem")
def sliced(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """x[:, 1:], x[..., :2]: the mean's part, and of the channels that of the covariance too (exact)."""
    channels, rank = gaussian.cov.shape[-1], len(gaussian.mean.shape)
    key, _ = call.constant()
    # Read from a file it is a list.
    key = tuple(key) if isinstance(key, (tuple, list)) else (key,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *[slice(None)] * (rank - len(key) + 1), *key[at + 1 :])
    key += (slice(None),) * (rank - len(key))
    whole = all(isinstance(part, slice) for part in (key[0], key[-1]))
    if not whole or key[0] != slice(None) or gaussian.mean.shape[-1] != channels:
        raise NotImplementedError(
            f"No moment rule for GetItem (operation {call.name!r}) that takes one channel alone, or some of the batch. "
            "Take slices: x[..., :1]."
        )
    return Gaussian(call(gaussian.mean), gaussian.cov[..., key[-1], key[-1]])


@propagate.register_operation("Mean", "Sum")
def reduced(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """Over M positions: mean averaged or summed, cov S / M or M S (approximate: positions correlate)."""
    if _touches_channels(call, gaussian.mean) or gaussian.mean.shape[-1] != gaussian.cov.shape[-1]:
        raise NotImplementedError(
            f"No moment rule for {type(call.operation).__name__} (operation {call.name!r}) over the channels, or the "
            "batch."
        )
    rank = len(gaussian.mean.shape)
    axes = {a % rank for a in np.atleast_1d(call.operation.axis)}
    count = math.prod(gaussian.mean.shape[a] for a in axes)
    factor = 1.0 / count if type(call.operation).__name__ == "Mean" else float(count)
    return Gaussian(call(gaussian.mean), factor * gaussian.cov)


def _touches_channels(call: Call, mean) -> bool:
    axis, rank = getattr(call.operation, "axis", None), len(mean.shape)
    return axis is None or bool({a % rank for a in np.atleast_1d(axis)} & {0, rank - 1})


@propagate.register_operation("Matmul")
def product(call: Call, gaussian: Gaussian, context) -> Gaussian:
    """x W with a matrix W of numbers: as Dense, sum_p W_p^T S W_p (exact for independent blocks)."""
    if call.tensors != 1:
        raise NotImplementedError(f"No moment rule for Matmul of two tensors (operation {call.name!r}).")
    value, first = call.constant()
    matrix = np.asarray(value, np.float32)
    if first or matrix.ndim != 2:
        raise NotImplementedError(f"Matmul (operation {call.name!r}) has a moment rule for x W with a matrix W only.")
    matrices = matrix.reshape(-1, gaussian.cov.shape[-1], matrix.shape[-1])
    return Gaussian(call(gaussian.mean), quadratic_form(ops.convert_to_tensor(matrices), gaussian.cov))


@propagate.register_unnamed("LayerScale")
def layer_scale(layer, gaussian: Gaussian, context) -> Gaussian:
    """ConvNeXt's gamma x, a factor for each channel: cov D S D (exact)."""
    return scaled(gaussian, layer(gaussian.mean), layer.gamma)
