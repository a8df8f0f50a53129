"""The mean of every element-wise activation under a Gaussian, u ~ N(m, s^2), and what estimates ask of one.

Closed forms where there are any, else Gauss and Hermite's quadrature. ReLU and leaky ReLU, which most networks spend
their time in, have loops of their own in `rectifiers.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from covkeras.moments.functions import eagerly, excess, expected_slope, is_elementwise, quadrature, steepest
from covkeras.moments.gaussian import Gaussian, blocks, rescaled, standard_deviation, wide
from covkeras.moments.rectifiers import PLAIN, Kernels, Rectifier, gaussian_cdf, gaussian_pdf, relu_value

# Points of the quadrature. Of Keras' smooth activations E f(u) is then off by at most 6e-3 for s <= 2, of softsign,
# which has a kink, by 2e-2 (tests/test_activations.py measures both); at s = 4 by up to .05.
ORDER = 16


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A function in pieces, c0 + c1 u + c2 u^2 + sum_j a_j (u - t_j)+ + b_j (u - t_j)+^2 + d_j 1(u >= t_j).

    base: (c0, c1, c2). knots: (t, a, b, d), each.
    """

    base: tuple[float, float, float]
    knots: tuple[tuple[float, float, float, float], ...] = ()

    def __call__(self, mean, sd):
        """E f(u), exact, with v = m - t and z = v / s: E (u - t)+ = v Phi(z) + s phi(z), E (u - t)+^2 = (v^2 + s^2)
        Phi(z) + v s phi(z), E 1(u >= t) = Phi(z)."""
        constant, linear, square = self.base
        value = constant + linear * mean + square * (mean * mean + sd * sd)
        for knot, a, b, d in self.knots:
            v = mean - knot
            z = v / sd
            gate, density = gaussian_cdf(z), gaussian_pdf(z)
            value = value + a * (v * gate + sd * density) + d * gate
            if b:
                value = value + b * ((v * v + sd * sd) * gate + v * sd * density)
        return value


