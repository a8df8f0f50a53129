"""The special functions that bounds are made of, in float64: SciPy's for Python, TensorFlow's for a served graph.

A formula takes the one or the other as `on`, and is written once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf


class Functions(NamedTuple):
    """Elementwise, with broadcasting: float64 of anything, log, log(1 + x), log B(a, b), I_x(a, b), 1 - I_x(a, b)
    without cancellation, Phi, the smaller and the larger of two."""

    float64: Callable
    log: Callable
    log1p: Callable
    betaln: Callable
    betainc: Callable
    betaincc: Callable
    normal_cdf: Callable
    minimum: Callable
    maximum: Callable


def _tf_float64(value):
    # TensorFlow takes a Python number through float32, and 0.001 would grow.
    return tf.cast(value, tf.float64) if tf.is_tensor(value) else tf.constant(np.asarray(value, np.float64))


def _tf_betainc(a, b, x):
    # TensorFlow's broadcasts nothing.
    zero = tf.zeros_like(a) + tf.zeros_like(b) + tf.zeros_like(x)
    return tf.math.betainc(a + zero, b + zero, x + zero)


def _tf_betaln(a, b):
    zero = tf.zeros_like(a) + tf.zeros_like(b)
    return tf.math.lbeta(tf.stack([a + zero, b + zero], -1))


def _quiet_log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


SCIPY = Functions(
    float64=lambda value: np.asarray(value, np.float64),
    log=_quiet_log,
    log1p=np.log1p,
    betaln=scipy.special.betaln,
    betainc=scipy.special.betainc,
    betaincc=scipy.special.betaincc,
    normal_cdf=scipy.special.ndtr,
    minimum=np.minimum,
    maximum=np.maximum,
)
TENSORFLOW = Functions(
    float64=_tf_float64,
    log=tf.math.log,
    log1p=tf.math.log1p,
    betaln=_tf_betaln,
    betainc=_tf_betainc,
    betaincc=lambda a, b, x: _tf_betainc(b, a, 1.0 - x),
    # By erfc: good to a few ulps in the tails, where tf.math.ndtri's inverse would not be.
    normal_cdf=lambda z: 0.5 * tf.math.erfc(-z * np.sqrt(0.5)),
    minimum=tf.minimum,
    maximum=tf.maximum,
)
