"""The ReLU's kernels by one polynomial: what training compiles in the place of `rectifiers`' erf and exp.

E max(u, 0) = max(m, 0) + s h(|z|), z = m / s, with the tail h(a) = phi(a) - a (1 - Phi(a)); h' = Phi(a) - 1 and
phi = h - a h'. h is a polynomial of degree 12 up to a = 4.5 and constant beyond, where it is 7e-7. In float32 the
largest errors are 6e-7 s of the mean, 2e-5 of its derivative Phi by m and 7e-5 of its derivative phi by s: the
polynomial's own, so that the gradient is that of the mean which is computed. Only a trainer's forward moments use it;
the adjoint estimate, diagnostics and certification have the exact kernels.
"""

from keras import ops

from covkeras.moments.gaussian import wide
from covkeras.moments.rectifiers import Kernels

_END = 4.5
# Of h, in powers of a - _END / 2: Chebyshev's fit, made anew in tests/test_rectifiers.py.
_TAIL = (
    4.23462438e-03,
    -1.22253358e-02,
    1.58691309e-02,
    -1.18973796e-02,
    5.37478175e-03,
    -1.23581450e-03,
    -7.95357414e-05,
    1.47850469e-04,
    -3.15462808e-05,
    -5.92270645e-06,
    2.97423732e-06,
    5.46951071e-08,
    -1.00995653e-07,
)
_SLOPE = tuple(i * c for i, c in enumerate(_TAIL) if i)


def _polynomial(coefficients, x):
    value = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _centred(z):
    """|z| up to _END, and its distance from the middle."""
    a = ops.minimum(ops.absolute(z), _END)
    return a, a - _END / 2


def value(mean, sd):
    """As `rectifiers.relu_value`."""
    m, s = wide(mean), wide(sd)
    _, x = _centred(m * (1.0 / s))
    return ops.cast(ops.maximum(m, 0.0) + s * _polynomial(_TAIL, x), mean.dtype)


def products(mean, sd, upstream):
    """As `rectifiers.relu_products`."""
    z, upstream = wide(mean) * (1.0 / wide(sd)), wide(upstream)
    a, x = _centred(z)
    slope = _polynomial(_SLOPE, x)
    cdf, density = ops.where(z > 0, 1.0 + slope, -slope), _polynomial(_TAIL, x) - a * slope
    return ops.cast(upstream * cdf, mean.dtype), ops.cast(upstream * density, mean.dtype)


QUICK = Kernels(value=value, products=products)