def relu_pieces(negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Pieces:
    """Keras' ReLU: max_value above it, u from the threshold on, negative_slope (u - threshold) below."""
    knots = [(threshold, 1.0 - negative_slope, 0.0, threshold)]
    if max_value is not None:
        knots.append((max_value, -1.0, 0.0, 0.0))
    return Pieces((-negative_slope * threshold, negative_slope, 0.0), tuple(knots))


def soft_shrink_pieces(threshold: float = 0.5) -> Pieces:
    """u less its part between -threshold and threshold."""
    return Pieces((threshold, 1.0, 0.0), ((-threshold, -1.0, 0.0, 0.0), (threshold, 1.0, 0.0, 0.0)))


def hard_shrink_pieces(threshold: float = 0.5) -> Pieces:
    """u outside -threshold to threshold, 0 inside."""
    return Pieces((0.0, 1.0, 0.0), ((-threshold, -1.0, 0.0, threshold), (threshold, 1.0, 0.0, threshold)))


def gelu_mean(mean, sd):
    """E u Phi(u) = m Phi(t) + s^2 / r phi(t), r = sqrt(1 + s^2), t = m / r (exact)."""
    root = ops.sqrt(1.0 + sd * sd)
    t = mean / root
    return mean * gaussian_cdf(t) + sd * sd / root * gaussian_pdf(t)


def exponential_mean(mean, sd):
    """E exp(u) = exp(m + s^2 / 2) (exact)."""
    return ops.exp(mean + 0.5 * sd * sd)


def erf_mean(mean, sd):
    """E erf(u) = erf(m / sqrt(1 + 2 s^2)) (exact)."""
    return ops.erf(mean / ops.sqrt(1.0 + 2.0 * sd * sd))


def elu_mean(mean, sd, alpha: float = 1.0, inner: float = 1.0):
    """E of u above 0 and alpha (exp(u / inner) - 1) below: E u+ + alpha (E e^(u/inner) 1(u < 0) - Phi(-m/s)) (exact).

    E e^v 1(v < 0) = e^(m' + s'^2 / 2) Phi(-t), t = m' / s' + s', for v = u / inner ~ N(m', s'^2); for large t, where
    the product is of a huge and a tiny factor, phi(m' / s') times Mills' ratio of t.
    """
    z = mean / sd
    m, s = mean / inner, sd / inner
    t = m / s + s
    far = ops.maximum(t, 3.0)
    mills = 1.0 / (far + 1.0 / (far + 2.0 / (far + 3.0 / (far + 4.0 / (far + 5.0 / far)))))
    near = ops.exp(ops.minimum(m + 0.5 * s * s, 30.0)) * gaussian_cdf(-ops.minimum(t, 3.0))
    below = ops.where(t > 3.0, gaussian_pdf(m / s) * mills, near)
    return relu_value(mean, sd) + alpha * (below - gaussian_cdf(-z))


@dataclasses.dataclass(frozen=True, eq=False)
class ElementwiseFunction:
    """A function of each unit alone, as an activation (see `rectifiers.Activation`).

    Attributes:
        name: of it. function: u -> f(u). expected: (m, s) -> E f(u).
        slope: sup |f'|, a number or (channels,), which bounds how much the function spreads a Gaussian; None where
            there is no bound.

    The mean is exact or by quadrature, as `expected` is. The covariance is D S D, D = slope, as "unchanged" is for
    ReLU, whose slope is 1: too large, and a function of the weights alone. Without a bound D is the mean over batch
    and pixels of d E f / d m (approximate; the batch's images share it).
    """

    name: str
    function: Callable
    expected: Callable
    slope: object = 1.0

    def apply(self, u):
        return self.function(u)

    def propagated(self, gaussian: Gaussian, kernels: Kernels = PLAIN) -> Gaussian:
        sd = standard_deviation(gaussian.cov, blocks(gaussian))
        return Gaussian(self._mean(gaussian.mean, sd), self.spread(gaussian))

    def spread(self, gaussian: Gaussian):
        slope = self.slope
        if slope is None:
            sd = standard_deviation(gaussian.cov, blocks(gaussian))
            gate = expected_slope(self.function, wide(gaussian.mean), sd, ORDER)
            slope = ops.mean(ops.reshape(gate, (-1, gaussian.cov.shape[-1])), 0)
        if isinstance(slope, float):
            return slope * slope * gaussian.cov
        return rescaled(gaussian.cov, slope)

    def gated(self, mean, sd, kernels: Kernels = PLAIN):
        return self._mean(mean, ops.stop_gradient(sd))

    def excess(self, mean, sd):
        return excess(self.function, mean, sd, ORDER)

    def _mean(self, mean, sd):
        m = wide(mean)
        return ops.cast(self.expected(m, ops.cast(sd, m.dtype)), mean.dtype)


_HARD_SIGMOID = Pieces((0.0, 0.0, 0.0), ((-3.0, 1 / 6, 0.0, 0.0), (3.0, -1 / 6, 0.0, 0.0)))
_HARD_SILU = Pieces((0.0, 0.0, 0.0), ((-3.0, -0.5, 1 / 6, 0.0), (3.0, -0.5, -1 / 6, 0.0)))
_HARD_TANH = Pieces((-1.0, 0.0, 0.0), ((-1.0, 1.0, 0.0, 0.0), (1.0, -1.0, 0.0, 0.0)))
_SPARSE_PLUS = Pieces((0.0, 0.0, 0.0), ((-1.0, 0.0, 0.25, 0.0), (1.0, 0.0, -0.25, 0.0)))
_SPARSE_SIGMOID = Pieces((0.0, 0.0, 0.0), ((-1.0, 0.5, 0.0, 0.0), (1.0, -0.5, 0.0, 0.0)))
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# name in keras.activations -> (E f(u), sup |f'|), exact; all other names by quadrature.
_CLOSED: dict[str, tuple[Callable, float | None]] = {
    "relu6": (relu_pieces(max_value=6.0), 1.0),
    "hard_sigmoid": (_HARD_SIGMOID, 1 / 6),
    "hard_silu": (_HARD_SILU, 1.5),
    "hard_tanh": (_HARD_TANH, 1.0),
    "soft_shrink": (soft_shrink_pieces(), 1.0),
    "hard_shrink": (hard_shrink_pieces(), None),
    "sparse_plus": (_SPARSE_PLUS, 1.0),
    "sparse_sigmoid": (_SPARSE_SIGMOID, 0.5),
    "gelu": (gelu_mean, 1.1291),
    "exponential": (exponential_mean, None),
    "elu": (elu_mean, 1.0),
    "celu": (elu_mean, 1.0),
    "selu": (lambda m, s: _SELU_SCALE * elu_mean(m, s, _SELU_ALPHA), _SELU_ALPHA * _SELU_SCALE),
}
# Operations that are polynomials in pieces, of what they are made with -> (E f(u), sup |f'|), exact.
_PIECES: dict[str, tuple[Callable, float | None]] = {
    "soft_shrink": (soft_shrink_pieces, 1.0),
    "hard_shrink": (hard_shrink_pieces, None),
    "threshold": (lambda at, below: Pieces((below, 0.0, 0.0), ((at, 1.0, 0.0, at - below),)), None),
    "clip": (lambda low, high: Pieces((low, 0.0, 0.0), ((low, 1.0, 0.0, 0.0), (high, -1.0, 0.0, 0.0))), 1.0),
    "maximum": (lambda c: Pieces((c, 0.0, 0.0), ((c, 1.0, 0.0, 0.0),)), 1.0),
    "minimum": (lambda c: Pieces((0.0, 1.0, 0.0), ((c, -1.0, 0.0, 0.0),)), 1.0),
    "abs": (lambda: Pieces((0.0, -1.0, 0.0), ((0.0, 2.0, 0.0, 0.0),)), 1.0),
    "absolute": (lambda: Pieces((0.0, -1.0, 0.0), ((0.0, 2.0, 0.0, 0.0),)), 1.0),
    "negative": (lambda: Pieces((0.0, -1.0, 0.0), ()), 1.0),
    "square": (lambda: Pieces((0.0, 0.0, 1.0), ()), None),
}
# Those of keras.activations by quadrature, for tests and docs.
SMOOTH = ("sigmoid", "tanh", "silu", "softplus", "mish", "softsign", "log_sigmoid", "squareplus", "tanh_shrink")


@functools.lru_cache(maxsize=1_000)
def activation_of(function: Callable):
    """Returns the activation of an element-wise function, None where it is linear.

    function: one of keras.activations, or any element-wise callable, whose mean is then by quadrature.

    Raises:
        NotImplementedError: it is not element-wise.
    """
    if function is keras.activations.linear:
        return None
    if function is keras.activations.relu:
        return Rectifier()
    if function is keras.activations.leaky_relu:
        return Rectifier(0.2)
    for name, (expected, slope) in _CLOSED.items():
        if function is getattr(keras.activations, name):
            return ElementwiseFunction(name, function, expected, slope)
    try:
        with eagerly():
            elementwise, slope = is_elementwise(function), steepest(function)
    except Exception as error:  # whatever a function of the user's raises on a matrix
        raise NotImplementedError(f"it can't be evaluated on a matrix ({error})") from None
    if not elementwise:
        raise NotImplementedError("it is not element-wise")
    name = getattr(function, "__name__", type(function).__name__)
    return ElementwiseFunction(name, function, functools.partial(quadrature, function, order=ORDER), slope)


def activation_of_operation(name: str, operation: Callable, values: dict):
    """Returns the activation of one of Keras' operations: in closed form where there is one, else by quadrature.

    Args:
        name: of the function, as "hard_silu". operation: u -> f(u). values: what it was made with, as {"alpha": 0.5}.
    """
    if name == "leaky_relu":
        return Rectifier(float(values["negative_slope"]))
    if name in ("elu", "celu"):
        alpha = float(values["alpha"])
        expected = functools.partial(elu_mean, alpha=alpha, inner=alpha if name == "celu" else 1.0)
        return ElementwiseFunction(name, operation, expected, 1.0 if name == "celu" else max(1.0, abs(alpha)))
    if name in _PIECES and all(np.ndim(value) == 0 for value in values.values()):
        pieces, slope = _PIECES[name]
        return ElementwiseFunction(name, operation, pieces(*map(float, values.values())), slope)
    if name == "erf":
        return ElementwiseFunction(name, operation, erf_mean, 2 / math.sqrt(math.pi))
    known = not values or (name == "gelu" and not values["approximate"])
    if known and (name == "relu" or name in _CLOSED):
        return activation_of(getattr(keras.activations, name))
    return activation_of(operation)


def activation_for(layer):
    """Returns the activation that a layer applies, fused or alone, None where that is linear.

    Raises:
        NotImplementedError: it is not element-wise; the message names the layer and the remedies.
    """
    kinds = keras.layers
    if isinstance(layer, kinds.ReLU):
        return _relu(layer)
    if isinstance(layer, kinds.LeakyReLU):
        return Rectifier(float(layer.negative_slope))
    if isinstance(layer, kinds.PReLU):
        return _prelu(layer)
    if isinstance(layer, kinds.ELU):
        alpha = float(layer.alpha)
        expected = functools.partial(elu_mean, alpha=alpha)
        return ElementwiseFunction("elu", layer, expected, max(1.0, abs(alpha)))
    if isinstance(layer.activation, kinds.Layer):
        return activation_for(layer.activation)
    try:
        return activation_of(layer.activation)
    except NotImplementedError as error:
        name = getattr(layer.activation, "__name__", repr(layer.activation))
        raise NotImplementedError(
            f"No moment rule for activation {name!r} of {type(layer).__name__} (layer {layer.name!r}): {error}. Put it "
            "into a layer of its own, with a rule by @propagate.register."
        ) from None


def _relu(layer):
    """Keras' ReLU layer, whose slope may be bounded above, leak, and begin at a threshold."""
    leak, top, threshold = float(layer.negative_slope), layer.max_value, float(layer.threshold)
    if top is None and not threshold:
        return Rectifier(leak)
    pieces = relu_pieces(leak, None if top is None else float(top), threshold)
    # At a threshold the function jumps: no slope bounds it.
    return ElementwiseFunction("relu", layer, pieces, None if threshold else max(1.0, abs(leak)))


def _prelu(layer):
    """alpha m + (1 - alpha) E u+ (exact); of alphas that differ from pixel to pixel the steepest bounds a channel."""
    alpha = wide(ops.convert_to_tensor(layer.alpha))

    def expected(mean, sd):
        own = ops.cast(alpha, mean.dtype)
        return own * mean + (1.0 - own) * relu_value(mean, sd)

    most = ops.max(ops.reshape(ops.abs(alpha), (-1, alpha.shape[-1])), 0)
    return ElementwiseFunction("prelu", layer, expected, ops.maximum(most, 1.0))
