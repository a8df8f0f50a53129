import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats

from covkeras.certification import certified_radius, clopper_pearson_lower


def cases(rng, count):
    """(k, n, alpha) over all scales: n to 10^7, k from none to all, alpha from 1e-9 to 0.5."""
    n = (10 ** rng.uniform(0, 7, count)).astype(np.int64)
    share = np.where(rng.random(count) < 0.3, 1 - 10 ** rng.uniform(-7, 0, count), rng.random(count))
    k = np.clip(np.round(share * n).astype(np.int64), 0, n)
    k[: count // 20], k[count // 20 : count // 10] = 0, n[count // 20 : count // 10]
    return k, n, 10 ** rng.uniform(-9, np.log10(0.5), count)


def test_never_above_scipys_bound_and_close_to_it(rng):
    k, n, alpha = cases(rng, 6_000)
    bound = clopper_pearson_lower(k, n, alpha)
    exact = np.where(k == 0, 0.0, scipy.special.betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1.0, alpha))
    assert (bound <= exact).all()
    # What the margin costs: as if alpha were smaller by 1e-6, beyond 10^6 trials by 3 %.
    smaller = alpha * np.where(n <= 10**6, 1 - 1e-6, 0.97)
    assert (bound >= np.where(k == 0, 0.0, scipy.special.betaincinv(np.maximum(k, 1), n - k + 1.0, smaller))).all()


def test_never_above_the_exact_bound_in_80_digits(rng):
    """I_p(k, n - k + 1) <= alpha at the returned p, by mpmath: needs no other library's inverse."""
    k, n, alpha = (v[600:700] for v in cases(rng, 1_000))
    keep = (n < 20_000) & (k > 0)
    bound = clopper_pearson_lower(k[keep], n[keep], alpha[keep])
    with mpmath.workdps(80):
        for p, a, b, level in zip(bound, k[keep], n[keep] - k[keep] + 1, alpha[keep], strict=True):
            tail = mpmath.betainc(int(a), int(b), 0, mpmath.mpf(float(p)), regularized=True)
            assert tail <= mpmath.mpf(float(level))


def test_all_successes_in_closed_form():
    n = np.array([1, 10, 1_000, 100_000, 10_000_000])
    np.testing.assert_allclose(clopper_pearson_lower(n, n, 0.001), 0.001 ** (1 / n), rtol=2e-6)


def test_coverage_of_simulated_binomials(rng):
    """The bound exceeds the true p at most alpha of the time. A test that stops here by chance: below 1e-7."""
    runs, alpha = 200_000, 0.01
    for p, n in ((0.5, 100), (0.9, 1_000), (0.99, 10_000), (0.999, 500)):
        # The bound of each number of hits once: it depends on nothing else.
        hits, times = np.unique(rng.binomial(n, p, runs), return_counts=True)
        wrong = int(times[clopper_pearson_lower(hits, n, alpha) > p].sum())
        assert wrong <= scipy.stats.binom.ppf(1 - 2.5e-8, runs, alpha)


def exact_tail(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) >= k): the first term in 40 digits, the rest as a sum of ratios in extended precision."""
    with mpmath.workdps(40):
        q = mpmath.mpf(float(p))
        log_term = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
        first = mpmath.e ** (log_term + k * mpmath.log(q) + (n - k) * mpmath.log1p(-q))
        terms = int(min(n - k, 45 * np.sqrt(n * p * (1 - p)) + 1_000 + max(0, n * p - k)))
        j = np.arange(k + 1, k + 1 + terms, dtype=np.longdouble)
        ratios = (n - j + 1) / j * (np.longdouble(float(p)) / (1 - np.longdouble(float(p))))
        return float(first * mpmath.mpf(float(1 + np.cumprod(ratios).sum())))


@pytest.mark.parametrize("n", [10**5, 10**6, 10**6 + 1, 3 * 10**6, 10**7])
def test_the_margin_covers_tensorflows_betainc(n):
    """TensorFlow's betainc is wrong by up to 0.4 % at n = 10^7: the exact tail at the bound is still below alpha."""
    for share in np.linspace(0.02, 0.98, 13):
        for alpha in (1e-9, 0.001, 0.05, 0.4, 0.49):
            k = int(n * share)
            assert exact_tail(k, n, float(clopper_pearson_lower(k, n, alpha))) <= alpha


def test_too_many_trials_are_refused():
    with pytest.raises(ValueError, match="at most 10,000,000"):
        clopper_pearson_lower(1, 10**7 + 1, 0.001)


@pytest.mark.parametrize(
    "k, n, alpha", [(-1, 10, 0.1), (11, 10, 0.1), (5, 10, 0.0), (5, 10, 1.0), (5, 10, float("nan"))]
)
def test_bad_counts_are_refused(k, n, alpha):
    with pytest.raises(ValueError, match="must lie in"):
        clopper_pearson_lower(k, n, alpha)


def test_radius_is_never_above_the_exact_one(rng):
    p = np.concatenate([0.5 + 10 ** rng.uniform(-15, np.log10(0.5), 400), 1 - 10 ** rng.uniform(-15, -1, 400)])
    radius = np.asarray(certified_radius(p, 0.25))
    with mpmath.workdps(50):
        for value, level in zip(radius, p, strict=True):
            exact = 0.25 * mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(float(level)) - 1)
            assert value <= exact
            assert float(exact) == pytest.approx(value, rel=1e-13, abs=1e-17)


def test_no_radius_at_or_below_one_half():
    assert (np.asarray(certified_radius([0.0, 0.3, 0.5], 1.0)) == 0).all()
    assert np.isfinite(certified_radius(1.0, 1.0))
