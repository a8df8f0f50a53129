"""Binomial confidence bounds and the radius they give: float64, rounded towards "no certificate".

Written in TensorFlow, so that the same lines run in Python and in an exported graph. float32 is never used:
its betainc is wrong by up to a factor of 3. Nor is tensorflow-probability's `betaincinv`: over 4,000 cases it was off
by up to 3 %, on the unsafe side, where a bisection on betainc is below the exact bound by construction.
"""

import numpy as np
import scipy.special
import tensorflow as tf

from covkeras.certification.special import SCIPY, Functions
from covkeras.runtime.validation import check_sigma

# TensorFlow's float64 betainc against exact binomial tails: off relatively by at most 6e-9 for n <= 10^6; beyond, where
# its continued fraction runs out of iterations, by 2e-5 at 3 10^6 and 0.4 % at 10^7. A smaller alpha covers five times
# that. (At n > 10^6 the price, 2 % of alpha, is less than a hundredth of the estimate's standard deviation.)
_MARGIN, _MARGIN_BEYOND, _ACCURATE_TRIALS = 1e-7, 0.02, 1_000_000
MAX_TRIALS = 10_000_000
_BISECTIONS = 100
# Of alpha, what bounding the other classes takes, where they are bounded.
OTHERS = 0.1


def clopper_pearson_lower(successes, trials, alpha):
    """Returns the one-sided Clopper-Pearson lower bound, never above the exact one (Clopper, Pearson 1934).

    The exact bound is the p with P(Binomial(trials, p) >= successes) = I_p(k, n - k + 1) = alpha, 0 for no success.

    Args:
        successes: integers k, any shape. trials: integers n >= k, same shape or one. alpha: in (0, 1); float64 inside a
            graph.

    Returns:
        float64 p_lower, the shape of `successes`; a tensor inside a graph, else a NumPy value.

    Raises:
        ValueError: outside a graph: counts below 0, more successes than trials, trials above 10^7, alpha.
    """
    if not tf.executing_eagerly():
        return _bound(*(tf.cast(v, tf.float64) for v in (successes, trials, alpha)))
    _check(successes, trials, alpha)
    # NumPy converts: TensorFlow would take a Python float through float32, and 0.001 would grow.
    return _compiled_bound(*(tf.constant(np.asarray(v, np.float64)) for v in (successes, trials, alpha))).numpy()


def _check(successes, trials, alpha):
    for name, given in (("successes", successes), ("trials", trials)):
        numbers = np.asarray(given)
        if numbers.dtype.kind not in "iuf" or not (numbers == np.rint(numbers)).all():
            raise ValueError(f"{name} must be whole numbers, got {given!r}.")
    if np.asarray(alpha).dtype.kind != "f":
        raise ValueError(f"alpha must lie in (0, 1), got {alpha!r}; the field uses 0.001.")
    k, n, a = np.broadcast_arrays(np.asarray(successes), np.asarray(trials), np.asarray(alpha, np.float64))
    if (k < 0).any() or (k > n).any():
        raise ValueError(f"successes must lie in [0, trials], got {successes!r} of {trials!r}.")
    if (n > MAX_TRIALS).any():
        raise ValueError(f"trials must be at most {MAX_TRIALS:,}, where betainc is accurate, got {trials!r}.")
    if not ((a > 0) & (a < 1)).all():
        raise ValueError(f"alpha must lie in (0, 1), got {alpha!r}; the field uses 0.001.")


def _bound(k, n, alpha):
    shape = tf.broadcast_dynamic_shape(tf.broadcast_dynamic_shape(tf.shape(k), tf.shape(n)), tf.shape(alpha))
    k, n, alpha = (tf.broadcast_to(v, shape) for v in (k, n, alpha))
    margin = tf.where(n <= _ACCURATE_TRIALS, tf.constant(_MARGIN, n.dtype), tf.constant(_MARGIN_BEYOND, n.dtype))
    level = alpha * (1.0 - margin)
    a = tf.maximum(k, 1.0)
    b = n - a + 1.0

    def halve(step, low, high):
        middle = 0.5 * (low + high)
        below = tf.math.betainc(a, b, middle) <= level
        return step + 1, tf.where(below, middle, low), tf.where(below, high, middle)

    # Bisection keeps I_low <= level at every step: wherever it stops, `low` is not above the bound.
    start = (tf.constant(0), tf.zeros_like(k), k / tf.maximum(n, 1.0))
    _, low, _ = tf.while_loop(lambda step, *_: step < _BISECTIONS, halve, start)
    return tf.where(k < 1.0, tf.zeros_like(low), low)


_compiled_bound = tf.function(_bound, reduce_retracing=True)


def certified_radius(p_lower, sigma: float):
    """Returns sigma Phi^-1(p_lower), rounded down; 0 where p_lower <= 1/2 (Cohen et al. 2019, Theorem 1).

    p_lower: float64, any shape. Returns float64 in the units of sigma; a tensor.
    """
    p = p_lower if tf.is_tensor(p_lower) else tf.constant(_checked_probabilities(p_lower))
    check_sigma(sigma)
    # ndtri is good to 9e-16: a few ulps less is not above the exact value. It is infinite at p = 1, which is no
    # lower bound's value at alpha > 0.
    radius = tf.constant(sigma, tf.float64) * tf.math.ndtri(tf.clip_by_value(p, 0.5, 1.0 - 1e-16)) * (1.0 - 4e-15)
    return tf.where(p > 0.5, tf.maximum(radius, 0.0), tf.zeros_like(radius))


def _checked_probabilities(p_lower) -> np.ndarray:
    p = np.asarray(p_lower)
    if p.dtype.kind not in "iuf" or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_lower must lie in [0, 1], got {p_lower!r}.")
    return p.astype(np.float64)


def clopper_pearson_upper(successes, trials, alpha):
    """Returns the one-sided Clopper-Pearson upper bound, never below the exact one: 1 less the failures' lower bound.

    As `clopper_pearson_lower`; outside graphs.
    """
    failures = np.asarray(trials) - np.asarray(successes)
    return np.minimum((1.0 - clopper_pearson_lower(failures, trials, alpha)) * (1.0 + 1e-15), 1.0)


def two_sided_radius(p_lower, p_upper, sigma: float) -> np.ndarray:
    """Returns sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B)), rounded down; 0 where p_A <= p_B (Cohen et al. 2019, Theorem 1).

    p_lower: lower bounds on p_A; p_upper: upper bounds on every other class' probability; float64, of one shape.
    """
    first, second = (scipy.special.ndtri(np.clip(p, 1e-300, 1.0 - 1e-16)) for p in (p_lower, p_upper))
    # Each is good to 9e-16 of itself, and at most 38; their difference may be small.
    radius = 0.5 * sigma * ((first - second) * (1.0 - 4e-15) - 1e-13)
    return np.where(np.asarray(p_lower) > np.asarray(p_upper), np.maximum(radius, 0.0), 0.0)


def top_two_differ(first, second, alpha, on: Functions = SCIPY):
    """Returns whether the exact two-sided binomial test tells the top two classes apart at alpha (Cohen et al. 2019,
    PREDICT): of `first` + `second` votes, each for either with probability 1/2, twice the upper tail is at most alpha.

    first, second: integers, first >= second, any shape. Booleans of that shape.
    """
    first, second = on.float64(first), on.float64(second)
    tail = 2.0 * on.betainc(on.maximum(first, on.float64(1.0)), second + 1.0, on.float64(0.5))
    return (first > second) & (tail <= on.float64(alpha))
