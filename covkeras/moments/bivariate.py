"""The covariance of two (leaky) ReLUs of jointly Gaussian units, where the paper takes it as unchanged."""

import math

from keras import ops

from covkeras.moments.gaussian import Gaussian, standard_deviation
from covkeras.moments.rectifiers import PLAIN, Activation, Kernels, Rectifier, gaussian_cdf, gaussian_pdf, relu_excess

# Terms of the expansion: off the diagonal, at rho = .9, the rest is below 1 % of the variance (tests/test_bivariate.py
# measures it against samples).
ORDER = 8


def bivariate(gaussian: Gaussian, activation: Activation, kernels: Kernels = PLAIN) -> Gaussian:
    """E f(u) and Cov(f(u), f(v)), f the (leaky) ReLU, in the mean over images, positions and blocks.

    Hermite's expansion of the exact covariance (Price 1958; in closed form Wright et al., AISTATS 2024):

        Cov(f(u_i), f(u_j)) = sum_k rho_ij^k / k! a_ki a_kj,
        a_1 = s (l + (1 - l) Phi(z)),  a_k = s (1 - l) (-1)^k He_{k-2}(z) phi(z) for k >= 2,

    with z = m / s and the slope l; the variances themselves exact. As the covariance is shared by all, a batch of one
    image gives that image's own. A context's `rectify` (`MomentNetwork(rectifier="bivariate")` puts it there); other
    activations keep their rule.

    Args:
        gaussian: mean (batch, ..., P * channels), cov (channels, channels). activation: which function.

    Returns:
        Gaussian: mean exact, as the rule's; cov (channels, channels).
    """
    if not isinstance(activation, Rectifier):
        return activation.propagated(gaussian, kernels)
    channels, slope = gaussian.cov.shape[-1], activation.slope
    sd = standard_deviation(gaussian.cov)
    correlation = gaussian.cov / (ops.expand_dims(sd, 0) * ops.expand_dims(sd, 1))
    z = ops.reshape(ops.cast(gaussian.mean, sd.dtype), (-1, channels)) / sd
    gate = slope + (1.0 - slope) * gaussian_cdf(z)
    cov, power = 0.0, 1.0
    for k, a in enumerate(_coefficients(z, gate, slope), 1):
        power = power * correlation
        cov = cov + power * (ops.matmul(ops.transpose(a), a) / math.factorial(k))
    cov = ops.expand_dims(sd, 0) * ops.expand_dims(sd, 1) * cov / ops.cast(ops.shape(z)[0], sd.dtype)
    excess = (1.0 - slope) ** 2 * relu_excess(z, ops.ones_like(sd))
    variance = ops.square(sd) * ops.mean(ops.square(gate) + excess, 0)
    cov = ops.where(ops.cast(ops.eye(channels), "bool"), ops.diag(variance), cov)
    return Gaussian(activation.propagated(gaussian, kernels).mean, cov)


def _coefficients(z, gate, slope: float) -> list:
    """a_k / s for k = 1 to ORDER, each (rows, channels)."""
    found, density = [gate], (1.0 - slope) * gaussian_pdf(z)
    before, here = ops.zeros_like(z), ops.ones_like(z)
    for k in range(2, ORDER + 1):
        found.append((-1.0) ** k * here * density)
        # He_{n+1} = z He_n - n He_{n-1}, n = k - 2.
        before, here = here, z * here - (k - 2) * before
    return found
