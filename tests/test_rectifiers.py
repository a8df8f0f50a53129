import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tensorflow as tf

from covkeras.moments import quick
from covkeras.moments.rectifiers import relu_excess, relu_mean


@pytest.mark.parametrize("mean", [-6.0, -1.3, 0.0, 0.4, 2.0, 8.0])
@pytest.mark.parametrize("sd", [0.1, 1.0, 3.0])
def test_mean_and_excess_against_quadrature(mean, sd):
    density = scipy.stats.norm(mean, sd).pdf
    points = {"points": [max(mean, 0.0)], "limit": 200}
    first = scipy.integrate.quad(lambda u: u * density(u), 0, max(mean, 0) + 12 * sd, **points)[0]
    second = scipy.integrate.quad(lambda u: u * u * density(u), 0, max(mean, 0) + 12 * sd, **points)[0]
    m, s = np.full((1, 1), mean), np.array([sd])
    assert float(relu_mean(m, s)[0, 0]) == pytest.approx(first, rel=1e-6, abs=1e-9)
    excess = (second - first**2) / sd**2 - scipy.stats.norm.cdf(mean / sd) ** 2
    assert float(relu_excess(m, s)[0, 0]) == pytest.approx(excess, abs=1e-7)


def test_custom_gradient_against_finite_differences(rng):
    mean, sd = tf.constant(rng.normal(size=(5, 4))), tf.constant(rng.uniform(0.5, 2.0, size=4))
    weight = rng.normal(size=(5, 4))
    with tf.GradientTape() as tape:
        tape.watch([mean, sd])
        value = tf.reduce_sum(relu_mean(mean, sd) * weight)
    by_mean, by_sd = tape.gradient(value, [mean, sd])

    def at(m, s):
        return float(np.sum(relu_mean(tf.constant(m), tf.constant(s)).numpy() * weight))

    h = 1e-6
    for i in range(4):
        step = h * np.eye(4)[i]
        assert (at(mean.numpy(), sd + step) - at(mean.numpy(), sd - step)) / (2 * h) == pytest.approx(
            by_sd[i].numpy(), rel=1e-6
        )
        move = np.zeros((5, 4))
        move[2, i] = h
        slope = (at(mean + move, sd.numpy()) - at(mean - move, sd.numpy())) / (2 * h)
        assert slope == pytest.approx(by_mean[2, i].numpy(), rel=1e-5, abs=1e-7)


def test_low_precision_is_computed_wide(rng):
    mean = rng.normal(size=(100, 8)).astype("float32")
    sd = rng.uniform(0.5, 2.0, size=8).astype("float32")
    rounded = tf.cast(mean, tf.bfloat16)
    result = relu_mean(rounded, tf.constant(sd))
    assert result.dtype == tf.bfloat16
    exact = relu_mean(tf.cast(rounded, tf.float32), tf.cast(tf.cast(sd, tf.bfloat16), tf.float32))
    # One rounding of the result, half a unit in the last of bfloat16's 8 bits.
    np.testing.assert_allclose(tf.cast(result, tf.float32), exact, rtol=2**-8, atol=1e-6)


def test_the_quick_kernels_are_chebyshevs_fit_of_the_tail():
    """Coefficients, and the errors that the module states, against scipy's Phi and phi in float64."""
    middle = quick._END / 2
    nodes = middle * (1 + np.cos(np.linspace(0, np.pi, 8001)))
    tail = scipy.stats.norm.pdf(nodes) - nodes * scipy.stats.norm.sf(nodes)
    series = np.polynomial.Chebyshev.fit(nodes, tail, 12, domain=[0, quick._END])
    fitted = series.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1])
    about_the_middle = fitted(np.polynomial.Polynomial([middle, 1])).coef
    np.testing.assert_allclose(quick._TAIL, about_the_middle, rtol=1e-5, atol=1e-10)

    mean = np.concatenate([np.linspace(-8, 8, 100_001), [-50.0, -1e4, 50.0]]).astype(np.float32)[:, None]
    sd, ones = np.array([0.7], np.float32), np.ones_like(mean)
    z = mean.astype(np.float64) / sd
    cdf, pdf = scipy.stats.norm.cdf(z), scipy.stats.norm.pdf(z)
    exact = mean * cdf + sd * pdf
    assert np.all(abs(quick.value(mean, sd) - exact) <= 6e-7 * 0.7 + 1e-6 * abs(exact))
    by_mean, by_sd = map(np.asarray, quick.products(mean, sd, ones))
    assert abs(by_mean - cdf).max() < 2e-5 and abs(by_sd - pdf).max() < 7e-5


def test_the_quick_kernels_gradient_is_that_of_what_they_compute():
    """Differences of the polynomial's own mean in float64, at every z and in both arguments."""
    z = np.linspace(-4.4, 4.4, 2001)[:, None] + 1e-3
    sd, step = np.array([1.3]), 1e-5
    upstream = np.ones_like(z)
    by_mean, by_sd = quick.products(z * sd, sd, upstream)
    moved = [quick.value(z * sd + d, sd) for d in (-step, step)]
    np.testing.assert_allclose(by_mean, (moved[1] - moved[0]) / (2 * step), atol=1e-8)
    moved = [quick.value(z * sd, sd + d) for d in (-step, step)]
    np.testing.assert_allclose(by_sd, (moved[1] - moved[0]) / (2 * step), atol=1e-8)
