"""What is found out about a function by numbers: its mean under a Gaussian, what it spreads, how steep it is, and
whether it acts on each unit alone."""

import contextlib
import functools
from collections.abc import Callable

import keras
import numpy as np
from keras import ops


@functools.cache
def _rule(order: int):
    """Gauss and Hermite's points and weights for a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    return points, weights / weights.sum()


def _at_points(function: Callable, mean, sd, order: int):
    """f(m + s z_i), (order, batch, ...): one call of f on all points, along the batch."""
    mean, sd = ops.convert_to_tensor(mean), ops.convert_to_tensor(sd)
    points = _rule(order)[0].astype("float32").reshape(order, *[1] * len(mean.shape))
    at = mean[None] + ops.cast(points, mean.dtype) * sd
    values = ops.cast(function(ops.reshape(at, (-1, *mean.shape[1:]))), mean.dtype)
    return ops.reshape(values, (order, -1, *mean.shape[1:]) if len(mean.shape) else (order,))


def _weighted(weights, values):
    return ops.tensordot(ops.cast(weights.astype("float32"), values.dtype), values, 1)


def quadrature(function: Callable, mean, sd, order: int):
    """E f(u) = sum_i w_i f(m + s z_i), u ~ N(m, s^2), by Gauss and Hermite's rule of `order` points (exact for
    polynomials up to degree 2 order - 1). mean: (batch, ...). sd: that broadcasts with it."""
    return _weighted(_rule(order)[1], _at_points(function, mean, sd, order))


def expected_slope(function: Callable, mean, sd, order: int):
    """d E f / d m = E f(u) z / s (Stein), by the same points."""
    points, weights = _rule(order)
    return _weighted(weights * points, _at_points(function, mean, sd, order)) / sd


def excess(function: Callable, mean, sd, order: int):
    """(Var f(u)) / s^2 - (d E f / d m)^2 >= 0, the variance beyond first order, by the same points."""
    points, weights = _rule(order)
    values = _at_points(function, mean, sd, order)
    first, second = _weighted(weights, values), _weighted(weights, ops.square(values))
    slope = _weighted(weights * points, values) / sd
    return ops.maximum((second - ops.square(first)) / ops.square(sd) - ops.square(slope), 0.0)


def steepest(function: Callable) -> float | None:
    """Returns sup |f'| of an element-wise function, found on a grid of 1/256 from -16 to 16 and rounded up by half a
    percent; None where the function jumps, or still steepens at an end: it has no bound."""
    slopes, finer = _slopes(function, 256), _slopes(function, 1024)
    if not np.isfinite(slopes).all():
        return None
    top = float(slopes.max())
    ends = max(slopes[:256].max(), slopes[-256:].max())
    growing = ends > 1.02 * max(slopes[512:1024].max(), slopes[-1024:-512].max())
    jumps = finer.max() > 2.5 * max(top, 1e-6)
    return None if growing or jumps else top * 1.005


def _slopes(function: Callable, steps: int) -> np.ndarray:
    """|f'| by differences over 1 / steps, from -16 to 16."""
    at = np.arange(-16.0, 16.0, 1 / steps, dtype=np.float32)
    values = ops.convert_to_numpy(function(ops.convert_to_tensor(at))).astype(np.float64)
    return np.abs(np.diff(values) * steps)


def is_elementwise(function: Callable, shape=(3, 4), rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether a function of a tensor acts on each entry alone, by what it makes of a few numbers of that shape."""
    a, b = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    changed = np.random.default_rng(1).random(a.shape) < 0.5

    def at(x):
        return ops.convert_to_numpy(function(ops.convert_to_tensor(x)))

    at_a, at_b, mixed = at(a), at(b), at(np.where(changed, b, a))
    return at_a.shape == a.shape and np.allclose(mixed, np.where(changed, at_b, at_a), rtol=rtol, atol=atol)


def eagerly():
    """A context in which numbers are computed at once, inside a trace too."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    if keras.config.backend() == "jax":
        import jax

        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()
